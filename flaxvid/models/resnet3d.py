"""3-D ResNets: Slow (arXiv 1812.03982), R3D-18 (arXiv 1711.11248), and R3D-18 with squeeze-and-excitation (1709.01507).

Slow is a ResNet-50 over 8 distant frames whose last two stages alone look at neighbouring frames, by 3x1x1
convolutions; R3D-18 has 3x3x3 convolutions everywhere and halves time with height and width.

Differs from the references: the head takes the mean over whatever grid it gets, where pytorchvideo's slides the window
of the training crop, which weighs the middle of larger frames more; the last norm of a block starts at one, and only
with `zero_init` at zero. PySlowFast's slow network is the same.

Stem, body and head are modules of their own. The whole model, and its parts one after the other:

>>> model = flaxvid.create_model("res3dcnn")
>>> video = jnp.zeros((2, 16, 224, 224, 3), jnp.uint8)
>>> variables = model.init(jax.random.key(0), video)
>>> model.apply(variables, video).shape
(2, 9)
>>> m = model.bind(variables)
>>> stem_out = m.stem(m.normalise(video))
>>> body_out = m.body(stem_out)
>>> stem_out.shape, body_out.shape, m.head(body_out).shape
((2, 16, 56, 56, 64), (2, 16, 7, 7, 2048), (2, 9))

The parts alone, with the size of their feature, to build something else from; they have no variables yet:

>>> stem, body, head, feature_dim = model.stem, model.body, model.head, model.feature_dim
>>> feature_dim
2048
>>> x, stem_variables = stem.init_with_output(jax.random.key(1), model.normalise(video))
>>> x, body_variables = body.init_with_output(jax.random.key(2), x)
>>> head.init_with_output(jax.random.key(3), x)[0].shape
(2, 9)

The parts of an existing model, each with its own share of the variables:

>>> def part(variables, name):
...     return {collection: tree[name] for collection, tree in variables.items() if name in tree}
>>> x = model.stem.apply(part(variables, "stem"), model.normalise(video))
>>> x = model.body.apply(part(variables, "body"), x)
>>> model.head.apply(part(variables, "head"), x).shape
(2, 9)

Several cameras, a stem and a body each, their maps fused by one convolution in front of one head:

>>> videos = {"front": video, "left": video, "right": video}
>>> keys = jax.random.split(jax.random.key(4), 3)
>>> cameras = {camera: model.init(key, video) for camera, key in zip(videos, keys)}
>>> fusion = flaxvid.layers.Conv(2048, (1, 1, 1), use_bias=True)
>>> def maps(cameras, videos):
...     models = {camera: model.bind(variables) for camera, variables in cameras.items()}
...     outs = [m.body(m.stem(m.normalise(videos[camera]))) for camera, m in models.items()]
...     return jnp.concatenate(outs, axis=-1)
>>> fused, fusion_variables = fusion.init_with_output(jax.random.key(5), maps(cameras, videos))
>>> head.apply(part(variables, "head"), fused).shape
(2, 9)

A frozen backbone: only the head's parameters are differentiated, and evaluation mode leaves the statistics alone (in
a recipe, ``freeze=("stem", "body")``):

>>> labels = jnp.array([3, 7])
>>> def loss(head):
...     trained = {**variables, "params": {**variables["params"], "head": head}}
...     return flaxvid.losses.classification.cross_entropy(model.apply(trained, video), labels)
>>> gradients = jax.grad(loss)(variables["params"]["head"])
>>> head_params = jax.tree.map(lambda p, g: p - 0.1 * g, variables["params"]["head"], gradients)

Features at several depths, of one clip:

>>> m = model.bind(variables)
>>> stem_features = m.stem(m.normalise(video[:1]))
>>> body_features = m.body(stem_features)
>>> high_features = m.head.pool(body_features)
>>> logits = m.head(body_features)
>>> stem_features.shape, body_features.shape, high_features.shape, logits.shape
((1, 16, 56, 56, 64), (1, 16, 7, 7, 2048), (1, 2048), (1, 9))
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from flaxvid.layers.blocks import ConvNorm, FrameMask, Grid, SqueezeExcitation, Strides, Sum
from flaxvid.layers.heads import PoolHead
from flaxvid.layers.norm import BatchNorm
from flaxvid.layers.pooling import max_pool
from flaxvid.models.inner import ALL_CHANNELS, Inner, check_inner, stage_names, unit_axes
from flaxvid.models.options import Count, Flag, FourDepths, Kind, Odd, Odds, choice, require, several, whole
from flaxvid.models.spec import Common, KeyTable, ModelSpec, formats
from flaxvid.models.video_model import VideoModel, stage_layers
from flaxvid.types import ClipSpec

PYTORCHVIDEO_CLIP = ClipSpec(8, 224, (0.45, 0.45, 0.45), (0.225, 0.225, 0.225))
TORCHVISION_CLIP = ClipSpec(16, 112, (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989))


class BasicBlock(nn.Module):
    """Two 3x3x3 convolutions, as in R3D-18, and squeeze-and-excitation if `se` says where.

    Attributes:
        width: channels.
        strides: (t, h, w) of the first convolution.
        inner: channels between the convolutions; () is `width`.
        se: as in `build_r3d`; "" for none.
    """

    width: int
    strides: Strides = (1, 1, 1)
    inner: tuple[int, ...] = ()
    se: str = ""
    se_reduction: int = 16
    dtype: jnp.dtype = jnp.float32
    norm_epsilon: float = BatchNorm.epsilon

    @nn.compact
    def __call__(self, x: Grid, train: bool = False, frame_mask: FrameMask = None) -> Grid:
        """Grid to grid, `strides` times smaller."""
        unit = functools.partial(ConvNorm, dtype=self.dtype, norm_epsilon=self.norm_epsilon)
        hidden = max(1, self.width // self.se_reduction)
        (inner,) = self.inner or (self.width,)
        y = unit(inner, (3, 3, 3), self.strides, activation=nn.relu, name="conv1")(x, train, frame_mask)
        y = unit(self.width, (3, 3, 3), name="conv2")(y, train, frame_mask)
        if self.se == "residual":
            y = SqueezeExcitation(hidden, dtype=self.dtype, name="se")(y, frame_mask)
        if x.shape != y.shape:
            x = unit(self.width, (1, 1, 1), self.strides, name="downsample")(x, train, frame_mask)
        x = nn.relu(Sum(name="sum")(x, y))
        if self.se == "output":
            x = SqueezeExcitation(hidden, dtype=self.dtype, name="se")(x, frame_mask)
        return x


class Bottleneck(nn.Module):
    """kx1x1, 1x3x3 and 1x1x1 convolutions, as in Slow.

    Attributes:
        width: channels of the first two.
        strides: (t, h, w); the first convolution has the temporal one.
        inner: channels of the first and of the second; () is `width`.
        temporal_kernel: frames that the first convolution sees.
    """

    width: int
    strides: Strides = (1, 1, 1)
    inner: tuple[int, ...] = ()
    temporal_kernel: int = 1
    zero_init: bool = False
    dtype: jnp.dtype = jnp.float32
    norm_epsilon: float = BatchNorm.epsilon

    expansion = 4

    @nn.compact
    def __call__(self, x: Grid, train: bool = False, frame_mask: FrameMask = None) -> Grid:
        """Grid to grid, `strides` times smaller."""
        unit = functools.partial(ConvNorm, dtype=self.dtype, norm_epsilon=self.norm_epsilon)
        (t, h, w), features = self.strides, self.width * self.expansion
        kernel, (first, second) = (self.temporal_kernel, 1, 1), self.inner or (self.width,) * 2
        y = unit(first, kernel, (t, 1, 1), activation=nn.relu, name="conv_a")(x, train, frame_mask)
        y = unit(second, (1, 3, 3), (1, h, w), activation=nn.relu, name="conv_b")(y, train, frame_mask)
        y = unit(features, (1, 1, 1), zero_init=self.zero_init, name="conv_c")(y, train, frame_mask)
        if x.shape != y.shape:
            x = unit(features, (1, 1, 1), self.strides, name="downsample")(x, train, frame_mask)
        return nn.relu(Sum(name="sum")(x, y))


class Stem(nn.Module):
    """kx7x7 convolution with spatial stride 2, norm, and, if `pool`, a spatial max-pool with stride 2."""

    width: int = 64
    temporal_kernel: int = 1
    pool: bool = True
    dtype: jnp.dtype = jnp.float32
    norm_epsilon: float = BatchNorm.epsilon

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w 3"], train: bool = False, frame_mask: FrameMask = None) -> Grid:
        """Normalised video to a grid of as many frames."""
        unit = functools.partial(ConvNorm, activation=nn.relu, dtype=self.dtype, norm_epsilon=self.norm_epsilon)
        conv1 = unit(self.width, (self.temporal_kernel, 7, 7), (1, 2, 2), name="conv1")
        x = conv1(x.astype(self.dtype), train, frame_mask)
        return max_pool(x, (1, 3, 3), strides=(1, 2, 2), padding=(0, 1, 1)) if self.pool else x


class Body(nn.Module):
    """The residual stages, each of twice the width of the one before.

    Attributes:
        blocks: for each stage what makes a block of it: a block class with what is the stage's own filled in.
        strides: (t, h, w) of each stage's first block.
        depths: blocks of each stage; there may be fewer stages than `blocks`.
        inner: inner channels of blocks, by name; of the others all.
    """

    blocks: tuple[Callable[..., nn.Module], ...]
    strides: tuple[Strides, ...]
    depths: tuple[int, ...]
    width: int = 64
    inner: Mapping[str, tuple[int, ...]] = ALL_CHANNELS

    @nn.compact
    def __call__(self, x: Grid, train: bool = False, frame_mask: FrameMask = None) -> Grid:
        """Grid to grid, smaller by the product of the strides."""
        for stage, depth in enumerate(self.depths):
            for index in range(depth):
                strides, name = self.strides[stage] if index == 0 else (1, 1, 1), f"layer{stage + 1}_{index}"
                inner = self.inner.get(name, ())
                x = self.blocks[stage](self.width * 2**stage, strides, inner, name=name)(x, train, frame_mask)
        return x


def stage_blocks(
    block: type[nn.Module], stages: tuple[Mapping[str, Any], ...], common: Common
) -> tuple[Callable[..., nn.Module], ...]:
    """What `Body` makes the blocks of each stage with."""
    block = nn.remat(block, static_argnums=(2,)) if common.remat else block
    shared = {"dtype": common.dtype, "norm_epsilon": common.norm_epsilon}
    return tuple(functools.partial(block, **stage, **shared) for stage in stages)


def _stage(value: Any) -> int:
    require(value in (1, 2, 3, 4))
    return whole(value)


def build_slow(
    common: Common,
    *,
    depths: FourDepths = (3, 4, 6, 3),
    width: Count = 64,
    stem_kernel: Odd = 1,
    temporal_kernels: Odds = (1, 1, 3, 3),
    zero_init: Flag = False,
    inner: Inner = ALL_CHANNELS,
) -> VideoModel:
    """Slow, or with other kernels over time the networks of its shape; no layer strides over time.

    Args:
        common: what every model takes.
        depths: blocks of each stage.
        width: channels of the stem and of the first stage's inner convolutions.
        stem_kernel: frames that the stem's convolution sees.
        temporal_kernels: frames that the first convolution of a block sees, for each stage.
        zero_init: the scale of each block's last norm starts at zero; see `ConvNorm`.
        inner: channels of each block's first two convolutions, by block; see `models.inner`.
    """
    check_inner(inner, stage_names(depths), 2)
    if len(depths) > len(temporal_kernels):
        raise ValueError(f"temporal_kernels must have one for each of the {len(depths)} stages, got {temporal_kernels}")
    strides = ((1, 1, 1), (1, 2, 2), (1, 2, 2), (1, 2, 2))
    stages = tuple({"temporal_kernel": kernel, "zero_init": zero_init} for kernel in temporal_kernels)
    return VideoModel(
        stem=Stem(width, stem_kernel, True, common.dtype, common.norm_epsilon),
        body=Body(stage_blocks(Bottleneck, stages, common), strides, depths, width, inner),
        head=PoolHead(common.num_classes, common.dropout, common.classifier_std),
        feature_dim=width * 2 ** (len(depths) - 1) * Bottleneck.expansion,
        clip=common.clip,
        altered=((r"body/layer\d+_\d+/conv_a/conv/kernel", -2),),
        layers=stage_layers(depths),
        inner=((r"body/layer\d+_\d+", unit_axes("conv_a", "conv_b", "conv_c")),),
    )


def build_r3d(
    common: Common,
    *,
    depths: FourDepths = (2, 2, 2, 2),
    width: Count = 64,
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
        se: where a block has squeeze-and-excitation: "output", behind addition and ReLU, or "residual", before the
            addition, which is the usual place.
        se_stages: the stages that have it, from 1; (1, 2, 3, 4) are all.
        se_reduction: how many times fewer channels there are inside it.
        inner: channels of each block's first convolution, by block; see `models.inner`.
    """
    check_inner(inner, stage_names(depths), 1)
    strides = ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    stages = tuple({"se": se if stage in se_stages else "", "se_reduction": se_reduction} for stage in (1, 2, 3, 4))
    return VideoModel(
        stem=Stem(width, 3, False, common.dtype, common.norm_epsilon),
        body=Body(stage_blocks(BasicBlock, stages, common), strides, depths, width, inner),
        head=PoolHead(common.num_classes, common.dropout, common.classifier_std),
        feature_dim=width * 2 ** (len(depths) - 1),
        clip=common.clip,
        altered=((r"body/layer\d+_\d+/conv1/conv/kernel", -2),),
        layers=stage_layers(depths),
        inner=((r"body/layer\d+_\d+", unit_axes("conv1", "conv2")),),
    )


