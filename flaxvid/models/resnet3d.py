"""3-D ResNets of bottlenecks that see time by kx1x1 convolutions: Slow (arXiv 1812.03982), I3D and C2D (1711.07971).

Slow is a ResNet-50 over 8 distant frames whose last two stages alone look at neighbouring frames. I3D, inflated from
2-D, looks at them in every second block; C2D nowhere, and both take the maximum of each two frames behind the first
stage. The `nln` names have non-local blocks (1711.07971) behind every second block of the two middle stages.
`models.r3d` has the networks that halve time with height and width.

Differs from the references: the head takes the mean over whatever grid it gets, where pytorchvideo's slides the window
of the training crop, which weighs the middle of larger frames more; the last norm of a block starts at one, and only
with `zero_init` at zero; an odd last frame is a pair of its own, where the references drop it.

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
import itertools
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from flaxvid.layers.blocks import ConvNorm, FrameMask, Grid, Strides, Sum, mask_frames
from flaxvid.layers.heads import PoolHead
from flaxvid.layers.non_local import NonLocal
from flaxvid.layers.norm import BatchNorm
from flaxvid.layers.pooling import max_pool
from flaxvid.models.inner import ALL_CHANNELS, Inner, check_inner, stage_names, unit_axes
from flaxvid.models.options import Count, Flag, FourDepths, Kernels, NonLocals, Odd, PowerOfTwo, choice
from flaxvid.models.spec import IMAGENET, Common, Format, ModelSpec
from flaxvid.models.stages import check_stages, every_second, in_turn
from flaxvid.models.torch_keys import (
    CAFFE2_KEYS,
    MMACTION2_FLAT_KEYS,
    MMACTION2_KEYS,
    PYSLOWFAST_KEYS,
    pytorchvideo_keys,
)
from flaxvid.models.video_model import VideoModel, stage_layers
from flaxvid.types import ClipSpec

PYTORCHVIDEO_CLIP = ClipSpec(8, 224, (0.45, 0.45, 0.45), (0.225, 0.225, 0.225))
TORCHVISION_CLIP = ClipSpec(16, 112, (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989))

STEM_POOLS = {
    "none": None,
    "space": ((1, 3, 3), (0, 1, 1)),
    "unpadded": ((1, 3, 3), (0, 0, 0)),
    "space_time": ((3, 3, 3), (1, 1, 1)),
}
"""The window and the padding of a stem's max-pool; its stride is 2 over space, and over time too if the window is."""

StemPool = Annotated[str, choice(*STEM_POOLS)]


class Bottleneck(nn.Module):
    """kx1x1, kx3x3 and 1x1x1 convolutions, as in Slow; the second has the strides.

    Attributes:
        width: channels of the first two.
        strides: (t, h, w).
        inner: channels of the first and of the second; () is `width`.
        temporal_kernels: frames that the first and the second see.
        depthwise: the second sees each channel by itself.
        mixing: a 1x1x1 convolution stands between the first and the second, with a norm and without a ReLU.
        non_local: the kind of the non-local block behind the ReLU, as in `NonLocal`; "" for none.
    """

    width: int
    strides: Strides = (1, 1, 1)
    inner: tuple[int, ...] = ()
    temporal_kernels: tuple[int, int] = (1, 1)
    depthwise: bool = False
    mixing: bool = False
    zero_init: bool = False
    non_local: str = ""
    dtype: jnp.dtype = jnp.float32
    norm_epsilon: float = BatchNorm.epsilon

    expansion = 4

    @nn.compact
    def __call__(self, x: Grid, train: bool = False, frame_mask: FrameMask = None) -> Grid:
        """Grid to grid, `strides` times smaller."""
        unit = functools.partial(ConvNorm, dtype=self.dtype, norm_epsilon=self.norm_epsilon)
        active = functools.partial(unit, relu=True)
        (in_a, in_b), features = self.temporal_kernels, self.width * self.expansion
        first, second = self.inner or (self.width,) * 2
        groups = first if self.depthwise else 1
        y = active(first, (in_a, 1, 1), name="conv_a")(x, train, frame_mask)
        y = unit(first, (1, 1, 1), name="conv_mix")(y, train, frame_mask) if self.mixing else y
        y = active(second, (in_b, 3, 3), self.strides, groups=groups, name="conv_b")(y, train, frame_mask)
        y = unit(features, (1, 1, 1), zero_init=self.zero_init, name="conv_c")(y, train, frame_mask)
        if x.shape != y.shape:
            x = unit(features, (1, 1, 1), self.strides, name="downsample")(x, train, frame_mask)
        x = nn.relu(Sum(name="sum")(x, y))
        if self.non_local:
            x = NonLocal(self.non_local, self.dtype, self.norm_epsilon, name="non_local")(x, train, frame_mask)
        return x


