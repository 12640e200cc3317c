"""What the 3-D families are made of: convolution with norm, sums, squeeze-and-excitation, and masks of padded frames.

Every layer takes the mask of the whole clip and fits it to its own grid, so no model keeps track of its temporal
strides.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from flaxvid.layers.conv import Conv
from flaxvid.layers.norm import BatchNorm

Grid = Float[Array, "b t h w c"]
FrameMask = Bool[Array, "b t"] | None
Strides = tuple[int, int, int]


def fit_mask(frame_mask: FrameMask, frames: int) -> FrameMask:
    """The mask of a grid of so many frames, from that of its clip or of any grid in between.

    With torch's symmetric padding, a layer with a temporal stride gives every `stride`-th frame.
    The stride follows from the lengths alone, for all temporal strides are powers of two: with length
    ``ceil(t / stride)`` the least power of two that is not below ``t / length`` is the stride.

    Raises:
        ValueError: no such stride gives this length.
    """
    if frame_mask is None:
        return None
    ratio = -(-frame_mask.shape[1] // frames)
    fitted = frame_mask[:, :: 1 << (ratio - 1).bit_length()]
    if fitted.shape[1] != frames:
        raise ValueError(
            f"frame_mask has {frame_mask.shape[1]} frames, and no temporal stride of 1, 2, 4, ... makes {frames} of "
            "them: pass the mask of the clip, one entry a frame"
        )
    return fitted


def mask_frames(x: Grid, frame_mask: FrameMask) -> Grid:
    """Zeroes the frames that only pad, so that a kernel over time sees there what lies outside of a clip."""
    mask = fit_mask(frame_mask, x.shape[1])
    return x if mask is None else jnp.where(mask[:, :, None, None, None], x, 0)


def mean_over_time(x: Float[Array, "b t c"], frame_mask: FrameMask = None) -> Float[Array, "b c"]:
    """Mean over axis 1, only of the frames where `frame_mask` is True."""
    mask = fit_mask(frame_mask, x.shape[1])
    return x.mean(axis=1) if mask is None else x.mean(axis=1, where=mask[..., None])


def global_mean(x: Grid, frame_mask: FrameMask = None) -> Float[Array, "b c"]:
    """Mean over time, height and width in float32, whatever the size: torch's adaptive pool to (1, 1, 1)."""
    return mean_over_time(x.mean(axis=(2, 3), dtype=jnp.float32), frame_mask)


class ConvNorm(nn.Module):
    """3-D convolution and batch norm, with a ReLU behind them or without.

    Attributes:
        features: channels out.
        kernel_size: (t, h, w); padding is torch's symmetric (k - 1) // 2.
        strides: one for all axes or (t, h, w); the temporal one a power of two.
        groups: of the channels.
        relu: end with a ReLU; not where a residual is added first.
        dtype: compute type.
        norm_epsilon: of the norm.
        zero_init: start the norm's scale at zero. A block whose last norm does so begins as its shortcut (arXiv
            1706.02677, section 5.1).
    """

    features: int
    kernel_size: tuple[int, int, int]
    strides: int | Sequence[int] = 1
    groups: int = 1
    relu: bool = False
    dtype: jnp.dtype = jnp.float32
    norm_epsilon: float = BatchNorm.epsilon
    zero_init: bool = False

    @nn.compact
    def __call__(self, x: Grid, train: bool = False, frame_mask: FrameMask = None) -> Grid:
        """Grid to grid; `frame_mask` is the clip's, or that of `x`."""
        if self.kernel_size[0] > 1:
            x = mask_frames(x, frame_mask)
        x = Conv(self.features, self.kernel_size, self.strides, groups=self.groups, dtype=self.dtype, name="conv")(x)
        scale_init = nn.initializers.zeros if self.zero_init else nn.initializers.ones
        norm = BatchNorm(
            epsilon=self.norm_epsilon, dtype=self.dtype, scale_init=scale_init, relu=self.relu, name="norm"
        )
        return norm(x, train, fit_mask(frame_mask, x.shape[1]))


class Sum(nn.Module):
    """A residual sum; a layer of its own, for int8 rounds the shortcut, which lies in memory until it is added."""

    def __call__(self, x: Grid, y: Grid) -> Grid:
        """Adds the branch `y` to the shortcut `x`."""
        return self.shortcut(x) + y

    def shortcut(self, x: Grid) -> Grid:
        """What the branch is added to; `int8_form` rounds it here."""
        return x


class SqueezeExcitation(nn.Module):
    """Channel weights from the whole clip (arXiv 1709.01507): mean, 1x1x1 convolution, ReLU, another one, sigmoid.

    Both convolutions have a bias.

    Attributes:
        hidden: channels between the two.
        dtype: compute type; the mean is taken in float32.
    """

    hidden: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Grid, frame_mask: FrameMask = None) -> Grid:
        """The grid with each channel scaled; padded frames have no say in the scales."""
        y = global_mean(x, frame_mask)[:, None, None, None]  # (b, 1, 1, 1, c)
        y = Conv(self.hidden, (1, 1, 1), use_bias=True, dtype=self.dtype, name="reduce")(y)
        y = Conv(x.shape[-1], (1, 1, 1), use_bias=True, dtype=self.dtype, name="expand")(nn.relu(y))
        return x * nn.sigmoid(y)
