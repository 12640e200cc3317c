"""Reads files of `torch.save` as data, and checks them: zip archives, and the older ones in one piece."""

import dataclasses
import io
import math
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import IO, Any

from flaxvid.weights.pickled import Call, Named, Outside, Unreadable, read_pickle

_MOST_AROUND = 16 << 20
"""The most bytes of a pickle, or of an archive's directory: all of a file but its tensors' numbers. A network of 500
tensors with its optimizer has 0.3 MB."""
_WRONG_TYPE = "must hold float32, float16, bfloat16 or float64, got {key} as {got}: convert it to float32"
_LEGACY_MARK = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_FLOATS = {"Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Double": "float64"}
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8}
_OTHERS = {
    "Long": ("int64", 8), "Int": ("int32", 4), "Short": ("int16", 2), "Char": ("int8", 1), "Byte": ("uint8", 1),
    "Bool": ("bool", 1), "ComplexFloat": ("complex64", 8), "ComplexDouble": ("complex128", 16), "QInt8": ("qint8", 1),
    "QUInt8": ("quint8", 1), "QInt32": ("qint32", 4), "Untyped": ("bytes", 1),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _View:
    """A tensor as a file describes it: where its numbers lie in the storage `key`, counted in numbers."""

    key: str
    dtype: str
    length: int
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def numbers(self) -> int:
        return math.prod(self.size)


def read_torch_file(file: IO[bytes], part: Callable[[Any], Mapping[str, Any]]) -> dict[str, Any]:
    """The tensors of one part of a file. The rest, such as an optimizer's, is not read.

    A zip archive has a checksum for each storage, and it is checked. The older format has none.

    Args:
        file: open at its start.
        part: finds the mapping of tensors in what was saved.

    Raises:
        ImportError: torch is not installed.
        Unreadable: no torch file, one that would run code, a damaged one, or one with other than plain float tensors.
        Exception: whatever reading damaged bytes raises.
    """
    import torch

    if not (size := file.seek(0, io.SEEK_END)):
        raise Unreadable("is empty: fetch it again")
    file.seek(0)
    content, read_storage = (_open_zip if file.read(2) == b"PK" else _open_legacy)(file, size)
    views = {key: _view(key, item) for key, item in part(content).items()}
    storages = {view.key: view for view in views.values()}
    if len({(view.key, view.dtype, view.length) for view in views.values()}) > len(storages):
        raise Unreadable("is damaged: it describes one storage in two ways: fetch it again")
    allowed = 4 * size + (1 << 20)  # room for weights that are shared, and for what is compressed
    claimed = max(
        sum(view.numbers * _BYTES[view.dtype] for view in views.values()),
        sum(view.length * _BYTES[view.dtype] for view in storages.values()),
    )
    if claimed > allowed:
        raise Unreadable(
            f"has {size} bytes, expected tensors of at most {allowed}, got {claimed} because tensors share "
            "numbers: save tensor.clone() of each"
        )
    flat = {}
    for key, view in storages.items():
        numbers = bytearray(read_storage(key, view.length, _BYTES[view.dtype]))
        dtype = getattr(torch, view.dtype)
        flat[key] = torch.frombuffer(numbers, dtype=dtype) if numbers else torch.empty(0, dtype=dtype)
    return {key: flat[view.key].as_strided(view.size, view.stride, view.offset) for key, view in views.items()}


class _Modest:
    """A file that refuses a read of more bytes than an archive's directory should have."""

    def __init__(self, file: IO[bytes]):
        self.seek, self.tell, self.seekable, self._read = file.seek, file.tell, file.seekable, file.read

    def read(self, count: int = -1) -> bytes:
        if count > _MOST_AROUND:
            raise Unreadable(f"is damaged: its zip archive has a directory of {count} bytes: fetch it again")
        return self._read(count)


def _open_zip(file: IO[bytes], size: int) -> tuple[Any, Callable[[str, int, int], bytearray]]:
    archive = zipfile.ZipFile(_Modest(file))  # pyright: ignore[reportArgumentType]
    names = archive.namelist()
    pickles = [name for name in names if name.rpartition("/")[-1] == "data.pkl" and name.count("/") < 2]
    if any(name.endswith("/constants.pkl") for name in names):
        raise Unreadable("is a TorchScript archive: save torch.jit.load(path).state_dict() with torch and pass that")
    if names and all(name.endswith(".npy") for name in names):
        raise Unreadable("is a NumPy archive: pass dict(numpy.load(path))")
    if len(pickles) != 1 or len(set(names)) < len(names):
        raise Unreadable(f"is a zip archive, but torch did not write it (it holds {str(names[:4])[:200]}): unpack it")
    folder = pickles[0].removesuffix("data.pkl")

    def read(name: str, most: int, *, exactly: bool = False) -> bytearray:
        info = archive.getinfo(folder + name)
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise Unreadable(f"has {name!r} compressed in a way that torch does not use: unpack and save it again")
        if info.file_size > most or (exactly and info.file_size < most):
            raise Unreadable(f"is damaged: expected {most} bytes of {name!r}, got {info.file_size}: fetch it again")
        found = bytearray()
        with archive.open(info) as member:  # its checksum is compared at its end
            while chunk := member.read(1 << 20):
                found += chunk
        if len(found) != info.file_size:
            raise Unreadable(
                f"was cut off: expected {info.file_size} bytes of {name!r}, got {len(found)}: fetch it again"
            )
        return found

    if folder + "byteorder" in names and read("byteorder", 16) != b"little":
        raise Unreadable("was saved on a big-endian machine: load it with torch there and save it as .safetensors")
    content, _ = read_pickle(io.BytesIO(read("data.pkl", _MOST_AROUND)))
    return content, lambda key, length, width: read(f"data/{key}", length * width, exactly=True)


def _open_legacy(file: IO[bytes], size: int) -> tuple[Any, Callable[[str, int, int], bytearray]]:
    file.seek(0)
    head = io.BytesIO(file.read(_MOST_AROUND))
    if read_pickle(head)[0] != _LEGACY_MARK or read_pickle(head)[0] != _LEGACY_PROTOCOL:
        raise Unreadable("is a pickle, but torch did not write it: pass a mapping of arrays, or save with torch.save")
    if not read_pickle(head)[0]["little_endian"]:
        raise Unreadable("was saved on a big-endian machine: load it with torch there and save it as .safetensors")
    content, outside = read_pickle(head)
    storages = {storage.identity[2]: storage.identity for storage in outside if isinstance(storage.identity[2], str)}
    places, at = {}, 0
    for key in read_pickle(head)[0]:
        at = at or head.tell()
        if not isinstance(key, str):
            raise Unreadable("is damaged: its storages have no names: fetch it again")
        kind = storages[key][1].name.rpartition(".")[-1].removesuffix("Storage")
        width = _BYTES[_FLOATS[kind]] if kind in _FLOATS else _OTHERS[kind][1]
        file.seek(at)
        (length,) = struct.unpack("<q", file.read(8))
        places[key] = at + 8, length
        at += 8 + length * width
        if length < 0 or length != storages[key][4] or at > size:
            raise Unreadable(f"is damaged or was cut off at byte {size}, expected {at} or more: fetch it again")

    def read(key: str, length: int, width: int) -> bytearray:
        place, found = places[key]
        file.seek(place)
        if length != found:
            raise Unreadable(f"is damaged: storage {key} must have {length} numbers, got {found}: fetch it again")
        return bytearray(file.read(length * width))

    return content, read


def _view(key: str, item: Any) -> _View:
    """Reads the call that would make a plain tensor.

    A tensor whose numbers overlap is refused, though torch can make it: by strides a small file makes a large tensor,
    and in the older format an overlap is the only trace of damaged strides.
    """
    storage, offset, size, stride, *others = _made_of(key, item)
    if len(others) > 2 and others[2]:
        raise Unreadable(f"must hold plain tensors, got {key}, a lazily negated or conjugated one: save tensor.clone()")
    identity: tuple[Any, ...] = storage.identity if isinstance(storage, Outside) else (None,) * 5
    label, kind, name, _, length, *within = identity
    if label != "storage" or not isinstance(kind, Named) or not isinstance(name, str):
        raise Unreadable(f"is damaged: {key} has no storage: fetch it again")
    dtype = kind.name.rpartition(".")[-1].removesuffix("Storage")
    if dtype not in _FLOATS:
        raise Unreadable(_WRONG_TYPE.format(key=key, got=_OTHERS.get(dtype, [dtype])[0]))
    size, stride = (part.arguments[0] if isinstance(part, Call) else part for part in (size, stride))
    start, inside = within[0][1:3] if within and within[0] else (0, length)
    counts = (length, offset, start, inside, *size, *stride)
    if len(size) != len(stride) or len(size) > 32 or any(type(n) is not int or not 0 <= n < 1 << 62 for n in counts):
        raise Unreadable(f"is damaged: {key} has no shape of 32 axes or fewer: fetch it again")
    view = _View(name, _FLOATS[dtype], length, start + offset, tuple(size), tuple(stride))
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


def _made_of(key: str, item: Any) -> tuple[Any, ...]:
    """What a tensor is made of, whichever function makes it: storage, offset, size, stride, ..."""
    parameter = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
    plain = ("torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter")
    while isinstance(item, Call):
        if item.name in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"):
            return item.arguments
        if item.name == "torch._utils._rebuild_tensor_v3":  # of a type younger than those of storages
            raise Unreadable(_WRONG_TYPE.format(key=key, got=item.arguments[6].name.removeprefix("torch.")))
        if item.name in parameter:
            item = item.arguments[0]
        elif item.name == "torch._tensor._rebuild_from_type_v2" and item.arguments[1].name in plain:
            item = Call(item.arguments[0].name, item.arguments[2])  # a tensor with attributes of its own
        else:
            break
    got = item.name if isinstance(item, Call) else type(item).__name__
    raise Unreadable(f"must hold dense tensors of floats, got {key} ({got}): save tensor.float().to_dense()")
