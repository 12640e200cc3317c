"""What the options of a model may be: an annotation names the kind, and one check reads all of them.

An option is annotated with its kind, such as ``width: Count = 64``. Values may be what a saved file holds: numpy
numbers, lists for tuples, the name of a type.
"""

import dataclasses
import math
import operator
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict

from flaxvid.layers.int8 import DYNAMIC
from flaxvid.layers.non_local import KINDS
from flaxvid.types import RGB


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of option.

    Attributes:
        words: what a value must be, for the error.
        read: gives the value as a model holds it, or raises TypeError or ValueError.
    """

    words: str
    read: Callable[[Any], Any]


def option_kinds(owner: Callable[..., Any]) -> dict[str, Kind]:
    """The options of a `build` function or of `Common`, with their kinds."""
    hints = typing.get_type_hints(owner, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items() if typing.get_origin(hint) is Annotated}


def read_option(name: str, kind: Kind, value: Any) -> Any:
    """The value as a model holds it.

    Raises:
        ValueError: it is not of the kind.
    """
    try:
        return kind.read(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be {kind.words}, got {value!r}") from error


def require(holds: Any) -> None:
    """Raises ValueError unless it holds; a `Kind.read` refuses a value so."""
    if not holds:
        raise ValueError


def whole(value: Any) -> int:
    """Reads a positive whole number; True is none."""
    require(not isinstance(value, bool | np.bool_))
    value = operator.index(value)
    require(value >= 1)
    return value


def _odd(value: Any) -> int:
    value = whole(value)
    require(value % 2 == 1)
    return value


def _power_of_two(value: Any) -> int:
    value = whole(value)
    require(value & (value - 1) == 0)
    return value


def _kernels(value: Any) -> int | tuple[int, ...]:
    return several(_odd)(value) if isinstance(value, tuple | list | np.ndarray) else _odd(value)


def _non_local(value: Any) -> str:
    require(isinstance(value, str) and value in ("", *KINDS))
    return str(value)


def _non_locals(value: Any) -> str | tuple[str, ...]:
    return several(_non_local)(value) if isinstance(value, tuple | list | np.ndarray) else _non_local(value)


def _number(value: Any) -> float:
    require(isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool))
    require(math.isfinite(value))
    return float(value)


def _positive(value: Any) -> float:
    value = _number(value)
    require(value > 0)
    return value


def _not_negative(value: Any) -> float:
    value = _number(value)
    require(value >= 0)
    return value


def _rate(value: Any) -> float:
    value = _not_negative(value)
    require(value < 1)
    return value


def _flag(value: Any) -> bool:
    require(isinstance(value, bool | np.bool_))
    return bool(value)


def _dtype(value: Any) -> Any:
    dtype = jnp.dtype(value)
    require(dtype in (jnp.float32, jnp.bfloat16))
    return dtype


def _classes(value: Any) -> int | FrozenDict[str, int]:
    if not isinstance(value, Mapping):
        return whole(value)
    require(value and all(isinstance(target, str) and target and "/" not in target for target in value))
    # A model with a plain dict could not be hashed, as `jax.jit` asks.
    return FrozenDict({target: whole(count) for target, count in value.items()})


def _int8(value: Any) -> str | FrozenDict[str, tuple[float, float]] | None:
    if value is None or value == DYNAMIC:
        return value
    require(isinstance(value, Mapping) and value and all(isinstance(path, str) for path in value))
    ranges = FrozenDict({path: several(_number, 2, 2)(limits) for path, limits in value.items()})
    require(all(low <= 0 <= high and low < high for low, high in ranges.values()))
    return ranges


def several(read: Callable[[Any], Any], least: int = 1, most: float = math.inf) -> Callable[[Any], tuple[Any, ...]]:
    """Reads a tuple of so many values."""

    def read_all(values: Any) -> tuple[Any, ...]:
        require(isinstance(values, tuple | list | np.ndarray) and least <= len(values) <= most)
        return tuple(map(read, values))

    return read_all


def choice(*words: str) -> Kind:
    """One of some words."""

    def read(value: Any) -> str:
        require(isinstance(value, str) and value in words)
        return value

    return Kind(_quoted(*words), read)


def _quoted(*words: str) -> str:
    *before, last = (f'"{word}"' for word in words)
    return f"{', '.join(before)} or {last}"


def or_none(kind: Kind) -> Kind:
    """A value of a kind, or None."""
    return Kind(f"{kind.words} or None", lambda value: None if value is None else kind.read(value))


FLOAT32 = jnp.dtype("float32")
_ODD = Kind("a positive odd number", _odd)
_POSITIVE = Kind("a positive number", _positive)

Count = Annotated[int, Kind("a positive whole number", whole)]
Odd = Annotated[int, _ODD]
OddOrNone = Annotated[int | None, or_none(_ODD)]
Odds = Annotated[tuple[int, ...], Kind("a tuple of positive odd numbers", several(_odd))]
Kernels = Annotated[
    tuple[Any, ...],
    Kind("a tuple of positive odd numbers or of tuples of them, one for each stage", several(_kernels)),
]
NonLocals = Annotated[
    tuple[Any, ...],
    Kind(f'a tuple of "", {_quoted(*KINDS)}, or of tuples of them, one for each stage', several(_non_locals, 0)),
]
PowerOfTwo = Annotated[int, Kind("a power of two", _power_of_two)]
Depths = Annotated[tuple[int, ...], Kind("a tuple of positive whole numbers, one a stage", several(whole))]
_FOUR_DEPTHS = Kind("a tuple of positive whole numbers, one for each of at most 4 stages", several(whole, 1, 4))
FourDepths = Annotated[tuple[int, ...], _FOUR_DEPTHS]
DepthsOrNone = Annotated[tuple[int, ...] | None, or_none(_FOUR_DEPTHS)]
Rate = Annotated[float, Kind("a number in [0, 1)", _rate)]
Positive = Annotated[float, _POSITIVE]
PositiveOrNone = Annotated[float | None, or_none(_POSITIVE)]
NotNegative = Annotated[float, Kind("a number that is not negative", _not_negative)]
Flag = Annotated[bool, Kind("True or False", _flag)]
Mean = Annotated[RGB, Kind("three numbers, one a colour", several(_number, 3, 3))]
Deviation = Annotated[RGB, Kind("three positive numbers, one a colour", several(_positive, 3, 3))]
Dtype = Annotated[Any, Kind('"float32" or "bfloat16"', _dtype)]
Int8 = Annotated[
    Any,
    Kind(
        'None, "dynamic", or the smallest and the largest input of layers by path, such as {"body/layer1_0/conv1": '
        "(0, 4.2)}",
        _int8,
    ),
]
ClassCount = Annotated[int | Mapping[str, int], Kind("a positive number or a dict of them by target", _classes)]
