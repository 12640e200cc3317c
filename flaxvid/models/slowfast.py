"""SlowFast (arXiv 1812.03982): a wide pathway over few frames and a thin one over all of them.

The slow pathway is `resnet3d`'s Slow; the fast one sees `alpha` times the frames with an eighth of the channels and no
stride over time, and before every stage a strided convolution over time adds what it found to the slow one's channels.

Both pathways come from one clip, inside the stem: the slow frames are ``floor(linspace(0, t - 1, t // alpha))``, as in
pytorchvideo and PySlowFast (0, 4, 8, 13, ... of 32, not every fourth), computed in integers. Differs from them: where
alpha does not divide the frames, there is one slow frame more, ``ceil(t / alpha)``, as many as the lateral convolution
gives, so that any clip runs, where theirs stop with an error; a clip shorter than alpha has its first frame as the slow
one. Of a padded clip the slow frames are those of its real part. The head takes the means of the whole grids, which at
the training crop is the same.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from flaxvid.layers.blocks import ConvNorm, FrameMask
from flaxvid.layers.heads import PoolHead
from flaxvid.models import resnet3d
from flaxvid.models.spec import ModelSpec, formats
from flaxvid.models.video_model import VideoModel
from flaxvid.types import RGB, ClipSpec

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
    """Makes the two pathways of one clip, each with a 7x7 convolution, over 1 and 5 frames, and a max-pool.

    Attributes:
        width: channels of the slow pathway.
        alpha: frames to one slow frame.
        beta: how many times fewer channels the fast pathway has.
        freeze_norms: use the running statistics in training too.
        dtype: compute type.
    """

    width: int = 64
    alpha: int = 4
    beta: int = 8
    freeze_norms: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w 3"], train: bool = False, frame_mask: FrameMask = None) -> Pathways:
        """Normalised video to the slow and the fast grid, (b, t/alpha, h/4, w/4, width) and (b, t, h/4, w/4,
        width/beta)."""
        slow = resnet3d.Stem(self.width, 1, True, self.freeze_norms, self.dtype, name="slow")
        fast = resnet3d.Stem(self.width // self.beta, 5, True, self.freeze_norms, self.dtype, name="fast")
        return slow(slow_frames(x, self.alpha, frame_mask), train, frame_mask), fast(x, train, frame_mask)


class Body(nn.Module):
    """The residual stages of both pathways; before each, the fast one is fused into the slow one.

    Attributes:
        depths: blocks of each stage, four stages at most.
        width: channels of the slow pathway's inner convolutions in the first stage.
        alpha: frames to one slow frame.
        beta: how many times fewer channels the fast pathway has.
        fusion_kernel: frames that the lateral convolutions see.
        zero_init: the scale of each block's last norm starts at zero.
        freeze_norms: use the running statistics in training too.
        remat: recompute activations in the backward pass, block by block, to save memory.
        dtype: compute type.
    """

    depths: tuple[int, ...]
    width: int = 64
    alpha: int = 4
    beta: int = 8
    fusion_kernel: int = 7
    zero_init: bool = False
    freeze_norms: bool = False
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Pathways, train: bool = False, frame_mask: FrameMask = None) -> Pathways:
        """Slow and fast grid to such a pair, with four stages 8 times smaller in height and width.

        Of the fusions the first, `fusion0`, is of what the stem gives, `fusion1` of the first stage, and so on.
        """
        (slow, fast), train = x, train and not self.freeze_norms
        bottleneck = resnet3d.Bottleneck
        block = nn.remat(bottleneck, static_argnums=(2,)) if self.remat else bottleneck
        for stage, depth in enumerate(self.depths):
            kernel, strides = (self.fusion_kernel, 1, 1), (self.alpha, 1, 1)
            fusion = ConvNorm(
                2 * fast.shape[-1], kernel, strides, activation=nn.relu, dtype=self.dtype, name=f"fusion{stage}"
            )
            slow = jnp.concatenate([slow, fusion(fast, train, frame_mask)], axis=-1)
            width = self.width * 2**stage
            for index in range(depth):
                strides, name = (1, 2, 2) if stage > 0 and index == 0 else (1, 1, 1), f"layer{stage + 1}_{index}"
                how = {"strides": strides, "zero_init": self.zero_init, "dtype": self.dtype}
                slow_block = block(width, temporal_kernel=SLOW_KERNELS[stage], **how, name=f"slow_{name}")
                fast_block = block(width // self.beta, temporal_kernel=FAST_KERNELS[stage], **how, name=f"fast_{name}")
                slow, fast = slow_block(slow, train, frame_mask), fast_block(fast, train, frame_mask)
        return slow, fast


def build(
    *,
    num_classes: int | Mapping[str, int] = 400,
    num_frames: int = 32,
    image_size: int = 224,
    depths: tuple[int, ...] = (3, 4, 6, 3),
    width: int = 64,
    alpha: int = 4,
    beta: int = 8,
    fusion_kernel: int = 7,
    zero_init: bool = False,
    dropout: float = 0.5,
    classifier_std: float = 0.01,
    mean: RGB = resnet3d.PYTORCHVIDEO_CLIP.mean,
    std: RGB = resnet3d.PYTORCHVIDEO_CLIP.std,
    freeze_norms: bool = False,
    dtype: Any = jnp.float32,
    remat: bool = False,
) -> VideoModel:
    """SlowFast on bottlenecks: 8x8 by default; ``alpha=8, fusion_kernel=5`` makes 4x16 of the same 32 frames.

    Args:
        num_classes: classes, or a dict of them for several classifiers on one body.
        num_frames: frames of a clip that the model is made for, all for the fast pathway; any other count runs as well.
        image_size: height and width of a frame in pixels; any other size runs as well.
        depths: blocks of each stage, the same in both pathways.
        width: channels of the slow pathway's stem; a multiple of `beta`.
        alpha: frames to one slow frame, a power of two.
        beta: how many times fewer channels the fast pathway has.
        fusion_kernel: frames that the lateral convolutions see, an odd number.
        zero_init: the scale of each block's last norm starts at zero; see `ConvNorm`.
        dropout: rate on the pooled feature in training.
        classifier_std: deviation of the classifier's initial kernel.
        mean: per-channel mean of RGB in [0, 1].
        std: per-channel deviation of RGB in [0, 1].
        freeze_norms: all norms use their running statistics in training too.
        dtype: compute type; parameters, statistics and logits stay float32.
        remat: recompute activations in the backward pass.
    """
    if alpha < 1 or alpha & (alpha - 1) or fusion_kernel % 2 == 0 or width % beta or len(depths) > 4:
        raise ValueError(
            "alpha must be a power of two, fusion_kernel odd, width a multiple of beta and depths of four stages at "
            f"most, got alpha={alpha}, fusion_kernel={fusion_kernel}, width={width}, beta={beta}, depths={depths}"
        )
    dtype, slow_dim = jnp.dtype(dtype), width * 2 ** (len(depths) - 1) * resnet3d.Bottleneck.expansion
    return VideoModel(
        stem=Stem(width, alpha, beta, freeze_norms, dtype),
        body=Body(tuple(depths), width, alpha, beta, fusion_kernel, zero_init, freeze_norms, remat, dtype),
        head=PoolHead(num_classes, dropout, classifier_std),
        feature_dim=slow_dim + slow_dim // beta,
        clip=ClipSpec(num_frames, image_size, (*mean,), (*std,)),
        altered=((r"body/(slow|fast)_layer\d+_\d+/conv_a/conv/kernel", -2),),
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
        (r"head/classifier(_\w+)?", r"blocks.6.proj\1"),
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
        (r"head/classifier(_\w+)?", r"head.projection\1"),
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
    "slowfast_r50": ModelSpec(build, formats=formats(TORCH_KEYS), tiny=TINY),
    "slowfast_r101": ModelSpec(
        build, {"depths": (3, 4, 23, 3), "fusion_kernel": 5}, formats=formats(TORCH_KEYS), tiny=TINY
    ),
}
