import chex
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from flaxvid.weights.native import WeightsInfo, load_variables, save_variables


def test_variables_and_info_come_back(tmp_path):
    variables = {
        "params": {"stem": {"conv1": {"kernel": jnp.arange(6.0).reshape(2, 3).T}}},
        "params_4f": {"stem": {"norm1": {"scale": jnp.ones(2, jnp.bfloat16)}}},
    }
    info = WeightsInfo("tsm_resnet50", {"num_classes": {"action": 3}, "mean": [0.5, 0.5, 0.5]}, (4, 8), ("a", "b"))
    save_variables(tmp_path / "new" / "w.safetensors", variables, info)
    loaded, loaded_info = load_variables(tmp_path / "new" / "w.safetensors")
    chex.assert_trees_all_equal(loaded, variables)
    assert loaded["params_4f"]["stem"]["norm1"]["scale"].dtype == jnp.bfloat16
    assert loaded_info == info
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["w.safetensors"]


def test_errors(tmp_path):
    with pytest.raises(ValueError, match=r"ends in .safetensors"):
        save_variables(tmp_path / "w.npz", {}, WeightsInfo("tsm_resnet50"))
    with pytest.raises(FileNotFoundError, match="no weights file at"):
        load_variables(tmp_path / "w.safetensors")
    save_file({"conv1.weight": np.ones(1)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"read a file with torch's keys by flaxvid.load_model"):
        load_variables(tmp_path / "w.safetensors")
