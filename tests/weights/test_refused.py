"""What is no file of plain, finite floats is refused by one error that names it; what is unusual is read exactly."""

import json
import pickle
import resource
import struct
import tarfile
import time
import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import flaxvid
from flaxvid import trees
from flaxvid.frames import FrameFlexible
from flaxvid.models.registry import create_tiny
from flaxvid.train.trained import load_trained
from flaxvid.weights.native import WeightsInfo, is_native, load_variables, save_variables
from flaxvid.weights.tensors import read_tensors

ONES = np.ones((2, 3), np.float32)


def refused(source, message, reader=read_tensors):
    """The one error, soon, with the file's name."""
    began = time.monotonic()
    with pytest.raises(ValueError, match=message) as error:
        reader(source)
    assert str(error.value).startswith("the state_dict" if isinstance(source, dict) else str(source))
    assert time.monotonic() - began < 20


# In memory


def in_itself():
    mapping = {"w": ONES}
    mapping["model"] = mapping
    return mapping


def deep():
    mapping = {"w": ONES}
    for _ in range(100_000):
        mapping = {"state_dict": mapping}
    return mapping


class Endless(dict):
    def __getitem__(self, key):
        return Endless(w=ONES)

    def get(self, key, default=None):
        return self[key] if key == "model" else default


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (in_itself(), "more than 8 deep, or one that holds itself"),
        (deep(), "more than 8 deep"),
        (Endless(), "more than 8 deep"),
        ({"w": ONES.astype(np.int8)}, "w is int8, expected float32"),
        ({"w": ONES > 0}, "w is bool"),
        ({"w": ONES.astype(np.uint8), "v": ONES + 1j}, r"2 tensors .* w is uint8.*; v is complex64"),
        ({"w": ONES.astype(ml_dtypes.float8_e4m3fn)}, "w is float8_e4m3fn"),
        ({"w": ONES.astype(object)}, "w is object"),
        ({"w": np.array(["a"])}, "w is str"),
        ({"w": np.ma.masked_array(ONES, ONES > 0)}, "w is masked"),
        ({"w": jax.ShapeDtypeStruct((2,), np.int32)}, "w is int32"),
        ({"w": ONES * np.float64(1e300)}, "w has numbers beyond those of float32"),
        ({"w": np.array([1, np.nan, np.inf], np.float16)}, r"NaN or infinite in 1 tensors, such as w \(2 of 3\)"),
        ({3: ONES}, "names of tensors for keys, got 3"),
        ({("a", "b"): ONES}, "names of tensors for keys, got a tuple"),
        ({"a\x1b[2J": ONES}, r"got 'a\\x1b\[2J'"),
        ({"w" * 5000: ONES}, "got 'www"),
        ({"w": [1.0]}, "got 'w': pass the part"),
    ],
)
def test_mappings(mapping, message):
    refused(mapping, message)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4", ml_dtypes.bfloat16])
def test_floats_of_other_widths_are_read_exactly(dtype):
    read = read_tensors({"w": np.arange(6).astype(dtype), "empty": np.zeros((0, 3), dtype), "one": np.ones((), dtype)})
    np.testing.assert_array_equal(read["w"], np.arange(6, dtype=np.float32))
    assert [leaf.dtype for leaf in read.values()] == [np.float32] * 3
    assert (read["empty"].shape, read["one"].shape) == ((0, 3), ())


def test_nan_and_infinity_where_they_are_wanted(tmp_path):
    odd = np.array([1, np.nan, np.inf, -np.inf], np.float32)
    np.testing.assert_array_equal(read_tensors({"w": odd}, allow_nonfinite=True)["w"], odd)
    model = create_tiny("tsm_resnet18", depths=(1,))
    variables = jax.tree.map(np.array, model.init(jax.random.key(0), np.zeros((1, 2, 32, 32, 3), np.uint8)))
    variables["params"]["stem"]["conv1"]["kernel"][0, 0, 0, 0] = np.nan
    options = {"width": 8, "depths": (1,)}
    file = tmp_path / "torch.safetensors"
    save_file(flaxvid.to_torch("tsm_resnet18", variables), file)
    refused(file, "NaN or infinite", lambda path: flaxvid.load_torch("tsm_resnet18", path, overrides=options))
    read = flaxvid.load_torch("tsm_resnet18", file, overrides=options, allow_nonfinite=True)
    np.testing.assert_array_equal(
        read["params"]["stem"]["conv1"]["kernel"], variables["params"]["stem"]["conv1"]["kernel"]
    )
    file = tmp_path / "ours.safetensors"
    save_variables(file, variables, WeightsInfo("tsm_resnet18", {"depths": [1]}))
    refused(file, "NaN or infinite.*; allow_nonfinite=True takes them", load_variables)
    assert np.isnan(load_variables(file, allow_nonfinite=True)[0]["params"]["stem"]["conv1"]["kernel"]).any()


