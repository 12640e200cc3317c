"""X3D (arXiv 2004.04730): a small 2-D network, expanded step by step along time, size, width and depth.

Its blocks are narrow outside and wide inside. Inside, a depthwise 3x3x3 convolution sees space and time, and every
second block has squeeze-and-excitation. So 3.8 million parameters do what takes 30 million elsewhere.

Differs from the references: pytorchvideo 0.1.5 and, at evaluation, PySlowFast end in a softmax; ours ends in logits.
They average over windows of the training crop's size, we over the whole grid, which at that crop is the same. Where a
stage's first block keeps the number of channels, pytorchvideo's shortcut has no norm, and PySlowFast's has one
(`shortcut_norm=True`, which its files and mmaction2's imply). pytorchvideo's key `conv_t` is the stem's spatial
convolution, its `conv_xy` the temporal one.
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from flaxvid.layers.blocks import ConvNorm, FrameMask, Grid, SqueezeExcitation, Strides, Sum, global_mean
from flaxvid.layers.conv import Conv
from flaxvid.layers.heads import Logits, classify
from flaxvid.layers.norm import BatchNorm
from flaxvid.models.options import Count, Depths, Flag
from flaxvid.models.resnet3d import PYTORCHVIDEO_CLIP
from flaxvid.models.spec import Common, Format, ModelSpec
from flaxvid.models.torch_keys import mmaction2_keys, pyslowfast_keys
from flaxvid.models.video_model import VideoModel, stage_layers

EXPANSION = 2.25
"""How many times more channels a block has inside, and the head before its pooling, than there are between blocks."""


def near_eighth(channels: float) -> int:
    """The multiple of eight near a number of channels, at least eight and never less than nine tenths of it."""
    near = max(8, int(channels + 4) // 8 * 8)
    return near + 8 if near < 0.9 * channels else near


class Block(nn.Module):
    """1x1x1, depthwise 3x3x3 and 1x1x1 convolutions; swish behind the second, and no activation behind the third.

    Attributes:
        width: channels out.
        strides: (t, h, w) of the depthwise convolution.
        se: whether squeeze-and-excitation follows it, with a sixteenth of the channels inside.
        shortcut_norm: a strided shortcut has a norm even where the channels stay as many.
    """

    width: int
    strides: Strides = (1, 1, 1)
    se: bool = False
    shortcut_norm: bool = False
    zero_init: bool = False
    dtype: jnp.dtype = jnp.float32
    norm_epsilon: float = BatchNorm.epsilon

    @nn.compact
    def __call__(self, x: Grid, train: bool = False, frame_mask: FrameMask = None) -> Grid:
        """Grid to grid, `strides` times smaller."""
        unit = functools.partial(ConvNorm, dtype=self.dtype, norm_epsilon=self.norm_epsilon)
        inner = int(EXPANSION * self.width)
        y = unit(inner, (1, 1, 1), relu=True, name="conv_a")(x, train, frame_mask)
        y = unit(inner, (3, 3, 3), self.strides, groups=inner, name="conv_b")(y, train, frame_mask)
        if self.se:
            y = SqueezeExcitation(near_eighth(inner / 16), dtype=self.dtype, name="se")(y, frame_mask)
        y = unit(self.width, (1, 1, 1), zero_init=self.zero_init, name="conv_c")(nn.swish(y), train, frame_mask)
        strided, widened = max(self.strides) > 1, x.shape[-1] != self.width
        if widened or (strided and self.shortcut_norm):
            x = unit(self.width, (1, 1, 1), self.strides, name="downsample")(x, train, frame_mask)
        elif strided:
            x = Conv(self.width, (1, 1, 1), self.strides, dtype=self.dtype, name="downsample")(x)
        return nn.relu(Sum(name="sum")(x, y))


class Stem(nn.Module):
    """1x3x3 convolution with spatial stride 2, then a depthwise 5x1x1 one with norm and ReLU."""

    width: int = 24
    dtype: jnp.dtype = jnp.float32
    norm_epsilon: float = BatchNorm.epsilon

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w 3"], train: bool = False, frame_mask: FrameMask = None) -> Grid:
        """Normalised video to a grid of as many frames, (b, t, h/2, w/2, width)."""
        x = Conv(self.width, (1, 3, 3), (1, 2, 2), dtype=self.dtype, name="conv_xy")(x.astype(self.dtype))
        unit = functools.partial(ConvNorm, dtype=self.dtype, norm_epsilon=self.norm_epsilon)
        conv_t = unit(self.width, (5, 1, 1), groups=self.width, relu=True, name="conv_t")
        return conv_t(x, train, frame_mask)


class Body(nn.Module):
    """The residual stages; each halves height and width, never time, and doubles the width from the second on."""

    depths: tuple[int, ...]
    width: int = 24
    shortcut_norm: bool = False
    zero_init: bool = False
    remat: bool = False
    dtype: jnp.dtype = jnp.float32
    norm_epsilon: float = BatchNorm.epsilon

    @nn.compact
    def __call__(self, x: Grid, train: bool = False, frame_mask: FrameMask = None) -> Grid:
        """Grid (b, t, h, w, c) to (b, t, h/16, w/16, 8 width) with four stages."""
        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        for stage, depth in enumerate(self.depths):
            for index in range(depth):
                x = block(
                    self.width * 2**stage,
                    strides=(1, 2, 2) if index == 0 else (1, 1, 1),
                    se=index % 2 == 0,
                    shortcut_norm=self.shortcut_norm,
                    zero_init=self.zero_init,
                    dtype=self.dtype,
                    norm_epsilon=self.norm_epsilon,
                    name=f"layer{stage + 1}_{index}",
                )(x, train, frame_mask)
        return x


class Head(nn.Module):
    """Widens, pools, widens again, classifies. The second convolution is cheap: it sees one position only.

    Everything after the pooling is float32.

    Attributes:
        hidden: channels that are pooled.
        features: channels of the feature.
    """

    num_classes: int | Mapping[str, int]
    hidden: int = 432
    features: int = 2048
    dropout: float = 0.5
    classifier_std: float = 0.01
    dtype: jnp.dtype = jnp.float32
    norm_epsilon: float = BatchNorm.epsilon

    def setup(self):
        """Makes what `pool` needs here, for it is called by itself, too."""
        unit = functools.partial(ConvNorm, dtype=self.dtype, norm_epsilon=self.norm_epsilon)
        self.pre = unit(self.hidden, (1, 1, 1), relu=True)
        self.post = Conv(self.features, (1, 1, 1))

    def pool(self, x: Grid, train: bool = False, frame_mask: FrameMask = None) -> Float[Array, "b c"]:
        """The clip's feature, what enters the classifier: behind both convolutions, not the bare mean of the grid."""
        x = global_mean(self.pre(x, train, frame_mask), frame_mask)
        return nn.relu(self.post(x[:, None, None, None]))[:, 0, 0, 0]

    @nn.compact
    def __call__(self, x: Grid, train: bool = False, frame_mask: FrameMask = None) -> Logits:
        """Activations to logits."""
        x = nn.Dropout(self.dropout)(self.pool(x, train, frame_mask), deterministic=not train)
        return classify(x, self.num_classes, self.classifier_std)


