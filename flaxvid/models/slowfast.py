"""SlowFast (arXiv 1812.03982): a wide pathway over few frames and a thin one over all of them.

The slow pathway is `resnet3d`'s Slow; the fast one sees `alpha` times the frames with an eighth of the channels and no
stride over time, and before every stage a strided convolution over time adds what it found to the slow one's channels.

Both pathways come from one clip, inside the stem. The slow frames are ``floor(linspace(0, t - 1, t // alpha))``, as in
pytorchvideo and PySlowFast (0, 4, 8, 13, ... of 32, not every fourth), computed in integers. Differs from them:

* Where alpha does not divide the frames, there is one slow frame more, ``ceil(t / alpha)``, as many as the lateral
  convolution gives. So any clip runs, where theirs stop with an error. A clip shorter than alpha has its first frame as
  the slow one, and the slow frames of a padded clip are chosen from its real part.
* The head takes the means of the whole grids, which at the training crop is the same.

mmaction2's slow frames are every fourth (`slow_sampling="stride"`), and its lateral convolutions have neither norm nor
ReLU (`lateral_norm=False`). Its files imply both.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from flaxvid.layers.blocks import ConvNorm, FrameMask, Grid, mask_frames
from flaxvid.layers.conv import Conv
from flaxvid.layers.heads import PoolHead
from flaxvid.layers.norm import BatchNorm
from flaxvid.models import resnet3d
from flaxvid.models.inner import ALL_CHANNELS, Inner, check_inner, stage_names, unit_axes
from flaxvid.models.options import Count, DepthsOrNone, Flag, FourDepths, Kernels, Odd, PowerOfTwo, choice
from flaxvid.models.spec import IMAGENET, Common, Format, KeyTable, ModelSpec
from flaxvid.models.stages import check_stages, in_turn
from flaxvid.models.torch_keys import (
    CAFFE2_HEAD,
    caffe2_entries,
    caffe2_keys,
    mmaction2_keys,
    pyslowfast_keys,
)
from flaxvid.models.video_model import VideoModel

Pathways = tuple[Float[Array, "b s h w d"], Float[Array, "b t h w c"]]


def slow_frames(
    x: Float[Array, "b t h w c"], alpha: int, frame_mask: FrameMask = None, sampling: str = "even"
) -> Float[Array, "b s h w c"]:
    """The frames of the slow pathway, ``s = ceil(t / alpha)`` of them, evenly from the first to the last.

    Args:
        x: video.
        alpha: frames to one slow frame.
        frame_mask: False for frames that pad a clip at its end; the slow frames are then evenly from the first to the
            last real one, and as many as without the padding come first.
        sampling: `slow_sampling` of `build`. With "stride" it is every frame whose index alpha divides.
    """
    if sampling == "stride":
        return x[:, ::alpha]
    t = x.shape[1]
    slots = np.arange(-(-t // alpha))
    if frame_mask is None:
        return x[:, slots * (t - 1) // max(slots[-1], 1)]
    real = frame_mask.sum(axis=1, keepdims=True)  # (b, 1)
    last_slot = jnp.maximum(-(-real // alpha) - 1, 1)
    index = jnp.clip(slots * (real - 1) // last_slot, 0, t - 1)  # (b, s)
    return jnp.take_along_axis(x, index[:, :, None, None, None], axis=1)


class Stem(nn.Module):
    """Makes the two pathways of one clip, each with a 7x7 convolution, over 1 and 5 frames, and a max-pool."""

    width: int = 64
    alpha: int = 4
    beta: int = 8
    slow_sampling: str = "even"
    dtype: jnp.dtype = jnp.float32
    norm_epsilon: float = BatchNorm.epsilon

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w 3"], train: bool = False, frame_mask: FrameMask = None) -> Pathways:
        """Normalised video to the slow and the fast grid, (b, t/alpha, h/4, w/4, width) and (b, t, h/4, w/4,
        width/beta)."""
        stem = functools.partial(resnet3d.Stem, dtype=self.dtype, norm_epsilon=self.norm_epsilon)
        slow = stem(self.width, 1, name="slow")
        fast = stem(self.width // self.beta, 5, name="fast")
        slow_x = slow_frames(x, self.alpha, frame_mask, self.slow_sampling)
        return slow(slow_x, train, frame_mask), fast(x, train, frame_mask)


class Body(nn.Module):
    """The residual stages of both pathways; before each, the fast one is fused into the slow one.

    Attributes:
        depths: blocks of each stage, of the slow and of the fast pathway.
        kernels: frames that the first convolution of a block sees, as `options.Kernels`, of both.
    """

    depths: tuple[tuple[int, ...], tuple[int, ...]]
    kernels: tuple[tuple[Any, ...], tuple[Any, ...]]
    width: int = 64
    alpha: int = 4
    beta: int = 8
    fusion_kernel: int = 7
    lateral_norm: bool = True
    zero_init: bool = False
    inner: Mapping[str, tuple[int, ...]] = ALL_CHANNELS
    remat: bool = False
    dtype: jnp.dtype = jnp.float32
    norm_epsilon: float = BatchNorm.epsilon

    @nn.compact
    def __call__(self, x: Pathways, train: bool = False, frame_mask: FrameMask = None) -> Pathways:
        """Slow and fast grid to such a pair, with four stages 8 times smaller in height and width.

        Of the fusions the first, `fusion0`, is of what the stem gives, `fusion1` of the first stage, and so on.
        """
        slow, fast = x
        for stage in range(len(self.depths[0])):
            slow = jnp.concatenate([slow, self._lateral(fast, stage, train, frame_mask)], axis=-1)
            slow = self._stage(slow, 0, stage, train, frame_mask)
            fast = self._stage(fast, 1, stage, train, frame_mask)
        return slow, fast

    def _lateral(self, fast: Grid, stage: int, train: bool, frame_mask: FrameMask) -> Grid:
        """What the fast grid gives to the slow one: twice its channels, of as many frames as the slow one has."""
        how = {"features": 2 * fast.shape[-1], "kernel_size": (self.fusion_kernel, 1, 1)}
        how |= {"strides": (self.alpha, 1, 1), "dtype": self.dtype, "name": f"fusion{stage}"}
        if self.lateral_norm:
            unit = ConvNorm(**how, relu=True, norm_epsilon=self.norm_epsilon)
            return unit(fast, train, frame_mask)
        return Conv(**how)(mask_frames(fast, frame_mask))

    def _stage(self, x: Grid, pathway: int, stage: int, train: bool, frame_mask: FrameMask) -> Grid:
        bottleneck = resnet3d.Bottleneck
        block = nn.remat(bottleneck, static_argnums=(2,)) if self.remat else bottleneck
        width = self.width * 2**stage // (self.beta if pathway else 1)
        kernels = itertools.cycle(in_turn(self.kernels[pathway][stage]))
        for index, (kernel,) in zip(range(self.depths[pathway][stage]), kernels, strict=False):
            name = f"{('slow', 'fast')[pathway]}_layer{stage + 1}_{index}"
            x = block(
                width,
                strides=(1, 2, 2) if stage > 0 and index == 0 else (1, 1, 1),
                inner=self.inner.get(name, ()),
                temporal_kernels=(kernel, 1),
                zero_init=self.zero_init,
                dtype=self.dtype,
                norm_epsilon=self.norm_epsilon,
                name=name,
            )(x, train, frame_mask)
        return x


def build(
    common: Common,
    *,
    depths: FourDepths = (3, 4, 6, 3),
    fast_depths: DepthsOrNone = None,
    slow_kernels: Kernels = (1, 1, 3, 3),
    fast_kernels: Kernels = (3, 3, 3, 3),
    width: Count = 64,
    alpha: PowerOfTwo = 4,
    beta: Count = 8,
    fusion_kernel: Odd = 7,
    lateral_norm: Flag = True,
    slow_sampling: Annotated[str, choice("even", "stride")] = "even",
    zero_init: Flag = False,
    inner: Inner = ALL_CHANNELS,
) -> VideoModel:
    """SlowFast on bottlenecks: 8x8 by default; ``alpha=8, fusion_kernel=5`` makes 4x16 of the same 32 frames.

    Args:
        common: what every model takes; all frames of its clip are for the fast pathway.
        depths: blocks of each stage.
        fast_depths: those of the fast pathway; None for the same.
        slow_kernels: frames that the first convolution of a block sees in the slow pathway; see
            `models.stages`.
        fast_kernels: those of the fast pathway.
        width: channels of the slow pathway's stem; a multiple of `beta`.
        alpha: frames to one slow frame, a power of two.
        beta: how many times fewer channels the fast pathway has.
        fusion_kernel: frames that the lateral convolutions see, an odd number.
        lateral_norm: a norm and a ReLU follow the lateral convolutions.
        slow_sampling: the slow frames are "even" from the first to the last, or a "stride" of alpha from the first.
        zero_init: the scale of each block's last norm starts at zero; see `ConvNorm`.
        inner: channels of each block's first two convolutions, by block; see `models.inner`.
    """
    both = depths, depths if fast_depths is None else fast_depths
    if len(both[0]) != len(both[1]):
        raise ValueError(f"fast_depths must have one for each of the {len(depths)} stages, got {fast_depths}")
    check_stages("slow_kernels", slow_kernels, depths)
    check_stages("fast_kernels", fast_kernels, depths)
    check_inner(inner, [*stage_names(both[0], "slow_layer"), *stage_names(both[1], "fast_layer")], 2)
    if width % beta:
        raise ValueError(f"width must be a multiple of beta={beta}, got {width}")
    slow_dim = width * 2 ** (len(depths) - 1) * resnet3d.Bottleneck.expansion
    computed = {"dtype": common.dtype, "norm_epsilon": common.norm_epsilon}
    return VideoModel(
        stem=Stem(width, alpha, beta, slow_sampling, **computed),
        body=Body(
            both,
            (slow_kernels, fast_kernels),
            width,
            alpha,
            beta,
            fusion_kernel,
            lateral_norm,
            zero_init,
            inner,
            common.remat,
            **computed,
        ),
        head=PoolHead(common.num_classes, common.dropout, common.classifier_std),
        feature_dim=slow_dim + slow_dim // beta,
        clip=common.clip,
        altered=((r"body/(slow|fast)_layer\d+_\d+/conv_a/conv/kernel", -2),),
        inner=((r"body/(slow|fast)_layer\d+_\d+", unit_axes("conv_a", "conv_b", "conv_c")),),
        # Each fusion belongs to the layer whose output it reads.
        layers=(
            r"stem/.*|body/fusion0/.*",
            *(
                rf"body/(slow|fast)_layer{stage}_{index}/.*" + rf"|body/fusion{stage}/.*" * (index == depth - 1)
                for stage, depth in enumerate(map(max, *both), 1)
                for index in range(depth)
            ),
        ),
    )


def _pytorchvideo() -> KeyTable:
    return (
        *(
            (ours.format(pathway), theirs.format(number))
            for number, pathway in enumerate(("slow", "fast"))
            for ours, theirs in (
                (r"stem/{}/conv1/(conv|norm)", r"blocks.0.multipathway_blocks.{}.\1"),
                (
                    r"body/{}_layer(\d+)_(\d+)/conv_([abc])/(conv|norm)",
                    r"blocks.\1.multipathway_blocks.{}.res_blocks.\2.branch2.\4_\3",
                ),
                (
                    r"body/{}_layer(\d+)_(\d+)/downsample/(conv|norm)",
                    r"blocks.\1.multipathway_blocks.{}.res_blocks.\2.branch1_\3",
                ),
            )
        ),
        (r"body/fusion(\d+)/conv", r"blocks.\1.multipathway_fusion.conv_fast_to_slow"),
        (r"body/fusion(\d+)/norm", r"blocks.\1.multipathway_fusion.norm"),
        (r"head/classifier(_[^/]+)?", r"blocks.6.proj\1"),
    )


def _pyslowfast() -> KeyTable:
    return (
        *pyslowfast_keys("slow_layer", 0),
        *pyslowfast_keys("fast_layer", 1),
        *(
            (ours.format(stage), theirs.format(stage + 1))
            for stage in (0, 1, 2, 3)
            for ours, theirs in (
                (r"body/fusion{}/conv", r"s{}_fuse.conv_f2s"),
                (r"body/fusion{}/norm", r"s{}_fuse.bn"),
            )
        ),
        (r"stem/slow/conv1/conv", r"s1.pathway0_stem.conv"),
        (r"stem/slow/conv1/norm", r"s1.pathway0_stem.bn"),
        (r"stem/fast/conv1/conv", r"s1.pathway1_stem.conv"),
        (r"stem/fast/conv1/norm", r"s1.pathway1_stem.bn"),
        (r"head/classifier(_[^/]+)?", r"head.projection\1"),
    )


def _caffe2(depths: tuple[int, ...]) -> KeyTable:
    """A lateral convolution has the name of what it reads: the pool, or the last block of a stage."""
    read = ("t_pool1", *(f"t_res{stage + 1}_{depth - 1}_branch2c_bn" for stage, depth in enumerate(depths[:3], 1)))
    fusions = (caffe2_entries(f"body/fusion{stage}", *(f"{name}_subsample",) * 2) for stage, name in enumerate(read))
    return (
        *caffe2_keys("slow_layer", "stem/slow"),
        *caffe2_keys("fast_layer", "stem/fast", "t_"),
        *(entry for fusion in fusions for entry in fusion),
        *CAFFE2_HEAD,
    )


def _mmaction2() -> KeyTable:
    """Its head takes the fast pathway first, whose feature is an eighth of the slow one's."""
    return (
        *(
            (rf"stem/{pathway}/conv1/{kind}", rf"backbone.{pathway}_path.conv1.{short}")
            for pathway in ("slow", "fast")
            for kind, short in (("conv", "conv"), ("norm", "bn"))
        ),
        *mmaction2_keys("backbone.slow_path", "slow_layer"),
        *mmaction2_keys("backbone.fast_path", "fast_layer"),
        *(
            (f"body/fusion{stage}{ours}", f"backbone.slow_path.{name}_lateral.{theirs}")
            for stage, name in enumerate(("conv1", "layer1", "layer2", "layer3"))
            for ours, theirs in (("(?:/conv)?", "conv"), ("/norm", "bn"))
        ),
        (r"head/classifier(_[^/]+)?/kernel", r"cls_head.fc_cls\1.weight", "(8 + 1) o -> o (1 + 8)"),
        (r"head/classifier(_[^/]+)?", r"cls_head.fc_cls\1"),
    )


