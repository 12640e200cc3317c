"""Files of `torch.save`, zip archives and the older ones in one piece, read as data and written, without torch."""

import dataclasses
import io
import math
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import ml_dtypes  # noqa: F401  registers bfloat16 and float8 with numpy
import numpy as np

from flaxvid.weights.archive import MOST_AROUND, Archive
from flaxvid.weights.numpy_file import to_array
from flaxvid.weights.pickled import Call, Named, Outside, Unreadable, read_pickle

_LEGACY_MARK = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_KINDS = {
    "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Double": "float64", "Long": "int64", "Int": "int32",
    "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool", "ComplexFloat": "complex64",
    "ComplexDouble": "complex128", "Untyped": "uint8",
}  # fmt: skip
"""Types of numbers by the names of torch's storages. Younger ones have storages of bytes."""
_YOUNGER = ("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
"""Types of tensors that have no storages of their own."""
_WIDTHS = {"QInt8": 1, "QUInt8": 1, "QUInt4x2": 1, "QUInt2x4": 1, "QInt32": 4, "ComplexHalf": 4}
"""Bytes of the numbers that NumPy has no type for, which nobody reads but which lie before others."""
_BIG_ENDIAN = "was saved on a big-endian machine: load it with torch there and save it as .safetensors"

Pick = Callable[[Any], Mapping[str, Any]]
"""Finds the tensors that are wanted, by their names, in what was saved."""
_ReadStorage = Callable[[str, int], bytes | bytearray]


@dataclasses.dataclass(frozen=True)
class _View:
    """A tensor as a file describes it: where its numbers lie in the storage `key`. Offset and stride count numbers."""

    key: str
    nbytes: int
    dtype: np.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def numbers(self) -> int:
        return math.prod(self.size)

    def of(self, storage: bytes | bytearray) -> np.ndarray:
        width = self.dtype.itemsize
        if not self.numbers:
            return np.empty(self.size, self.dtype)
        return np.ndarray(self.size, self.dtype, storage, self.offset * width, [step * width for step in self.stride])


def read_torch_archive(archive: Archive, size: int, pick: Pick) -> dict[str, np.ndarray]:
    """The wanted tensors of a zip archive. The storages of others, such as an optimizer's, are not read.

    Each storage has a checksum, and it is checked.

    Args:
        archive: of `torch.save`.
        size: of the file, in bytes.
        pick: see `Pick`.

    Raises:
        Unreadable: no torch file, one that could run code, a damaged one, or one with other than dense tensors.
        Exception: whatever reading damaged bytes raises.
    """
    pickles = [name for name in archive.names if name.rpartition("/")[-1] == "data.pkl" and name.count("/") < 2]
    if any(name.endswith("/constants.pkl") for name in archive.names):
        raise Unreadable("is a TorchScript archive: save torch.jit.load(path).state_dict() with torch and pass that")
    if len(pickles) != 1:
        raise Unreadable(
            f"is a zip archive, but torch did not write it (it holds {str(archive.names[:4])[:200]}): unpack it"
        )
    folder = pickles[0].removesuffix("data.pkl")
    if folder + "byteorder" in archive.names and archive.read(folder + "byteorder", 16) != b"little":
        raise Unreadable(_BIG_ENDIAN)
    pickled = archive.read(folder + "data.pkl", max(size, MOST_AROUND))
    content, _ = read_pickle(io.BytesIO(pickled), len(pickled))
    return _read(pick(content), size, lambda key, count: archive.read(f"{folder}data/{key}", count, exactly=True))


def read_pickled_file(file: IO[bytes], size: int, pick: Pick) -> dict[str, np.ndarray]:
    """The wanted tensors of a file without an archive: torch's older format, or one pickle of arrays.

    These have no checksums.

    Args:
        file: open at its start.
        size: of it, in bytes.
        pick: see `Pick`.

    Raises:
        Unreadable, Exception: see `read_torch_archive`.
    """
    content, outside = read_pickle(file, size)
    if content != _LEGACY_MARK:
        if outside:
            raise Unreadable("is a pickle with parts outside it, but torch did not write it: save with torch.save")
        return _read(pick(content), size, lambda key, count: b"")
    if read_pickle(file, size)[0] != _LEGACY_PROTOCOL:
        raise Unreadable("is of a version of torch's format that nobody knows: save it with torch.save")
    if not read_pickle(file, size)[0]["little_endian"]:
        raise Unreadable(_BIG_ENDIAN)
    content, outside = read_pickle(file, size)
    storages = {storage.identity[2]: storage.identity for storage in outside if isinstance(storage.identity[2], str)}
    places, keys, at = {}, read_pickle(file, size)[0], file.tell()
    for key in keys:
        if not isinstance(key, str):
            raise Unreadable("is damaged: its storages have no names: fetch it again")
        kind = storages[key][1].name.rpartition(".")[-1].removesuffix("Storage")
        width = np.dtype(_KINDS[kind]).itemsize if kind in _KINDS else _WIDTHS[kind]
        file.seek(at)
        (length,) = struct.unpack("<q", file.read(8))
        places[key] = at + 8, length * width
        at += 8 + length * width
        if length < 0 or length != storages[key][4] or at > size:
            raise Unreadable(f"is damaged or was cut off at byte {size}, expected {at} or more: fetch it again")

    def read_storage(key: str, count: int) -> bytes:
        place, found = places[key]
        file.seek(place)
        if count != found:
            raise Unreadable(f"is damaged: storage {key} must have {count} bytes, got {found}: fetch it again")
        return file.read(count)

    return _read(pick(content), size, read_storage)


def write_torch_file(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a state_dict that ``torch.load(path, weights_only=True)`` reads.

    Args:
        path: of the file.
        tensors: of types that torch has storages for.
    """
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled_state_dict(tensors))
        archive.writestr("archive/byteorder", "little")
        for number, array in enumerate(tensors.values()):
            archive.writestr(
                f"archive/data/{number}", array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
            )
        archive.writestr("archive/version", "3\n")


def pickled_state_dict(tensors: Mapping[str, np.ndarray]) -> bytes:
    """The pickle in a torch file of contiguous tensors, whose storages are called "0", "1", ...

    Python writes plain values. What the pickle names is written by hand, for torch need not be there.
    """

    def plain(value: Any) -> bytes:
        return pickle.dumps(value, 2)[2:-1]

    kinds = {name: kind for kind, name in reversed(_KINDS.items())}
    ordered = b"ccollections\nOrderedDict\n)R"
    out = b"\x80\x02" + ordered + b"("
    for number, (key, array) in enumerate(tensors.items()):
        kind = kinds[array.dtype.name].encode()
        strides = tuple(math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim))
        out += plain(key) + b"ctorch._utils\n_rebuild_tensor_v2\n(("
        out += plain("storage") + b"ctorch\n" + kind + b"Storage\n" + plain(str(number)) + plain("cpu")
        out += plain(array.size) + b"tQ" + plain(0) + plain(array.shape) + plain(strides) + plain(False)
        out += ordered + b"tR"
    return out + b"u."


def _read(items: Mapping[str, Any], size: int, read_storage: _ReadStorage) -> dict[str, np.ndarray]:
    """Tensors and arrays out of what a pickle says of them."""
    allowed = 4 * size + (1 << 20)  # room for weights that are shared, and for what is compressed

    def check(claimed: int) -> None:
        if claimed > allowed:
            raise Unreadable(
                f"has {size} bytes, expected tensors of at most {allowed}, got {claimed} because tensors share "
                "numbers: save tensor.clone() of each"
            )

    arrays: dict[int, np.ndarray] = {}
    claimed = 0
    for key, item in items.items():
        if isinstance(item, Call) and item.is_array:
            if id(item) not in arrays:
                arrays[id(item)] = to_array(key, item)
            claimed += arrays[id(item)].nbytes
            check(claimed)
    views = {key: _view(key, item) for key, item in items.items() if id(item) not in arrays}
    storages = {view.key: view.nbytes for view in views.values()}
    if len({(view.key, view.nbytes) for view in views.values()}) > len(storages):
        raise Unreadable("is damaged: it describes one storage in two ways: fetch it again")
    check(max(sum(view.numbers * view.dtype.itemsize for view in views.values()), sum(storages.values())))
    read = {key: read_storage(key, count) for key, count in storages.items()}
    return {
        key: views[key].of(read[views[key].key]) if key in views else arrays[id(item)] for key, item in items.items()
    }


def _view(key: str, item: Any) -> _View:
    """Reads the call that would make a plain tensor.

    A tensor whose numbers overlap is refused, though torch can make it: by strides a small file makes a large tensor,
    and in the older format an overlap is the only trace of damaged strides.
    """
    storage, offset, size, stride, younger, flags = _made_of(key, item)
    if flags:
        raise Unreadable(f"must hold plain tensors, got {key}, a lazily negated or conjugated one: save tensor.clone()")
    identity: tuple[Any, ...] = storage.identity if isinstance(storage, Outside) else (None,) * 5
    label, kind, name, _, length, *within = identity
    if label != "storage" or not isinstance(kind, Named) or not isinstance(name, str):
        raise Unreadable(f"is damaged: {key} has no storage: fetch it again")
    dtype = _dtype(key, younger or kind)
    width = 1 if younger else dtype.itemsize  # of what the storage counts
    size, stride = (part.arguments[0] if isinstance(part, Call) else part for part in (size, stride))
    start, inside = within[0][1:3] if within and within[0] else (0, length)
    counts = (length, offset, start, inside, *size, *stride)
    if len(size) != len(stride) or len(size) > 32 or any(type(n) is not int or not 0 <= n < 1 << 62 for n in counts):
        raise Unreadable(f"is damaged: {key} has no shape of 32 axes or fewer: fetch it again")
    nbytes = length * width
    start, inside, length = (n * width // dtype.itemsize for n in (start, inside, length))
    view = _View(name, nbytes, dtype, start + offset, tuple(size), tuple(stride))
    last = 0
    for step, count in sorted(zip(stride, size, strict=True)):
        if count > 1 and step <= last and view.numbers:
            raise Unreadable(
                f"must hold tensors without overlap, got {key} {view.size}, whose numbers overlap by its strides "
                f"{view.stride}: save tensor.contiguous()"
            )
        last += (count - 1) * step
    if (view.numbers and offset + last >= inside) or start + inside > length:
        raise Unreadable(
            f"is damaged: {key} {view.size} needs {offset + last + 1} numbers, its storage has {inside}: fetch it again"
        )
    return view


def _dtype(key: str, kind: Named) -> np.dtype:
    """The type of numbers that a storage, or of a tensor on a storage of bytes its type, names."""
    name = kind.name.rpartition(".")[-1].removesuffix("Storage")
    if name not in _KINDS and name not in _YOUNGER:
        raise Unreadable(f"must hold types of numbers that NumPy has, got {key} as {name}: convert it to float32")
    return np.dtype(_KINDS.get(name, name))


def _made_of(key: str, item: Any) -> tuple[Any, Any, Any, Any, Any, Any]:
    """What a tensor is made of, whichever function makes it: storage, offset, size, stride, type if it is younger than
    those of storages, and flags such as of a conjugated one."""
    parameter = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
    plain = ("torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter")
    while isinstance(item, Call):
        if item.name in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"):
            storage, offset, size, stride, *others = item.arguments
            return storage, offset, size, stride, None, others[2:] and others[2]
        if item.name == "torch._utils._rebuild_tensor_v3":
            storage, offset, size, stride, _, _, dtype, *others = item.arguments
            return storage, offset, size, stride, dtype, others and others[0]
        if item.name in parameter:
            item = item.arguments[0]
        elif item.name == "torch._tensor._rebuild_from_type_v2" and item.arguments[1].name in plain:
            item = Call(item.arguments[0].name, item.arguments[2])  # a tensor with attributes of its own
        else:
            break
    got = item.name if isinstance(item, Call) else type(item).__name__
    raise Unreadable(f"must hold dense tensors, got {key} ({got}): save tensor.float().to_dense()")
