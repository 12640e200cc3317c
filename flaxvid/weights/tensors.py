"""Reads the tensors of files that others wrote. No code in them is run, and every problem is one error."""

import contextlib
import tarfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flaxvid.weights.archive import Archive
from flaxvid.weights.flax_file import looks_like_msgpack, read_flax_file
from flaxvid.weights.numpy_file import read_npz
from flaxvid.weights.parts import INDICES, find_tensors
from flaxvid.weights.pickled import Unreadable
from flaxvid.weights.safetensors_file import looks_like_safetensors, read_safetensors
from flaxvid.weights.torch_file import read_pickled_file, read_torch_archive

_WRAPPERS = {"module", "_orig_mod", "model", "backbone", "base_model", "net"}
_FLOATS = ("float32", "float16", "bfloat16", "float64")
_OTHERS = {
    b"version https://git-lfs": "is a Git LFS pointer, and not the file that it stands for: run git lfs pull",
    b"<": "is a web page: fetch the file itself (a page for logging in or an error was saved under its name)",
    b"{": "is JSON text, an index of several files, perhaps: merge their tensors into one mapping and pass that",
    b"\x93NUMPY": "is one NumPy array: pass a mapping of arrays, or an .npz file",
    b"\x89HDF": "is an HDF5 file: read it with its own library and pass a mapping of arrays",
    b"\x1f\x8b": "is compressed by gzip: unpack it",
    b"BZh": "is compressed by bzip2: unpack it",
    b"\xfd7zXZ": "is compressed by xz: unpack it",
    b"\x28\xb5\x2f\xfd": "is compressed by zstd: unpack it",
}


def read_tensors(
    source: str | Path | Mapping[str, Any], *, part: str | None = None, allow_nonfinite: bool = False
) -> dict[str, np.ndarray]:
    """The tensors of a file or mapping by their own keys, without torch's counters and indices.

    The content tells what a file is, not its name. Memory is bounded before it is taken: four times the file's size,
    and eight times where half precision becomes float32.

    Args:
        source: a file of torch (.pth, .pt, .pth.tar, .pyth), a pickle of arrays (Caffe2's .pkl), a .safetensors, .npz
            or flax msgpack file, or a mapping of torch tensors or arrays. All but .safetensors and .npz may hold the
            tensors in a part, under a name such as "state_dict", "model_state" or "module".
        part: which part is read where there are several, such as "target_encoder" or "model/ema".
        allow_nonfinite: takes NaN and infinite numbers.

    Returns:
        float32 arrays, out of dense float32, float16, bfloat16 and float64 ones.

    Raises:
        ValueError: the file could run code, is damaged, holds no tensors of that kind, or holds several parts of them.
        FileNotFoundError: no such file.

    Warns:
        UserWarning: what else than plain values is left out, such as an optimizer's state.
    """
    name = "the state_dict" if isinstance(source, Mapping) else str(source)
    told: list[str] = []

    def pick(content: Any) -> dict[str, Any]:
        tensors, line = find_tensors(content, part)
        told.append(line)
        return tensors

    if not isinstance(source, Mapping):
        check_there(Path(source))
    with one_error(name):
        tensors = pick(source) if isinstance(source, Mapping) else _read_file(Path(source), part, pick)
        checked = _checked(tensors, allow_nonfinite)
    if line := "".join(told):
        warnings.warn(f"{name}: {line}", stacklevel=2)
    return checked


def _read_file(path: Path, part: str | None, pick: Callable[[Any], dict[str, Any]]) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        head, size = file.read(512), path.stat().st_size
        file.seek(0)
        safetensors = looks_like_safetensors(head)
        if not safetensors and (other := _other(head, path)):
            raise Unreadable(other)
        if not head:
            raise Unreadable("is empty: fetch it again")
        if not safetensors and looks_like_msgpack(head):
            return find_tensors(read_flax_file(file, part))[0]
        known = head[:1] == b"\x80" or head[:2] == b"PK"
        if safetensors or (path.suffix == ".safetensors" and not known):
            return pick(read_safetensors(path, lambda key: not key.endswith(INDICES))[1])
        if head[:2] != b"PK":
            return read_pickled_file(file, size, pick)
        archive = Archive(file)
        if archive.names and all(name.endswith(".npy") for name in archive.names):
            return read_npz(archive, 4 * size + (1 << 20), pick)
        return read_torch_archive(archive, size, pick)


def check_there(path: Path) -> None:
    """Raises FileNotFoundError unless there is a file."""
    try:
        there, folder = path.is_file(), path.is_dir()
    except OSError:  # no disk has such a name
        there = folder = False
    if not there:
        hint = ": it is a folder, pass the file in it" if folder else ""
        raise FileNotFoundError(f"no weights file at {str(path)[:1000]}{hint}")