SLOWER = {"alpha": 8, "fusion_kernel": 5}
"""What makes 4x16 of 8x8: every eighth of the same 32 frames is slow."""


def _formats(depths: tuple[int, ...] = (3, 4, 6, 3), **mmaction2: Mapping[str, Any]) -> dict[str, Format]:
    """The formats of a depth; of mmaction2's those whose options beside mmaction2's common ones are given."""
    common = {**IMAGENET, "slow_sampling": "stride", "lateral_norm": False}
    return {
        "pytorchvideo": Format(_pytorchvideo()),
        "pyslowfast": Format(_pyslowfast()),
        "caffe2": Format(_caffe2(depths)),
        **{name: Format(_mmaction2(), {**common, **options}) for name, options in mmaction2.items()},
    }


TINY = {"width": 16, "depths": (1, 1, 1), "num_classes": 5, "num_frames": 8, "image_size": 32}

DEEP = (3, 4, 23, 3)
SIX = (*(3,) * 6, *(1,) * 17)
"""Of R101_50_50 the first six blocks of the third stage see neighbouring frames, as many as a ResNet-50 has there."""


def _spec(variant: Mapping[str, Any], frames: int, known: Mapping[str, Format], tiny: Mapping[str, Any]) -> ModelSpec:
    clip = dataclasses.replace(resnet3d.PYTORCHVIDEO_CLIP, num_frames=frames)
    return ModelSpec(build, variant, clip, formats=known, tiny={**TINY, **tiny})


SPECS = {
    "slowfast_r50": _spec(
        {},
        32,
        {
            **_formats(mmaction2={}, mmaction2_norm={"lateral_norm": True}, mmaction2_4x16=SLOWER),
            "pytorchvideo_4x16": Format(_pytorchvideo(), SLOWER),
            "pyslowfast_4x16": Format(_pyslowfast(), SLOWER),
            "caffe2_4x16": Format(_caffe2((3, 4, 6, 3)), SLOWER),
        },
        {},
    ),
    "slowfast_r101": _spec(
        {"depths": DEEP, "fusion_kernel": 5},
        32,
        _formats(DEEP, mmaction2={"fusion_kernel": 7}, mmaction2_r50={**SLOWER, "fast_depths": (3, 4, 6, 3)}),
        {"fusion_kernel": 7},
    ),
    "slowfast_r101_50_50": _spec(
        {"depths": DEEP, "fusion_kernel": 5, "slow_kernels": (1, 1, SIX, 3), "fast_kernels": (3, 3, SIX, 3)},
        64,
        _formats(DEEP),
        {"depths": (1, 1, 2), "slow_kernels": (1, 1, (3, 1)), "fast_kernels": (3, 3, (3, 1))},
    ),
}