# Files that are something else


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 123\n", "Git LFS pointer.*git lfs pull"),
        (b"\xef\xbb\xbf\n <!DOCTYPE html><html>404</html>", "is a web page"),
        (b'{"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}', "an index of several files"),
        (b"conv1.weight 0.5 0.25\n", "is a text file that begins with 'conv1.weight"),
        (b"\x1f\x8b\x08\0\0\0", "is compressed by gzip"),
        (b"\x89HDF\r\n\x1a\n\0", "is an HDF5 file"),
        (b"\x93NUMPY\x01\0v\0{'descr'", "is one NumPy array"),
        (b"\0" * 700, "is damaged"),
        (bytes(range(256)) * 3, "is damaged"),
        (b"PK\x05\x06" + b"\0" * 18, "is a zip archive, but none of torch"),
        (pickle.dumps({"w": 1}), "is a pickle, but none of torch|is damaged"),
        (pickle.dumps({"w": ONES}), "could run code, so it was not read|is damaged"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_other_files(tmp_path, content, message, suffix):
    pytest.importorskip("torch")
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    refused(path, message)


def test_other_archives_and_folders(tmp_path):
    pytest.importorskip("torch")
    np.savez(tmp_path / "w.npz", w=ONES)
    refused(tmp_path / "w.npz", "is a NumPy archive: pass dict")
    (tmp_path / "w.onnx").write_bytes(b"\x08\x07\x12\x07pytorch")
    refused(tmp_path / "w.onnx", "is an ONNX file")
    with tarfile.open(tmp_path / "w.pth.tar", "w") as archive:
        archive.add(tmp_path / "w.npz", "w.npz")
    refused(tmp_path / "w.pth.tar", "is a tar archive")
    (tmp_path / "empty.pth").touch()
    refused(tmp_path / "empty.pth", "is empty: fetch it again")
    for reader in (read_tensors, lambda path: flaxvid.load_torch("tsn_resnet18", path)):
        with pytest.raises(FileNotFoundError, match=r"no weights file at .*: it is a folder"):
            reader(tmp_path)


def test_the_content_says_what_a_file_is(tmp_path):
    save_file({"w": ONES}, tmp_path / "w.pth")
    np.testing.assert_array_equal(read_tensors(tmp_path / "w.pth")["w"], ONES)
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.ones(2)}, tmp_path / "w.safetensors")
    np.testing.assert_array_equal(read_tensors(tmp_path / "w.safetensors")["w"], np.ones(2))


# safetensors


def write_safetensors(path, header, body=b"\0" * 8, length=None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + body)


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
TWICE = b'{"w": %b, "w": %b}' % (json.dumps(ENTRY).encode(), json.dumps({**ENTRY, "shape": [1, 2]}).encode())


