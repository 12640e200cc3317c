"""Batch normalisation as torch has it. Any module that owns a `scale` is a norm; see `trees.norm_modules`."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float


class BatchNorm(nn.BatchNorm):
    """Batch normalisation with torch's defaults: epsilon 1e-5 and momentum 0.1, which is 0.9 in Flax's terms.

    Statistics are kept in float32 whatever the compute type. Under `jax.jit` over a mesh they are those of the global
    batch. The running variance is the biased one (torch keeps the unbiased one, n / (n - 1) times this).
    """

    momentum: float = 0.9
    epsilon: float = 1e-5

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Float[Array, "b t ... c"], train: bool = False, frame_mask: Bool[Array, "b t"] | None = None
    ) -> Float[Array, "b t ... c"]:
        """Normalises over all axes but the last.

        Args:
            x: activations.
            train: take (and, with ``mutable=["batch_stats"]``, keep) the batch's own statistics.
            frame_mask: in training, frames where it is False do not enter the statistics.
        """
        mask = None
        if train and frame_mask is not None:
            mask = jnp.broadcast_to(frame_mask.reshape(frame_mask.shape + (1,) * (x.ndim - 2)), x.shape)
        return super().__call__(x, use_running_average=not train, mask=mask)