@contextlib.contextmanager
def one_error(name: str) -> Iterator[None]:
    """Turns whatever reading `name` raises into a ValueError that names it, but for a missing library."""
    try:
        yield
    except Unreadable as error:
        raise ValueError(f"{name} {error}") from error
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # damaged bytes make libraries raise all kinds of them
        reason = f"{type(error).__name__}: {error}"[:300]
        raise ValueError(f"{name} is damaged or no weights file ({reason}): fetch it again") from error


def unwrapped(key: str) -> str:
    """A key without the parts that only tell of wrapping, such as "module." or ".net".

    Two files of one model may differ in these ("module.base_model.conv1.weight", "conv1.weight"). Two tensors of one
    file never do.
    """
    return ".".join(part for part in key.split(".") if part not in _WRAPPERS)


def without_prefix(key: str) -> str:
    """A key without the wrapping at its start: "module.layer1.0.conv1.net.weight" loses "module." and keeps ".net"."""
    parts = key.split(".")
    start = next((place for place, part in enumerate(parts) if part not in _WRAPPERS), 0)
    return ".".join(parts[start:])


def to_numpy(tensor: Any) -> np.ndarray:
    """A dense torch tensor (on any device) or array of floats as float32.

    Raises:
        Unreadable: it is of another kind, or has numbers beyond those of float32.
    """
    if (kind := _kind(tensor)) not in _FLOATS:
        raise Unreadable(f"is {kind}, expected {', '.join(_FLOATS)}")
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu().resolve_neg()
        tensor = (tensor.float() if kind == "bfloat16" else tensor).numpy()
    wide = np.asarray(tensor)
    with np.errstate(over="ignore"):
        narrow = np.asarray(wide, np.float32)
    if kind == "float64" and np.isinf(narrow).sum() > np.isinf(wide).sum():
        raise Unreadable("has numbers beyond those of float32: it is damaged, fetch it again")
    return narrow


def check_finite(arrays: Mapping[str, Any]) -> None:
    """Raises Unreadable if there are NaN or infinite numbers in an array of floats."""
    wrong = {key: array.size - int(np.isfinite(array).sum()) for key, array in arrays.items()}
    if wrong := {key: count for key, count in wrong.items() if count}:
        some = ", ".join(f"{key} ({count} of {arrays[key].size})" for key, count in list(wrong.items())[:4])
        raise Unreadable(
            f"has numbers that are NaN or infinite in {len(wrong)} tensors, such as {some}: it is damaged, or of a run "
            "that diverged; allow_nonfinite=True takes them"
        )


def _checked(tensors: Mapping[str, Any], allow_nonfinite: bool) -> dict[str, np.ndarray]:
    arrays, wrong = {}, []
    for key, tensor in tensors.items():
        try:
            arrays[key] = to_numpy(tensor)
        except Unreadable as error:
            wrong.append(f"{key} {error}")
    if wrong:
        raise Unreadable(
            f"holds {len(wrong)} tensors that are no float32, such as {'; '.join(wrong[:4])}: convert them to "
            "float32 with the library that wrote them"
        )
    if not allow_nonfinite:
        check_finite(arrays)
    return arrays


def _kind(tensor: Any) -> str:
    """The type of a tensor's numbers, or what makes it no dense array."""
    if not hasattr(tensor, "detach"):
        if isinstance(tensor, np.ma.MaskedArray):
            return "masked"
        return getattr(getattr(tensor, "dtype", None), "name", type(tensor).__name__)
    if type(tensor).__name__ not in ("Tensor", "Parameter"):
        return f"a {type(tensor).__name__}"
    if tensor.device.type == "meta":
        return "without numbers (on the device meta)"
    if tensor.is_nested or str(tensor.layout) != "torch.strided":
        return "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
    return str(tensor.dtype).removeprefix("torch.")


def _other(head: bytes, path: Path) -> str | None:
    """What a file is that holds no weights; None if it may hold some."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    found = next((text for mark, text in _OTHERS.items() if start.startswith(mark)), None)
    if found is None and path.suffix == ".onnx":
        return "is an ONNX file: take the weights that it was made of"
    if found is None and head[257:262] == b"ustar" and tarfile.is_tarfile(path):
        return "is a tar archive: unpack it, or, if it is of torch before 0.1.10, load and save it with torch"
    text = bool(head) and all(byte in b"\t\n\r\f\x1b" or 32 <= byte < 127 for byte in head[:64])
    if found is None and text:
        return f"is a text file that begins with {head[:40].decode()!r}: pass a .pth, .pt or .safetensors file"
    return found
