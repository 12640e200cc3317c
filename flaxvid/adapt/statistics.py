"""Normalisation statistics measured anew, for another frame count or another domain without training."""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, UInt8

from flaxvid import trees
from flaxvid.adapt.freezing import keep_statistics
from flaxvid.layers.norm import BatchNorm
from flaxvid.models.video_model import VideoModel
from flaxvid.types import Variables

Moments = tuple[Any, Any, Any]
"""Count, mean and (biased) variance of each channel."""


def reestimate_statistics(
    model: VideoModel,
    variables: Variables,
    clips: Iterable[UInt8[Array, "b t h w 3"]],
    freeze: Sequence[str] = (),
) -> dict[str, Any]:
    """Measures the mean and variance that each norm sees of these clips; parameters stay.

    With clips of another domain this is AdaBN (arXiv 1603.04779).

    Each batch is normalised by its own statistics, as in training. They are pooled by batch size, as in fvcore's
    `update_bn_stats` (arXiv 2105.07576, section 3): the variance is that within batches and between their means, so
    small batches do not make it too small.

    Args:
        model: the network.
        variables: its ordinary variables; of `FrameFlexible` those of `select` for the clips' frame count.
        clips: batches of one frame count; a few dozen are enough.
        freeze: the recipe's; frozen norms stay.

    Raises:
        ValueError: no clips, or a model without batch statistics.
    """
    if private := sorted(name for name in variables if name.startswith("batch_stats_")):
        raise ValueError(f"expected ordinary variables, got {', '.join(private)}: give those of flexible.select(.., n)")
    if "batch_stats" not in variables:
        raise ValueError("expected a model with batch statistics, got one without: it needs no re-estimation")

    @jax.jit
    def measure(variables: Variables, video: Array) -> Any:
        with keep_statistics(freeze), nn.intercept_methods(_keep_moments):
            _, state = model.apply(
                variables, video, train=True, mutable=["batch_stats", "moments"], rngs={"dropout": jax.random.key(0)}
            )
        return state.get("moments", {})

    pooled: dict[str, Moments] | None = None
    for video in clips:
        # A norm that is called twice gives two moments.
        measured = trees.flatten(jax.device_get(measure(variables, video)))
        calls = {norm: [pooled[norm]] if pooled else [] for norm in measured}
        pooled = {norm: functools.reduce(_pool, [*calls[norm], *moments]) for norm, moments in measured.items()}
    if pooled is None:
        raise ValueError("expected clips to re-estimate the statistics from, got none: give some of training")
    statistics = {
        f"{norm.removesuffix('/moments')}/{name}": jnp.asarray(value, jnp.float32)
        for norm, (_, mean, var) in pooled.items()
        for name, value in (("mean", mean), ("var", var))
    }
    return {**variables, "batch_stats": trees.merge(variables["batch_stats"], trees.unflatten(statistics))}


def _keep_moments(call, args, kwargs, context):
    """Sows count, mean and variance of the input of each norm that runs as in training."""
    module = context.module
    if isinstance(module, BatchNorm) and (args[1:2] == (True,) or kwargs.get("train")):
        x = args[0].astype(jnp.float32)
        axes = tuple(range(x.ndim - 1))
        module.sow("moments", "moments", (jnp.float32(x.size // x.shape[-1]), x.mean(axes), x.var(axes)))
    return call(*args, **kwargs)


def _pool(one: Moments, other: Moments) -> Moments:
    """The moments of two sets together, in float64 and without a difference of large squares."""
    (n, mean, var), (m, other_mean, other_var) = (
        tuple(np.asarray(v, np.float64) for v in part) for part in (one, other)
    )
    total, apart = n + m, other_mean - mean
    return total, mean + apart * m / total, (n * var + m * other_var) / total + apart**2 * n * m / total**2
