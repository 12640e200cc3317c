"""The blocks of multiscale transformers (MViT, arXiv 2104.11227, and MViTv2, arXiv 2112.01526).

Tokens of a clip stand in one row, the class token first, so each layer is told the size of the grid behind it.
"""

import dataclasses
import functools

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from flaxvid.layers.attention import attend
from flaxvid.layers.blocks import FrameMask, Strides, mask_frames
from flaxvid.layers.conv import Conv
from flaxvid.layers.pooling import max_pool
from flaxvid.layers.position import token_keys
from flaxvid.layers.relative import relative_scores
from flaxvid.layers.transformer import DropPath, Mlp

Tokens = Float[Array, "b n c"]
table_init = nn.initializers.truncated_normal(0.02)
"""How learnt tables of positions start."""


@dataclasses.dataclass(frozen=True)
class Scale:
    """The sizes of one block.

    Attributes:
        heads: of the attention.
        width: channels of the attention and into the mlp.
        out: channels that the block gives.
        query_kernel: (t, h, w) of the queries' pooling; () for none.
        query_stride: along height and width.
        key_kernel: of the pooling of keys and values; () for none.
        key_stride: along height and width.
        table: (t, h, w) of the grid that relative positions are made for; () for none.
    """

    heads: int
    width: int
    out: int
    query_kernel: tuple[int, ...]
    query_stride: int
    key_kernel: tuple[int, ...]
    key_stride: int
    table: tuple[int, ...] = ()


class PoolingAttention(nn.Module):
    """Attention between pooled queries and pooled keys and values; the class token is not pooled.

    With relative positions, the pooled queries are added to what each head gives (residual pooling, MViTv2).

    Attributes:
        scale: sizes.
        dtype: compute type; the softmax is float32.
        norm_epsilon: of the norms behind the poolings.
    """

    scale: Scale
    dtype: jnp.dtype = jnp.float32
    norm_epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Tokens, size: Strides, mask: FrameMask = None) -> Tokens:
        """Class token and grid in one row, to the same with the pooled grid.

        Args:
            x: (b, 1 + t * h * w, c).
            size: (t, h, w).
            mask: (b, t), False for times that only pad.
        """
        scale = self.scale
        dense = functools.partial(nn.Dense, kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype)
        y = dense(3 * scale.width, name="qkv")(x)
        # Heads become part of the batch, for they share the poolings and the tables.
        q, k, v = rearrange(y, "b n (three heads d) -> three (b heads) n d", three=3, heads=scale.heads)
        if mask is not None:
            mask = jnp.repeat(mask, scale.heads, axis=0)
        q, query_size = self._pool("q", q, size, mask)
        k, key_size = self._pool("k", k, size, mask)
        v, _ = self._pool("v", v, size, mask)
        scores = None
        if scale.table:
            tables = [self._relative_table(axis) for axis in range(3)]
            scores = relative_scores(q[:, 1:], tables, query_size, key_size, mask)
            scores = jnp.pad(scores, ((0, 0), (1, 0), (1, 0)))[:, None]  # the class token has no place
        keys = token_keys(mask, key_size[1] * key_size[2], before=1)
        y = attend(q[:, :, None], k[:, :, None], v[:, :, None], keys, scores)[:, :, 0]
        if scale.table:
            y = jnp.concatenate([y[:, :1], y[:, 1:] + q[:, 1:]], axis=1)
        return dense(scale.width, name="project")(rearrange(y, "(b heads) n d -> b n (heads d)", heads=scale.heads))

    def _pool(self, name: str, x: Tokens, size: Strides, mask: FrameMask) -> tuple[Tokens, Strides]:
        """Queries, keys or values and the size of their grid, both pooled."""
        query = name == "q"
        kernel = self.scale.query_kernel if query else self.scale.key_kernel
        stride = self.scale.query_stride if query else self.scale.key_stride
        if not kernel:
            return x, size
        d = x.shape[-1]
        grid = mask_frames(x[:, 1:].reshape(-1, *size, d), mask)
        grid = Conv(d, kernel, (1, stride, stride), groups=d, dtype=self.dtype, name=f"pool_{name}")(grid)
        y = jnp.concatenate([x[:, :1], grid.reshape(x.shape[0], -1, d)], axis=1)
        y = nn.LayerNorm(epsilon=self.norm_epsilon, dtype=self.dtype, name=f"norm_{name}")(y)
        return y, (grid.shape[1], grid.shape[2], grid.shape[3])

    def _relative_table(self, axis: int) -> Float[Array, "n d"]:
        """The table of distances along time, height or width: from 1 - n to n - 1 for n places."""
        scale = self.scale
        n = scale.table[axis]
        if axis:
            n = max(-(-n // scale.query_stride), -(-n // scale.key_stride))
        shape = (2 * n - 1, scale.width // scale.heads)
        return self.param(f"relative_{'thw'[axis]}", table_init, shape).astype(self.dtype)


class MultiscaleBlock(nn.Module):
    """Pooling attention and an mlp, each on a norm and beside a shortcut; one of the two may change the channels.

    Where it does, its shortcut is a dense layer on the norm's output. The attention's shortcut is max-pooled.

    Attributes:
        scale: sizes.
        mlp_ratio: how many times more channels the mlp has inside.
        drop_path: rate at which a clip loses a branch in training.
        dtype: compute type.
        norm_epsilon: of `norm1` and `norm2`.
        pool_epsilon: of the norms behind the poolings.
    """

    scale: Scale
    mlp_ratio: int = 4
    drop_path: float = 0.0
    dtype: jnp.dtype = jnp.float32
    norm_epsilon: float = 1e-6
    pool_epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Tokens, size: Strides, train: bool = False, mask: FrameMask = None) -> Tokens:
        """Class token and grid in one row, to the same; `size` is (t, h, w) of the grid that comes in."""
        scale, dense = self.scale, functools.partial(nn.Dense, dtype=self.dtype, name="project")
        norm = functools.partial(nn.LayerNorm, epsilon=self.norm_epsilon, dtype=self.dtype)
        y = norm(name="norm1")(x)
        shortcut = x if x.shape[-1] == scale.width else dense(scale.width)(y)
        shortcut = _pool_shortcut(shortcut, size, scale.query_stride)
        y = PoolingAttention(scale, self.dtype, self.pool_epsilon, name="attention")(y, size, mask)
        x = shortcut + DropPath(self.drop_path, name="drop1")(y, train)
        y = norm(name="norm2")(x)
        shortcut = x if scale.out == scale.width else dense(scale.out)(y)
        y = Mlp(self.mlp_ratio * scale.width, dtype=self.dtype, features=scale.out, name="mlp")(y)
        return shortcut + DropPath(self.drop_path, name="drop2")(y, train)


def _pool_shortcut(x: Tokens, size: Strides, stride: int) -> Tokens:
    """Max-pools the grid behind the class token along height and width."""
    if stride == 1:
        return x
    b, _, c = x.shape
    window = (stride + 1, stride + 1)
    grid = max_pool(x[:, 1:].reshape(b, *size, c), window, stride, (stride + 1) // 2)
    return jnp.concatenate([x[:, :1], grid.reshape(b, -1, c)], axis=1)
