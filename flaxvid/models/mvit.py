"""MViT (arXiv 2104.11227) and MViTv2 (arXiv 2112.01526): transformers that halve the places and double the channels.

Queries, keys and values are pooled by depthwise convolutions that all heads share. Keys and values are pooled most, so
early blocks see every place of the clip at little cost. Where queries are pooled with a stride, the grid shrinks. The
second version adds positions of query and key relative to each other, and the pooled queries to what attention gives.

Differs from torchvision's implementation: any frame count and image size, the learnt tables resized.
"""

import functools
from collections.abc import Callable
from typing import Annotated, Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from flaxvid.layers.blocks import FrameMask, Grid, fit_mask, mask_frames
from flaxvid.layers.conv import Conv
from flaxvid.layers.heads import ClassToken, TokenHead
from flaxvid.layers.multiscale import MultiscaleBlock, Scale, table_init
from flaxvid.layers.position import resize_space, resize_time
from flaxvid.layers.transformer import drop_rates
from flaxvid.models.options import Count, Depths, Kind, OddOrNone, PositiveOrNone, Rate, require, whole
from flaxvid.models.spec import Common, Format, KeyTable, ModelSpec
from flaxvid.models.video_model import VideoModel
from flaxvid.models.vit import TableClip, block_layers
from flaxvid.types import ClipSpec

STEM_STRIDES = (2, 4, 4)


class Stem(nn.Module):
    """A convolution of 3 x 7 x 7 with strides 2, 4 and 4: patches that overlap.

    Attributes:
        width: channels out.
        dtype: compute type.
    """

    width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w 3"], train: bool = False, frame_mask: FrameMask = None) -> Grid:
        """Normalised video to a grid."""
        x = mask_frames(x, frame_mask).astype(self.dtype)
        return Conv(self.width, (3, 7, 7), STEM_STRIDES, use_bias=True, dtype=self.dtype, name="patch")(x)