def pool_stem(x: Grid, pool: str, temporal_stride: int = 1, frame_mask: FrameMask = None) -> Grid:
    """The max-pool of `STEM_POOLS` on what a ReLU gives: frames that pad are zero, the least there is."""
    if STEM_POOLS[pool] is None:
        return x
    window, padding = STEM_POOLS[pool]
    x = mask_frames(x, frame_mask) if window[0] > 1 else x
    return max_pool(x, window, strides=(2 if window[0] > 1 else temporal_stride, 2, 2), padding=padding)


class Stem(nn.Module):
    """kx7x7 convolution with spatial stride 2, norm, ReLU, and a max-pool.

    Attributes:
        width: channels.
        temporal_kernel: frames that the convolution sees.
        temporal_stride: of the convolution, and of a pool over space.
        pool: a key of `STEM_POOLS`.
    """

    width: int = 64
    temporal_kernel: int = 1
    temporal_stride: int = 1
    pool: str = "space"
    dtype: jnp.dtype = jnp.float32
    norm_epsilon: float = BatchNorm.epsilon

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w 3"], train: bool = False, frame_mask: FrameMask = None) -> Grid:
        """Normalised video to a grid of as many frames, unless the stem strides over time."""
        unit = functools.partial(ConvNorm, relu=True, dtype=self.dtype, norm_epsilon=self.norm_epsilon)
        conv1 = unit(self.width, (self.temporal_kernel, 7, 7), (self.temporal_stride, 2, 2), name="conv1")
        return pool_stem(conv1(x.astype(self.dtype), train, frame_mask), self.pool, self.temporal_stride, frame_mask)


class Body(nn.Module):
    """The residual stages, each of twice the width of the one before.

    Attributes:
        blocks: for each stage what makes its blocks, in turn: block classes with what is the stage's own filled in.
        strides: (t, h, w) of each stage's first block.
        depths: blocks of each stage; there may be fewer stages than `blocks`.
        pool: the maximum of each two frames is taken behind the first stage.
        inner: inner channels of blocks, by name; of the others all.
    """

    blocks: tuple[tuple[Callable[..., nn.Module], ...], ...]
    strides: tuple[Strides, ...]
    depths: tuple[int, ...]
    width: int = 64
    pool: bool = False
    inner: Mapping[str, tuple[int, ...]] = ALL_CHANNELS

    @nn.compact
    def __call__(self, x: Grid, train: bool = False, frame_mask: FrameMask = None) -> Grid:
        """Grid to grid, smaller by the product of the strides."""
        for stage, depth in enumerate(self.depths):
            for index, block in zip(range(depth), itertools.cycle(self.blocks[stage]), strict=False):
                strides, name = self.strides[stage] if index == 0 else (1, 1, 1), f"layer{stage + 1}_{index}"
                x = block(self.width * 2**stage, strides, self.inner.get(name, ()), name=name)(x, train, frame_mask)
            if stage == 0 and self.pool:
                pairs = ((0, x.shape[1] % 2), (0, 0), (0, 0))
                x = max_pool(mask_frames(x, frame_mask), (2, 1, 1), padding=pairs)
        return x


def stage_blocks(
    block: type[nn.Module], stages: tuple[tuple[Mapping[str, Any], ...], ...], common: Common
) -> tuple[tuple[Callable[..., nn.Module], ...], ...]:
    """What `Body` makes the blocks of each stage with."""
    block = nn.remat(block, static_argnums=(2,)) if common.remat else block
    shared = {"dtype": common.dtype, "norm_epsilon": common.norm_epsilon}
    return tuple(tuple(functools.partial(block, **own, **shared) for own in stage) for stage in stages)


def build_slow(
    common: Common,
    *,
    depths: FourDepths = (3, 4, 6, 3),
    width: Count = 64,
    stem_kernel: Odd = 1,
    stem_stride: PowerOfTwo = 1,
    stem_pool: StemPool = "space",
    temporal_kernels: Kernels = (1, 1, 3, 3),
    pool: Flag = False,
    non_local: NonLocals = (),
    zero_init: Flag = False,
    inner: Inner = ALL_CHANNELS,
) -> VideoModel:
    """Slow, or with other kernels over time the networks of its shape; no stage strides over time.

    Args:
        common: what every model takes.
        depths: blocks of each stage.
        width: channels of the stem and of the first stage's inner convolutions.
        stem_kernel: frames that the stem's convolution sees.
        stem_stride: stride over time of the stem's convolution, and of its max-pool again.
        stem_pool: the stem's max-pool: "none", "space" over 3x3 pixels, "unpadded" the same within the grid, or
            "space_time" over 3x3x3.
        temporal_kernels: frames that the first convolution of a block sees: for each stage one number, or several for
            its blocks in turn, which begin anew behind the last.
        pool: the maximum of each two frames is taken behind the first stage.
        non_local: the kinds of the non-local blocks behind the blocks (`layers.non_local.KINDS`), "" for none: for each
            stage one, or several as in `temporal_kernels`. () is a network without them.
        zero_init: the scale of each block's last norm starts at zero; see `ConvNorm`.
        inner: channels of each block's first two convolutions, by block; see `models.inner`.
    """
    check_inner(inner, stage_names(depths), 2)
    check_stages("temporal_kernels", temporal_kernels, depths)
    non_local = non_local or ("",) * len(temporal_kernels)
    check_stages("non_local", non_local, depths)
    strides = ((1, 1, 1), (1, 2, 2), (1, 2, 2), (1, 2, 2))
    stages = tuple(
        tuple(
            {"temporal_kernels": (kernel, 1), "non_local": kind, "zero_init": zero_init}
            for kernel, kind in in_turn(kernels, kinds)
        )
        for kernels, kinds in zip(temporal_kernels, non_local, strict=False)
    )
    return VideoModel(
        stem=Stem(width, stem_kernel, stem_stride, stem_pool, common.dtype, common.norm_epsilon),
        body=Body(stage_blocks(Bottleneck, stages, common), strides, depths, width, pool, inner),
        head=PoolHead(common.num_classes, common.dropout, common.classifier_std),
        feature_dim=width * 2 ** (len(depths) - 1) * Bottleneck.expansion,
        clip=common.clip,
        altered=((r"body/layer\d+_\d+/conv_a/conv/kernel", -2),),
        layers=stage_layers(depths),
        inner=((r"body/layer\d+_\d+", unit_axes("conv_a", "conv_b", "conv_c")),),
    )


