"""3-D ResNets that halve time with height and width: R3D and MC3 (arXiv 1711.11248), ResNet-3D (1711.09577), CSN.

All convolutions of R3D's blocks are 3x3x3; MC3 has these in the first stage alone and 1x3x3 behind it, and there keeps
the frames. R3D has squeeze-and-excitation (1709.01507) where it is asked for. The `r3d_resnet` names are the networks
of Hara et al., with a stem of 7x7x7 and a max-pool over time, too. CSN (1904.02811) convolves over space and time one
channel by itself, and mixes channels by 1x1x1 convolutions alone. The `csn` names are interaction-reduced; `ipcsn` is
interaction-preserved, with one such convolution more in a block.

Differs from the references: the head takes the mean over whatever grid it gets, where pytorchvideo's slides the window
of the training crop.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Annotated, Any

import jax.numpy as jnp
from flax import linen as nn

from flaxvid.layers.blocks import ConvNorm, FrameMask, Grid, SqueezeExcitation, Strides, Sum
from flaxvid.layers.heads import PoolHead
from flaxvid.layers.norm import BatchNorm
from flaxvid.models.inner import ALL_CHANNELS, Inner, check_inner, stage_names, unit_axes
from flaxvid.models.options import Count, Flag, FourDepths, Kind, Odd, Odds, choice, require, several, whole
from flaxvid.models.resnet3d import (
    PYTORCHVIDEO_CLIP,
    TINY,
    TORCHVISION_CLIP,
    Body,
    Bottleneck,
    Stem,
    StemPool,
    stage_blocks,
)
from flaxvid.models.spec import IMAGENET, Common, Format, ModelSpec, formats
from flaxvid.models.stages import check_stages
from flaxvid.models.torch_keys import MMACTION2_KEYS, mmaction2_keys, pytorchvideo_keys
from flaxvid.models.video_model import VideoModel, stage_layers
from flaxvid.types import ClipSpec

HARA_CLIP = ClipSpec(16, 112, (0.4345, 0.4051, 0.3775), (0.2768, 0.2713, 0.2737))


class BasicBlock(nn.Module):
    """Two 3x3x3 convolutions, as in R3D-18, and squeeze-and-excitation if `se` says where.

    Attributes:
        width: channels.
        strides: (t, h, w) of the first convolution.
        inner: channels between the convolutions; () is `width`.
        temporal_kernel: frames that both convolutions see.
        se: as in `build_r3d`; "" for none.
    """

    width: int
    strides: Strides = (1, 1, 1)
    inner: tuple[int, ...] = ()
    temporal_kernel: int = 3
    se: str = ""
    se_reduction: int = 16
    dtype: jnp.dtype = jnp.float32
    norm_epsilon: float = BatchNorm.epsilon

    @nn.compact
    def __call__(self, x: Grid, train: bool = False, frame_mask: FrameMask = None) -> Grid:
        """Grid to grid, `strides` times smaller."""
        unit = functools.partial(ConvNorm, dtype=self.dtype, norm_epsilon=self.norm_epsilon)
        hidden, kernel = max(1, self.width // self.se_reduction), (self.temporal_kernel, 3, 3)
        (inner,) = self.inner or (self.width,)
        y = unit(inner, kernel, self.strides, relu=True, name="conv1")(x, train, frame_mask)
        y = unit(self.width, kernel, name="conv2")(y, train, frame_mask)
        if self.se == "residual":
            y = SqueezeExcitation(hidden, dtype=self.dtype, name="se")(y, frame_mask)
        if x.shape != y.shape:
            x = unit(self.width, (1, 1, 1), self.strides, name="downsample")(x, train, frame_mask)
        x = nn.relu(Sum(name="sum")(x, y))
        if self.se == "output":
            x = SqueezeExcitation(hidden, dtype=self.dtype, name="se")(x, frame_mask)
        return x


def _stage(value: Any) -> int:
    require(value in (1, 2, 3, 4))
    return whole(value)


def build_r3d(
    common: Common,
    *,
    depths: FourDepths = (2, 2, 2, 2),
    width: Count = 64,
    stem_kernel: Odd = 3,
    stem_pool: StemPool = "none",
    temporal_kernels: Odds = (3, 3, 3, 3),
    se: Annotated[str, choice("output", "residual")] = "output",
    se_stages: Annotated[tuple[int, ...], Kind("a tuple of some of the stages 1, 2, 3, 4", several(_stage, 0))] = (),
    se_reduction: Count = 16,
    inner: Inner = ALL_CHANNELS,
) -> VideoModel:
    """R3D with basic blocks, and squeeze-and-excitation in some stages.

    Weights of R3D-18 start one with squeeze-and-excitation, whose own parameters stay as initialised:
    ``trees.merge(model.init(key, video), flaxvid.load_torch("r3d_18", "r3d_18.pth"))``.

    Args:
        common: what every model takes.
        depths: blocks of each stage.
        width: channels of the stem and the first stage.
        stem_kernel: frames that the stem's convolution sees.
        stem_pool: the stem's max-pool, as in `resnet3d.build_slow`.
        temporal_kernels: frames that the convolutions of each stage see. A stage of ones does not stride over time.
        se: where a block has squeeze-and-excitation: "output", behind addition and ReLU, or "residual", before the
            addition, which is the usual place.
        se_stages: the stages that have it, from 1; (1, 2, 3, 4) are all.
        se_reduction: how many times fewer channels there are inside it.
        inner: channels of each block's first convolution, by block; see `models.inner`.
    """
    check_inner(inner, stage_names(depths), 1)
    check_stages("temporal_kernels", temporal_kernels, depths)
    stages = tuple(
        ({"temporal_kernel": kernel, "se": se if stage in se_stages else "", "se_reduction": se_reduction},)
        for stage, kernel in enumerate(temporal_kernels, start=1)
    )
    return VideoModel(
        stem=Stem(width, stem_kernel, pool=stem_pool, dtype=common.dtype, norm_epsilon=common.norm_epsilon),
        body=Body(stage_blocks(BasicBlock, stages, common), _strides(temporal_kernels), depths, width, inner=inner),
        head=PoolHead(common.num_classes, common.dropout, common.classifier_std),
        feature_dim=width * 2 ** (len(depths) - 1),
        clip=common.clip,
        altered=((r"body/layer\d+_\d+/conv1/conv/kernel", -2),),
        layers=stage_layers(depths),
        inner=((r"body/layer\d+_\d+", unit_axes("conv1", "conv2")),),
    )


def build_bottleneck(
    common: Common,
    *,
    depths: FourDepths = (3, 4, 6, 3),
    width: Count = 64,
    stem_kernel: Odd = 7,
    stem_pool: StemPool = "space_time",
    depthwise: Flag = False,
    mixing: Flag = False,
) -> VideoModel:
    """R3D with bottlenecks of 1x1x1, 3x3x3 and 1x1x1 convolutions.

    Args:
        common: what every model takes.
        depths: blocks of each stage.
        width: channels of the stem and of the first stage's inner convolutions.
        stem_kernel: frames that the stem's convolution sees.
        stem_pool: the stem's max-pool, as in `resnet3d.build_slow`.
        depthwise: the 3x3x3 convolutions see each channel by itself, as in CSN.
        mixing: one more 1x1x1 convolution stands before the 3x3x3 one.
    """
    stages = (({"temporal_kernels": (1, 3), "depthwise": depthwise, "mixing": mixing},),) * 4
    return VideoModel(
        stem=Stem(width, stem_kernel, pool=stem_pool, dtype=common.dtype, norm_epsilon=common.norm_epsilon),
        body=Body(stage_blocks(Bottleneck, stages, common), _strides((3,) * 4), depths, width),
        head=PoolHead(common.num_classes, common.dropout, common.classifier_std),
        feature_dim=width * 2 ** (len(depths) - 1) * Bottleneck.expansion,
        clip=common.clip,
        altered=((r"body/layer\d+_\d+/conv_a/conv/kernel", -2),),
        layers=stage_layers(depths),
    )


def _strides(temporal_kernels: tuple[int, ...]) -> tuple[Strides, ...]:
    return ((1, 1, 1), *((2 if kernel > 1 else 1, 2, 2) for kernel in temporal_kernels[1:]))


TORCHVISION_KEYS = {
    "torchvision": (
        (r"stem/conv1/conv", r"stem.0"),
        (r"stem/conv1/norm", r"stem.1"),
        (r"body/layer(\d+)_(\d+)/(conv\d|downsample)/conv", r"layer\1.\2.\3.0"),
        (r"body/layer(\d+)_(\d+)/(conv\d|downsample)/norm", r"layer\1.\2.\3.1"),
        (r"body/layer(\d+)_(\d+)/se/reduce", r"layer\1.\2.se.1"),
        (r"body/layer(\d+)_(\d+)/se/expand", r"layer\1.\2.se.3"),
        (r"head/classifier(_[^/]+)?", r"fc\1"),
    ),
}
"""The keys of torchvision, and of its blocks with an `se` of pool, convolution, ReLU, convolution and sigmoid."""

HARA_KEYS = {
    "kenshohara": (
        (r"stem/conv1/conv", r"conv1"),
        (r"stem/conv1/norm", r"bn1"),
        *(
            (rf"body/layer(\d+)_(\d+)/{ours}/{kind}", rf"layer\1.\2.{short}{number}")
            for names in (("conv1", "conv2"), ("conv_a", "conv_b", "conv_c"))
            for number, ours in enumerate(names, start=1)
            for kind, short in (("conv", "conv"), ("norm", "bn"))
        ),
        (r"body/layer(\d+)_(\d+)/downsample/conv", r"layer\1.\2.downsample.0"),
        (r"body/layer(\d+)_(\d+)/downsample/norm", r"layer\1.\2.downsample.1"),
        (r"head/classifier(_[^/]+)?", r"fc\1"),
    ),
}
"""The keys of Hara et al., github.com/kenshohara/3D-ResNets-PyTorch."""

SPORTS1M = {"mean": TORCHVISION_CLIP.mean, "std": TORCHVISION_CLIP.std}


def _csn_mmaction2(middle: str) -> dict[str, Format]:
    """mmaction2's CSN has two kinds of pixels, of which no tensor tells: that of IG-65M has ImageNet's, that from
    scratch and of Sports-1M others. `middle` is its name of the depthwise convolution."""
    keys = (*mmaction2_keys(middle=middle), *MMACTION2_KEYS)
    return {
        "mmaction2": Format(keys, {**IMAGENET, "norm_epsilon": 1e-3}),
        "mmaction2_sports1m": Format(keys, {**SPORTS1M, "norm_epsilon": 1e-3}),
    }


def _csn(depth: int, formats: Mapping[str, Format], **own: Any) -> ModelSpec:
    variant = {"depths": DEPTHS[depth], "stem_kernel": 3, "stem_pool": "space", "depthwise": True, **own}
    clip = dataclasses.replace(PYTORCHVIDEO_CLIP, num_frames=32)
    return ModelSpec(build_bottleneck, variant, clip, formats=formats, tiny=HALVING)


DEPTHS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}

HALVING = {**TINY, "image_size": 64}
"""The tiny sibling of what halves time: of smaller frames one place is left, too little for a batch norm."""

HARA = {"stem_kernel": 7, "stem_pool": "space_time"}


def _torchvision(variant: Mapping[str, Any], tiny: Mapping[str, Any]) -> ModelSpec:
    return ModelSpec(build_r3d, variant, TORCHVISION_CLIP, dropout=0.0, formats=formats(TORCHVISION_KEYS), tiny=tiny)


SPECS = {
    "r3d_18": _torchvision({}, TINY),
    "r3d_18_se": _torchvision({"se_stages": (3, 4)}, {**TINY, "se_reduction": 8}),
    "mc3_18": _torchvision({"temporal_kernels": (3, 1, 1, 1)}, TINY),
    **{
        f"r3d_resnet{depth}": ModelSpec(
            build_r3d if depth < 50 else build_bottleneck,
            {"depths": depths, **HARA},
            HARA_CLIP,
            dropout=0.0,
            formats=formats(HARA_KEYS),
            tiny=HALVING,
        )
        for depth, depths in DEPTHS.items()
    },
    **{
        f"csn_r{depth}": _csn(depth, {"pytorchvideo": Format(pytorchvideo_keys()), **_csn_mmaction2("conv2.0")})
        for depth in (50, 101, 152)
    },
    "ipcsn_r152": _csn(152, _csn_mmaction2("conv2.1"), mixing=True),
}
