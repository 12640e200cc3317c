"""The attentive head: a learnt query asks all tokens of a body's grids, and a classifier reads what it got."""

import functools
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from flaxvid.layers.attention import KeyMask
from flaxvid.layers.blocks import FrameMask, fit_mask
from flaxvid.layers.heads import ClassToken, Grids, Logits, classify
from flaxvid.layers.transformer import Mlp

HEAD_CHANNELS = 64
"""Channels of each of the attention's heads, where they divide the grid's."""


class AttentivePool(nn.Module):
    """Cross-attention of one learnt query to all tokens, then an mlp, both beside a shortcut (arXiv 2404.08471).

    The tokens are normalised before the attention and its result before the mlp. Keys have no bias, for it would move
    all scores alike. The softmax is float32 whatever the compute type.

    Attributes:
        dtype: compute type.
        norm_epsilon: of both norms.
    """

    dtype: jnp.dtype = jnp.float32
    norm_epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"], keys: KeyMask = None) -> Float[Array, "b c"]:
        """Tokens to one feature; `keys` (b, n) is False for tokens that have no part in it."""
        b, n, c = x.shape
        heads = math.gcd(c, max(1, c // HEAD_CHANNELS))
        dense = functools.partial(nn.Dense, c, kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype)
        norm = functools.partial(nn.LayerNorm, epsilon=self.norm_epsilon, dtype=self.dtype)
        token = self.param("token", nn.initializers.truncated_normal(0.02), (1, 1, c)).astype(self.dtype)
        x = norm(name="norm1")(x)
        q = jnp.broadcast_to(dense(name="query")(token), (b, 1, c)).reshape(b, 1, heads, -1)
        k = dense(name="key", use_bias=False)(x).reshape(b, n, heads, -1)
        v = dense(name="value")(x).reshape(b, n, heads, -1)
        mask = None if keys is None else keys[:, None, None]  # (batch, heads, queries, keys)
        y = token + jax.nn.dot_product_attention(q, k, v, mask=mask).reshape(b, 1, c)
        y = y + Mlp(4 * c, dtype=self.dtype, name="mlp")(norm(name="norm2")(y))
        return y[:, 0].astype(jnp.float32)


class AttentiveHead(nn.Module):
    """Pools by attention, then classifies: the probe for frozen video networks (arXiv 2404.08471), on any body.

    Each of several grids, such as SlowFast's two, has a pool of its own, and their features stand side by side. A class
    token is one more token of its grid. Logits are float32 whatever the compute type.

    Attributes:
        num_classes: a number, or ``{"action": 9, "actor": 4}`` for one classifier each and a dict of logits.
        dropout: rate on the feature in training; needs a "dropout" key.
        classifier_std: deviation of the initial kernels.
        grids: how many grids the body gives.
        fit: gives a grid's mask from the clip's and the grid's length: `layers.position.token_mask` for patches of
            several frames.
        dtype: compute type of the pools.
        norm_epsilon: of every norm.
    """

    num_classes: int | Mapping[str, int]
    dropout: float = 0.0
    classifier_std: float = 0.02
    grids: int = 1
    fit: Callable[[FrameMask, int], FrameMask] = fit_mask
    dtype: jnp.dtype = jnp.float32
    norm_epsilon: float = 1e-6

    def setup(self):
        """Makes what `pool` needs here, for it is called by itself, too."""
        self.attention = [AttentivePool(self.dtype, self.norm_epsilon) for _ in range(self.grids)]

    def pool(self, x: Grids | ClassToken, train: bool = False, frame_mask: FrameMask = None) -> Float[Array, "b c"]:
        """The clip's feature; frames that `frame_mask`, the clip's, marks False have no part in it."""
        grids = [x] if isinstance(x, ClassToken) else jax.tree.leaves(x)
        pooled = [attend(*self._tokens(grid, frame_mask)) for attend, grid in zip(self.attention, grids, strict=True)]
        return jnp.concatenate(pooled, axis=-1)

    def _tokens(self, x, frame_mask):
        """A grid's tokens in one row, with its class token first if there is one, and which of them count."""
        grid = x.grid if isinstance(x, ClassToken) else x
        b, t, h, w, c = grid.shape
        tokens, mask = grid.reshape(b, t * h * w, c), self.fit(frame_mask, t)
        keys = None if mask is None else jnp.repeat(mask, h * w, axis=1)
        if isinstance(x, ClassToken):
            tokens = jnp.concatenate([x.token[:, None], tokens], axis=1)
            keys = None if keys is None else jnp.pad(keys, ((0, 0), (1, 0)), constant_values=True)
        return tokens, keys

    @nn.compact
    def __call__(self, x: Grids | ClassToken, train: bool = False, frame_mask: FrameMask = None) -> Logits:
        """Activations to logits."""
        x = nn.Dropout(self.dropout)(self.pool(x, train, frame_mask), deterministic=not train)
        return classify(x, self.num_classes, self.classifier_std)
