"""Options that say something of the blocks of each stage of a residual network: `options.Kernels`, `options.NonLocals`.

For a stage they have one value for all blocks, or several for its blocks in turn, which begin anew behind the last.
"""

import math
from typing import Any


def in_turn(*options: Any) -> tuple[tuple[Any, ...], ...]:
    """What options say of one stage, block by block until all begin anew: a tuple of one value of each for a block."""
    each = [option if isinstance(option, tuple) else (option,) for option in options]
    period = math.lcm(*map(len, each))
    return tuple(zip(*(option * (period // len(option)) for option in each), strict=True))


def check_stages(option: str, given: tuple[Any, ...], depths: tuple[int, ...]) -> None:
    """Refuses an option that says something of fewer stages than there are."""
    if len(depths) > len(given):
        raise ValueError(f"{option} must have one for each of the {len(depths)} stages, got {given}")


def every_second(kind: str, first: int = 0) -> tuple[Any, ...]:
    """`NonLocals` of a non-local block behind the blocks `first`, `first` + 2, ... of the two middle stages."""
    pattern = ("", kind) if first else (kind, "")
    return ("", pattern, pattern, "")