class Body(nn.Module):
    """A class token, in the first version learnt positions, the blocks, and a norm.

    Attributes:
        block: makes a `MultiscaleBlock` of its `Scale`.
        scales: sizes of each block.
        table: (t, h, w) of the grid that the tables of absolute positions are made for; () for none.
        drop_path: rate of the last block, see `drop_rates`.
        dtype: compute type.
        norm_epsilon: of the last norm.
    """

    block: Callable[..., nn.Module]
    scales: tuple[Scale, ...]
    table: tuple[int, ...] = ()
    drop_path: float = 0.0
    dtype: jnp.dtype = jnp.float32
    norm_epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Grid, train: bool = False, frame_mask: FrameMask = None) -> ClassToken:
        """Grid (b, t, h, w, c) to the class token (b, c) and a smaller grid; padding must be behind the clip."""
        b, t, h, w, c = x.shape
        mask = fit_mask(frame_mask, t)
        token = self.param("class_token", table_init, (c,))
        if self.table:
            t0, h0, w0 = self.table
            token = token + self.param("class_position", table_init, (c,))
            places = self.param("positions", table_init, (h0 * w0, c)).reshape(h0, w0, c)
            times = resize_time(self.param("times", table_init, (t0, c)), t, mask)
            x = x + (resize_space(places, h, w) + times[:, :, None, None]).astype(self.dtype)
        token = jnp.broadcast_to(token, (b, 1, c)).astype(self.dtype)
        x = jnp.concatenate([token, x.reshape(b, -1, c)], axis=1)
        size = (t, h, w)
        rates = drop_rates(self.drop_path, len(self.scales))
        for index, (scale, rate) in enumerate(zip(self.scales, rates, strict=True)):
            x = self.block(scale, drop_path=rate, name=f"block_{index}")(x, size, train, mask)
            size = (t, -(-size[1] // scale.query_stride), -(-size[2] // scale.query_stride))
        x = nn.LayerNorm(epsilon=self.norm_epsilon, dtype=self.dtype, name="norm")(x)
        return ClassToken(x[:, 0], x[:, 1:].reshape(b, *size, -1))


def _one_or_two(value: Any) -> int:
    require(whole(value) <= 2)
    return whole(value)


Version = Annotated[int, Kind("1 or 2", _one_or_two)]


def build(
    common: Common,
    *,
    version: Version = 1,
    depth: Count = 16,
    width: Count = 96,
    num_heads: Count = 1,
    mlp_ratio: Count = 4,
    stages: Depths = (1, 3, 14),
    key_stride: Count = 8,
    pool_kernel: OddOrNone = 3,
    positions: TableClip = None,
    drop_path: Rate = 0.2,
    pool_epsilon: PositiveOrNone = None,
) -> VideoModel:
    """MViT.

    Args:
        common: what every model takes.
        version: 2 for MViTv2.
        depth: number of blocks.
        width: channels of the first block.
        num_heads: of the first block; divides the width.
        mlp_ratio: how many times more channels an mlp has inside.
        stages: the blocks, from 0, that halve height and width, and have twice the heads and channels.
        key_stride: of the first block's keys and values; each stage halves it.
        pool_kernel: frames, height and width of the poolings; None for a frame, and the stride and one more.
        positions: (frames, size) of the clip that tables of positions are made for, where it is another than the
            model's: (16, 224) in a model for 384 pixels that starts from weights for 224.
        drop_path: rate of the last block.
        pool_epsilon: of the norms behind the poolings; None for `norm_epsilon`, that of all others.

    Raises:
        ValueError: `num_heads` does not divide the width, or a stage is not below the depth.
    """
    if width % num_heads:
        raise ValueError(f"num_heads must divide the width {width}, got {num_heads}")
    if list(stages) != sorted(set(stages)) or stages[-1] >= depth:
        raise ValueError(f"stages must grow and be below the depth {depth}, got {stages}")
    frames, pixels = positions or (common.num_frames, common.image_size)
    lengths = (frames, pixels, pixels)
    grid = tuple(-(-length // stride) for length, stride in zip(lengths, STEM_STRIDES, strict=True))
    computed = {"dtype": common.dtype, "norm_epsilon": common.norm_epsilon}
    block = functools.partial(
        nn.remat(MultiscaleBlock, static_argnums=(2, 3)) if common.remat else MultiscaleBlock,
        mlp_ratio=mlp_ratio,
        pool_epsilon=common.norm_epsilon if pool_epsilon is None else pool_epsilon,
        **computed,
    )
    scales = plan_scales(version, depth, width, num_heads, stages, key_stride, pool_kernel, grid)
    body = Body(block, scales, grid if version == 1 else (), drop_path, **computed)
    return VideoModel(
        stem=Stem(width, common.dtype),
        body=body,
        head=TokenHead(common.num_classes, common.dropout, common.classifier_std),
        feature_dim=scales[-1].out,
        clip=common.clip,
        altered=((r"body/block_\d+/(attention/project|mlp/fc2)/kernel", -2),),
        layers=block_layers(r"stem/.*|body/(class_token|class_position|positions|times)", r"body/block", depth),
    )


def plan_scales(
    version: int,
    depth: int,
    width: int,
    heads: int,
    stages: tuple[int, ...],
    key_stride: int,
    pool_kernel: int | None,
    grid: tuple[int, ...],
) -> tuple[Scale, ...]:
    """The sizes of all blocks. The first version doubles channels in the mlp before a stage, the second in its
    attention, which also pools the queries of every block."""

    def kernel(stride: int, always: bool) -> tuple[int, ...]:
        if pool_kernel is None:
            return (1, stride + 1, stride + 1) if stride > 1 else ()
        return (pool_kernel,) * 3 if always or stride > 1 else ()

    scales = []
    for index in range(depth):
        stride = 2 if index in stages else 1
        heads, width, key_stride = heads * stride, width * stride, max(1, key_stride // stride)
        out = width * (2 if version == 1 and index + 1 in stages else 1)
        query_kernel, key_kernel = kernel(stride, version == 2), kernel(key_stride, True)
        table = grid if version == 2 else ()
        scales.append(Scale(heads, width, out, query_kernel, stride, key_kernel, key_stride, table))
        grid = (grid[0], -(-grid[1] // stride), -(-grid[2] // stride))
    return tuple(scales)


_POSITIONS = (
    ("class_token", "class_token", "cls_token", "c -> 1 1 c"),
    ("class_position", "class_pos", "pos_embed_class", "c -> 1 1 c"),
    ("positions", "spatial_pos", "pos_embed_spatial", "n c -> 1 n c"),
    ("times", "temporal_pos", "pos_embed_temporal", "n c -> 1 n c"),
)
"""Ours, torchvision's key, and that of the authors with its axes."""


def _meta_keys(stem: str, tokens: str, packed: str, norm: str, head: str, prefix: str = "") -> KeyTable:
    """The table of the authors' names, which pytorchvideo and mmaction2 have too, but for a few.

    Args:
        stem: the first convolution.
        tokens: what stands before the class token and the positions.
        packed: queries, keys and values of a block's attention.
        norm: the last norm.
        head: the classifier.
        prefix: of all that is not the classifier.
    """
    ours, theirs = r"body/block_(\d+)", rf"{prefix}blocks.\1"
    return (
        (r"stem/patch", prefix + stem),
        *((rf"body/{name}", prefix + tokens + key, axes) for name, _, key, axes in _POSITIONS),
        (rf"{ours}/attention/qkv", rf"{theirs}.attn.{packed}"),
        (rf"{ours}/attention/project", rf"{theirs}.attn.proj"),
        (rf"{ours}/attention/(pool|norm)_([qkv])", rf"{theirs}.attn.\2_\3"),
        (rf"{ours}/attention/relative_([thw])", rf"{theirs}.attn.rel_pos_\2"),
        (rf"{ours}/norm([12])", rf"{theirs}.norm\2"),
        (rf"{ours}/mlp/fc([12])", rf"{theirs}.mlp.fc\2"),
        (rf"{ours}/project", rf"{theirs}.proj"),
        (r"body/norm", prefix + norm),
        (r"head/classifier(_[^/]+)?", rf"{head}\1"),
    )


TORCH_KEYS = {
    "torchvision": (
        (r"stem/patch", r"conv_proj"),
        *((rf"body/{name}", rf"pos_encoding.{key}") for name, key, *_ in _POSITIONS),
        (r"body/block_(\d+)/attention/qkv", r"blocks.\1.attn.qkv"),
        (r"body/block_(\d+)/attention/project", r"blocks.\1.attn.project.0"),
        (r"body/block_(\d+)/attention/pool_([qkv])", r"blocks.\1.attn.pool_\2.pool"),
        (r"body/block_(\d+)/attention/norm_([qkv])", r"blocks.\1.attn.pool_\2.norm_act.0"),
        (r"body/block_(\d+)/attention/relative_([thw])", r"blocks.\1.attn.rel_pos_\2"),
        (r"body/block_(\d+)/mlp/fc1", r"blocks.\1.mlp.0"),
        (r"body/block_(\d+)/mlp/fc2", r"blocks.\1.mlp.3"),
        (r"body/block_(\d+)/(norm[12]|project)", r"blocks.\1.\2"),
        (r"body/norm", r"norm"),
        (r"head/classifier(_[^/]+)?", r"head.1\1"),
    ),
    "pytorchvideo": _meta_keys(
        "patch_embed.patch_model", "cls_positional_encoding.", "{q,k,v}", "norm_embed", "head.proj"
    ),
    "pytorchvideo_fused": _meta_keys(
        "patch_embed.patch_model", "cls_positional_encoding.", "qkv", "norm_embed", "head.proj"
    ),
    "pyslowfast": _meta_keys("patch_embed.proj", "", "qkv", "norm", "head.projection"),
    "mmaction2": _meta_keys("patch_embed.projection", "", "qkv", "norm3", "cls_head.fc_cls", "backbone."),
}
"""Torchvision's keys; pytorchvideo's, today's and those of its older files; the authors'; and mmaction2's.

Pixels are the same in all (0.45, 0.225), also in mmaction2's configs (configs/recognition/mvit), but for one: its small
network for Something-Something v2 has ImageNet's. No tensor shows that; load it with `mean` and `std`."""

# Pytorchvideo's norms behind the poolings have torch's epsilon, others' the epsilon of all norms.
_POOL_EPSILON = {"pool_epsilon": 1e-5}
_ONE_EPSILON = {"pool_epsilon": None}
_24_BLOCKS = {"depth": 24, "stages": (2, 5, 21)}

FIRST_FORMATS = {
    "torchvision": Format(TORCH_KEYS["torchvision"], _ONE_EPSILON),
    "pytorchvideo": Format(TORCH_KEYS["pytorchvideo"], _POOL_EPSILON),
    "pytorchvideo_fused": Format(TORCH_KEYS["pytorchvideo_fused"], _POOL_EPSILON),
    "pyslowfast": Format(TORCH_KEYS["pyslowfast"], _ONE_EPSILON),
}
LONG_FORMATS = {
    **FIRST_FORMATS,
    "pyslowfast_24": Format(TORCH_KEYS["pyslowfast"], {**_ONE_EPSILON, **_24_BLOCKS, "pool_kernel": None}),
}
SECOND_FORMATS = {name: Format(TORCH_KEYS[name]) for name in ("torchvision", "pyslowfast", "mmaction2")}

TINY = {
    "depth": 4,
    "width": 8,
    "stages": (1, 2),
    "key_stride": 4,
    "drop_path": 0.0,
    "num_classes": 5,
    "num_frames": 4,
    "image_size": 32,
}


def _spec(variant: dict[str, Any], frames: int, formats: dict[str, Format]) -> ModelSpec:
    clip = ClipSpec(frames, mean=(0.45, 0.45, 0.45), std=(0.225, 0.225, 0.225))
    return ModelSpec(
        build, {"norm_epsilon": 1e-6, **variant}, clip, dropout=0.5, classifier_std=0.02, formats=formats, tiny=TINY
    )


SPECS = {
    "mvit_base": _spec({}, 16, FIRST_FORMATS),
    "mvit_base_32x3": _spec({}, 32, LONG_FORMATS),
    "mvit_v2_s": _spec({"version": 2}, 16, SECOND_FORMATS),
    "mvit_v2_b": _spec({"version": 2, **_24_BLOCKS}, 32, SECOND_FORMATS),
}
"""A file of the authors' 32x3 has 24 blocks, and poolings of a single frame; pytorchvideo's has 16 blocks."""
