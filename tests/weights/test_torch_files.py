"""Torch files: the unusual are read exactly, the odd, damaged and hostile refused by one error, in bounded memory."""

import resource
import struct
import zipfile

import numpy as np
import pytest

import flaxvid
from flaxvid.weights.tensors import read_tensors


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
def test_odd_tensors_in_torch_files(torch, tmp_path, new, refused):
    for tensor, message in odd_tensors(torch):
        torch.save({"w": tensor}, tmp_path / "w.pth", _use_new_zipfile_serialization=new)
        refused(tmp_path / "w.pth", message)


@pytest.mark.filterwarnings("ignore")
def test_odd_tensors_in_memory(torch, refused):
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


def test_a_torch_file_in_itself(torch, tmp_path, refused):
    mapping = {"w": torch.ones(2)}
    mapping["model"] = mapping
    torch.save(mapping, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", "more than 8 deep, or one that holds itself")


def test_torchscript(torch, tmp_path, refused):
    torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(tmp_path / "w.pt")
    refused(tmp_path / "w.pt", r"is a TorchScript archive: save torch.jit.load\(path\).state_dict\(\)")


@pytest.mark.parametrize("new", [True, False])
def test_memory_is_bounded_by_the_file(torch, tmp_path, new, refused):
    """A classifier of 1e7 rows over one number, and a thousand names of one tensor."""
    path, before = tmp_path / "w.pth", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    torch.save({"fc.weight": torch.zeros(1).expand(10**7, 512)}, path, _use_new_zipfile_serialization=new)
    refused(path, "whose numbers overlap")
    refused(path, "whose numbers overlap", lambda path: flaxvid.load_torch("tsn_resnet18", path))
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


def test_archives_are_checked(torch, tmp_path, refused):
    path = tmp_path / "w.pth"
    torch.save({"w": torch.arange(1000.0), "v": torch.ones(3)}, path)
    whole, members = path.read_bytes(), pieces(path)
    zipped(path, members, zipfile.ZIP_DEFLATED)
    np.testing.assert_array_equal(read_tensors(path)["w"], np.arange(1000))
    for compression in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        zipped(path, members, compression)
        refused(path, "compressed in a way that torch does not use")
    at = whole.index(np.arange(1000, dtype=np.float32).tobytes())
    for place in (at, at + 2001, at + 3999):
        flipped = bytearray(whole)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        refused(path, r"Bad CRC-32 for file 'w/data/0'")
    for content in (members["w/data/0"][:-4], members["w/data/0"] + b"\0\0\0\0"):
        zipped(path, {**members, "w/data/0": content})
        refused(path, rf"expected 4000 bytes of 'data/0', got {len(content)}: fetch it again")
    zipped(path, {name: content for name, content in members.items() if name != "w/data/0"})
    refused(path, "no item named 'w/data/0'")
    zipped(path, {**members, "w/byteorder": b"big"})
    refused(path, "big-endian")
    zipped(path, {**members, "v/data.pkl": members["w/data.pkl"]})
    refused(path, "but torch did not write it")
    zipped(path, {**members, "w/data.pkl": b"\x80\x02" + b"}" * (1 << 27) + b"."}, zipfile.ZIP_DEFLATED)
    refused(path, f"expected {16 << 20} bytes of 'data.pkl', got 134217731")
    path.write_bytes(whole[: len(whole) // 2])
    refused(path, "is damaged")
    directory = b"PK\1\2" + b"\0" * 42
    with path.open("wb") as file:
        file.write(b"PK\3\4" + directory * 400_000)
        file.write(struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 0xFFFF, 0xFFFF, 46 * 400_000, 4, 0))
    refused(path, "a directory of 18400000 bytes")


def test_an_old_torch_file_is_checked(torch, tmp_path, refused):
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
        (b"}" + TENSOR % {**SMALL, b"size": MANY, b"stride": b"K\0"} + b"s.", "whose numbers overlap"),
        (b"}" + TENSOR % {**SMALL, b"numbers": MANY} + b"s.", "expected tensors of at most"),
        (b"}" + TENSOR % {**SMALL, b"numbers": MANY, b"size": MANY} + b"s.", "expected tensors of at most"),
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
        (b"cos\nsystem\nX\x02\0\0\0ls\x85R.", r"could run code, so it was not read \(GLOBAL 'os.system'\)"),
        (b"X\x02\0\0\0osX\x06\0\0\0system\x93X\x02\0\0\0ls\x85R.", r"could run code.*GLOBAL 'os.system'"),
        (b"ctorch.storage\n_load_from_bytes\nX\x02\0\0\0ls\x85R.", "could run code"),
        (b"(X\x02\0\0\0lsios\nsystem\n.", r"could run code.*GLOBAL 'os.system'"),
        (b"(cos\nsystem\nX\x02\0\0\0lso.", r"could run code.*GLOBAL 'os.system'"),
        (b"cbuiltins\ngetattr\nccollections\nOrderedDict\nX\x01\0\0\0a\x86R.", r"GLOBAL 'builtins.getattr'"),
        (b"cargparse\nNamespace\n)\x81cos\nsystem\nb.", r"could run code.*GLOBAL 'os.system'"),
        (b"\x82\x01.", "a pickle with EXT1"),
        (b"\x97.", "a pickle with NEXT_BUFFER"),
        (b"0.", "is damaged"),
        (b"", "is damaged"),
    ],
)  # fmt: skip
def test_hostile_pickles(torch, tmp_path, pickled, message, refused):
    """In an archive that is whole; none of them may take long, or memory, or run anything."""
    path = tmp_path / "w.pth"
    zipped(path, {"x/data.pkl": b"\x80\x02" + pickled, "x/data/0": struct.pack("<f", 7)}, zipfile.ZIP_DEFLATED)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(path, message)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 700 << 10
    path.write_bytes(b"\x80\x02" + pickled)
    refused(path, "w.pth")


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
