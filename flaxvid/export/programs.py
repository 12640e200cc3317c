"""What every export does: the programs of a network, one for each frame count, and their comparison with JAX."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from flaxvid.models.registry import create_model
from flaxvid.models.video_model import VideoModel
from flaxvid.train.network import Trained
from flaxvid.train.setup import clip_config
from flaxvid.types import Variables, by_target

TOLERANCE = 1e-4
"""The largest difference of logits from JAX's, relative to the largest of them."""

ROUNDED_TOLERANCE = 0.05
"""The same for int8: a value on the edge between two steps falls to one side here and to the other there."""

BATCHES = (1, 3)
"""The batch sizes at which they are compared."""


def each_count(trained: Trained, frames: Sequence[int]) -> Iterator[tuple[int, VideoModel, Variables, int]]:
    """Yields each frame count with the model, its ordinary variables for that count, and the size of a frame.

    Raises:
        ValueError: the network has no head, or cannot take so many frames.
    """
    if trained.headless:
        raise ValueError(
            "this network was pre-trained without labels and has no classifier: fine-tune it first, then export it"
        )
    model, multiple = in_float32(trained.model), trained.model.multiple_of[0]
    size = clip_config(trained.recipe, trained.frames).image_size or model.clip.image_size
    counts = sorted(set(frames)) or trained.frames
    if wrong := [count for count in counts if count < 1 or count % multiple]:
        raise ValueError(f"frames: expected positive multiples of {multiple}, got {', '.join(map(str, wrong))}")
    for count in counts:
        yield count, model, trained.select(count), size


def in_float32(model: VideoModel) -> VideoModel:
    """The same model, computing in float32; other runtimes do not know bfloat16. One made by hand stays as it is."""
    return create_model(model.zoo_name, **{**model.overrides, "dtype": "float32"}) if model.zoo_name else model


def random_clips(model: VideoModel, batch: int, num_frames: int, size: int) -> Any:
    """Clips to compare programs on, for all cameras."""
    make = np.random.default_rng(batch).integers
    cameras = model.for_cameras(0)
    return jax.tree.map(lambda _: make(0, 256, (batch, num_frames, size, size, 3), np.uint8), cameras)


def compare(
    programs: Mapping[str, Callable[[Any], Any]], model: VideoModel, variables: Variables, num_frames: int, size: int
) -> dict[str, float]:
    """The largest difference of each program's logits from JAX's, relative to the largest logit.

    Args:
        programs: functions of video, by the names of their runtimes.
        model, variables: what they must compute.
        num_frames, size: of a clip.

    Raises:
        ValueError: a difference is larger than `TOLERANCE`, or than `ROUNDED_TOLERANCE` in int8.
    """
    apply, worst = jax.jit(model.apply), dict.fromkeys(programs, 0.0)
    tolerance = TOLERANCE if model.int8 is None else ROUNDED_TOLERANCE
    for batch in BATCHES:
        video = random_clips(model, batch, num_frames, size)
        wanted = by_target(jax.device_get(apply(variables, video)))
        for runtime, program in programs.items():
            given = by_target(program(video))
            for target, logits in wanted.items():
                scale = max(np.abs(logits).max(), np.finfo(np.float32).tiny)
                difference = float(np.abs(np.asarray(given[target]) - logits).max() / scale)
                worst[runtime] = max(worst[runtime], difference)
                if not difference <= tolerance:
                    raise ValueError(
                        f"expected logits within {tolerance:g} of JAX's, got a relative difference of {difference:.1e} "
                        f"in {runtime} at {num_frames} frames, so the program was not kept: please report the network"
                    )
    return worst