PYTORCHVIDEO_KEYS = (
    (r"stem/conv1/(conv|norm)", r"blocks.0.\1"),
    (r"body/layer(\d+)_(\d+)/conv_([abc])/(conv|norm)", r"blocks.\1.res_blocks.\2.branch2.\4_\3"),
    (r"body/layer(\d+)_(\d+)/downsample/(conv|norm)", r"blocks.\1.res_blocks.\2.branch1_\3"),
    (r"head/classifier(_[^/]+)?", r"blocks.5.proj\1"),
)


def pyslowfast_keys(layer: str = "layer", pathway: int = 0) -> KeyTable:
    """PySlowFast's keys of the residual stages, whose blocks we call "body/<layer>1_0" and so on."""
    return tuple(
        (rf"body/{layer}{stage}_(\d+)/{ours}", rf"s{stage + 1}.pathway{pathway}_res\1.{theirs}")
        for stage in (1, 2, 3, 4)
        for ours, theirs in (
            (r"conv_([abc])/conv", r"branch2.\2"),
            (r"conv_([abc])/norm", r"branch2.\2_bn"),
            (r"se/reduce", r"branch2.se.fc1"),
            (r"se/expand", r"branch2.se.fc2"),
            (r"downsample(?:/conv)?", r"branch1"),
            (r"downsample/norm", r"branch1_bn"),
        )
    )


