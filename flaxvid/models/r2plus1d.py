"""R(2+1)D (arXiv 1711.11248): every 3-D convolution is a spatial and a temporal one, with a norm and a ReLU between.

The paper chooses the channels between the two so that the pair has as many parameters as the 3x3x3 convolution. There
are two readings of a block whose input has fewer channels than its output: torchvision computes the number once from
the block's input (R(2+1)D-34 then has 61,831,661 parameters), the authors' Caffe2 code, IG-65M and mmaction2 for each
convolution anew (63,697,175).

pytorchvideo's R(2+1)D-50 is another network: bottlenecks whose middle is 3x1x1 first, then 1x3x3, without a change of
channels. It ends in a softmax, which it averages over windows of the training crop's size; we return logits of one
global mean, whose softmax at 16 x 224 x 224 is its output.
"""

import dataclasses
import functools

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from flaxvid.layers.blocks import ConvNorm, FrameMask, Grid, Strides, Sum
from flaxvid.layers.heads import PoolHead
from flaxvid.layers.norm import BatchNorm
from flaxvid.models.inner import ALL_CHANNELS, Inner, check_inner, stage_names, unit_axes
from flaxvid.models.options import Count, Flag, FourDepths
from flaxvid.models.resnet3d import (
    PYTORCHVIDEO_CLIP,
    PYTORCHVIDEO_KEYS,
    TINY,
    TORCHVISION_CLIP,
    Body,
    Stem,
    stage_blocks,
)
from flaxvid.models.spec import Common, Format, ModelSpec, formats
from flaxvid.models.video_model import VideoModel, stage_layers


def midplanes(inputs: int, outputs: int) -> int:
    """Channels between 1x3x3 and 3x1x1 that give the pair the parameters of one 3x3x3 convolution."""
    return inputs * outputs * 27 // (inputs * 9 + outputs * 3)


class BasicBlock(nn.Module):
    """Two convolutions of 3x3x3, each as 1x3x3 and 3x1x1; the first has the strides.

    `inner` has the channels behind each of the four but the last; () is the paper's.
    """

    width: int
    strides: Strides = (1, 1, 1)
    inner: tuple[int, ...] = ()
    shared_midplanes: bool = False
    dtype: jnp.dtype = jnp.float32
    norm_epsilon: float = BatchNorm.epsilon

    @nn.compact
    def __call__(self, x: Grid, train: bool = False, frame_mask: FrameMask = None) -> Grid:
        """Grid to grid, `strides` times smaller."""
        unit = functools.partial(ConvNorm, dtype=self.dtype, norm_epsilon=self.norm_epsilon)
        active = functools.partial(unit, activation=nn.relu)
        (t, h, w), first = self.strides, midplanes(x.shape[-1], self.width)
        second = first if self.shared_midplanes else midplanes(self.width, self.width)
        first, middle, second = self.inner or (first, self.width, second)
        y = active(first, (1, 3, 3), (1, h, w), name="conv1_spatial")(x, train, frame_mask)
        y = active(middle, (3, 1, 1), (t, 1, 1), name="conv1_temporal")(y, train, frame_mask)
        y = active(second, (1, 3, 3), name="conv2_spatial")(y, train, frame_mask)
        y = unit(self.width, (3, 1, 1), name="conv2_temporal")(y, train, frame_mask)
        if x.shape != y.shape:
            x = unit(self.width, (1, 1, 1), self.strides, name="downsample")(x, train, frame_mask)
        return nn.relu(Sum(name="sum")(x, y))


