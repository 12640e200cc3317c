"""Inner channels: those that a block has between its convolutions, which no other block sees.

They can be removed without a change to the rest of the network (`compress.channels`). A model declares which axes
belong together (`VideoModel.inner`), and is made with fewer channels by the option `inner`.
"""

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Annotated, Any

from flax.core import FrozenDict

from flaxvid.models.options import Kind, require, several, whole

Axes = tuple[tuple[str, int], ...]
"""What has an axis of the same channels: pairs of a pattern of a path below the block, and the axis there."""

ALL_CHANNELS = FrozenDict()
"""The option `inner` of a network with all of its channels."""


def _read(value: Any) -> FrozenDict[str, tuple[int, ...]]:
    require(isinstance(value, Mapping) and all(isinstance(block, str) for block in value))
    return FrozenDict({block: several(whole)(counts) for block, counts in value.items()})


Inner = Annotated[
    Mapping[str, tuple[int, ...]],
    Kind('a dict of channels by block, a tuple of positive numbers such as {"layer1_0": (48, 64)}', _read),
]
"""The option: for each block the channels behind each of its convolutions but the last; blocks that are not named have
all."""


def conv_axes(*convs: tuple[str, str]) -> tuple[Axes, ...]:
    """The axes of the channels behind each convolution of a row but the last.

    Args:
        *convs: the paths of each convolution and of its norm: ``("conv1", "norm1"), ("conv2", "norm2")``.
    """
    return tuple(
        ((f"{conv}/kernel", -1), (f"{norm}/.*", -1), (f"{after}/kernel", -2))
        for (conv, norm), (after, _) in pairwise(convs)
    )


def unit_axes(*units: str) -> tuple[Axes, ...]:
    """`conv_axes` of a row of `ConvNorm`s, by their names."""
    return conv_axes(*((f"{unit}/conv", f"{unit}/norm") for unit in units))


def stage_names(depths: Iterable[int], prefix: str = "layer") -> list[str]:
    """The names of the blocks of residual stages."""
    return [f"{prefix}{stage}_{index}" for stage, depth in enumerate(depths, 1) for index in range(depth)]


def check_inner(inner: Mapping[str, tuple[int, ...]], blocks: Iterable[str], number: int) -> None:
    """Refuses the option for blocks that a network does not have, or with another number of channels for one.

    Args:
        inner: the option.
        blocks: the names of the network's blocks.
        number: how many numbers a block has.
    """
    blocks = list(blocks)
    if unknown := sorted(inner.keys() - set(blocks)):
        raise ValueError(f"inner: this network has no {', '.join(unknown)}: its blocks are {', '.join(blocks)}")
    if wrong := {block: counts for block, counts in inner.items() if len(counts) != number}:
        block, counts = next(iter(wrong.items()))
        raise ValueError(f"inner: expected {number} numbers of channels for {block}, got {counts}: give one for each")
