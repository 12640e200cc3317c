"""Files that torch writes are read bit for bit as torch reads them; what is no dense tensor of floats is refused."""

import argparse
import collections
import datetime
import resource
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest

import flaxvid
from flaxvid.weights.archive import Archive
from flaxvid.weights.parts import find_tensors
from flaxvid.weights.tensors import read_tensors
from flaxvid.weights.torch_file import read_pickled_file, read_torch_archive, write_torch_file

torch = pytest.importorskip("torch")

TYPES = (
    "float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool", "complex64",
    "complex128", "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz",
)  # fmt: skip


def of_type(name):
    """Every pattern of bits is as likely, those of NaN too."""
    dtype = getattr(torch, name)
    if name == "bool":
        return {"w": torch.tensor([[True, False, True], [False, False, True]])}
    shape = (5, 7 * torch.empty(0, dtype=dtype).element_size())
    return {
        "w": torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).view(dtype)
    }


def tagged(base):
    parameter = torch.nn.Parameter(base.clone())
    parameter.tag = "mine"
    return parameter


BASE = torch.arange(2.0 * 3 * 4 * 6).reshape(2, 3, 4, 6)
NETWORK = torch.nn.Sequential(
    torch.nn.Conv3d(2, 3, 2), torch.nn.BatchNorm3d(3), torch.nn.LSTM(3, 4, bidirectional=True), torch.nn.Linear(3, 2)
)
KINDS = {
    **{name: of_type(name) for name in TYPES},
    "turned": {"w": BASE.transpose(0, 3), "v": BASE[0, 0].t()},
    "permuted": {"w": BASE.permute(2, 0, 3, 1)},
    "part": {"w": BASE[1:, ::2, 1:3, ::3], "row": BASE[1, 2, 3]},
    "channels last": {"w": BASE.contiguous(memory_format=torch.channels_last)},
    "one storage": {"a": BASE, "b": BASE[1], "c": BASE.view(-1)[5:17], "d": BASE},
    "offset": {"w": torch.arange(1000.0)[990:]},
    "ones": {"a": torch.ones(()), "b": torch.ones(1, 1, 1), "c": torch.ones(1, 3).expand(1, 3)},
    "empty": {"a": torch.empty(0), "b": torch.empty(3, 0, 2), "w": torch.ones(2)},
    "parameters": {"a": torch.nn.Parameter(BASE), "b": tagged(BASE), "c": torch.nn.parameter.Buffer(BASE)},
    "network": NETWORK.state_dict(keep_vars=True),
    "nested": {"epoch": 3, "model": {"state_dict": {"w": BASE}, "depth": 50}, "other": [None, {1: 2.5}]},
    "ordered": collections.OrderedDict([("b", BASE), ("a", BASE * 2)]),
    "names": {"a.b/c d": BASE, "\u00e9\u4e2d": BASE[0]},
    "large": {"w": torch.arange(300_000)},
}


def read(path):
    def pick(content):
        return find_tensors(content)[0]

    with path.open("rb") as file:
        if file.read(2) == b"PK":
            return read_torch_archive(Archive(file), path.stat().st_size, pick)
        file.seek(0)
        return read_pickled_file(file, path.stat().st_size, pick)


def flat(content):
    while not all(isinstance(item, torch.Tensor) for item in content.values()):
        content = content.get("model") or content["state_dict"]
    return {key: item.detach() for key, item in content.items() if not key.endswith("num_batches_tracked")}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_bits_are_torchs(tmp_path, kind, new):
    path = tmp_path / "w.pth"
    torch.save(KINDS[kind], path, _use_new_zipfile_serialization=new, pickle_protocol=2 + (len(kind) % 4))
    young = kind in TYPES[12:] and not new  # torch writes these, but cannot read them
    found, expected = read(path), flat(KINDS[kind] if young else torch.load(path, weights_only=False))
    assert list(found) == list(expected)
    for key, tensor in expected.items():
        assert (found[key].dtype.name, found[key].shape) == (str(tensor.dtype).removeprefix("torch."), tensor.shape)
        bits = tensor.contiguous().view(-1).view(torch.uint8).numpy() if tensor.numel() else np.empty(0, np.uint8)
        np.testing.assert_array_equal(np.ascontiguousarray(found[key]).reshape(-1).view(np.uint8), bits)


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_reads_what_is_written(tmp_path, mmap):
    rng = np.random.default_rng(0)
    tensors = {name: rng.integers(0, 2, (3, 1, 5)).astype(name) for name in TYPES[:2] + TYPES[4:12]}
    tensors |= {"turned": rng.normal(size=(4, 3)).T, "none": np.zeros((0, 2)), "one": np.ones((), np.int64)}
    write_torch_file(tmp_path / "w.pth", tensors)
    found = torch.load(tmp_path / "w.pth", weights_only=True, mmap=mmap)
    assert isinstance(found, collections.OrderedDict)
    assert list(found) == list(tensors)
    for key, array in tensors.items():
        assert (found[key].numpy().dtype, tuple(found[key].shape)) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found[key].numpy(), array)