class Bottleneck(nn.Module):
    """1x1x1, 3x1x1, 1x3x3 and 1x1x1 convolutions (pytorchvideo's R(2+1)D-50).

    `inner` has the channels behind each but the last; () is `width`.
    """

    width: int
    strides: Strides = (1, 1, 1)
    inner: tuple[int, ...] = ()
    dtype: jnp.dtype = jnp.float32
    norm_epsilon: float = BatchNorm.epsilon

    expansion = 4

    @nn.compact
    def __call__(self, x: Grid, train: bool = False, frame_mask: FrameMask = None) -> Grid:
        """Grid to grid, `strides` times smaller."""
        unit = functools.partial(ConvNorm, dtype=self.dtype, norm_epsilon=self.norm_epsilon)
        active = functools.partial(unit, activation=nn.relu)
        first, second, third = self.inner or (self.width,) * 3
        (t, h, w), features = self.strides, self.width * self.expansion
        y = active(first, (1, 1, 1), name="conv_a")(x, train, frame_mask)
        y = active(second, (3, 1, 1), (t, 1, 1), name="conv_b_temporal")(y, train, frame_mask)
        y = active(third, (1, 3, 3), (1, h, w), name="conv_b_spatial")(y, train, frame_mask)
        y = unit(features, (1, 1, 1), name="conv_c")(y, train, frame_mask)
        if x.shape != y.shape:
            x = unit(features, (1, 1, 1), self.strides, name="downsample")(x, train, frame_mask)
        return nn.relu(Sum(name="sum")(x, y))