@pytest.mark.parametrize(
    ("header", "options", "message"),
    [
        ({"w": ENTRY}, {"length": 1 << 40}, "header claims 1099511627776 bytes"),
        ({"w": ENTRY}, {"length": 1 << 20}, "is damaged"),
        ({"w": ENTRY}, {"length": 3}, "is damaged"),
        ({"w": ENTRY}, {"body": b"\0" * 7}, "is damaged"),
        ({"w": ENTRY}, {"body": b"\0" * 9}, "is damaged"),
        ({"w": ENTRY, "v": ENTRY}, {}, "is damaged"),
        (TWICE, {}, "its header names a tensor twice"),
        ({"w": {**ENTRY, "shape": [1 << 62, 4]}}, {}, "is damaged"),
        ({"w": {**ENTRY, "shape": [0, 1 << 62], "data_offsets": [0, 0]}}, {"body": b""}, "is damaged"),
        ({"w": {**ENTRY, "shape": [1] * 70 + [2]}}, {}, "is damaged"),
        ({"w": {**ENTRY, "shape": [-2]}}, {}, "is damaged"),
        ({"w": {**ENTRY, "dtype": "F33"}}, {}, "is damaged"),
        (b"{" * 100_000, {}, "is damaged"),
        (b"[" * 100_000, {}, "is damaged"),
        ({"a\nb": ENTRY}, {}, r"got 'a\\nb'"),
        ({"w/" * 5000: ENTRY}, {}, "names of tensors for keys"),
        *[
            ({"w": {**ENTRY, "dtype": kind, "shape": shape}}, {}, f"got w as {kind}: convert 1 tensors to float32")
            for kind, shape in (("I8", [8]), ("U8", [8]), ("BOOL", [8]), ("C64", [1]), ("F8_E4M3", [8]), ("I64", [1]))
        ],
    ],
)
def test_damaged_and_odd_safetensors(tmp_path, header, options, message):
    write_safetensors(tmp_path / "w.safetensors", header, **options)
    refused(tmp_path / "w.safetensors", message)


# Files of ours


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged"),
        ("[" * 100_000, "is damaged"),
        ("[1]", "must say its model, overrides, frames, classes"),
        ('{"model": "tsm_resnet18", "colour": 1}', "must say its model"),
        ("{}", "a model that flaxvid cannot make"),
        ('{"model": "resnet99"}', "cannot make: unknown model 'resnet99'"),
        ('{"model": 3}', "cannot make"),
        ('{"model": ["a"]}', "cannot make"),
        ('{"model": "tsm_resnet18", "overrides": {"with": 3}}', "cannot make: tsm_resnet18 has no option with"),
        ('{"model": "tsm_resnet18", "overrides": [1]}', "cannot make"),
        ('{"model": "tsm_resnet18", "overrides": {"num_classes": "x"}}', "cannot make"),
        ('{"model": "tsm_resnet18", "frames": 4}', "must have frame counts"),
        ('{"model": "tsm_resnet18", "frames": [4, 0]}', "must have frame counts"),
        ('{"model": "tsm_resnet18", "frames": [4.5]}', "must have frame counts"),
        ('{"model": "tsm_resnet18", "classes": [1, 2]}', "must have lists of class names"),
        ('{"model": "tsm_resnet18", "classes": "ab"}', "must have lists of class names"),
    ],
)
def test_our_files_with_other_metadata(tmp_path, text, message):
    path = tmp_path / "w.safetensors"
    save_file({"params/stem/conv1/kernel": ONES}, path, metadata={"flaxvid": text})
    assert is_native(path)
    refused(path, message, load_variables)
    refused(path, message, load_trained)


def test_our_files_with_other_tensors(tmp_path):
    path, said = tmp_path / "w.safetensors", {"flaxvid": '{"model": "tsm_resnet18"}'}
    for tensors, message in (
        ({"w": ONES}, "has no parameters"),
        ({"params/a": ONES, "params/a/b": ONES}, "is damaged"),
        ({"params/a": ONES.astype(np.int8)}, "got params/a as I8"),
    ):
        save_file(tensors, path, metadata=said)
        refused(path, message, load_variables)
    save_file({"params/a": ONES}, path, metadata=said)
    path.write_bytes(path.read_bytes()[:-1])
    for reader in (is_native, load_variables, load_trained, read_tensors):
        refused(path, "is damaged", reader)


