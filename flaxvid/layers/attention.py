"""Attention between cameras of one scene, over the grids that a body makes of them."""

import functools

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Bool, Float

from flaxvid.layers.blocks import FrameMask, Grid, fit_mask

Cameras = Float[Array, "b v t h w c"]
Present = Bool[Array, "b v"]


class CrossViewAttention(nn.Module):
    """Temporal-spatial cross-view attention: cameras look at each other at each moment, then along time, and are
    joined.

    Cameras of a scene share the time and nothing else: which place of one shows the same as a place of another must be
    learnt. So at each moment every place of every camera attends to all places of all cameras. Then each place attends
    to its own past and future. Last, a gate (softmax over the cameras) weighs the cameras in a sum.

    "To the right" is another direction in each camera, so each camera first has a projection of its own. At the start
    the projections are the identity, both attentions give zero, and the gate is even: the output is the cameras' mean.

    A camera that is not present is no key of the attention and has no weight in the gate: its values change nothing.

    Attributes:
        heads: of both attentions; divides their channels.
        width: channels of queries, keys and values, at most; narrower grids keep their own.
        dtype: compute type; softmaxes and the gate are float32.
        norm_epsilon: of both norms.
    """

    heads: int = 4
    width: int = 512
    dtype: jnp.dtype = jnp.float32
    norm_epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Cameras, present: Present, frame_mask: FrameMask = None) -> Grid:
        """The cameras' grids to one; no size is built in, but the number of cameras is."""
        _, v, t, h, w, c = x.shape
        attend = functools.partial(
            nn.MultiHeadDotProductAttention,
            self.heads,
            dtype=self.dtype,
            qkv_features=min(c, self.width),
            out_kernel_init=nn.initializers.zeros,
            use_bias=False,
            force_fp32_for_softmax=True,
        )
        norm = functools.partial(nn.LayerNorm, epsilon=self.norm_epsilon, dtype=self.dtype)
        own = self.param("own", lambda _key, shape: jnp.broadcast_to(jnp.eye(c), shape), (v, c, c))
        which = self.param("which", nn.initializers.normal(0.02), (v, c))
        x, own, which = promote_dtype(x, own, which, dtype=self.dtype)
        x = jnp.einsum("bvthwc,vcd->bvthwd", x, own) + which[:, None, None, None]

        y = rearrange(norm(name="norm_views")(x), "b v t h w c -> b t (v h w) c")
        keys = repeat(present, "b v -> b 1 1 1 (v h w)", h=h, w=w)  # (b, t, heads, queries, keys)
        y = attend(name="between_views")(y, mask=keys)
        x = x + rearrange(y, "b t (v h w) c -> b v t h w c", v=v, h=h)

        y = rearrange(norm(name="norm_time")(x), "b v t h w c -> b (v h w) t c")
        mask = fit_mask(frame_mask, t)
        y = attend(name="along_time")(y, mask=None if mask is None else mask[:, None, None, None])
        x = x + rearrange(y, "b (v h w) t c -> b v t h w c", v=v, h=h)

        score = nn.Dense(1, use_bias=False, kernel_init=nn.initializers.zeros, name="gate")(x.astype(jnp.float32))
        weight = jax.nn.softmax(score, axis=1, where=present[:, :, None, None, None, None])
        return (weight * x).sum(axis=1).astype(self.dtype)  # (b, t, h, w, c)
