"""What a frame count costs, counted and measured: the other half of any-frame accuracy."""

import statistics
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from flaxvid.models.video_model import VideoModel
from flaxvid.types import Variables

REPEATS = 9
"""Timed runs, of which the median counts: a busy machine slows some of them."""


def clip_milliseconds(
    model: VideoModel, variables: Variables, num_frames: int, image_size: int, repeats: int = REPEATS
) -> float:
    """Measures one clip's way from uint8 in host memory to logits, batch of one: the median of several runs.

    Compilation and a first run come before. Decoding is not in it. On a machine that is busy otherwise the figure is
    that machine's; throughput with larger batches is another figure.

    Args:
        model: the ordinary model.
        variables: its ordinary variables for this frame count.
        num_frames: frames of the clip.
        image_size: height and width of the clip, pixels.
        repeats: how many runs are timed.
    """
    clip = np.random.default_rng(0).integers(0, 256, (1, num_frames, image_size, image_size, 3), np.uint8)
    video, variables = model.for_cameras(clip), jax.device_put(variables)
    apply = jax.jit(model.apply).lower(variables, video).compile()
    jax.block_until_ready(apply(variables, video))
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(apply(variables, video))
        times.append(time.perf_counter() - begin)
    return 1000 * statistics.median(times)


def largest_within(
    budget: float, frames: Sequence[int], milliseconds: Callable[[int], float]
) -> tuple[int, dict[int, float]]:
    """The largest frame count that a clip can have within a budget; measures as few counts as that takes.

    Args:
        budget: milliseconds a clip.
        frames: the counts to choose from.
        milliseconds: measures one; taken to grow with the count.

    Returns:
        The count, and what was measured.

    Raises:
        ValueError: even the smallest takes longer.
    """
    counts, measured = sorted(set(frames)), {}
    low, high = 0, len(counts)  # counts[:low] fit, counts[high:] do not
    while low < high:
        middle = (low + high) // 2
        measured[counts[middle]] = milliseconds(counts[middle])
        if measured[counts[middle]] <= budget:
            low = middle + 1
        else:
            high = middle
    if not low:
        raise ValueError(
            f"expected a frame count of {', '.join(map(str, counts))} within {budget:g} ms a clip, got "
            f"{measured[counts[0]]:.3g} ms at {counts[0]}: allow more, or offer fewer frames"
        )
    return counts[low - 1], measured
