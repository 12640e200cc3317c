"""Batch normalisation as torch has it. Any module that owns a `scale` is a norm; see `trees.norm_modules`.

The backward pass keeps the input as it is. Of Flax's norm, XLA keeps many a bfloat16 input as float32, at twice the
memory. The gradient of a ReLU behind the norm is part of the norm's: on a GPU, XLA would write it to memory.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Bool, Float

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
        relu: end with a ReLU.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    relu: bool = False

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
        if not train:
            moments = running_mean.value, running_variance.value
            return _affine(self.epsilon, self.dtype, self.relu, x, *moments, scale, bias)
        y, mean, square = _normalise(self.epsilon, self.dtype, self.relu, x, frame_mask, scale, bias)
        if not self.is_initializing():
            for running, value in ((running_mean, mean), (running_variance, _variance(mean, square))):
                running.value = self.momentum * running.value + (1 - self.momentum) * value
        return y


def _affine(
    epsilon: float,
    dtype: Any,
    relu: bool,
    x: Activations,
    mean: Channels,
    variance: Channels,
    scale: Channels,
    bias: Channels,
) -> Activations:
    y = ((x.astype(jnp.float32) - mean) * _factor(epsilon, variance, scale) + bias).astype(dtype)
    return nn.relu(y) if relu else y


def _factor(epsilon: float, variance: Channels, scale: Channels) -> Channels:
    return lax.rsqrt(variance + epsilon) * scale


def _variance(mean: Channels, square: Channels) -> Channels:
    return jnp.maximum(0, square - mean**2)


def _where(x: Activations, mask: Mask) -> Bool[Array, "b t ... c"] | None:
    return None if mask is None else jnp.broadcast_to(mask.reshape(*mask.shape, *(1,) * (x.ndim - 2)), x.shape)


def _by_own_moments(
    epsilon: float, dtype: Any, relu: bool, x: Activations, mask: Mask, scale: Channels, bias: Channels
) -> tuple[Activations, Channels, Channels]:
    """Normalises by the mean and the mean of squares of each channel, and returns these, too."""
    exact, axes, where = x.astype(jnp.float32), tuple(range(x.ndim - 1)), _where(x, mask)
    mean, square = exact.mean(axes, where=where), (exact**2).mean(axes, where=where)
    return _affine(epsilon, dtype, relu, x, mean, _variance(mean, square), scale, bias), mean, square


def _forward(
    epsilon: float, dtype: Any, relu: bool, x: Activations, mask: Mask, scale: Channels, bias: Channels
) -> Any:
    y, mean, square = _by_own_moments(epsilon, dtype, relu, x, mask, scale, bias)
    return (y, mean, square), (x, mask, mean, square, scale, bias)


def _backward(epsilon: float, dtype: Any, relu: bool, kept: Any, gradients: Any) -> Any:
    # The barrier stops XLA from keeping what the forward pass has computed of the input.
    x, mask, mean, square, scale, bias = lax.optimization_barrier(kept)
    axes, where = tuple(range(x.ndim - 1)), _where(x, mask)

    def factor_of(mean, square, scale):
        return _factor(epsilon, _variance(mean, square), scale)

    factor, pull = jax.vjp(factor_of, mean, square, scale)

    def exactly(x, gradient):
        """The input, and the gradient before the ReLU."""
        exact, gradient = x.astype(jnp.float32), gradient.astype(jnp.float32)
        return exact, jnp.where(exact * factor > mean * factor - bias, gradient, 0) if relu else gradient

    exact, by_y = exactly(x, gradients[0])
    by_bias, by_factor = by_y.sum(axes), (by_y * (exact - mean)).sum(axes)
    by_mean, by_square, by_scale = pull(by_factor)
    by_mean, by_square = by_mean - factor * by_bias + gradients[1], by_square + gradients[2]
    count = x.size // x.shape[-1] if where is None else where.sum(axes)
    # Barriers part the sums from what follows. The gradient before a ReLU is then computed again, not kept (on CPU it
    # is); and two norms that a residual sum joins add up their sums in one reading of its gradient.
    gradient = gradients[0]
    if relu:
        x = lax.platform_dependent(x, cpu=lambda x: x, default=lax.optimization_barrier)
    else:
        gradient = lax.platform_dependent(gradient, cuda=lax.optimization_barrier, default=lambda x: x)
    exact, by_y = exactly(x, gradient)
    by_moments = by_mean / count + exact * (2 * by_square / count)
    by_x = by_y * factor + (by_moments if where is None else jnp.where(where, by_moments, 0))
    return by_x.astype(x.dtype), None, by_scale, by_bias


_normalise: Any = jax.custom_vjp(_by_own_moments, nondiff_argnums=(0, 1, 2))
_normalise.defvjp(_forward, _backward)