@pytest.mark.parametrize("frames", [None, (2, 4)])
def test_our_files_must_fit_the_model_that_they_name(tmp_path, frames):
    """Statistics of one number would be broadcast without a word."""
    model = create_tiny("tsm_resnet18", depths=(1,))
    variables = model.init(jax.random.key(0), np.zeros((1, 2, 32, 32, 3), np.uint8))
    if frames:
        variables = FrameFlexible(model, frames).specialise(variables)
    collection = f"batch_stats{'_4f' if frames else ''}"
    info = WeightsInfo("tsm_resnet18", {"depths": [1], "width": 8, "image_size": 32, "num_frames": 2}, frames)
    path = tmp_path / "w.safetensors"
    save_variables(path, variables, info)
    assert load_trained(path).frames == (frames or (2,))
    mean = f"{collection}/stem/norm1/mean"
    flat = trees.flatten(variables)
    for changed, message in (
        ({mean: np.zeros(1, np.float32)}, r"norm1/mean \(expected \(8,\), got \(1,\)\)"),
        ({mean: None}, r"norm1/mean \(expected \(8,\), got None\)"),
        ({f"{collection}/stem/norm9/mean": ONES}, r"norm9/mean \(expected None, got \(2, 3\)\)"),
    ):
        kept = {key: leaf for key, leaf in {**flat, **changed}.items() if leaf is not None}
        save_variables(path, trees.unflatten(kept), info)
        refused(path, f"1 variables differ, such as .*{message}", load_trained)


# Torch files


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("new", [True, False])
def test_unusual_torch_files_are_read_exactly(torch, tmp_path, new):
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
        "expanded": torch.ones(1).expand(5),
        "windows": torch.arange(30.0).as_strided((10, 10), (1, 1)),
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


def odd_tensors(torch):
    base, pairs = torch.arange(1.0, 7.0).reshape(2, 3), torch.view_as_complex(torch.ones(3, 2))
    ragged = [torch.ones(2), torch.ones(3)]
    yield base.to_sparse(), r"got w \(torch._utils._rebuild_sparse_tensor\)"
    yield base.to_sparse_csr(), r"_rebuild_sparse_tensor\)"
    yield torch.empty(3, device="meta"), r"_rebuild_meta_tensor"
    yield torch.nested.nested_tensor(ragged), r"_rebuild_nested_tensor"
    yield torch.quantize_per_tensor(base, 0.1, 0, torch.qint8), r"_rebuild_qtensor"
    yield pairs, "got w as complex64"
    yield pairs.conj(), "conjugated"
    yield pairs.conj().imag, "negated"
    for name in ("int8", "uint8", "bool", "int64", "uint16", "float8_e4m3fn", "float8_e5m2"):
        yield base.to(getattr(torch, name)), f"got w as {name}: convert it to float32"
    yield base * float("nan"), r"NaN or infinite in 1 tensors, such as w \(6 of 6\)"
    yield base.double() * 1e300, "beyond those of float32"
    yield torch.nn.LazyLinear(3).weight, "could run code"
    yield base.numpy(), "could run code"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("new", [True, False])
def test_odd_tensors_in_torch_files(torch, tmp_path, new):
    for tensor, message in odd_tensors(torch):
        torch.save({"w": tensor}, tmp_path / "w.pth", _use_new_zipfile_serialization=new)
        refused(tmp_path / "w.pth", message)


@pytest.mark.filterwarnings("ignore")
def test_odd_tensors_in_memory(torch):
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


