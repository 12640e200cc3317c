"""Re-estimated normalisation statistics: what a trained network can do at another frame count without training."""

from collections.abc import Iterable
from typing import Any

import jax
from jaxtyping import Array, UInt8

from flaxvid.layers.norm import BatchNorm
from flaxvid.models.video_model import VideoModel
from flaxvid.types import Variables


def reestimate_statistics(
    model: VideoModel, variables: Variables, clips: Iterable[UInt8[Array, "b t h w 3"]]
) -> dict[str, Any]:
    """Ordinary variables whose batch statistics are the means over these clips' batches; parameters stay.

    Args:
        model: the network.
        variables: its variables.
        clips: batches of one frame count, which may differ from that of training; a few dozen are enough.

    Raises:
        ValueError: no clips, or a model without batch statistics.
    """
    if "batch_stats" not in variables:
        raise ValueError("this model has no batch statistics to re-estimate: its normalisation keeps none")
    # In training a norm does not read its running statistics, so one step from zeros leaves (1 - momentum) x the
    # batch's.
    zeros = jax.tree.map(jax.numpy.zeros_like, variables["batch_stats"])

    @jax.jit
    def measure(params: Any, video: Array) -> Any:
        _, state = model.apply(
            {"params": params, "batch_stats": zeros},
            video,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
        return jax.tree.map(lambda leaf: leaf / (1 - BatchNorm.momentum), state["batch_stats"])

    total, count = zeros, 0
    for video in clips:
        total = jax.tree.map(jax.numpy.add, total, measure(variables["params"], video))
        count += 1
    if not count:
        raise ValueError("no clips to re-estimate the statistics from")
    return {**variables, "batch_stats": jax.tree.map(lambda leaf: leaf / count, total)}
