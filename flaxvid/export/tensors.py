"""Tensors whose axes are moved on paper first, so that a program gets few transposes and reshapes.

The axes that JAX sees and the dims that the ONNX tensor has are both lists of factors: a video (b, t, h, w, c) may lie
in memory as (b * t, c, h, w). Transposes, reshapes and broadcasts rewrite the axes. A node is made only where an
operator needs dims that the tensor does not have. So a network of convolutions is transposed once, at its border.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Factor:
    """A factor of the size of an axis: `size`, or with `batch` that times the batch. Each is a thing of its own."""

    size: int
    batch: bool = False


Axis = tuple[Factor, ...]
"""The factors of an axis, the slowest first; () has size 1."""


def axis_of(size: int, batch: bool = False) -> Axis:
    """An axis that is one factor."""
    return (Factor(size, batch),) if size != 1 or batch else ()


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A value of the program.

    Attributes:
        value: the name of a tensor that is known when the program runs, or a constant.
        axes: those that JAX sees. A factor that `dims` lacks is broadcast.
        dims: those that it has in memory.
    """

    value: Any
    axes: tuple[Axis, ...]
    dims: tuple[Axis, ...]

    @classmethod
    def constant(cls, array: np.ndarray) -> "Tensor":
        """A constant as it is."""
        axes = tuple(axis_of(size) for size in array.shape)
        return cls(array, axes, axes)

    @property
    def is_constant(self) -> bool:
        """Whether the value is known now."""
        return isinstance(self.value, np.ndarray)

    @property
    def held(self) -> Axis:
        """The factors in memory, in order."""
        return flat(self.dims)

    def substitute(self, parts: Mapping[Factor, Axis]) -> "Tensor":
        """The same tensor, its factors written as products of others."""

        def rewrite(axis: Axis) -> Axis:
            return flat(rewrite(parts[factor]) if factor in parts else (factor,) for factor in axis)

        return dataclasses.replace(self, axes=tuple(map(rewrite, self.axes)), dims=tuple(map(rewrite, self.dims)))


def flat(axes: Iterable[Axis]) -> Axis:
    """The factors of all axes, in order."""
    return tuple(factor for axis in axes for factor in axis)


def merge_axes(several: Sequence[Sequence[Axis]]) -> tuple[Axis, ...]:
    """The axes of what broadcasts: of each place the first that has a size."""
    return tuple(next(filter(None, axes), ()) for axes in zip(*several, strict=True))


def reshape_axes(tensor: Tensor, shape: Sequence[Axis]) -> Tensor | None:
    """The tensor with axes of the sizes of `shape`, on paper; None if no splitting of factors gives these sizes."""
    parts: dict[Factor, Axis] = {}
    queue = list(flat(tensor.axes))
    axes = []
    for axis in shape:
        size, batch = math.prod(factor.size for factor in axis), any(factor.batch for factor in axis)
        taken: list[Factor] = []
        while size > 1 or batch:
            factor = queue.pop(0)
            if size % factor.size or factor.batch > batch:  # only a part of it belongs here
                if factor.size % size or batch > factor.batch:
                    return None
                part, rest = Factor(size, batch), Factor(factor.size // size, factor.batch and not batch)
                parts[factor] = (part, rest)
                queue.insert(0, rest)
                factor = part
            taken.append(factor)
            size, batch = size // factor.size, batch and not factor.batch
        axes.append(tuple(taken))
    return dataclasses.replace(tensor.substitute(parts), axes=tuple(axes))


def match_factors(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, int | None]:
    """Both tensors in the same factors; and the first axis where that is impossible, or None.

    An axis of size 1 matches any other.
    """
    for index in range(len(first.axes)):
        ours, theirs = list(first.axes[index]), list(second.axes[index])
        if not ours or not theirs:
            continue
        split_ours: dict[Factor, Axis] = {}
        split_theirs: dict[Factor, Axis] = {}
        while ours and theirs:
            one, other = ours.pop(0), theirs.pop(0)
            if one is other:
                continue
            if (one.size, one.batch) == (other.size, other.batch):
                split_theirs[other] = (one,)
            elif other.size % one.size == 0 and one.batch <= other.batch:
                rest = Factor(other.size // one.size, other.batch and not one.batch)
                split_theirs[other] = (one, rest)
                theirs.insert(0, rest)
            elif one.size % other.size == 0 and other.batch <= one.batch:
                rest = Factor(one.size // other.size, one.batch and not other.batch)
                split_ours[one] = (other, rest)
                ours.insert(0, rest)
            else:
                return first, second, index
        first, second = first.substitute(split_ours), second.substitute(split_theirs)
    return first, second, None
