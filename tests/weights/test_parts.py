"""A file that holds several networks: all are named, `part` chooses, and what is left out is said."""

import pickle

import chex
import jax
import numpy as np
import pytest

import flaxvid
from flaxvid.train.trained import load
from flaxvid.weights.native import load_variables
from flaxvid.weights.tensors import read_tensors

SMALL = {"width": 8, "depths": (3, 2)}


def tensors(number):
    return {"module.w": np.full(3, number, np.float32), "module.bn.num_batches_tracked": np.zeros((), np.int64)}


def pickled(path, content):
    path.write_bytes(pickle.dumps(content, 4))
    return path


def test_one_of_several(tmp_path, refused):
    content = {"encoder": tensors(1), "predictor": tensors(2), "target_encoder": tensors(3), "epoch": 3}
    path = pickled(tmp_path / "w.pt", content)
    for source in (path, content):
        refused(source, "in one place, got 'encoder', 'target_encoder' and 'predictor': choose by part='encoder'$")
        for part, number in (("encoder", 1), ("predictor", 2), ("target_encoder", 3)):
            left = ", ".join(f"'{name}' (tensors)" for name in content if name not in (part, "epoch"))
            with pytest.warns(UserWarning, match="left out") as told:
                np.testing.assert_array_equal(read_tensors(source, part=part)["module.w"], [number] * 3)
            assert str(told[0].message).endswith(f": '{part}' is read; left out: {left}")
    for part in ("ema", "epoch", "encoder/module", ""):
        message = f"has no part '{part}', expected one of 'encoder', 'predictor', 'target_encoder': choose another"
        refused(path, message, lambda path, part=part: read_tensors(path, part=part))


def test_parts_of_parts(tmp_path, refused):
    inner = {"net": tensors(1), "ema": tensors(2)}
    path = pickled(tmp_path / "w.pth", {"model": {"state_dict": inner, "depth": 50}})
    refused(path, "got 'model/state_dict/net' and 'model/state_dict/ema': choose by part='model/state_dict/net'")
    refused(path, "got 'model/net'", lambda path: read_tensors(pickled(path, {"model": inner}), part="model"))
    with pytest.warns(UserWarning, match=r"'model/ema' is read; left out: 'net' \(tensors\)$"):
        np.testing.assert_array_equal(read_tensors(path, part="model/ema")["module.w"], [2, 2, 2])


@pytest.mark.filterwarnings("error")
def test_one_network_under_two_names_needs_no_choice(tmp_path):
    one = tensors(1)
    pickled(tmp_path / "w.pth", {"model": {"state_dict": one}, "epoch": 3})
    assert list(read_tensors(tmp_path / "w.pth")) == ["module.w"]
    pickled(tmp_path / "w.pth", {"net": one, "ema": one})
    assert list(read_tensors(tmp_path / "w.pth", part="ema")) == ["module.w"]


def test_parts_of_a_flax_file(tmp_path, refused):
    from flax.serialization import msgpack_serialize

    path = tmp_path / "checkpoint"
    path.write_bytes(msgpack_serialize({"params": {"a": np.ones(2)}, "ema_params": {"a": np.zeros(2)}}))
    np.testing.assert_array_equal(read_tensors(path)["a"], [1, 1])
    np.testing.assert_array_equal(read_tensors(path, part="ema_params")["a"], [0, 0])
    refused(path, "has no part 'ema', expected one of", lambda path: read_tensors(path, part="ema"))


@pytest.fixture(scope="module")
def networks():
    """Random variables of a small network, and others."""
    model = flaxvid.create_model("tsm_resnet101", num_classes=3, shift_every=2, **SMALL)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 2, 32, 32, 3), np.uint8))
    rng = np.random.default_rng(0)
    return [jax.tree.map(lambda leaf: rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32), shapes) for _ in range(2)]


@pytest.fixture
def file(networks, tmp_path):
    first, second = (flaxvid.to_torch("tsm_resnet101", one, overrides={"shift_every": 2}) for one in networks)
    return pickled(tmp_path / "w.pth", {"model": first, "ema": second})


@pytest.mark.filterwarnings("ignore:.*left out")
def test_every_reader_takes_a_part(networks, file, tmp_path, call_script):
    with pytest.raises(ValueError, match="got 'model' and 'ema': choose by part='model'"):
        flaxvid.load_model("tsm_resnet101", file, **SMALL)
    _, variables = flaxvid.load_model("tsm_resnet101", file, part="ema", **SMALL)
    chex.assert_trees_all_equal(variables, networks[1])
    with pytest.raises(ValueError, match=rf'load_model\("tsm_resnet101", "{file}", part="model"\)'):
        flaxvid.load_torch("tsm_resnet101", file, part="model", overrides=SMALL)
    options = {**SMALL, "shift_every": 2}
    chex.assert_trees_all_equal(flaxvid.load_torch("tsm_resnet101", file, part="model", overrides=options), networks[0])
    trained = load(file, model="tsm_resnet101", part="ema", overrides=options)
    chex.assert_trees_all_equal(trained.variables, networks[1])
    assert trained.recipe.model.part == "ema"
    flaxvid.save(trained, tmp_path / "ours.safetensors")
    assert load_variables(tmp_path / "ours.safetensors")[1].model == "tsm_resnet101"
    with pytest.raises(ValueError, match=r"expected a torch file for part 'ema', got .*ours\.safetensors, which"):
        load(tmp_path / "ours.safetensors", part="ema")
    with pytest.raises(SystemExit, match="does not fit tsm_resnet101"):  # read, but it is a small one
        call_script("import_torch.py", "tsm_resnet101", file, tmp_path / "out.safetensors", "--part", "ema")