def test_a_torch_file_in_itself(torch, tmp_path):
    mapping = {"w": torch.ones(2)}
    mapping["model"] = mapping
    torch.save(mapping, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", "more than 8 deep, or one that holds itself")


def test_torchscript(torch, tmp_path):
    torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(tmp_path / "w.pt")
    refused(tmp_path / "w.pt", r"is a TorchScript archive: save torch.jit.load\(path\).state_dict\(\)")


@pytest.mark.parametrize("new", [True, False])
def test_memory_is_bounded_by_the_file(torch, tmp_path, new):
    """A classifier of 1e7 rows over one number, and a thousand names of one tensor."""
    path, before = tmp_path / "w.pth", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    torch.save({"fc.weight": torch.zeros(1).expand(10**7, 512)}, path, _use_new_zipfile_serialization=new)
    refused(path, r"bytes, expected tensors of at most \d+, got 20480000000")
    refused(path, r"at most \d+, got 20480000000", lambda path: flaxvid.load_torch("tsn_resnet18", path))
    shared = torch.zeros(250_000)
    torch.save({f"w{n}": shared for n in range(1000)}, path, _use_new_zipfile_serialization=new)
    refused(path, r"at most \d+, got 1000000000")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


def pieces(path):
    with zipfile.ZipFile(path) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def zipped(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def test_archives_are_checked(torch, tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"w": torch.arange(1000.0), "v": torch.ones(3)}, path)
    whole, members = path.read_bytes(), pieces(path)
    zipped(path, members, zipfile.ZIP_DEFLATED)
    np.testing.assert_array_equal(read_tensors(path)["w"], np.arange(1000))
    for compression in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        zipped(path, members, compression)
        refused(path, "is compressed in a way that torch has not")
    at = whole.index(np.arange(1000, dtype=np.float32).tobytes())
    for place in (at, at + 2001, at + 3999):
        flipped = bytearray(whole)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        refused(path, r"Bad CRC-32 for file 'w/data/0'")
    for content in (members["w/data/0"][:-4], members["w/data/0"] + b"\0\0\0\0"):
        zipped(path, {**members, "w/data/0": content})
        refused(path, rf"expected 4000 bytes of data/0, got {len(content)}: fetch it again")
    zipped(path, {name: content for name, content in members.items() if name != "w/data/0"})
    refused(path, "no item named 'w/data/0'")
    zipped(path, {**members, "w/byteorder": b"big"})
    refused(path, "big-endian")
    zipped(path, {**members, "v/data.pkl": members["w/data.pkl"]})
    refused(path, "but none of torch")
    zipped(path, {**members, "w/data.pkl": b"\x80\x02" + b"}" * (1 << 27) + b"."}, zipfile.ZIP_DEFLATED)
    refused(path, f"expected {16 << 20} bytes of data.pkl, got 134217731")
    path.write_bytes(whole[: len(whole) // 2])
    refused(path, "is damaged")


def test_an_old_torch_file_is_checked(torch, tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"w": torch.arange(1000.0)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    at = whole.index(struct.pack("<q", 1000) + np.arange(3, dtype=np.float32).tobytes())
    for number in (999, 1001, -1, 1 << 40):
        path.write_bytes(whole[:at] + struct.pack("<q", number) + whole[at + 8 :])
        refused(path, "is damaged or was cut off")
    path.write_bytes(whole[:-1])
    refused(path, "is damaged or was cut off")


TENSOR = (
    b"X\x01\0\0\0actorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu"
    b"%(numbers)btQK\0%(size)b\x85%(stride)b\x85\x89}tR"
)
SMALL = {b"numbers": b"K\x01", b"size": b"K\x01", b"stride": b"K\x01"}
HUGE = b"\x8a\x0a" + b"\xff" * 9 + b"\x7f"
MANY = b"J\0\0\0\x40"
DOUBLED = b")q\0" + b"0h\0h\0\x86q\0" * 60  # a tuple of 2 ** 60 parts


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (b"}" + TENSOR % {**SMALL, b"size": MANY, b"stride": b"K\0"} + b"s.", "expected tensors of at most"),
        (b"}" + TENSOR % {**SMALL, b"numbers": MANY} + b"s.", "expected tensors of at most"),
        (b"}" + TENSOR % {**SMALL, b"size": b"K\x02"} + b"s.", r"a \(2,\) needs 2 numbers, its storage has 1"),
        (b"}" + TENSOR % {**SMALL, b"numbers": HUGE} + b"s.", "no shape of 32 axes"),
        (b"}" + TENSOR % {**SMALL, b"stride": b"J\xff\xff\xff\xff"} + b"s.", "no shape of 32 axes"),
        (b"}" + TENSOR % {**SMALL, b"size": DOUBLED} + b"s.", "no shape of 32 axes"),
        (b"}" + TENSOR % SMALL + b"s" + TENSOR % SMALL + b"s.", "holds 'a' twice"),
        (b"}" + DOUBLED + b"K\x01s.", "got a tuple: pass the part"),
        (DOUBLED + b")R.", "is damaged"),
        (DOUBLED + b")\x81.", "is damaged"),
        (b"}" + DOUBLED + b"Qs.", "is damaged"),
        (b"}" + TENSOR % SMALL + b"}bs.", "is damaged"),
        (b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.", "must hold a mapping of tensors"),
        (b"ctorch\nFloatTensor\nJ\xff\xff\xff\x7f\x85R.", "must hold a mapping of tensors"),
        (b"}r\xff\xff\xff\x7f.", "an empty mapping"),
        (b"\x8b\xff\xff\xff\x7f.", "is damaged"),
        (b"\x8e\xff\xff\xff\xff\xff\xff\xff\0.", "is damaged"),
        (b"\x96\xff\xff\xff\xff\xff\0\0\0.", "is damaged"),
        (b"L" + b"9" * 1_000_000 + b"L\n.", "is damaged"),
        (b"}" * 5_000_000 + b".", "more than 2000000 things"),
        (b"(l\x85q\1" + b"ccollections\nOrderedDict\nh\1R" * 100_000 + b".", "is damaged|must hold|more than"),
        (b"}(" + b"".join(b"\x8a\x14" + (n * (2**61 - 1)).to_bytes(20, "little") + b"N" for n in range(1, 99_999))
         + b"u.", "pass the part"),
        (b"cos\nsystem\nX\x02\0\0\0ls\x85R.", r"could run code, so it was not read \(GLOBAL os.system\)"),
        (b"X\x02\0\0\0osX\x06\0\0\0system\x93X\x02\0\0\0ls\x85R.", r"could run code.*GLOBAL os.system"),
        (b"ctorch.storage\n_load_from_bytes\nX\x02\0\0\0ls\x85R.", "could run code"),
        (b"(X\x02\0\0\0lsios\nsystem\n.", "a pickle with INST"),
        (b"\x82\x01.", "a pickle with EXT1"),
        (b"\x97.", "a pickle with NEXT_BUFFER"),
        (b"0.", "is damaged"),
        (b"", "is damaged"),
    ],
)  # fmt: skip
def test_hostile_pickles(torch, tmp_path, pickled, message):
    """In an archive that is whole; none of them may take long, or memory, or run anything."""
    path = tmp_path / "w.pth"
    zipped(path, {"x/data.pkl": b"\x80\x02" + pickled, "x/data/0": struct.pack("<f", 7)}, zipfile.ZIP_DEFLATED)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(path, message)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 700 << 10
    path.write_bytes(b"\x80\x02" + pickled)
    refused(path, "")


def test_the_pickles_above_are_of_a_good_kind(torch, tmp_path):
    path = tmp_path / "w.pth"
    zipped(
        path,
        {"x/data.pkl": b"\x80\x02}" + TENSOR % SMALL + b"s.", "x/data/0": struct.pack("<f", 7), "x/version": b"3\n"},
    )
    np.testing.assert_array_equal(read_tensors(path)["a"], [7])
    assert torch.load(path, weights_only=True)["a"].tolist() == [7]


def test_an_optimizers_storages_are_not_read(torch, tmp_path, monkeypatch):
    path, opened = tmp_path / "w.pth", []
    torch.save({"optimizer": {"m": torch.ones(1000)}, "state_dict": {"w": torch.ones(3)}}, path)
    plain = zipfile.ZipFile.open
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda self, info: opened.append(info.filename) or plain(self, info))
    assert list(read_tensors(path)) == ["w"]
    assert "w/data/1" in opened
    assert "w/data/0" not in opened


@pytest.mark.parametrize("head", [np.ones((), np.float32), np.ones((0, 64), np.float32)])
def test_a_classifier_without_rows(head):
    state_dict = {"fc.weight": head, "conv1.weight": np.ones((8, 3, 7, 7), np.float32)}
    with pytest.raises(ValueError, match="does not fit tsn_resnet18"):
        flaxvid.load_torch("tsn_resnet18", state_dict)


def test_frame_counts_without_end():
    model = create_tiny("tsm_resnet18", depths=(1,))
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 2, 32, 32, 3), np.uint8))
    shapes = jax.eval_shape(FrameFlexible(model, (7,)).specialise, shapes)
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    names = flaxvid.to_torch("tsm_resnet18", variables)
    many = {name.replace("_7.", f"_{count}."): leaf for count in range(1000) for name, leaf in names.items()}
    refused(
        many,
        "the state_dict has variables for 1000 frame counts, expected 32 or fewer",
        lambda source: flaxvid.load_torch("tsm_resnet18", source, overrides={"width": 8, "depths": (1,)}),
    )