class FactorisedStem(nn.Module):
    """1x7x7 with spatial stride 2, then 3x1x1; 45 channels between them for 64 out."""

    width: int = 64
    dtype: jnp.dtype = jnp.float32
    norm_epsilon: float = BatchNorm.epsilon

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w 3"], train: bool = False, frame_mask: FrameMask = None) -> Grid:
        """Normalised video to a grid of as many frames."""
        active = functools.partial(ConvNorm, activation=nn.relu, dtype=self.dtype, norm_epsilon=self.norm_epsilon)
        x = x.astype(self.dtype)
        x = active(45 * self.width // 64, (1, 7, 7), (1, 2, 2), name="conv1_spatial")(x, train, frame_mask)
        return active(self.width, (3, 1, 1), name="conv1_temporal")(x, train, frame_mask)


def build_basic(
    common: Common,
    *,
    depths: FourDepths = (2, 2, 2, 2),
    width: Count = 64,
    shared_midplanes: Flag = False,
    inner: Inner = ALL_CHANNELS,
) -> VideoModel:
    """R(2+1)D with basic blocks.

    Args:
        common: what every model takes.
        depths: blocks of each stage.
        width: channels of the stem and the first stage.
        shared_midplanes: torchvision's reading of a block's midplanes, else the authors'.
        inner: channels of each block's first three convolutions, by block; see `models.inner`.
    """
    check_inner(inner, stage_names(depths), 3)
    axes = unit_axes("conv1_spatial", "conv1_temporal", "conv2_spatial", "conv2_temporal")
    strides = ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    blocks = stage_blocks(BasicBlock, ({"shared_midplanes": shared_midplanes},) * 4, common)
    return VideoModel(
        stem=FactorisedStem(width, common.dtype, common.norm_epsilon),
        body=Body(blocks, strides, depths, width, inner),
        head=PoolHead(common.num_classes, common.dropout, common.classifier_std),
        feature_dim=width * 2 ** (len(depths) - 1),
        clip=common.clip,
        altered=((r"body/layer\d+_\d+/conv1_spatial/conv/kernel", -2),),
        layers=stage_layers(depths),
        inner=((r"body/layer\d+_\d+", axes),),
    )


def build_bottleneck(
    common: Common,
    *,
    depths: FourDepths = (3, 4, 6, 3),
    width: Count = 64,
    inner: Inner = ALL_CHANNELS,
) -> VideoModel:
    """R(2+1)D with bottlenecks.

    Args:
        common: what every model takes.
        depths: blocks of each stage.
        width: channels of the stem and of the first stage's inner convolutions.
        inner: channels of each block's first three convolutions, by block; see `models.inner`.
    """
    check_inner(inner, stage_names(depths), 3)
    strides = ((1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2))
    return VideoModel(
        stem=Stem(width, 1, False, common.dtype, common.norm_epsilon),
        body=Body(stage_blocks(Bottleneck, ({},) * 4, common), strides, depths, width, inner),
        head=PoolHead(common.num_classes, common.dropout, common.classifier_std),
        feature_dim=width * 2 ** (len(depths) - 1) * Bottleneck.expansion,
        clip=common.clip,
        altered=((r"body/layer\d+_\d+/conv_a/conv/kernel", -2),),
        layers=stage_layers(depths),
        inner=((r"body/layer\d+_\d+", unit_axes("conv_a", "conv_b_temporal", "conv_b_spatial", "conv_c")),),
    )


TORCH_KEYS = {
    "torchvision": (
        (r"stem/conv1_spatial/conv", r"stem.0"),
        (r"stem/conv1_spatial/norm", r"stem.1"),
        (r"stem/conv1_temporal/conv", r"stem.3"),
        (r"stem/conv1_temporal/norm", r"stem.4"),
        (r"body/layer(\d+)_(\d+)/(conv\d)_spatial/conv", r"layer\1.\2.\3.0.0"),
        (r"body/layer(\d+)_(\d+)/(conv\d)_spatial/norm", r"layer\1.\2.\3.0.1"),
        (r"body/layer(\d+)_(\d+)/(conv\d)_temporal/conv", r"layer\1.\2.\3.0.3"),
        (r"body/layer(\d+)_(\d+)/(conv\d)_temporal/norm", r"layer\1.\2.\3.1"),
        (r"body/layer(\d+)_(\d+)/downsample/conv", r"layer\1.\2.downsample.0"),
        (r"body/layer(\d+)_(\d+)/downsample/norm", r"layer\1.\2.downsample.1"),
        (r"head/classifier(_[^/]+)?", r"fc\1"),
    ),
}
"""torchvision's keys; of the 34-layer network those of its `VideoResNet`."""

FORMATS_34 = {
    "ig65m": Format(TORCH_KEYS["torchvision"], {"norm_epsilon": 1e-3}),
    "torchvision": Format(TORCH_KEYS["torchvision"], {"shared_midplanes": True}),
}
"""One naming, two networks: the midplanes of the second convolution in a stage's first block tell them apart (288, 576
and 1152 in IG-65M's). IG-65M's weights came out of Caffe2, with its epsilon."""

BOTTLENECK_TORCH_KEYS = {
    "pytorchvideo": (
        (r"body/layer(\d+)_(\d+)/conv_b_temporal/conv", r"blocks.\1.res_blocks.\2.branch2.conv_b.conv_t"),
        (r"body/layer(\d+)_(\d+)/conv_b_temporal/norm", r"blocks.\1.res_blocks.\2.branch2.conv_b.norm"),
        (r"body/layer(\d+)_(\d+)/conv_b_spatial/conv", r"blocks.\1.res_blocks.\2.branch2.conv_b.conv_xy"),
        (r"body/layer(\d+)_(\d+)/conv_b_spatial/norm", r"blocks.\1.res_blocks.\2.branch2.norm_b"),
        *PYTORCHVIDEO_KEYS,
    ),
}
"""pytorchvideo's keys."""

SPECS = {
    **{
        name: ModelSpec(build_basic, variant, TORCHVISION_CLIP, dropout=0.0, formats=known, tiny=TINY)
        for name, variant, known in (
            ("r2plus1d_r18", {"shared_midplanes": True}, formats(TORCH_KEYS)),
            ("r2plus1d_r34", {"depths": (3, 4, 6, 3)}, FORMATS_34),
        )
    },
    "r2plus1d_r50": ModelSpec(
        build_bottleneck,
        clip=dataclasses.replace(PYTORCHVIDEO_CLIP, num_frames=16),
        formats=formats(BOTTLENECK_TORCH_KEYS),
        tiny={**TINY, "image_size": 64},
    ),
}
