"""Reads msgpack files of flax, such as Scenic's checkpoints, as data."""

from typing import IO, Any

import msgpack
import numpy as np
from flax.serialization import msgpack_restore

from flaxvid import trees
from flaxvid.weights.parts import take_part
from flaxvid.weights.pickled import Unreadable

_MOST_THINGS = 2_000_000
"""All that containers may hold; a network of 500 arrays with its optimizer holds 10,000."""
_LONGEST = 10_000
"""Space for so many things is taken before they are read."""


def looks_like_msgpack(head: bytes) -> bool:
    """Whether a file that begins with these bytes is a mapping that is not empty, with text for its first key."""
    start = {0xDE: 3, 0xDF: 5}.get(head[0], 1 if 0x81 <= head[0] <= 0x8F else 0) if head else 0
    return 0 < start < len(head) and (0xA1 <= head[start] <= 0xBF or 0xD9 <= head[start] <= 0xDB)


def read_flax_file(file: IO[bytes], part: str | None = None) -> dict[str, Any]:
    """The parameters of a checkpoint by their paths, "Transformer/encoder_norm/scale"; an optimizer's are left out.

    With a `part`, such as "ema_params", those at this place.

    Memory stays below four times the file's size: whatever would take more is found before flax reads the file.

    Raises:
        Unreadable: it holds too many things, or something else than arrays by name.
        Exception: whatever msgpack and flax raise on damaged bytes.
    """
    content = file.read()
    left = _MOST_THINGS

    def count(items: list[Any]) -> None:
        nonlocal left
        left -= 1 + len(items)
        if left < 0:
            raise Unreadable(f"holds more than {_MOST_THINGS} things beside its arrays' numbers: save the parameters")

    def check(data: bytes, *, raw: bool, inner: Any) -> None:
        msgpack.unpackb(
            data,
            raw=raw,
            strict_map_key=False,
            object_pairs_hook=count,
            list_hook=count,
            ext_hook=inner,
            max_array_len=_LONGEST,
            max_map_len=_LONGEST,
        )

    check(content, raw=False, inner=lambda code, data: check(data, raw=True, inner=lambda code, data: None))
    found: Any = take_part(msgpack_restore(content), part)
    for name in ("optimizer", "target", "params"):
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise Unreadable("must hold arrays by name, at the top or under optimizer and target: save the parameters")
    flat = trees.flatten(found)
    if odd := [key for key, item in flat.items() if not isinstance(item, np.ndarray)]:
        raise Unreadable(f"must hold arrays by name, got {str(odd[0])[:80]!r}: save the parameters alone")
    return flat