I3D_MMACTION2 = {**IMAGENET, "stem_stride": 2}


def slow_formats(pool: bool = False, mmaction2: Mapping[str, Any] = IMAGENET, flat: bool = False) -> dict[str, Format]:
    """The formats of Slow and of its shape: pytorchvideo's, PySlowFast's, Caffe2's and mmaction2's.

    Args:
        pool: as in `build_slow`.
        mmaction2: what mmaction2's implies.
        flat: mmaction2's convolutions are 2-D.
    """
    return {
        "pytorchvideo": Format(pytorchvideo_keys(pool)),
        "pyslowfast": Format(PYSLOWFAST_KEYS),
        "caffe2": Format(CAFFE2_KEYS),
        "mmaction2": Format(MMACTION2_FLAT_KEYS if flat else MMACTION2_KEYS, mmaction2),
    }


def nln_formats(**mmaction2: Mapping[str, Any]) -> dict[str, Format]:
    """The formats of a network with non-local blocks; of mmaction2's those whose options are given."""
    own = {name: known for name, known in slow_formats().items() if name in ("pyslowfast", "caffe2")}
    return own | {name: Format(MMACTION2_KEYS, options) for name, options in mmaction2.items()}


C2D_FORMATS = {
    **slow_formats(True, {**IMAGENET, "stem_pool": "unpadded", "pool": True}, flat=True),
    "pyslowfast": Format(PYSLOWFAST_KEYS, {"pool": True}),
    "pyslowfast_nopool": Format(PYSLOWFAST_KEYS, {"pool": False}),
    "caffe2": Format(CAFFE2_KEYS, {"pool": True}),
    "caffe2_nopool": Format(CAFFE2_KEYS, {"pool": False}),
    "mmaction2_nopool": Format(MMACTION2_FLAT_KEYS, {**IMAGENET, "pool": False}),
}
"""No tensor tells of the pool behind the first stage. mmaction2's C2D without it is a TSN of adjacent frames."""

TINY = {"width": 8, "depths": (1, 1, 1, 1), "num_classes": 5, "num_frames": 4, "image_size": 32}
TINY_NLN = {**TINY, "depths": (1, 2, 2, 1)}

I3D = {"stem_kernel": 5, "temporal_kernels": (3, (3, 1), (3, 1), (1, 3)), "pool": True}

SPECS = {
    name: ModelSpec(
        build_slow, variant, dataclasses.replace(PYTORCHVIDEO_CLIP, num_frames=frames), formats=known, tiny=tiny
    )
    for name, variant, frames, known, tiny in (
        ("slow_r50", {}, 8, slow_formats(), TINY),
        ("slow_r101", {"depths": (3, 4, 23, 3)}, 8, slow_formats(), TINY),
        (
            "slow_nln_r50",
            {"non_local": every_second("pooled_dot_product", 1)},
            8,
            nln_formats(mmaction2={**IMAGENET, "non_local": every_second("scaled_gaussian")}),
            TINY_NLN,
        ),
        ("res3dcnn", {"stem_kernel": 7, "num_classes": 9}, 16, slow_formats(), TINY),
        ("c2d_r50", {"temporal_kernels": (1,) * 4, "pool": True}, 8, C2D_FORMATS, TINY),
        ("i3d_r50", I3D, 8, slow_formats(True, I3D_MMACTION2), TINY),
        (
            "i3d_nln_r50",
            {**I3D, "non_local": every_second("pooled_gaussian", 1)},
            8,
            nln_formats(
                **{
                    f"mmaction2_{kind}": {**I3D_MMACTION2, "non_local": every_second(kind, 1)}
                    for kind in ("dot_product", "embedded_gaussian", "gaussian")
                }
            ),
            TINY_NLN,
        ),
    )
}
