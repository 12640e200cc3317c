"""Non-local blocks (arXiv 1711.07971): every place of a clip sees all others.

Differs from the references: an axis of one pixel is not pooled, where theirs leave nothing of it.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from flaxvid.layers.blocks import FrameMask, Grid, Sum, fit_mask
from flaxvid.layers.conv import Conv
from flaxvid.layers.norm import BatchNorm
from flaxvid.layers.pooling import max_pool
from flaxvid.layers.position import token_keys


class _Kind(NamedTuple):
    """What tells one kind of non-local block from another."""

    softmax: bool = True
    scaled: bool = False
    embedded: bool = True
    pool_first: bool = False


KINDS = {
    "gaussian": _Kind(embedded=False),
    "embedded_gaussian": _Kind(),
    "scaled_gaussian": _Kind(scaled=True),
    "dot_product": _Kind(softmax=False),
    "pooled_gaussian": _Kind(scaled=True, pool_first=True),
    "pooled_dot_product": _Kind(softmax=False, pool_first=True),
}
"""How a place weighs the others: by a softmax of the products of its query with their keys ("embedded_gaussian"), which
are first divided by the root of their channels ("scaled_gaussian"); by the softmax of the products of the grid with
itself, without queries and keys ("gaussian"); or by the products divided by the number of keys ("dot_product").

Keys and values are max-pooled over 2x2 pixels. The "pooled" kinds, PySlowFast's, make them of the pooled grid, and
their last convolution has a bias. The others, mmaction2's, pool behind the convolutions."""


class NonLocal(nn.Module):
    """A weighted mean of the values of all places, through a convolution and a norm added to each place.

    The norm's scale starts at zero, so that the block begins as its shortcut.

    Attributes:
        kind: a key of `KINDS`.
        dtype: compute type; the weights are float32.
        norm_epsilon: of the norm.
    """

    kind: str
    dtype: jnp.dtype = jnp.float32
    norm_epsilon: float = BatchNorm.epsilon

    @nn.compact
    def __call__(self, x: Grid, train: bool = False, frame_mask: FrameMask = None) -> Grid:
        """Grid to grid; padded frames have no keys."""
        kind, (b, t, h, w, c) = KINDS[self.kind], x.shape
        inner = max(1, c // 2)
        conv = functools.partial(Conv, kernel_size=(1, 1, 1), dtype=self.dtype)
        embed = functools.partial(conv, inner, use_bias=True)
        pool = functools.partial(max_pool, window=(1, min(2, h), min(2, w)))
        query = embed(name="query")(x) if kind.embedded else x
        if kind.pool_first:
            pooled = pool(x)
            key, value = embed(name="key")(pooled), embed(name="value")(pooled)
        else:
            key = pool(embed(name="key")(x) if kind.embedded else x)
            value = pool(embed(name="value")(x))
        mask = token_keys(fit_mask(frame_mask, t), key.shape[2] * key.shape[3])
        query, key, value = (grid.reshape(b, -1, grid.shape[-1]) for grid in (query, key, value))
        y = _weigh(query, key, value, kind, mask).reshape(b, t, h, w, inner)
        y = conv(c, use_bias=kind.pool_first, name="project")(y)
        norm = BatchNorm(epsilon=self.norm_epsilon, dtype=self.dtype, scale_init=nn.initializers.zeros, name="norm")
        return Sum(name="sum")(x, norm(y, train, fit_mask(frame_mask, t)))


def _weigh(
    query: Float[Array, "b n d"],
    key: Float[Array, "b m d"],
    value: Float[Array, "b m c"],
    kind: _Kind,
    mask: Array | None,
) -> Float[Array, "b n c"]:
    """The weighted mean of the values, for each query; `mask` (b, m) is False for keys that do not count."""
    scores = jnp.einsum("bnd,bmd->bnm", query, key, preferred_element_type=jnp.float32)
    scores = scores * query.shape[-1] ** -0.5 if kind.scaled else scores
    mask = None if mask is None else mask[:, None]
    if kind.softmax:
        weights = jax.nn.softmax(scores, where=mask)
    elif mask is None:
        weights = scores / scores.shape[-1]
    else:
        weights = jnp.where(mask, scores, 0) / mask.sum(axis=-1, keepdims=True)
    return jnp.einsum("bnm,bmc->bnc", weights.astype(value.dtype), value)
