"""Torch files that are damaged or hostile are refused by one error, in bounded time and memory. torch is not needed.

Files that torch itself writes are in tests/parity.
"""

import pickle
import re
import resource
import struct
import zipfile

import numpy as np
import pytest
from flax.serialization import msgpack_serialize
from safetensors.numpy import save_file

from flaxvid.weights.tensors import read_tensors
from flaxvid.weights.torch_file import write_torch_file

TENSORS = {"w": np.arange(1000, dtype=np.float32), "v": np.ones(3, np.float32)}


def pieces(path):
    with zipfile.ZipFile(path) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def zipped(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def test_archives_are_checked(tmp_path, refused):
    path = tmp_path / "w.pth"
    write_torch_file(path, TENSORS)
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
        refused(path, r"Bad CRC-32 for file 'archive/data/0'")
    for content in (members["archive/data/0"][:-4], members["archive/data/0"] + b"\0\0\0\0"):
        zipped(path, {**members, "archive/data/0": content})
        refused(path, rf"expected 4000 bytes of 'data/0', got {len(content)}: fetch it again")
    zipped(path, {name: content for name, content in members.items() if name != "archive/data/0"})
    refused(path, "no item named 'archive/data/0'")
    zipped(path, {**members, "archive/byteorder": b"big"})
    refused(path, "big-endian")
    zipped(path, {**members, "other/data.pkl": members["archive/data.pkl"]})
    refused(path, "but torch did not write it")
    zipped(path, {**members, "archive/data.pkl": b"\x80\x02" + b"}" * (1 << 27) + b"."}, zipfile.ZIP_DEFLATED)
    refused(path, f"expected {16 << 20} bytes of 'data.pkl', got 134217731")
    first, second, third = (match.start() for match in list(re.finditer(b"PK\1\2", whole))[:3])
    comment = struct.pack("<H", third - second)  # the first entry's, which swallows the second
    path.write_bytes(whole[: first + 32] + comment + whole[first + 34 :])
    refused(path, "its zip archive has 4 members, not 5")
    path.write_bytes(whole[: len(whole) // 2])
    refused(path, "is damaged")
    directory = b"PK\1\2" + b"\0" * 42
    with path.open("wb") as file:
        file.write(b"PK\3\4" + directory * 400_000)
        file.write(struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 0xFFFF, 0xFFFF, 46 * 400_000, 4, 0))
    refused(path, "a directory of 18400000 bytes")


def test_an_old_torch_file_is_checked(tmp_path, refused, write_legacy):
    path = tmp_path / "w.pth"
    write_legacy(path, TENSORS)
    np.testing.assert_array_equal(read_tensors(path)["w"], np.arange(1000))
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
def test_hostile_pickles(tmp_path, pickled, message, refused):
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


def write_each(folder, write_legacy):
    """The same tensors in each kind of file."""
    write_torch_file(folder / "zip.pth", TENSORS)
    write_legacy(folder / "legacy.pth", TENSORS)
    (folder / "caffe2.pkl").write_bytes(pickle.dumps({"blobs": TENSORS}, 2))
    np.savez(folder / "numpy.npz", **TENSORS)
    save_file(TENSORS, folder / "safe.safetensors")
    (folder / "flax.msgpack").write_bytes(msgpack_serialize({"params": TENSORS}))
    return sorted(folder.iterdir())


def test_files_that_were_cut_off(tmp_path, refused, write_legacy):
    """At every hundredth of each kind of file, and at its last byte."""
    for path in write_each(tmp_path, write_legacy):
        whole = path.read_bytes()
        assert read_tensors(path)["w"].sum() == 499500
        for length in {*(len(whole) * share // 100 for share in range(100)), len(whole) - 1}:
            path.write_bytes(whole[:length])
            refused(path, r"^[^\n]+$")


def npy(header, body=b"", version=1):
    text = header.encode() + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text + body


HEADER = "{'descr': %s, 'fortran_order': False, 'shape': %s}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(HEADER % ("'<f4'", "(1099511627776,)"), b"1234"), "needs 4398046511104 bytes, it has 4"),
        (npy(HEADER % ("'<f4'", "(4611686018427387904, 4)"), b""), "no shape of 32 axes"),
        (npy(HEADER % ("'<f4'", "(-1, -1)"), b"1234"), "no shape of 32 axes"),
        (npy(HEADER % ("'<f4'", "(2,)"), b"1234"), "needs 8 bytes, it has 4"),
        (npy(HEADER % ("'<f4'", "(0,)"), b"1234"), "needs 0 bytes, it has 4"),
        (
            npy(HEADER % ("'|O'", "(1,)"), pickle.dumps(np.array([None]))),
            "must hold arrays of numbers, got w of object",
        ),
        (npy(HEADER % ("[('a', '<f4')]", "(1,)"), b"1234"), "must hold arrays of numbers"),
        (npy(HEADER % ("'<f4'", "(1,)") + " " * 40_000, b"1234"), "is damaged"),
        (npy("__import__('os').system('ls')", b"1234"), "is damaged"),
        (npy("(" * 9000, b""), "is damaged"),
        (npy(HEADER % ("'<f4'", "(1,)"), b"1234", version=9), "is damaged"),
        (b"\x93NUMPY\x02\0\xff\xff\xff\xff", "is damaged"),
        (b"", "is damaged"),
    ],
)
def test_hostile_arrays_in_archives(tmp_path, content, message, refused):
    zipped(tmp_path / "w.npz", {"w.npy": content})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(tmp_path / "w.npz", message)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


def test_bombs(tmp_path, refused):
    """A thousandfold compressed, alone and as many members that share their bytes."""
    path, before = tmp_path / "w.npz", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    members = {f"{n}.npy": npy(HEADER % ("'<f4'", "(2097152,)"), bytes(1 << 23)) for n in range(4)}
    zipped(path, members, zipfile.ZIP_DEFLATED)
    refused(path, r"has arrays of \d+ bytes, expected at most \d+")
    whole = path.read_bytes()
    start = struct.unpack("<I", whole[-6:-2])[0]
    with zipfile.ZipFile(path) as archive:
        first = archive.infolist()[0].header_offset
    entry = whole[start : start + 46 + 5]
    directory = b"".join(entry.replace(b"0.npy", b"%05d" % n) for n in range(5000))
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 5000, 5000, len(directory), start, 0)
    path.write_bytes(whole[:start] + directory + end)
    assert first == 0
    refused(path, "but torch did not write it")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\0\x85U\x01btR(K\x01%(shape)b%(type)b\x89%(bytes)btb"
TYPE = b"cnumpy\ndtype\n(U\x02f4K\0K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
GOOD = {b"shape": b"K\x01\x85", b"type": TYPE, b"bytes": b"U\x04\0\0\xe0\x40"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({b"shape": b"J\0\0\0\x40\x85"}, "needs 4294967296 bytes, it has 4"),
        ({b"shape": b"J\xff\xff\xff\xff\x85"}, "no shape of 32 axes"),
        ({b"shape": b"(" + b"K\x01" * 40 + b"t"}, "no shape of 32 axes"),
        ({b"bytes": b"U\x03abc"}, "needs 4 bytes, it has 3"),
        ({b"bytes": b"]"}, "has an array of Python objects"),
        ({b"bytes": b"K\x04"}, "has an array of Python objects"),
        ({b"bytes": b"U\x7fabc"}, "is damaged"),
        ({b"bytes": b"T\xff\xff\xff\x7fabc"}, "is damaged"),
        ({b"type": TYPE.replace(b"f4", b"O8")}, "must hold arrays of numbers, got w of 'O8'"),
        ({b"type": TYPE.replace(b"f4", b"V4")}, "must hold arrays of numbers"),
        ({b"type": TYPE.replace(b"f4", b"f9")}, "is damaged"),
        ({b"type": TYPE.replace(b"<", b"%")}, "must hold arrays of numbers"),
        ({b"type": b"N"}, "w has no type of numbers"),
        ({b"type": b"cos\nsystem\n"}, r"could run code.*GLOBAL 'os.system'"),
        ({b"bytes": b"cnumpy.testing._private.utils\nrunstring\n"}, r"could run code.*numpy.testing._private.utils"),
    ],
)
def test_hostile_arrays_in_pickles(tmp_path, changed, message, refused):
    path = tmp_path / "w.pkl"
    path.write_bytes(b"\x80\x02}U\x05blobs}U\x01w" + ARRAY % {**GOOD, **changed} + b"ss.")
    refused(path, message)


def test_arrays_that_share_their_bytes(tmp_path, refused):
    """Ten thousand arrays of one text, and ten thousand names of one array."""
    path, before = tmp_path / "w.pkl", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    text = b"T" + struct.pack("<i", 1 << 20) + bytes(1 << 20) + b"q\0"
    array = ARRAY % {**GOOD, b"shape": b"J\0\0\4\0\x85", b"bytes": b"h\0"}
    names = [b"U\x05%05d" % n for n in range(10_000)]
    for first, others in ((array, array), (array + b"q\1", b"h\1")):
        arrays = names[0] + first + b"".join(name + others for name in names[1:])
        path.write_bytes(b"\x80\x02" + text + b"0}(" + arrays + b"u.")
        refused(path, r"expected tensors of at most \d+, got \d+ because tensors share numbers")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


def test_the_arrays_above_are_of_a_good_kind(tmp_path):
    path = tmp_path / "w.pkl"
    path.write_bytes(b"\x80\x02}U\x05blobs}U\x01w" + ARRAY % GOOD + b"ss.")
    np.testing.assert_array_equal(read_tensors(path)["w"], [7])
    zipped(tmp_path / "w.npz", {"w.npy": npy(HEADER % ("'<f4'", "(1,)"), struct.pack("<f", 7))})
    np.testing.assert_array_equal(read_tensors(tmp_path / "w.npz")["w"], [7])
