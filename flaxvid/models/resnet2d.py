"""2-D ResNets over frames: TSN (arXiv 1608.00859) and TSM (arXiv 1811.08383).

TSN classifies each frame with a ResNet (arXiv 1512.03385; torchvision's, with the stride on the 3x3 convolution) and
takes the mean over time. TSM moves an eighth of the channels one frame forward and an eighth one frame back at the
start of every residual branch, which gives the same network a view over time for nothing. The `nln` name has non-local
blocks (1711.07971) behind every second block of the two middle stages, as in mmaction2.

Differs from the authors' TSM: their ResNet-101 and -152, and mmaction2's, shift in every second block only
(`shift_every=2` here, which their files imply); ours, like FFN's, shift in every block of every depth.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from flaxvid.layers.blocks import FrameMask, Grid, Sum
from flaxvid.layers.conv import Conv
from flaxvid.layers.heads import ConsensusHead
from flaxvid.layers.non_local import NonLocal
from flaxvid.layers.norm import BatchNorm
from flaxvid.layers.pooling import max_pool
from flaxvid.layers.shift import TemporalShift
from flaxvid.models.inner import ALL_CHANNELS, Inner, check_inner, conv_axes, stage_names
from flaxvid.models.options import Count, Depths, Flag, NonLocals, choice
from flaxvid.models.spec import Common, Format, ModelSpec, formats
from flaxvid.models.stages import check_stages, every_second, in_turn
from flaxvid.models.torch_keys import mmaction2_non_local
from flaxvid.models.video_model import VideoModel, stage_layers
from flaxvid.types import ClipSpec

MakeShift = Callable[..., TemporalShift]

EXPANSION = 4
"""How many times more channels a bottleneck gives than its 3x3 convolution has."""


class Block(nn.Module):
    """Two 3x3 convolutions (ResNet-18 and -34) or, with `bottleneck`, 1x1, 3x3 and 1x1 ones (ResNet-50 and deeper).

    The first 3x3 convolution has the stride. `shift`, if any, stands at the start of the residual branch. A non-local
    block of the kind `non_local` stands behind the block, "" for none. `inner` has the channels behind each convolution
    but the last; () is `width`.
    """

    width: int
    stride: int = 1
    bottleneck: bool = False
    shift: MakeShift | None = None
    non_local: str = ""
    inner: tuple[int, ...] = ()
    dtype: jnp.dtype = jnp.float32
    norm_epsilon: float = BatchNorm.epsilon

    @nn.compact
    def __call__(self, x: Grid, train: bool = False, frame_mask: FrameMask = None) -> Grid:
        """Grid to grid, `stride` times smaller."""
        conv = functools.partial(Conv, dtype=self.dtype)
        norm = functools.partial(BatchNorm, epsilon=self.norm_epsilon, dtype=self.dtype)
        features = self.width * (EXPANSION if self.bottleneck else 1)
        *widths, last = self.inner or (self.width,) * (2 if self.bottleneck else 1)
        layers = [(last, 3, self.stride), (features, 1 if self.bottleneck else 3, 1)]
        if self.bottleneck:
            layers = [(*widths, 1, 1), *layers]
        y = x if self.shift is None else self.shift(name="shift")(x, frame_mask)
        for number, (channels, size, stride) in enumerate(layers, start=1):
            y = conv(channels, (size, size), stride, name=f"conv{number}")(y)
            y = norm(relu=number < len(layers), name=f"norm{number}")(y, train, frame_mask)
        if x.shape != y.shape:
            x = conv(features, (1, 1), self.stride, name="downsample_conv")(x)
            x = norm(name="downsample_norm")(x, train, frame_mask)
        x = nn.relu(Sum(name="sum")(x, y))
        if self.non_local:
            x = NonLocal(self.non_local, self.dtype, self.norm_epsilon, name="non_local")(x, train, frame_mask)
        return x


class Stem(nn.Module):
    """7x7 convolution with stride 2, norm, and a max-pool with stride 2: frames (h, w) to (h/4, w/4)."""

    width: int = 64
    dtype: jnp.dtype = jnp.float32
    norm_epsilon: float = BatchNorm.epsilon

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w 3"], train: bool = False, frame_mask: FrameMask = None) -> Grid:
        """Normalised video to a grid."""
        x = Conv(self.width, (7, 7), 2, dtype=self.dtype, name="conv1")(x.astype(self.dtype))
        norm = BatchNorm(epsilon=self.norm_epsilon, dtype=self.dtype, relu=True, name="norm1")
        x = norm(x, train, frame_mask)
        return max_pool(x, (3, 3), strides=(2, 2), padding=(1, 1))


class Body(nn.Module):
    """The residual stages; from the second on, each halves height and width and doubles the width."""

    depths: tuple[int, ...]
    bottleneck: bool = False
    width: int = 64
    shift: MakeShift | None = None
    shift_every: int = 1
    non_local: tuple[Any, ...] = ()
    inner: Mapping[str, tuple[int, ...]] = ALL_CHANNELS
    remat: bool = False
    dtype: jnp.dtype = jnp.float32
    norm_epsilon: float = BatchNorm.epsilon

    @nn.compact
    def __call__(self, x: Grid, train: bool = False, frame_mask: FrameMask = None) -> Grid:
        """Grid (b, t, h, w, c) to (b, t, h/8, w/8, feature_dim) with four stages."""
        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        for stage, depth in enumerate(self.depths):
            kinds = itertools.cycle(in_turn(self.non_local[stage] if self.non_local else ""))
            for index, (kind,) in zip(range(depth), kinds, strict=False):
                name = f"layer{stage + 1}_{index}"
                x = block(
                    self.width * 2**stage,
                    stride=2 if stage > 0 and index == 0 else 1,
                    bottleneck=self.bottleneck,
                    shift=self.shift if index % self.shift_every == 0 else None,
                    non_local=kind,
                    inner=self.inner.get(name, ()),
                    dtype=self.dtype,
                    norm_epsilon=self.norm_epsilon,
                    name=name,
                )(x, train, frame_mask)
        return x


def build(
    common: Common,
    *,
    depths: Depths = (3, 4, 6, 3),
    bottleneck: Flag = True,
    width: Count = 64,
    shift: Annotated[str, choice("both", "causal", "none")] = "both",
    shift_div: Count = 8,
    shift_every: Count = 1,
    non_local: NonLocals = (),
    inner: Inner = ALL_CHANNELS,
) -> VideoModel:
    """TSN or TSM on a ResNet.

    Args:
        common: what every model takes.
        depths: blocks of each stage.
        bottleneck: blocks of three convolutions, as from ResNet-50 on; else of two.
        width: channels of the first stage.
        shift: "both" (TSM), "causal" (uni-directional TSM for streams) or "none" (TSN).
        shift_div: one part in `shift_div` of the channels moves each way.
        shift_every: shift in blocks 0, n, 2n, ... of each stage.
        non_local: the kinds of the non-local blocks behind the blocks, as in `resnet3d.build_slow`.
        inner: channels behind each convolution of a block but the last, by block; see `models.inner`.
    """
    axes = conv_axes(*((f"conv{number}", f"norm{number}") for number in range(1, 4 if bottleneck else 3)))
    check_inner(inner, stage_names(depths), len(axes))
    if non_local:
        check_stages("non_local", non_local, depths)
    make_shift = None if shift == "none" else functools.partial(TemporalShift, shift_div, shift == "causal")
    return VideoModel(
        stem=Stem(width, common.dtype, common.norm_epsilon),
        body=Body(
            depths,
            bottleneck,
            width,
            make_shift,
            shift_every,
            non_local,
            inner,
            common.remat,
            common.dtype,
            common.norm_epsilon,
        ),
        head=ConsensusHead(common.num_classes, common.dropout, common.classifier_std),
        feature_dim=width * 2 ** (len(depths) - 1) * (EXPANSION if bottleneck else 1),
        clip=common.clip,
        altered=((r"body/layer\d+_\d+/conv1/kernel", -2),),
        layers=stage_layers(depths),
        inner=((r"body/layer\d+_\d+", axes),),
    )


DEPTHS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}

TORCH_KEYS = {
    "tsm": (
        (r"stem/conv1", r"base_model.conv1"),
        (r"stem/norm1", r"base_model.bn1"),
        (r"body/layer(\d+)_(\d+)/conv1", r"base_model.layer\1.\2.conv1.net"),
        (r"body/layer(\d+)_(\d+)/conv(\d)", r"base_model.layer\1.\2.conv\3"),
        (r"body/layer(\d+)_(\d+)/norm(\d)", r"base_model.layer\1.\2.bn\3"),
        (r"body/layer(\d+)_(\d+)/downsample_conv", r"base_model.layer\1.\2.downsample.0"),
        (r"body/layer(\d+)_(\d+)/downsample_norm", r"base_model.layer\1.\2.downsample.1"),
        (r"head/classifier(_[^/]+)?", r"new_fc\1"),
    ),
    "torchvision": (
        (r"stem/conv1", r"conv1"),
        (r"stem/norm1", r"bn1"),
        (r"body/layer(\d+)_(\d+)/conv(\d)", r"layer\1.\2.conv\3"),
        (r"body/layer(\d+)_(\d+)/norm(\d)", r"layer\1.\2.bn\3"),
        (r"body/layer(\d+)_(\d+)/downsample_conv", r"layer\1.\2.downsample.0"),
        (r"body/layer(\d+)_(\d+)/downsample_norm", r"layer\1.\2.downsample.1"),
        (r"head/classifier(_[^/]+)?", r"fc\1"),
    ),
    "mmaction2": (
        (r"stem/conv1", r"backbone.conv1.conv"),
        (r"stem/norm1", r"backbone.conv1.bn"),
        (r"body/layer(\d+)_(\d+)/conv1", r"backbone.layer\1.\2.conv1.conv.net"),
        (r"body/layer(\d+)_(\d+)/conv(\d)", r"backbone.layer\1.\2.conv\3.conv"),
        (r"body/layer(\d+)_(\d+)/norm(\d)", r"backbone.layer\1.\2.conv\3.bn"),
        (r"body/layer(\d+)_(\d+)/downsample_conv", r"backbone.layer\1.\2.downsample.conv"),
        (r"body/layer(\d+)_(\d+)/downsample_norm", r"backbone.layer\1.\2.downsample.bn"),
        (r"head/classifier(_[^/]+)?", r"cls_head.fc_cls\1"),
    ),
    "ffn": (
        (r"stem/conv1", r"base_model.conv1"),
        (r"(\d+)f/stem/norm1", r"base_model.bn1_\1"),
        (r"body/layer(\d+)_(\d+)/(conv\d|downsample_conv)", r"base_model.layer\1.\2.\3"),
        (r"(\d+)f/body/layer(\d+)_(\d+)/conv1", r"base_model.layer\2.\3.adaconv_\1"),
        (r"(\d+)f/body/layer(\d+)_(\d+)/norm(\d)", r"base_model.layer\2.\3.bn\4_\1"),
        (r"(\d+)f/body/layer(\d+)_(\d+)/downsample_norm", r"base_model.layer\2.\3.downsample_bn_\1"),
        (r"head/classifier(_[^/]+)?", r"new_fc\1"),
    ),
}
"""The keys of the TSM authors, torchvision, mmaction2 and the FFN authors (arXiv 2303.14817)."""

# Without a shift, the references do not wrap the convolution behind it.
TSN_TORCH_KEYS = {
    name: tuple((ours, theirs.removesuffix(".net")) for ours, theirs in TORCH_KEYS[name])
    for name in ("torchvision", "tsm", "mmaction2", "ffn")
}

# From 23 blocks in the third stage on, the TSM authors and mmaction2 shift in every second block and wrap only these.
SECOND_TORCH_KEYS = {
    name: tuple((ours.replace(r"_(\d+)/conv1", r"_(\d*[02468])/conv1"), theirs) for ours, theirs in TORCH_KEYS[name])
    for name in ("tsm", "mmaction2")
}


# mmaction2 wraps the blocks behind which a non-local block stands.
NLN_TORCH_KEYS = (
    *(
        (
            ours.replace(r"layer(\d+)_(\d+)", r"layer([23])_(\d*[02468])"),
            theirs.replace(r"layer\1.\2", r"layer\1.\2.block"),
        )
        for ours, theirs in TORCH_KEYS["mmaction2"]
        if "layer" in ours
    ),
    *TORCH_KEYS["mmaction2"],
    *mmaction2_non_local(r"backbone.layer\1.\2"),
)


def tsm_formats(depth: int) -> dict[str, Format]:
    """TSM's formats on a ResNet of a depth; "tsm_every_block" are files of the deep ones that shift in every block."""
    if DEPTHS[depth][2] < 23:
        return formats(TORCH_KEYS)
    second = {name: Format(keys, {"shift_every": 2}) for name, keys in SECOND_TORCH_KEYS.items()}
    every = {f"{name}_every_block": TORCH_KEYS[name] for name in second}
    return second | formats(every | {name: TORCH_KEYS[name] for name in ("torchvision", "ffn")})


