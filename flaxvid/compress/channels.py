"""Structured pruning: whole channels are removed from trained variables, and the network is smaller and faster.

Only inner channels go, those that one block alone sees (`models.inner`), so that the pruned network is one of the zoo
with an option `inner`: it trains, saves, loads and exports as any other. The idea is arXiv 1608.08710; how channels are
chosen is our own.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flax.core import FrozenDict
from jaxtyping import Float

from flaxvid import trees
from flaxvid.models.inner import Axes
from flaxvid.models.registry import create_model
from flaxvid.models.video_model import VideoModel
from flaxvid.types import Variables

Members = dict[str, int]
"""The variables, by path, that have an axis of the same channels, and that axis."""


def remove_channels(
    model: VideoModel, variables: Variables, share: float, multiple: int = 1
) -> tuple[VideoModel, dict[str, Any]]:
    """Removes the least important inner channels of every block; see `importance`.

    The logits change; fine-tune the network, whose running statistics and next layers know the removed channels.

    Args:
        model: of `create_model`.
        variables: its ordinary ones, or those of `FrameFlexible`, all of whose frame counts lose the same channels.
        share: of the channels of each row of them, in [0, 1).
        multiple: the number of channels that stay is rounded to a multiple of this. 8 suits the matrix units of GPUs.

    Returns:
        The model with its own widths, and its variables.

    Raises:
        ValueError: the network declares no inner channels, or `share` or `multiple` cannot be.
    """
    if not (model.inner and model.zoo_name):
        raise ValueError(
            f"{model.zoo_name or 'this network'} does not say which of its channels can be removed: the ResNets over "
            "frames (tsn, tsm), slow_r50, res3dcnn, r3d_18, r2plus1d and slowfast do"
        )
    if not 0 <= share < 1:
        raise ValueError(f"expected a share of the channels in [0, 1), got {share}")
    if multiple < 1:
        raise ValueError(f"expected a multiple of at least 1, got {multiple}")
    flat, counts = trees.flatten(variables), {}
    for block, members in inner_members(model, flat):
        scores = importance({path: np.asarray(flat[path]) for path in members}, members)
        kept = count_kept(len(scores), share, multiple)
        chosen = np.sort(np.argsort(-scores, kind="stable")[:kept])
        flat |= {path: np.take(np.asarray(flat[path]), chosen, axis) for path, axis in members.items()}
        counts.setdefault(block, []).append(kept)
    inner = FrozenDict({block: tuple(kept) for block, kept in counts.items()})
    return create_model(model.zoo_name, **{**model.overrides, "inner": inner}), trees.unflatten(flat)


def count_kept(channels: int, share: float, multiple: int = 1) -> int:
    """How many of some channels stay: the nearest multiple, at least one of them, never more than there are."""
    wanted = channels * (1 - share)
    return min(channels, max(1, round(wanted / multiple)) * multiple)


def inner_members(model: VideoModel, flat: Mapping[str, Any]) -> Iterator[tuple[str, Members]]:
    """The name of each block with each of its rows of inner channels.

    Args:
        model: declares them.
        flat: its variables, or their shapes, by path; those of all frame counts of `FrameFlexible`.

    Raises:
        ValueError: variables of one row have axes of different lengths.
    """
    for pattern, rows in model.inner:
        matches = (re.match(f"({pattern})/", path.partition("/")[2]) for path in flat)
        for block in dict.fromkeys(match[1] for match in matches if match):
            for axes in rows:
                members = dict(_find(flat, block, axes))
                lengths = {path: flat[path].shape[axis] for path, axis in members.items()}
                if len(set(lengths.values())) != 1:
                    raise ValueError(f"expected axes of as many channels, got {lengths}: correct VideoModel.inner")
                yield block.rpartition("/")[2], members


def _find(flat: Mapping[str, Any], block: str, axes: Axes) -> Iterator[tuple[str, int]]:
    for path in flat:
        _, _, below = path.partition("/")
        if below.startswith(f"{block}/"):
            inside = below.removeprefix(f"{block}/")
            yield from ((path, axis) for pattern, axis in axes if re.fullmatch(pattern, inside))


def importance(leaves: Mapping[str, np.ndarray], members: Members) -> Float[np.ndarray, " c"]:
    """How much each channel can move what reads it.

    It is the size of a channel behind its norm, the norm's scale, times the length of the weights that read it. The
    kernel that makes the channel has no say, for the norm takes its size away. Several norms, those of several frame
    counts, have their mean.

    Args:
        leaves: the variables of one row of channels, by path.
        members: their axes.
    """
    scales = [np.abs(leaf) for path, leaf in leaves.items() if path.endswith("/scale")]
    readers = [
        np.square(np.moveaxis(leaf, axis, 0).reshape(leaf.shape[axis], -1), dtype=np.float64).sum(axis=1)
        for (path, leaf), axis in ((item, members[item[0]]) for item in leaves.items())
        if path.endswith("/kernel") and axis == -2
    ]
    return np.mean(scales, axis=0) * np.sqrt(np.sum(readers, axis=0))
