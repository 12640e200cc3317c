"""What the transformers are made of: patches, the pre-norm block, and dropping of whole branches."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from flaxvid.layers.attention import Attention, Bias, KeyMask, Tokens
from flaxvid.layers.blocks import FrameMask, Grid, mask_frames
from flaxvid.layers.conv import Conv
from flaxvid.layers.recompute import recomputed

# Both are jitted under their own names, by which the export knows them.


@jax.jit
def gelu(x: Array) -> Array:
    """The exact GELU. Flax's and JAX's default is its approximation by a tanh."""
    return recomputed(functools.partial(nn.gelu, approximate=False))(x)


@jax.jit
def gelu_tanh(x: Array) -> Array:
    """GELU, approximated by a tanh."""
    return recomputed(functools.partial(nn.gelu, approximate=True))(x)


class PatchEmbed(nn.Module):
    """Cuts video into patches that do not overlap; a dense layer makes a token of each.

    Attributes:
        width: channels of a token.
        patch: (frames, height, width) of a patch, or (height, width) of one in each frame; they divide those of the
            video (`VideoModel.multiple_of`).
        dtype: compute type.
    """

    width: int
    patch: tuple[int, ...]
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w 3"], train: bool = False, frame_mask: FrameMask = None) -> Grid:
        """Normalised video to a grid of tokens. Frames that only pad are zeros to a patch that also has others."""
        x = mask_frames(x, frame_mask).astype(self.dtype)
        init = nn.initializers.lecun_normal()
        conv = Conv(
            self.width, self.patch, self.patch, 0, use_bias=True, dtype=self.dtype, kernel_init=init, name="patch"
        )
        return conv(x)


class Mlp(nn.Module):
    """Two dense layers with an activation between them.

    Attributes:
        hidden: channels between the layers.
        activation: the exact GELU by default.
        dtype: compute type.
        features: channels out; None for as many as come in.
    """

    hidden: int
    activation: Callable[[Array], Array] = gelu
    dtype: jnp.dtype = jnp.float32
    features: int | None = None

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        """Tokens to tokens."""
        dense = functools.partial(nn.Dense, kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype)
        return dense(self.features or x.shape[-1], name="fc2")(self.activation(dense(self.hidden, name="fc1")(x)))


class DropPath(nn.Module):
    """In training, zeroes a whole residual branch of some clips, and scales those of the others up (arXiv 1603.09382).

    Attributes:
        rate: the part of the clips; needs a "dropout" key.
    """

    rate: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "b ..."], train: bool = False) -> Float[Array, "b ..."]:
        """The branch as it is at evaluation. Axis 0 must be the clips'."""
        if not train or self.rate == 0:
            return x
        kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, (x.shape[0], *(1,) * (x.ndim - 1)))
        return jnp.where(kept, x / (1 - self.rate), 0)


def drop_rates(rate: float, depth: int) -> tuple[float, ...]:
    """The `DropPath` rate of each block: from 0 at the first to `rate` at the last, in equal steps."""
    return tuple(rate * index / max(1, depth - 1) for index in range(depth))


class Block(nn.Module):
    """A pre-norm transformer block (arXiv 2010.11929): attention, then an mlp, each on a norm and beside a shortcut.

    Attributes:
        num_heads: of the attention.
        hidden: channels inside the mlp.
        bias: of the attention, see `Attention`.
        activation: of the mlp.
        drop_path: rate at which a clip loses a branch in training.
        dtype: compute type.
        norm_epsilon: of both norms.
    """

    num_heads: int
    hidden: int
    bias: Bias = "qkv"
    activation: Callable[[Array], Array] = gelu
    drop_path: float = 0.0
    dtype: jnp.dtype = jnp.float32
    norm_epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"], train: bool = False, keys: KeyMask = None) -> Float[Array, "b n c"]:
        """Tokens to tokens; `keys` (b, n) is False for tokens that no other attends to."""
        norm = functools.partial(nn.LayerNorm, epsilon=self.norm_epsilon, dtype=self.dtype)
        y = Attention(self.num_heads, self.bias, self.dtype, name="attention")(norm(name="norm1")(x), keys)
        x = x + DropPath(self.drop_path, name="drop1")(y, train)
        y = Mlp(self.hidden, self.activation, self.dtype, name="mlp")(norm(name="norm2")(x))
        return x + DropPath(self.drop_path, name="drop2")(y, train)
