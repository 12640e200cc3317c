"""SlowFast (arXiv 1812.03982): a wide pathway over few frames and a thin one over all of them.

The slow pathway is `resnet3d`'s Slow; the fast one sees `alpha` times the frames with an eighth of the channels and no
stride over time, and before every stage a strided convolution over time adds what it found to the slow one's channels.

Both pathways come from one clip, inside the stem. The slow frames are ``floor(linspace(0, t - 1, t // alpha))``, as in
pytorchvideo and PySlowFast (0, 4, 8, 13, ... of 32, not every fourth), computed in integers. Differs from them:

* Where alpha does not divide the frames, there is one slow frame more, ``ceil(t / alpha)``, as many as the lateral
  convolution gives. So any clip runs, where theirs stop with an error. A clip shorter than alpha has its first frame as
  the slow one, and the slow frames of a padded clip are chosen from its real part.
* The head takes the means of the whole grids, which at the training crop is the same.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from flaxvid.layers.blocks import ConvNorm, FrameMask
from flaxvid.layers.heads import PoolHead
from flaxvid.layers.norm import BatchNorm
from flaxvid.models import resnet3d
from flaxvid.models.inner import ALL_CHANNELS, Inner, check_inner, stage_names, unit_axes
from flaxvid.models.options import Count, Flag, FourDepths, Kind, Odd, require, whole
from flaxvid.models.spec import Common, ModelSpec, formats
from flaxvid.models.video_model import VideoModel

Pathways = tuple[Float[Array, "b s h w d"], Float[Array, "b t h w c"]]

SLOW_KERNELS, FAST_KERNELS = (1, 1, 3, 3), (3, 3, 3, 3)
"""Frames that the first convolution of a block sees, for each stage."""


def slow_frames(x: Float[Array, "b t h w c"], alpha: int, frame_mask: FrameMask = None) -> Float[Array, "b s h w c"]:
    """The frames of the slow pathway, ``s = ceil(t / alpha)`` of them, evenly from the first to the last.

    Args:
        x: video.
        alpha: frames to one slow frame.
        frame_mask: False for frames that pad a clip at its end; the slow frames are then evenly from the first to the
            last real one, and as many as without the padding come first.
    """
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
    dtype: jnp.dtype = jnp.float32
    norm_epsilon: float = BatchNorm.epsilon

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w 3"], train: bool = False, frame_mask: FrameMask = None) -> Pathways:
        """Normalised video to the slow and the fast grid, (b, t/alpha, h/4, w/4, width) and (b, t, h/4, w/4,
        width/beta)."""
        slow = resnet3d.Stem(self.width, 1, True, self.dtype, self.norm_epsilon, name="slow")
        fast = resnet3d.Stem(self.width // self.beta, 5, True, self.dtype, self.norm_epsilon, name="fast")
        return slow(slow_frames(x, self.alpha, frame_mask), train, frame_mask), fast(x, train, frame_mask)


class Body(nn.Module):
    """The residual stages of both pathways; before each, the fast one is fused into the slow one."""

    depths: tuple[int, ...]
    width: int = 64
    alpha: int = 4
    beta: int = 8
    fusion_kernel: int = 7
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
        bottleneck = resnet3d.Bottleneck
        block = nn.remat(bottleneck, static_argnums=(2,)) if self.remat else bottleneck
        for stage, depth in enumerate(self.depths):
            kernel, strides = (self.fusion_kernel, 1, 1), (self.alpha, 1, 1)
            unit = functools.partial(ConvNorm, dtype=self.dtype, norm_epsilon=self.norm_epsilon)
            fusion = unit(2 * fast.shape[-1], kernel, strides, activation=nn.relu, name=f"fusion{stage}")
            slow = jnp.concatenate([slow, fusion(fast, train, frame_mask)], axis=-1)
            width = self.width * 2**stage
            for index in range(depth):
                strides, name = (1, 2, 2) if stage > 0 and index == 0 else (1, 1, 1), f"layer{stage + 1}_{index}"
                how = {"strides": strides, "zero_init": self.zero_init}
                how |= {"dtype": self.dtype, "norm_epsilon": self.norm_epsilon}
                for_slow = {"temporal_kernel": SLOW_KERNELS[stage], "name": f"slow_{name}"}
                for_fast = {"temporal_kernel": FAST_KERNELS[stage], "name": f"fast_{name}"}
                slow_block, fast_block = (
                    block(channels, inner=self.inner.get(own["name"], ()), **own, **how)
                    for channels, own in ((width, for_slow), (width // self.beta, for_fast))
                )
                slow, fast = slow_block(slow, train, frame_mask), fast_block(fast, train, frame_mask)
        return slow, fast


def _power_of_two(value: Any) -> int:
    value = whole(value)
    require(value & (value - 1) == 0)
    return value


def build(
    common: Common,
    *,
    depths: FourDepths = (3, 4, 6, 3),
    width: Count = 64,
    alpha: Annotated[int, Kind("a power of two", _power_of_two)] = 4,
    beta: Count = 8,
    fusion_kernel: Odd = 7,
    zero_init: Flag = False,
    inner: Inner = ALL_CHANNELS,
) -> VideoModel:
    """SlowFast on bottlenecks: 8x8 by default; ``alpha=8, fusion_kernel=5`` makes 4x16 of the same 32 frames.

    Args:
        common: what every model takes; all frames of its clip are for the fast pathway.
        depths: blocks of each stage, the same in both pathways.
        width: channels of the slow pathway's stem; a multiple of `beta`.
        alpha: frames to one slow frame, a power of two.
        beta: how many times fewer channels the fast pathway has.
        fusion_kernel: frames that the lateral convolutions see, an odd number.
        zero_init: the scale of each block's last norm starts at zero; see `ConvNorm`.
        inner: channels of each block's first two convolutions, by block; see `models.inner`.
    """
    check_inner(inner, [*stage_names(depths, "slow_layer"), *stage_names(depths, "fast_layer")], 2)
    if width % beta:
        raise ValueError(f"width must be a multiple of beta={beta}, got {width}")
    slow_dim = width * 2 ** (len(depths) - 1) * resnet3d.Bottleneck.expansion
    computed = {"dtype": common.dtype, "norm_epsilon": common.norm_epsilon}
    return VideoModel(
        stem=Stem(width, alpha, beta, **computed),
        body=Body(depths, width, alpha, beta, fusion_kernel, zero_init, inner, common.remat, **computed),
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
                for stage, depth in enumerate(depths, 1)
                for index in range(depth)
            ),
        ),
    )


TORCH_KEYS = {
    "pytorchvideo": (
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
    ),
    "pyslowfast": (
        *resnet3d.pyslowfast_keys("slow_layer", 0),
        *resnet3d.pyslowfast_keys("fast_layer", 1),
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
    ),
}
"""The keys of pytorchvideo and PySlowFast."""

TINY = {
    "width": 16,
    "depths": (1, 1, 1),
    "fusion_kernel": 5,
    "num_classes": 5,
    "num_frames": 8,
    "image_size": 32,
}

SPECS = {
    name: ModelSpec(
        build,
        variant,
        dataclasses.replace(resnet3d.PYTORCHVIDEO_CLIP, num_frames=32),
        formats=formats(TORCH_KEYS),
        tiny=TINY,
    )
    for name, variant in (
        ("slowfast_r50", {}),
        ("slowfast_r101", {"depths": (3, 4, 23, 3), "fusion_kernel": 5}),
    )
}
