import os
import pickle

import numpy as np
import pytest
from safetensors.numpy import save_file

from flaxvid.weights.tensors import read_tensors, to_numpy, unwrapped

TENSORS = {"module.conv1.weight": np.ones((2, 1), np.float32), "module.bn1.num_batches_tracked": np.zeros((), np.int64)}


@pytest.mark.parametrize(
    "wrap", [(), ("state_dict",), ("model_state_dict",), ("model_state",), ("model", "state_dict")]
)
def test_containers_are_unwrapped_and_counters_dropped(wrap):
    mapping = TENSORS
    for name in wrap:
        mapping = {name: mapping, "epoch": 3}
    assert list(read_tensors(mapping)) == ["module.conv1.weight"]


def test_tensors_in_two_places_are_not_chosen_from():
    other = {"conv1.weight": np.zeros(3, np.float32)}
    assert list(read_tensors({"state_dict": TENSORS, "model": {"depth": 50}})) == ["module.conv1.weight"]
    for content in ({"state_dict": TENSORS, "model": other}, {"model": {"model_state": other, "state_dict": TENSORS}}):
        where = "model/state_dict" if len(content) == 1 else "state_dict"
        with pytest.raises(ValueError, match=f"must hold tensors in one place, got '{where}' and .*: choose by part="):
            read_tensors(content)
        assert list(read_tensors(content, part=where)) == ["module.conv1.weight"]
    with pytest.raises(ValueError, match="has no part 'ema', expected one of 'model': choose another"):
        read_tensors(content, part="ema")


def test_unwrapped_drops_wrappers_only():
    assert unwrapped("module.base_model.layer1.0.conv1.net.weight") == "layer1.0.conv1.weight"
    assert unwrapped("backbone.layer1.0.downsample.0.weight") == "layer1.0.downsample.0.weight"
    assert unwrapped("network.modules.0.weight") == "network.modules.0.weight"


def test_mapping_without_tensors():
    with pytest.raises(ValueError, match="got 'epoch', 'student': choose by part='student'"):
        read_tensors({"epoch": 3, "student": TENSORS})
    with pytest.raises(ValueError, match="got 'epoch', 'depth': pass the part"):
        read_tensors({"epoch": 3, "depth": 50})
    with pytest.raises(ValueError, match="an empty mapping"):
        read_tensors({})


def test_safetensors_are_read_without_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    save_file(TENSORS, tmp_path / "w.safetensors")
    assert list(read_tensors(tmp_path / "w.safetensors")) == ["module.conv1.weight"]


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights file at wwww"):
        read_tensors("w" * 5000)
    with pytest.raises(FileNotFoundError, match="no weights file at"):
        read_tensors(tmp_path / "none.pth")


class Mischief:
    """Its pickle makes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("new_format", [True, False])
def test_a_file_with_code_is_refused_and_not_run(tmp_path, new_format):
    torch = pytest.importorskip("torch")
    path, trace = tmp_path / "evil.pth", tmp_path / "was_here"
    content = {"state_dict": {"w": torch.ones(1)}, "extra": Mischief(str(trace))}
    torch.save(content, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(ValueError, match=r"could run code, so it was not read \(.*posix.mkdir"):
        read_tensors(path)
    path.write_bytes(pickle.dumps(content["extra"]))
    with pytest.raises(ValueError, match="could run code, so it was not read"):
        read_tensors(path)
    assert not trace.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", b"PK\x03\x04 broken"])
def test_damaged_file(tmp_path, content):
    pytest.importorskip("torch")
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"w.pt is"):
        read_tensors(tmp_path / "w.pt")


@pytest.mark.parametrize("new_format", [True, False])
def test_torch_files_of_both_formats(tmp_path, new_format):
    torch = pytest.importorskip("torch")
    tensors = {"w": torch.randn(3, 2), "half": torch.ones(2, dtype=torch.bfloat16, requires_grad=True)}
    path = tmp_path / "w.pth.tar"
    torch.save({"epoch": 1, "state_dict": tensors}, path, _use_new_zipfile_serialization=new_format)
    read = read_tensors(path)
    np.testing.assert_array_equal(to_numpy(read["w"]), tensors["w"].numpy())
    assert to_numpy(read["half"]).dtype == np.float32


def test_a_file_that_holds_no_mapping(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save(torch.ones(2), tmp_path / "w.pth")
    with pytest.raises(ValueError, match="must hold a mapping of tensors, got Tensor"):
        read_tensors(tmp_path / "w.pth")
