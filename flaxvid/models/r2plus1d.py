"""R(2+1)D (arXiv 1711.11248): every 3-D convolution is a spatial and a temporal one, with a norm and a ReLU between.

The paper chooses the channels between the two so that the pair has as many parameters as the 3x3x3 convolution. There
are two readings of a block whose input has fewer channels than its output: torchvision computes the number once from
the block's input (R(2+1)D-34 then has 61,831,661 parameters), the authors' Caffe2 code, IG-65M and mmaction2 for each
convolution anew (63,697,175).

The `r2plus1d_resnet` names are the networks of Hara et al. (arXiv 2004.04968), with the paper's rule in a stem of
7x7x7, and a max-pool behind it; from 50 layers on their bottlenecks have a pair in the middle. mmaction2's R(2+1)D-34
has a max-pool, too, the rule in its stem, and a pair in its shortcuts, which its files imply.

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
from flaxvid.models.options import Count, Flag, FourDepths, Odd
from flaxvid.models.r3d import DEPTHS, HALVING, HARA_CLIP
from flaxvid.models.resnet3d import (
    PYTORCHVIDEO_CLIP,
    TINY,
    TORCHVISION_CLIP,
    Body,
    Stem,
    StemPool,
    pool_stem,
    stage_blocks,
)
from flaxvid.models.spec import IMAGENET, Common, Format, ModelSpec, formats
from flaxvid.models.torch_keys import pytorchvideo_keys
from flaxvid.models.video_model import VideoModel, stage_layers


def midplanes(inputs: int, outputs: int, frames: int = 3, size: int = 3) -> int:
    """Channels between 1x3x3 and 3x1x1 that give the pair the parameters of one 3x3x3 convolution."""
    return inputs * outputs * frames * size**2 // (inputs * size**2 + outputs * frames)


class BasicBlock(nn.Module):
    """Two convolutions of 3x3x3, each as 1x3x3 and 3x1x1; the first has the strides.

    Attributes:
        width: channels.
        strides: (t, h, w).
        inner: channels behind each of the four but the last; () is the paper's.
        shared_midplanes: as in `build_basic`.
        paired_shortcut: as in `build_basic`.
    """

    width: int
    strides: Strides = (1, 1, 1)
    inner: tuple[int, ...] = ()
    shared_midplanes: bool = False
    paired_shortcut: bool = False
    dtype: jnp.dtype = jnp.float32
    norm_epsilon: float = BatchNorm.epsilon

    @nn.compact
    def __call__(self, x: Grid, train: bool = False, frame_mask: FrameMask = None) -> Grid:
        """Grid to grid, `strides` times smaller."""
        unit = functools.partial(ConvNorm, dtype=self.dtype, norm_epsilon=self.norm_epsilon)
        active = functools.partial(unit, relu=True)
        (t, h, w), first = self.strides, midplanes(x.shape[-1], self.width)
        second = first if self.shared_midplanes else midplanes(self.width, self.width)
        first, middle, second = self.inner or (first, self.width, second)
        y = active(first, (1, 3, 3), (1, h, w), name="conv1_spatial")(x, train, frame_mask)
        y = active(middle, (3, 1, 1), (t, 1, 1), name="conv1_temporal")(y, train, frame_mask)
        y = active(second, (1, 3, 3), name="conv2_spatial")(y, train, frame_mask)
        y = unit(self.width, (3, 1, 1), name="conv2_temporal")(y, train, frame_mask)
        if x.shape != y.shape and self.paired_shortcut:
            between = midplanes(x.shape[-1], self.width, size=1)
            x = active(between, (1, 1, 1), (1, h, w), name="downsample_spatial")(x, train, frame_mask)
            x = unit(self.width, (1, 1, 1), (t, 1, 1), name="downsample_temporal")(x, train, frame_mask)
        elif x.shape != y.shape:
            x = unit(self.width, (1, 1, 1), self.strides, name="downsample")(x, train, frame_mask)
        return nn.relu(Sum(name="sum")(x, y))


class Bottleneck(nn.Module):
    """1x1x1, 3x1x1, 1x3x3 and 1x1x1 convolutions (pytorchvideo's R(2+1)D-50).

    Attributes:
        width: channels inside.
        strides: (t, h, w).
        inner: channels behind each convolution but the last; () is `width`.
        spatial_first: 1x3x3 comes before 3x1x1, with the paper's channels between them (Hara et al.).
    """

    width: int
    strides: Strides = (1, 1, 1)
    inner: tuple[int, ...] = ()
    spatial_first: bool = False
    dtype: jnp.dtype = jnp.float32
    norm_epsilon: float = BatchNorm.epsilon

    expansion = 4

    @nn.compact
    def __call__(self, x: Grid, train: bool = False, frame_mask: FrameMask = None) -> Grid:
        """Grid to grid, `strides` times smaller."""
        unit = functools.partial(ConvNorm, dtype=self.dtype, norm_epsilon=self.norm_epsilon)
        active = functools.partial(unit, relu=True)
        between = midplanes(self.width, self.width) if self.spatial_first else self.width
        first, *pair = self.inner or (self.width, between, self.width)
        (t, h, w), features = self.strides, self.width * self.expansion
        order = ("spatial", "temporal") if self.spatial_first else ("temporal", "spatial")
        how = {"temporal": ((3, 1, 1), (t, 1, 1)), "spatial": ((1, 3, 3), (1, h, w))}
        y = active(first, (1, 1, 1), name="conv_a")(x, train, frame_mask)
        for channels, axis in zip(pair, order, strict=True):
            y = active(channels, *how[axis], name=f"conv_b_{axis}")(y, train, frame_mask)
        y = unit(features, (1, 1, 1), name="conv_c")(y, train, frame_mask)
        if x.shape != y.shape:
            x = unit(features, (1, 1, 1), self.strides, name="downsample")(x, train, frame_mask)
        return nn.relu(Sum(name="sum")(x, y))


class FactorisedStem(nn.Module):
    """1x7x7 with spatial stride 2, then kx1x1, and a max-pool.

    Attributes:
        width: channels out.
        between: channels between the two.
        temporal_kernel: frames that the second sees.
        pool: a key of `resnet3d.STEM_POOLS`.
    """

    width: int = 64
    between: int = 45
    temporal_kernel: int = 3
    pool: str = "none"
    dtype: jnp.dtype = jnp.float32
    norm_epsilon: float = BatchNorm.epsilon

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w 3"], train: bool = False, frame_mask: FrameMask = None) -> Grid:
        """Normalised video to a grid of as many frames, or of half as many with a pool over time."""
        active = functools.partial(ConvNorm, relu=True, dtype=self.dtype, norm_epsilon=self.norm_epsilon)
        x = x.astype(self.dtype)
        x = active(self.between, (1, 7, 7), (1, 2, 2), name="conv1_spatial")(x, train, frame_mask)
        x = active(self.width, (self.temporal_kernel, 1, 1), name="conv1_temporal")(x, train, frame_mask)
        return pool_stem(x, self.pool, frame_mask=frame_mask)


def build_basic(
    common: Common,
    *,
    depths: FourDepths = (2, 2, 2, 2),
    width: Count = 64,
    bottleneck: Flag = False,
    stem_kernel: Odd = 3,
    stem_by_rule: Flag = False,
    stem_pool: StemPool = "none",
    shared_midplanes: Flag = False,
    paired_shortcut: Flag = False,
    inner: Inner = ALL_CHANNELS,
) -> VideoModel:
    """R(2+1)D with basic blocks, or with bottlenecks that halve time with height and width.

    Args:
        common: what every model takes.
        depths: blocks of each stage.
        width: channels of the stem and the first stage.
        bottleneck: the blocks are bottlenecks around one pair of convolutions, and not two pairs.
        stem_kernel: frames that the stem's second convolution sees.
        stem_by_rule: the paper's rule gives the channels between the stem's convolutions, too; else 45 for a width of
            64.
        stem_pool: the stem's max-pool, as in `resnet3d.build_slow`.
        shared_midplanes: torchvision's reading of a block's midplanes, else the authors'; of basic blocks.
        paired_shortcut: strided shortcuts are a pair of convolutions, too (mmaction2); of basic blocks.
        inner: channels of each block's first three convolutions, by block; see `models.inner`.
    """
    if bottleneck and (shared_midplanes or paired_shortcut):
        raise ValueError("bottlenecks have neither shared_midplanes nor paired_shortcut: leave these or bottleneck out")
    check_inner(inner, stage_names(depths), 3)
    strides = ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    if bottleneck:
        block, own = Bottleneck, {"spatial_first": True}
        convs = "conv_a", "conv_b_spatial", "conv_b_temporal", "conv_c"
    else:
        block, own = BasicBlock, {"shared_midplanes": shared_midplanes, "paired_shortcut": paired_shortcut}
        convs = "conv1_spatial", "conv1_temporal", "conv2_spatial", "conv2_temporal"
    between = midplanes(3, width, stem_kernel, 7) if stem_by_rule else 45 * width // 64
    return VideoModel(
        stem=FactorisedStem(width, between, stem_kernel, stem_pool, common.dtype, common.norm_epsilon),
        body=Body(stage_blocks(block, ((own,),) * 4, common), strides, depths, width, inner=inner),
        head=PoolHead(common.num_classes, common.dropout, common.classifier_std),
        feature_dim=width * 2 ** (len(depths) - 1) * (Bottleneck.expansion if bottleneck else 1),
        clip=common.clip,
        altered=((rf"body/layer\d+_\d+/{convs[0]}/conv/kernel", -2),),
        layers=stage_layers(depths),
        inner=((r"body/layer\d+_\d+", unit_axes(*convs)),),
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
        stem=Stem(width, pool="none", dtype=common.dtype, norm_epsilon=common.norm_epsilon),
        body=Body(stage_blocks(Bottleneck, (({},),) * 4, common), strides, depths, width, inner=inner),
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

MMACTION2_KEYS = (
    *(
        (f"{ours}_{axis}/{kind}", f"backbone.{theirs}.{short}")
        for ours, theirs in (
            (r"stem/(conv1)", r"\1"),
            (r"body/layer(\d+)_(\d+)/(conv\d|downsample)", r"layer\1.\2.\3"),
        )
        for axis, kind, short in (
            ("spatial", "conv", "conv.conv_s"),
            ("spatial", "norm", "conv.bn_s"),
            ("temporal", "conv", "conv.conv_t"),
            ("temporal", "norm", "bn"),
        )
    ),
    (r"head/classifier(_[^/]+)?", r"cls_head.fc_cls\1"),
)

HARA_KEYS = {
    "kenshohara": (
        *(
            (rf"{place}conv{number}{axis}/{kind}", rf"{theirs}{short}{number}{suffix}")
            for place, theirs in ((r"stem/", ""), (r"body/layer(\d+)_(\d+)/", r"layer\1.\2."))
            for number in (1, 2)
            for axis, suffix in (("_spatial", "_s"), ("_temporal", "_t"))
            for kind, short in (("conv", "conv"), ("norm", "bn"))
        ),
        *(
            (rf"body/layer(\d+)_(\d+)/{ours}/{kind}", rf"layer\1.\2.{short}{theirs}")
            for ours, theirs in (
                ("conv_a", "1"),
                ("conv_b_spatial", "2_s"),
                ("conv_b_temporal", "2_t"),
                ("conv_c", "3"),
            )
            for kind, short in (("conv", "conv"), ("norm", "bn"))
        ),
        (r"body/layer(\d+)_(\d+)/downsample/conv", r"layer\1.\2.downsample.0"),
        (r"body/layer(\d+)_(\d+)/downsample/norm", r"layer\1.\2.downsample.1"),
        (r"head/classifier(_[^/]+)?", r"fc\1"),
    ),
}
"""The keys of Hara et al., github.com/kenshohara/3D-ResNets-PyTorch."""

MMACTION2_34 = {"norm_epsilon": 1e-3, "stem_by_rule": True, "stem_pool": "space", "paired_shortcut": True, **IMAGENET}

FORMATS_34 = {
    "ig65m": Format(TORCH_KEYS["torchvision"], {"norm_epsilon": 1e-3}),
    "torchvision": Format(TORCH_KEYS["torchvision"], {"shared_midplanes": True}),
    "mmaction2": Format(MMACTION2_KEYS, MMACTION2_34),
}
"""One naming, two networks: the midplanes of the second convolution in a stage's first block tell them apart (288, 576
and 1152 in IG-65M's). IG-65M's weights came out of Caffe2, with its epsilon; mmaction2 trained with that one, too."""

BOTTLENECK_TORCH_KEYS = {
    "pytorchvideo": (
        (r"body/layer(\d+)_(\d+)/conv_b_temporal/conv", r"blocks.\1.res_blocks.\2.branch2.conv_b.conv_t"),
        (r"body/layer(\d+)_(\d+)/conv_b_temporal/norm", r"blocks.\1.res_blocks.\2.branch2.conv_b.norm"),
        (r"body/layer(\d+)_(\d+)/conv_b_spatial/conv", r"blocks.\1.res_blocks.\2.branch2.conv_b.conv_xy"),
        (r"body/layer(\d+)_(\d+)/conv_b_spatial/norm", r"blocks.\1.res_blocks.\2.branch2.norm_b"),
        *pytorchvideo_keys(),
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
    **{
        f"r2plus1d_resnet{depth}": ModelSpec(
            build_basic,
            {
                "depths": DEPTHS[depth],
                "bottleneck": depth >= 50,
                "stem_kernel": 7,
                "stem_by_rule": True,
                "stem_pool": "space_time",
            },
            HARA_CLIP,
            dropout=0.0,
            formats=formats(HARA_KEYS),
            tiny=HALVING,
        )
        for depth in (18, 34, 50)
    },
    "r2plus1d_r50": ModelSpec(
        build_bottleneck,
        clip=dataclasses.replace(PYTORCHVIDEO_CLIP, num_frames=16),
        formats=formats(BOTTLENECK_TORCH_KEYS),
        tiny=HALVING,
    ),
}
