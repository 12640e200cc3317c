"""Evaluation of a model at several frame counts in one pass over the videos."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from flaxvid.evaluate.metrics import accuracies, accuracy_sums
from flaxvid.models.video_model import VideoModel
from flaxvid.types import Batch, Variables


def evaluate(
    model: VideoModel,
    variables: Mapping[int, Variables],
    batches: Iterable[Batch],
    *,
    put: Callable[[Batch], Batch] = lambda batch: batch,
) -> dict[int, dict[str, float]]:
    """Accuracy at each frame count, the probabilities of a video's views averaged.

    Args:
        model: the ordinary model.
        variables: ordinary variables for each frame count.
        batches: uint8 evaluation batches, their "video" with one entry for each of these counts.
        put: moves a batch to the devices.

    Returns:
        ``{4: {"top1": 0.61, "top5": 0.93, "clips": 2048}, ...}``, accuracies in [0, 1].

    Raises:
        ValueError: the video is not uint8, or no video was evaluated.
    """
    totals: dict[int, Any] = {}
    for batch in batches:
        batch = put(batch)
        for count, plain in variables.items():
            video = batch["video"][count]
            if video.dtype != jnp.uint8:
                raise ValueError(
                    f"evaluation takes uint8 video, got {video.dtype}: the model itself normalises, and floats in "
                    "[0, 1] would pass for normalised ones"
                )
            sums = _count_right(model, plain, video, batch["label"], batch["mask"])
            totals[count] = jax.tree.map(jnp.add, totals[count], sums) if count in totals else sums
    if not totals:
        raise ValueError("no batch to evaluate: is the split empty?")
    return {count: {**accuracies(sums), "clips": int(sums["count"])} for count, sums in totals.items()}


@functools.partial(jax.jit, static_argnames="model")
def _count_right(
    model: VideoModel, plain: Variables, video: jax.Array, labels: jax.Array, mask: jax.Array
) -> dict[str, jax.Array]:
    rows, views = video.shape[:2]
    logits: Any = model.apply(plain, video.reshape(-1, *video.shape[2:]))
    probabilities = jax.nn.softmax(logits).reshape(rows, views, -1)
    return accuracy_sums(probabilities.mean(1), labels, mask)