def build(
    common: Common,
    *,
    depths: Depths = (3, 5, 11, 7),
    width: Count = 24,
    head_features: Count = 2048,
    shortcut_norm: Flag = False,
    zero_init: Flag = False,
) -> VideoModel:
    """X3D; XS, S and M are one network for different clips.

    Args:
        common: what every model takes.
        depths: blocks of each stage.
        width: channels of the stem and the first stage.
        head_features: channels of the feature before the classifier.
        shortcut_norm: the first stage's shortcut has a norm, 48 parameters more, as in PySlowFast's files.
        zero_init: the scale of each block's last norm starts at zero; see `ConvNorm`.
    """
    hidden = int(EXPANSION * width * 2 ** (len(depths) - 1))
    computed = {"dtype": common.dtype, "norm_epsilon": common.norm_epsilon}
    return VideoModel(
        stem=Stem(width, **computed),
        body=Body(depths, width, shortcut_norm, zero_init, common.remat, **computed),
        head=Head(common.num_classes, hidden, head_features, common.dropout, common.classifier_std, **computed),
        feature_dim=head_features,
        clip=common.clip,
        altered=((r"body/layer\d+_\d+/conv_a/conv/kernel", -2),),
        layers=stage_layers(depths),
    )


TORCH_KEYS = {
    "pytorchvideo": (
        (r"stem/conv_xy", r"blocks.0.conv.conv_t"),
        (r"stem/conv_t/conv", r"blocks.0.conv.conv_xy"),
        (r"stem/conv_t/norm", r"blocks.0.norm"),
        (r"body/layer(\d+)_(\d+)/conv_b/norm", r"blocks.\1.res_blocks.\2.branch2.norm_b.0"),
        (r"body/layer(\d+)_(\d+)/se/reduce", r"blocks.\1.res_blocks.\2.branch2.norm_b.1.block.0"),
        (r"body/layer(\d+)_(\d+)/se/expand", r"blocks.\1.res_blocks.\2.branch2.norm_b.1.block.2"),
        (r"body/layer(\d+)_(\d+)/conv_([abc])/(conv|norm)", r"blocks.\1.res_blocks.\2.branch2.\4_\3"),
        (r"body/layer(\d+)_(\d+)/downsample(?:/conv)?", r"blocks.\1.res_blocks.\2.branch1_conv"),
        (r"body/layer(\d+)_(\d+)/downsample/norm", r"blocks.\1.res_blocks.\2.branch1_norm"),
        (r"head/pre/(conv|norm)", r"blocks.5.pool.pre_\1"),
        (r"head/post", r"blocks.5.pool.post_conv"),
        (r"head/classifier(_[^/]+)?", r"blocks.5.proj\1"),
    ),
    "pyslowfast": (
        (r"stem/conv_xy", r"s1.pathway0_stem.conv_xy"),
        (r"stem/conv_t/conv", r"s1.pathway0_stem.conv"),
        (r"stem/conv_t/norm", r"s1.pathway0_stem.bn"),
        *pyslowfast_keys(),
        (r"head/pre/conv", r"head.conv_5"),
        (r"head/pre/norm", r"head.conv_5_bn"),
        (r"head/post", r"head.lin_5"),
        (r"head/classifier(_[^/]+)?", r"head.projection\1"),
    ),
    "mmaction2": (
        (r"stem/conv_xy", r"backbone.conv1_s.conv"),
        (r"stem/conv_t/conv", r"backbone.conv1_t.conv"),
        (r"stem/conv_t/norm", r"backbone.conv1_t.bn"),
        *mmaction2_keys(),
        (r"body/layer(\d+)_(\d+)/se/reduce", r"backbone.layer\1.\2.se_module.fc1"),
        (r"body/layer(\d+)_(\d+)/se/expand", r"backbone.layer\1.\2.se_module.fc2"),
        (r"head/pre/conv", r"backbone.conv5.conv"),
        (r"head/pre/norm", r"backbone.conv5.bn"),
        (r"head/post/kernel", r"cls_head.fc1.weight", "1 1 1 i o -> o i"),
        (r"head/classifier(_[^/]+)?", r"cls_head.fc2\1"),
    ),
}
"""The keys of pytorchvideo, PySlowFast and mmaction2."""

FORMATS = {
    "pytorchvideo": Format(TORCH_KEYS["pytorchvideo"]),
    "pyslowfast": Format(TORCH_KEYS["pyslowfast"], {"shortcut_norm": True}),
    "mmaction2": Format(TORCH_KEYS["mmaction2"], {"shortcut_norm": True}),
}

TINY = {"width": 8, "depths": (2, 1, 1), "head_features": 32, "num_classes": 5, "num_frames": 4, "image_size": 32}

SPECS = {
    name: ModelSpec(
        build,
        {"depths": depths},
        dataclasses.replace(PYTORCHVIDEO_CLIP, num_frames=frames, image_size=size),
        formats=FORMATS,
        tiny=TINY,
    )
    for name, frames, size, depths in (
        ("x3d_xs", 4, 160, (3, 5, 11, 7)),
        ("x3d_s", 13, 160, (3, 5, 11, 7)),
        ("x3d_m", 16, 224, (3, 5, 11, 7)),
        ("x3d_l", 16, 312, (5, 10, 25, 15)),
    )
}
