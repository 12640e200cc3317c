"""Batch normalisation as torch has it. Any module that owns a `scale` is a norm; see `trees.norm_modules`."""

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Bool, Float

from flaxvid.layers.recompute import recomputed


class BatchNorm(nn.Module):
    """Batch normalisation with torch's defaults: epsilon 1e-5 and momentum 0.1, which is 0.9 in Flax's terms.

    Statistics and parameters are float32 whatever the compute type, and so is what is computed of them. The backward
    pass keeps the input as it is: of Flax's norm, XLA keeps many an input as float32, at twice the memory. Under
    `jax.jit` over a mesh the statistics are those of the global batch. The running variance is the biased one (torch
    keeps the unbiased one, n / (n - 1) times this).

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
    def __call__(
        self, x: Float[Array, "b t ... c"], train: bool = False, frame_mask: Bool[Array, "b t"] | None = None
    ) -> Float[Array, "b t ... c"]:
        """Normalises over all axes but the last.

        Args:
            x: activations.
            train: take (and, with ``mutable=["batch_stats"]``, keep) the batch's own statistics.
            frame_mask: in training, frames where it is False do not enter the statistics.
        """
        channels = x.shape[-1:]
        scale = self.param("scale", self.scale_init, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        running = {
            "mean": self.variable("batch_stats", "mean", jnp.zeros, channels),
            "var": self.variable("batch_stats", "var", jnp.ones, channels),
        }
        mean, variance = running["mean"].value, running["var"].value
        if train:
            mean, variance = self.moments(x, frame_mask)
            if not self.is_initializing():
                for name, value in (("mean", mean), ("var", variance)):
                    running[name].value = self.momentum * running[name].value + (1 - self.momentum) * value

        def affine(x, mean, variance, scale, bias):
            y = (x.astype(jnp.float32) - mean) * (lax.rsqrt(variance + self.epsilon) * scale) + bias
            return y.astype(self.dtype)

        return recomputed(affine)(x, mean, variance, scale, bias)

    @nn.nowrap
    def moments(
        self, x: Float[Array, "b t ... c"], frame_mask: Bool[Array, "b t"] | None
    ) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
        """Mean and (biased) variance of each channel."""

        def means(x, mask):
            x, axes = x.astype(jnp.float32), tuple(range(x.ndim - 1))
            where = None if mask is None else jnp.broadcast_to(mask.reshape(*mask.shape, *(1,) * (x.ndim - 2)), x.shape)
            return x.mean(axes, where=where), (x**2).mean(axes, where=where)

        mean, mean_of_squares = recomputed(means)(x, frame_mask)
        return mean, jnp.maximum(0, mean_of_squares - mean**2)