class HistoryBuffer:
    """Pickled as mmengine's, which names its own methods."""

    def __init__(self):
        self.log, self.methods = np.arange(3.0), {"min": HistoryBuffer.min}

    def min(self):
        return self.log.min()


@pytest.mark.filterwarnings("ignore:.*weights_only")
@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_strangers_are_skipped_and_named(tmp_path, monkeypatch, new, protocol):
    module = types.ModuleType("mmengine.logging.history_buffer")
    module.HistoryBuffer = HistoryBuffer
    monkeypatch.setattr(HistoryBuffer, "__module__", module.__name__)
    monkeypatch.setattr(HistoryBuffer.min, "__module__", module.__name__)
    for name in ("mmengine", "mmengine.logging", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    optimizer = torch.optim.AdamW(NETWORK.parameters())
    content = {
        "epoch": 3,
        "best": np.float64(0.5),
        "meta": {"time": datetime.datetime(2026, 1, 1), "took": [datetime.timedelta(1)], "text": "mmengine"},
        "args": argparse.Namespace(lr=0.1, output=Path("out"), betas=(0.9, 0.99), more=argparse.Namespace(a={1})),
        "message_hub": {"log_scalars": collections.OrderedDict(loss=HistoryBuffer())},
        "optimizer": optimizer.state_dict() | {"state": {0: {"exp_avg": torch.ones(2)}}},
        "milestones": collections.Counter([3, 5]),
        "seen": collections.defaultdict(list, {"a": [1]}),
        "state_dict": {"w": torch.ones(2)},
    }
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=new, pickle_protocol=protocol)
    for name in ("mmengine", "mmengine.logging", module.__name__):
        monkeypatch.delitem(sys.modules, name)
    with pytest.warns(UserWarning, match="left out") as told:
        np.testing.assert_array_equal(read_tensors(tmp_path / "w.pth")["w"], np.ones(2))
    assert [str(warning.message) for warning in told] == [
        f"{tmp_path / 'w.pth'}: 'state_dict' is read; left out: 'meta' (datetime.datetime, datetime.timedelta), 'args' "
        "(argparse.Namespace), 'message_hub' (mmengine.logging.history_buffer.HistoryBuffer), 'optimizer' (tensors)"
    ]
    assert "mmengine" not in sys.modules


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("new", [True, False])
def test_unusual_torch_files_are_read_exactly(tmp_path, new):
    base = torch.arange(24.0).reshape(4, 6)
    tagged = torch.nn.Parameter(base.clone())
    tagged.tag = "mine"
    tensors = {
        "plain": base,
        "turned": base.t(),
        "part": base[1:3, ::2],
        "row": base[0],
        "parameter": torch.nn.Parameter(base),
        "tagged": tagged,
        "half": base.half(),
        "brain": base.bfloat16(),
        "double": base.double(),
        "none": torch.empty(0, 3),
        "one": torch.ones(()),
    }
    other = {"n": None, 3: {"f": 1.5, (1, 2): {1}}, "big": 10**30, "raw": b"x", "type": torch.float32, "z": 1j}
    for protocol in (1, 2, 3, 4, 5):
        content = {"epoch": 3, "model": {**tensors, "bn.num_batches_tracked": torch.tensor(3)}, "other": other}
        path = tmp_path / "w.pth"
        torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=new)
        read = read_tensors(path)
        assert list(read) == list(tensors)
        for key, tensor in tensors.items():
            np.testing.assert_array_equal(read[key], tensor.detach().float().numpy())


