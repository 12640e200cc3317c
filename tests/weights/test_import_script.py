import runpy
import sys
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import flaxvid
from flaxvid.models.registry import create_tiny, get_spec
from flaxvid.weights.known import KNOWN, KnownFile, class_names
from flaxvid.weights.native import load_variables

SCRIPT = Path(__file__).parents[2] / "scripts" / "import_torch.py"


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["import_torch.py", *map(str, arguments)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_import_script(tmp_path, monkeypatch, capsys):
    model = flaxvid.create_model("tsn_resnet18", num_classes=3)
    shapes = jax.eval_shape(model.init, jax.random.PRNGKey(0), np.zeros((1, 1, 32, 32, 3), np.uint8))
    variables = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, np.float32), shapes)
    save_file(flaxvid.to_torch("tsn_resnet18", variables), tmp_path / "in.safetensors")
    run(monkeypatch, "tsm_resnet18", tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    loaded, info = load_variables(tmp_path / "out.safetensors")
    chex.assert_trees_all_equal(loaded, variables)
    assert (info.model, info.overrides, info.frames) == ("tsm_resnet18", {"num_classes": 3}, None)
    assert "layer1.0.conv1.weight" in capsys.readouterr().out

    with pytest.raises(SystemExit, match=r"error: .*does not fit tsm_resnet34"):
        run(monkeypatch, "tsm_resnet34", tmp_path / "in.safetensors", tmp_path / "none.safetensors")
    assert not (tmp_path / "none.safetensors").exists()


def test_numbers_that_are_not_finite_are_taken_on_request(tmp_path, monkeypatch, capsys):
    model = flaxvid.create_model("tsn_resnet18", num_classes=3)
    shapes = jax.eval_shape(model.init, jax.random.PRNGKey(0), np.zeros((1, 1, 32, 32, 3), np.uint8))
    variables = jax.tree.map(lambda leaf: np.full(leaf.shape, np.inf, np.float32), shapes)
    save_file(flaxvid.to_torch("tsn_resnet18", variables), tmp_path / "in.safetensors")
    arguments = "tsn_resnet18", tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    with pytest.raises(SystemExit, match=r"error: .*in.safetensors has numbers that are NaN or infinite"):
        run(monkeypatch, *arguments)
    run(monkeypatch, *arguments, "--allow-nonfinite")
    chex.assert_trees_all_equal(load_variables(arguments[2], allow_nonfinite=True)[0], variables)


def test_published_weights_keep_their_class_names(random_variables, tmp_path, monkeypatch, capsys):
    tiny = {option: value for option, value in get_spec("slow_r50").tiny.items() if option != "num_classes"}
    known = KnownFile("https://example.org/slow.safetensors", classes="ucf101", interval=3, options=tiny)
    monkeypatch.setitem(KNOWN, "slow_r50/test/ucf101", known)
    monkeypatch.setenv("FLAXVID_CACHE", str(tmp_path))
    file = tmp_path / "slow_r50" / "test" / "ucf101" / "slow.safetensors"
    file.parent.mkdir(parents=True)
    variables = random_variables(create_tiny("slow_r50", num_classes=101))
    save_file(flaxvid.to_torch("slow_r50", variables), file)
    run(monkeypatch, "slow_r50", "test/ucf101", tmp_path / "out.safetensors")
    trained = flaxvid.load(tmp_path / "out.safetensors")
    chex.assert_trees_all_equal(trained.variables, variables)
    assert trained.classes == class_names("ucf101")
    assert (trained.recipe.data.clips.sampling, trained.recipe.data.clips.interval) == ("dense", 3)
    run(monkeypatch, "slow_r50", "test/ucf101", tmp_path / "other.safetensors", "--num-classes", "7")
    assert "is freshly initialised and needs training" in capsys.readouterr().err
    assert load_variables(tmp_path / "other.safetensors")[1].classes is None