TORCH_KEYS = {
    "pytorchvideo": PYTORCHVIDEO_KEYS,
    "pyslowfast": (
        (r"stem/conv1/conv", r"s1.pathway0_stem.conv"),
        (r"stem/conv1/norm", r"s1.pathway0_stem.bn"),
        *pyslowfast_keys(),
        (r"head/classifier(_[^/]+)?", r"head.projection\1"),
    ),
}
"""The keys of pytorchvideo's and PySlowFast's slow networks."""

R3D_TORCH_KEYS = {
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

TINY = {"width": 8, "depths": (1, 1, 1, 1), "num_classes": 5, "num_frames": 4, "image_size": 32}


def _slow(variant: Mapping[str, Any], clip: ClipSpec) -> ModelSpec:
    return ModelSpec(build_slow, variant, clip, formats=formats(TORCH_KEYS), tiny=TINY)


def _r3d(variant: Mapping[str, Any], tiny: Mapping[str, Any]) -> ModelSpec:
    return ModelSpec(build_r3d, variant, TORCHVISION_CLIP, dropout=0.0, formats=formats(R3D_TORCH_KEYS), tiny=tiny)


SPECS = {
    "slow_r50": _slow({}, PYTORCHVIDEO_CLIP),
    "res3dcnn": _slow({"stem_kernel": 7, "num_classes": 9}, dataclasses.replace(PYTORCHVIDEO_CLIP, num_frames=16)),
    "r3d_18": _r3d({}, TINY),
    "r3d_18_se": _r3d({"se_stages": (3, 4)}, {**TINY, "se_reduction": 8}),
}