def odd_tensors():
    base, pairs = torch.arange(1.0, 7.0).reshape(2, 3), torch.view_as_complex(torch.ones(3, 2))
    ragged = [torch.ones(2), torch.ones(3)]
    yield base.to_sparse(), r"got w \(torch._utils._rebuild_sparse_tensor\)"
    yield base.to_sparse_csr(), r"_rebuild_sparse_tensor\)"
    yield torch.ones(1).expand(5), r"got w \(5,\), whose numbers overlap by its strides \(0,\): save"
    yield torch.arange(30.0).as_strided((10, 10), (1, 1)), "whose numbers overlap"
    yield torch.empty(3, device="meta"), r"_rebuild_meta_tensor"
    yield torch.nested.nested_tensor(ragged), r"_rebuild_nested_tensor"
    yield torch.quantize_per_tensor(base, 0.1, 0, torch.qint8), r"_rebuild_qtensor"
    yield pairs, "w is complex64, expected float32"
    yield pairs.conj(), "conjugated"
    yield pairs.conj().imag, "negated"
    for name in ("int8", "uint8", "bool", "int64", "uint16", "float8_e4m3fn", "float8_e5m2"):
        yield base.to(getattr(torch, name)), f"w is {name}, expected float32"
    yield base * float("nan"), r"NaN or infinite in 1 tensors, such as w \(6 of 6\)"
    yield base.double() * 1e300, "beyond those of float32"
    yield torch.nn.LazyLinear(3).weight, "could run code"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("new", [True, False])
def test_odd_tensors_in_torch_files(tmp_path, new, refused):
    for tensor, message in odd_tensors():
        torch.save({"w": tensor}, tmp_path / "w.pth", _use_new_zipfile_serialization=new)
        refused(tmp_path / "w.pth", message)


@pytest.mark.filterwarnings("ignore")
def test_odd_tensors_in_memory(refused):
    class Named(torch.Tensor):
        pass

    ragged = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    for tensor, message in (
        (torch.ones(2, 3).to_sparse(), "w is sparse_coo"),
        (torch.empty(3, device="meta"), "w is without numbers"),
        (ragged, "w is nested|is damaged"),
        (torch.ones(3).as_subclass(Named), "w is a Named"),
        (torch.nn.LazyLinear(3).weight, "uninitialized parameter"),
        (torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "w is qint8"),
        (torch.ones(3, dtype=torch.complex64), "w is complex64"),
        (torch.ones(3, dtype=torch.int8), "w is int8"),
    ):
        refused({"w": tensor}, message)
    negated = torch.view_as_complex(torch.ones(3, 2)).conj().imag
    np.testing.assert_array_equal(read_tensors({"w": negated})["w"], -np.ones(3))


def test_a_torch_file_in_itself(tmp_path, refused):
    mapping = {"w": torch.ones(2)}
    mapping["model"] = mapping
    torch.save(mapping, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", "more than 8 deep, or one that holds itself")


def test_torchscript(tmp_path, refused):
    torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(tmp_path / "w.pt")
    refused(tmp_path / "w.pt", r"is a TorchScript archive: save torch.jit.load\(path\).state_dict\(\)")


@pytest.mark.parametrize("new", [True, False])
def test_memory_is_bounded_by_the_file(tmp_path, new, refused):
    """A classifier of 1e7 rows over one number, and a thousand names of one tensor."""
    path, before = tmp_path / "w.pth", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    torch.save({"fc.weight": torch.zeros(1).expand(10**7, 512)}, path, _use_new_zipfile_serialization=new)
    refused(path, "whose numbers overlap")
    refused(path, "whose numbers overlap", lambda path: flaxvid.load_torch("tsn_resnet18", path))
    shared = torch.zeros(250_000)
    torch.save({f"w{n}": shared for n in range(1000)}, path, _use_new_zipfile_serialization=new)
    refused(path, r"at most \d+, got 1000000000")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


def test_an_optimizers_storages_are_not_read(tmp_path, monkeypatch):
    path, opened = tmp_path / "w.pth", []
    torch.save({"optimizer": {"m": torch.ones(1000)}, "state_dict": {"w": torch.ones(3)}}, path)
    plain = zipfile.ZipFile.open
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda self, info: opened.append(info.filename) or plain(self, info))
    with pytest.warns(UserWarning, match="left out: 'optimizer'"):
        assert list(read_tensors(path)) == ["w"]
    assert "w/data/1" in opened
    assert "w/data/0" not in opened
