"""Reads the tensors of files that others wrote. No code in them is run, and every problem is one error."""

import contextlib
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flaxvid.weights.flax_file import looks_like_msgpack, read_flax_file
from flaxvid.weights.pickled import Call, OddKey, Unreadable
from flaxvid.weights.safetensors_file import is_name, looks_like_safetensors, read_safetensors
from flaxvid.weights.torch_file import read_torch_file

_CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model", "module")
_DEEPEST = 8
_WRAPPERS = {"module", "_orig_mod", "model", "backbone", "base_model", "net"}
_INDICES = ("num_batches_tracked", "relative_position_index", "position_ids")
"""Whole numbers that some modules of torch save beside their parameters: counters and places, which follow from
shapes."""
_FLOATS = ("float32", "float16", "bfloat16", "float64")
_OTHERS = {
    b"version https://git-lfs": "is a Git LFS pointer, and not the file that it stands for: run git lfs pull",
    b"<": "is a web page: fetch the file itself (a page for logging in or an error was saved under its name)",
    b"{": "is JSON text, an index of several files, perhaps: merge their tensors into one mapping and pass that",
    b"\x93NUMPY": "is one NumPy array: pass a mapping of arrays",
    b"\x89HDF": "is an HDF5 file: read it with its own library and pass a mapping of arrays",
    b"\x1f\x8b": "is compressed by gzip: unpack it",
    b"BZh": "is compressed by bzip2: unpack it",
    b"\xfd7zXZ": "is compressed by xz: unpack it",
    b"\x28\xb5\x2f\xfd": "is compressed by zstd: unpack it",
}


def read_tensors(source: str | Path | Mapping[str, Any], *, allow_nonfinite: bool = False) -> dict[str, np.ndarray]:
    """The tensors of a file or mapping by their own keys, without torch's counters and indices.

    The content tells what a file is, not its name. Memory is bounded before it is taken: four times the file's size,
    and eight times where half precision becomes float32.

    Args:
        source: a .pth, .pt, .pth.tar (needs torch), .safetensors or flax msgpack file, or a mapping of torch tensors or
            arrays. A torch file and a mapping may hold the tensors under "state_dict", "model_state_dict",
            "model_state", "model" or "module".
        allow_nonfinite: takes NaN and infinite numbers.

    Returns:
        float32 arrays, out of dense float32, float16, bfloat16 and float64 ones.

    Raises:
        ValueError: the file would run code, is damaged, or holds no tensors of that kind.
        FileNotFoundError: no such file.
        ImportError: a torch file, and torch is not installed.
    """
    if isinstance(source, Mapping):
        with one_error("the state_dict"):
            return _checked(_weights(source), allow_nonfinite)
    path = Path(source)
    check_there(path)
    with path.open("rb") as file, one_error(str(path)):
        head = file.read(512)
        file.seek(0)
        safetensors = looks_like_safetensors(head)
        if not safetensors and (other := _other(head, path)):
            raise Unreadable(other)
        if not safetensors and looks_like_msgpack(head):
            return _checked(_weights(read_flax_file(file)), allow_nonfinite)
        known = head[:2] in (b"PK", b"\x80\x02")
        if safetensors or (path.suffix == ".safetensors" and not known):
            tensors = _weights(read_safetensors(path, lambda key: not key.endswith(_INDICES))[1])
        else:
            try:
                tensors = read_torch_file(file, _weights)
            except ImportError as error:
                raise ImportError(
                    f"{path.name} is a torch file: pip install torch to read it, or convert it to .safetensors where "
                    "torch is"
                ) from error
        return _checked(tensors, allow_nonfinite)


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


def _weights(content: Any) -> dict[str, Any]:
    """The tensors of what a file or caller holds, however nested, without counters and indices."""
    if not isinstance(content, Mapping):
        kind = "Tensor" if isinstance(content, Call) and "_rebuild_" in content.name else type(content).__name__
        raise Unreadable(f"must hold a mapping of tensors, got {kind}: save model.state_dict()")
    mapping = content
    for _ in range(_DEEPEST):
        inner = [key for key in _CONTAINERS if isinstance(mapping.get(key), Mapping)]
        if len(full := [key for key in inner if mapping[key] and all(map(_is_tensor, mapping[key].values()))]) > 1:
            raise Unreadable(f"must hold tensors in one place, got {' and '.join(full)}: pass the part that is meant")
        if not inner:
            break
        mapping = mapping[inner[0]]
    else:
        raise Unreadable(
            f"has mappings in mappings, more than {_DEEPEST} deep, or one that holds itself: pass the one that holds "
            "the tensors"
        )
    others = [key for key, item in mapping.items() if not _is_tensor(item)]
    if others or not mapping:
        got = ", ".join(_shown(key) for key in others[:10]) or "an empty mapping"
        raise Unreadable(
            f"must hold tensors by name, at the top or under {', '.join(_CONTAINERS)}, got {got}: pass the part of it "
            "that is the state_dict"
        )
    if odd := [key for key in mapping if not is_name(key)]:
        raise Unreadable(f"must have names of tensors for keys, got {_shown(odd[0])}: pass the state_dict")
    return {key: item for key, item in mapping.items() if not key.endswith(_INDICES)}


def _is_tensor(item: Any) -> bool:
    return hasattr(item, "shape") or isinstance(item, Call)


def _shown(key: Any) -> str:
    key = key.key if isinstance(key, OddKey) else key
    return repr(key)[:80] if isinstance(key, int | float | bytes | str) else f"a {type(key).__name__}"


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