def tsn_formats(depth: int) -> dict[str, Format]:
    """TSN's formats on a ResNet of a depth; "tsm_shifted" are files of a TSM, whose keys show it."""
    shifting = {name: tsm_formats(depth)[name] for name in ("tsm", "mmaction2")}
    shifted = {
        f"{name}_shifted": Format(known.keys, {"shift": "both", **known.overrides}) for name, known in shifting.items()
    }
    return formats(TSN_TORCH_KEYS) | shifted


TINY = {"width": 8, "depths": (1, 1, 1, 1), "num_classes": 5, "num_frames": 4, "image_size": 32}

SPECS = {
    f"{name}_resnet{depth}": ModelSpec(
        build,
        {"bottleneck": depth >= 50, "depths": depths, "shift": shift},
        ClipSpec(num_frames=8),
        dropout=0.5,
        classifier_std=0.001,
        formats=make_formats(depth),
        tiny=TINY,
    )
    for name, shift, make_formats in (("tsn", "none", tsn_formats), ("tsm", "both", tsm_formats))
    for depth, depths in DEPTHS.items()
}
SPECS["tsm_nln_resnet50"] = dataclasses.replace(
    SPECS["tsm_resnet50"],
    variant={**SPECS["tsm_resnet50"].variant, "non_local": every_second("dot_product")},
    formats={
        f"mmaction2_{kind}": Format(NLN_TORCH_KEYS, {"non_local": every_second(kind)})
        for kind in ("dot_product", "embedded_gaussian", "gaussian")
    },
)
