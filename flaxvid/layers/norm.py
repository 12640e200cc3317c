"""Batch normalisation as torch has it. Any module that owns a `scale` is a norm; see `trees.norm_modules`.

The backward pass keeps the input as it is. Of Flax's norm, XLA keeps many a bfloat16 input as float32, at twice the
memory.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Bool, Float

from flaxvid.layers.recompute import recomputed

Activations = Float[Array, "b t ... c"]
Channels = Float[Array, " c"]
Mask = Bool[Array, "b t"] | None


class BatchNorm(nn.Module):
    """Batch normalisation with torch's defaults: epsilon 1e-5 and momentum 0.1, which is 0.9 in Flax's terms.

    Statistics and parameters are float32 whatever the compute type, and so is what is computed of them. Under `jax.jit`
    over a mesh the statistics are those of the global batch. The running variance is the biased one (torch keeps the
    unbiased one, n / (n - 1) times this).

    Attributes:
        momentum: the share of the running statistics that a training step keeps.
        epsilon: added to the variance.
        dtype: of the result.
        scale_init: of the scale.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Activations, train: bool = False, frame_mask: Mask = None) -> Activations:
        """Normalises over all axes but the last.

        Args:
            x: activations.
            train: take (and, with ``mutable=["batch_stats"]``, keep) the batch's own statistics.
            frame_mask: in training, frames where it is False do not enter the statistics.
        """
        channels = x.shape[-1:]
        scale = self.param("scale", self.scale_init, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        running_variance = self.variable("batch_stats", "var", jnp.ones, channels)
        affine = partial(_affine, self.epsilon, self.dtype)
        if not train:
            return recomputed(affine)(x, running_mean.value, running_variance.value, scale, bias)
        y, mean, square = _normalise(affine, x, frame_mask, scale, bias)
        if not self.is_initializing():
            for running, value in ((running_mean, mean), (running_variance, _variance(mean, square))):
                running.value = self.momentum * running.value + (1 - self.momentum) * value
        return y


def _affine(
    epsilon: float, dtype: Any, x: Activations, mean: Channels, variance: Channels, scale: Channels, bias: Channels
):
    return ((x.astype(jnp.float32) - mean) * (lax.rsqrt(variance + epsilon) * scale) + bias).astype(dtype)


def _moments(x: Activations, mask: Mask) -> tuple[Channels, Channels]:
    """The mean and the mean of squares of each channel."""
    x, axes = x.astype(jnp.float32), tuple(range(x.ndim - 1))
    where = None if mask is None else jnp.broadcast_to(mask.reshape(*mask.shape, *(1,) * (x.ndim - 2)), x.shape)
    return x.mean(axes, where=where), (x**2).mean(axes, where=where)


def _variance(mean: Channels, square: Channels) -> Channels:
    return jnp.maximum(0, square - mean**2)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _normalise(affine, x, mask, scale, bias):
    """Activations normalised by their own moments, and these."""
    return _forward(affine, x, mask, scale, bias)[0]


def _forward(affine, x, mask, scale, bias):
    mean, square = _moments(x, mask)
    return (affine(x, mean, _variance(mean, square), scale, bias), mean, square), (x, mask, mean, square, scale, bias)


def _backward(affine, kept, gradients):
    # Behind a barrier, all is computed again; XLA would keep what the forward pass has computed.
    x, mask, mean, square, scale, bias = lax.optimization_barrier(kept)
    exact = x.astype(jnp.float32)

    def normalise(exact, mean, square, scale, bias):
        return affine(exact, mean, _variance(mean, square), scale, bias)

    by_x, by_mean, by_square, by_scale, by_bias = jax.vjp(normalise, exact, mean, square, scale, bias)[1](gradients[0])
    _, pull = jax.vjp(lambda exact: _moments(exact, mask), exact)
    (more,) = pull((by_mean + gradients[1], by_square + gradients[2]))
    return (by_x + more).astype(x.dtype), None, by_scale, by_bias


_normalise.defvjp(_forward, _backward)
