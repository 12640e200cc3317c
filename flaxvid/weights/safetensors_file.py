"""Files of the safetensors format, read and checked."""

import json
from collections.abc import Callable, Collection
from pathlib import Path

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy
import numpy as np

from flaxvid.weights.pickled import Unreadable

_MOST_HEADER = 16 << 20
_FLOATS = frozenset({"F32", "F16", "BF16", "F64"})


def looks_like_safetensors(head: bytes) -> bool:
    """Whether a file that begins with these bytes is of this format: a length and a JSON object."""
    return len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 40


def read_safetensors(
    path: Path, wanted: Callable[[str], bool] = lambda key: True, kinds: Collection[str] = _FLOATS
) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """The metadata and the wanted arrays of a file. The format has no checksum: a changed bit goes unnoticed.

    Args:
        path: of the file.
        wanted: whether an array is read, by its key.
        kinds: the types that arrays may have.

    Raises:
        Unreadable: the file is damaged, or an array is of another type.
        Exception: whatever the library raises on damaged bytes.
    """
    from safetensors import safe_open

    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MOST_HEADER:
            raise Unreadable(f"is damaged: its header claims {length} bytes: fetch it again")
        header = file.read(length)
    with safe_open(path, framework="numpy") as file:
        keys = [key for key in file.keys() if wanted(key)]  # noqa: SIM118
        json.loads(header, object_pairs_hook=_without_doubles)
        if odd := [key for key in keys if not is_name(key)]:
            raise Unreadable(f"must have names of tensors for keys, got {odd[0][:80]!r}: is it a file of weights?")
        odd = {key: kind for key in keys if (kind := file.get_slice(key).get_dtype()) not in kinds}
        if odd:
            some = ", ".join(f"{key} as {kind}" for key, kind in list(odd.items())[:4])
            raise Unreadable(
                f"must hold float32, float16, bfloat16 or float64, got {some}: convert {len(odd)} tensors to float32"
            )
        return file.metadata() or {}, {key: file.get_tensor(key) for key in keys}


def is_name(key: object) -> bool:
    """Whether a key can name a tensor. Errors print keys, and trees are as deep as keys are long."""
    return isinstance(key, str) and key.isprintable() and len(key) < 1000


def _without_doubles(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Unreadable("is damaged: its header names a tensor twice: fetch it again")
    return found
