"""ViViT (arXiv 2103.15691): a vision transformer with a class token over patches of space and time.

The joint model attends between all patches of a clip (the paper's model 1). The factorised encoder (its model 2) first
reads each moment by itself, then the class tokens of all moments, which costs less on long clips.

The activation is GELU's approximation by a tanh, as in Scenic and transformers. Differs from both: any frame count and
image size, the learnt positions resized.
"""

import functools
from collections.abc import Callable
from typing import Annotated

import jax.numpy as jnp
from flax import linen as nn

from flaxvid.layers.blocks import FrameMask, Grid, Strides
from flaxvid.layers.heads import ClassToken, TokenHead
from flaxvid.layers.position import fit_positions, token_keys, token_mask
from flaxvid.layers.transformer import Block, PatchEmbed, drop_rates, gelu_tanh
from flaxvid.models.options import Count, Rate, choice
from flaxvid.models.spec import Common, Format, KeyTable, ModelSpec
from flaxvid.models.video_model import VideoModel
from flaxvid.models.vit import ALTERED, TINY, MakeBlock, TableClip, block_keys, block_layers, table_shape
from flaxvid.types import ClipSpec


class Encoder(nn.Module):
    """A class token and learnt positions, the blocks, and a norm.

    Attributes:
        block: makes a `Block`.
        depth: number of blocks.
        table: (t, h, w) of the grid that the table of positions is made for; 1 for an axis that the grids lack.
        drop_path: rate of the last block, see `drop_rates`.
        dtype: compute type.
        norm_epsilon: of the last norm.
    """

    block: MakeBlock
    depth: int
    table: Strides
    drop_path: float = 0.0
    dtype: jnp.dtype = jnp.float32
    norm_epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Grid, train: bool = False, frame_mask: FrameMask = None) -> ClassToken:
        """Grid (b, t, h, w, c) to the class token (b, c) and a grid of the same shape."""
        b, t, h, w, c = x.shape
        mask, (t0, h0, w0) = token_mask(frame_mask, t), self.table
        init = nn.initializers.truncated_normal(0.02)
        positions = self.param("positions", init, (1, 1 + t0 * h0 * w0, c))
        token = self.param("class_token", nn.initializers.zeros, (1, 1, c)) + positions[:, :1]
        x = x + fit_positions(positions[0, 1:].reshape(t0, h0, w0, c), t, h, w, mask).astype(self.dtype)
        token = jnp.broadcast_to(token, (b, 1, c)).astype(self.dtype)
        x = jnp.concatenate([token, x.reshape(b, t * h * w, c)], axis=1)
        keys = token_keys(mask, h * w, before=1)
        for index, rate in enumerate(drop_rates(self.drop_path, self.depth)):
            x = self.block(drop_path=rate, name=f"block_{index}")(x, train, keys)
        x = nn.LayerNorm(epsilon=self.norm_epsilon, dtype=self.dtype, name="norm")(x)
        return ClassToken(x[:, 0], x[:, 1:].reshape(b, t, h, w, c))


class FactorisedEncoder(nn.Module):
    """An encoder of each moment's patches, then one of the moments' class tokens along time.

    Attributes:
        spatial: makes the `Encoder` of a moment.
        temporal: makes the `Encoder` along time.
    """

    spatial: Callable[..., Encoder]
    temporal: Callable[..., Encoder]

    @nn.compact
    def __call__(self, x: Grid, train: bool = False, frame_mask: FrameMask = None) -> ClassToken:
        """Grid to the clip's class token and the spatial encoder's grid."""
        b, t, h, w, c = x.shape
        moments = self.spatial(name="spatial")(x.reshape(b * t, 1, h, w, c), train)
        clip = self.temporal(name="temporal")(moments.token.reshape(b, t, 1, 1, c), train, frame_mask)
        return ClassToken(clip.token, moments.grid.reshape(x.shape))


def build(
    common: Common,
    *,
    depth: Count = 12,
    width: Count = 768,
    num_heads: Count = 12,
    mlp_ratio: Count = 4,
    patch_frames: Count = 2,
    patch_size: Count = 16,
    attention: Annotated[str, choice("joint", "factorised")] = "joint",
    temporal_depth: Count = 4,
    positions: TableClip = None,
    drop_path: Rate = 0.0,
) -> VideoModel:
    """ViViT.

    Args:
        common: what every model takes.
        depth: number of blocks; of a factorised encoder those of each moment.
        width: channels of a token.
        num_heads: of every attention; divides the width.
        mlp_ratio: how many times more channels an mlp has inside.
        patch_frames: frames of a patch.
        patch_size: height and width of a patch.
        attention: "joint", between all patches; or "factorised", within a moment, then between moments.
        temporal_depth: blocks between the moments of a factorised encoder; a joint one has none.
        positions: (frames, size) of the clip that the table of positions is made for, where it is another than the
            model's: (32, 224) in a model for 64 frames that starts from weights for 32.
        drop_path: rate of the last block, in each of two encoders.
    """
    patch = (patch_frames, patch_size, patch_size)
    t, h, w = table_shape(common.clip, positions, patch)
    computed = {"dtype": common.dtype, "norm_epsilon": common.norm_epsilon}
    make_block = nn.remat(Block, static_argnums=(2,)) if common.remat else Block
    block = functools.partial(make_block, num_heads, mlp_ratio * width, activation=gelu_tanh, **computed)
    encoder = functools.partial(Encoder, block, drop_path=drop_path, **computed)
    if attention == "joint":
        body = encoder(depth, (t, h, w))
        layers = block_layers(r"stem/.*|body/(class_token|positions)", r"body/block", depth)
    else:
        spatial = functools.partial(encoder, depth, (1, h, w))
        body = FactorisedEncoder(spatial, functools.partial(encoder, temporal_depth, (t, 1, 1)))
        layers = (
            *block_layers(r"stem/.*|body/spatial/(class_token|positions)", r"body/spatial/block", depth),
            *block_layers(
                r"body/(spatial/norm/.*|temporal/(class_token|positions))", r"body/temporal/block", temporal_depth
            ),
        )
    pattern, axis = ALTERED[0]
    return VideoModel(
        stem=PatchEmbed(width, patch, common.dtype),
        body=body,
        head=TokenHead(common.num_classes, common.dropout, common.classifier_std),
        feature_dim=width,
        clip=common.clip,
        altered=((pattern.replace("body/", r"body/(?:spatial/|temporal/)?"), axis),),
        multiple_of=patch,
        layers=layers,
    )


def _scenic(ours: str, theirs: str, token: str) -> KeyTable:
    """Of one encoder. Scenic's arrays have flax's axes, and those of attentions an axis of heads."""
    block, same = rf"{theirs}/encoderblock_\1", "... -> ..."
    attention, heads = rf"{block}/MultiHeadDotProductAttention_0", "num_heads d"
    return (
        (rf"{ours}/class_token", token),
        (rf"{ours}/positions", rf"{theirs}/posembed_input/pos_embedding"),
        (rf"{ours}/block_(\d+)/norm1/(scale|bias)", rf"{block}/LayerNorm_0/\2"),
        (
            rf"{ours}/block_(\d+)/attention/qkv/kernel",
            rf"{attention}/{{query,key,value}}/kernel",
            f"c ({heads}) -> c {heads}",
        ),
        (rf"{ours}/block_(\d+)/attention/qkv/bias", rf"{attention}/{{query,key,value}}/bias", f"({heads}) -> {heads}"),
        (rf"{ours}/block_(\d+)/attention/project/kernel", rf"{attention}/out/kernel", f"({heads}) c -> {heads} c"),
        (rf"{ours}/block_(\d+)/attention/project/bias", rf"{attention}/out/bias"),
        (rf"{ours}/block_(\d+)/norm2/(scale|bias)", rf"{block}/LayerNorm_1/\2"),
        (rf"{ours}/block_(\d+)/mlp/fc1/(kernel|bias)", rf"{block}/MlpBlock_0/Dense_0/\2", same),
        (rf"{ours}/block_(\d+)/mlp/fc2/(kernel|bias)", rf"{block}/MlpBlock_0/Dense_1/\2", same),
        (rf"{ours}/norm/(scale|bias)", rf"{theirs}/encoder_norm/\1"),
        (r"stem/patch/(kernel|bias)", r"embedding/\1", same),
        (r"head/classifier(_[^/]+)?/(kernel|bias)", r"output_projection\1/\2", same),
    )


TORCH_KEYS = {
    "transformers": (
        (r"stem/patch", r"vivit.embeddings.patch_embeddings.projection"),
        (r"body/class_token", r"vivit.embeddings.cls_token"),
        (r"body/positions", r"vivit.embeddings.position_embeddings"),
        (r"body/block_(\d+)/attention/qkv", r"vivit.layers.\1.attention.{q_proj,k_proj,v_proj}"),
        (r"body/block_(\d+)/attention/project", r"vivit.layers.\1.attention.o_proj"),
        (r"body/block_(\d+)/mlp/fc([12])", r"vivit.layers.\1.mlp.fc\2"),
        (r"body/block_(\d+)/norm1", r"vivit.layers.\1.layernorm_before"),
        (r"body/block_(\d+)/norm2", r"vivit.layers.\1.layernorm_after"),
        (r"body/norm", r"vivit.layernorm"),
        (r"head/classifier(_[^/]+)?", r"classifier\1"),
    ),
    "transformers_4": (
        (r"stem/patch", r"vivit.embeddings.patch_embeddings.projection"),
        (r"body/class_token", r"vivit.embeddings.cls_token"),
        (r"body/positions", r"vivit.embeddings.position_embeddings"),
        *block_keys(
            r"body/block_(\d+)",
            r"vivit.encoder.layer.\1",
            packed=r"vivit.encoder.layer.\1.attention.attention.{query,key,value}",
        ),
        (r"body/norm", r"vivit.layernorm"),
        (r"head/classifier(_[^/]+)?", r"classifier\1"),
    ),
    "scenic": _scenic("body", "Transformer", "cls"),
    "scenic_factorised": (
        *_scenic("body/spatial", "SpatialTransformer", "cls_SpatialTransformer"),
        *_scenic("body/temporal", "TemporalTransformer", "cls_TemporalTransformer"),
    ),
}
"""The keys of transformers, today's and those of the Hub's older files, which has the joint model only; and of Scenic,
whose files are flax's (msgpack).

Pixels are from -1 to 1 in Scenic and in Google's files on the Hub, which come from there. Trap: transformers'
`VivitImageProcessor` as it is by default makes them -3 to 1. A network that was fine-tuned with it is loaded with
``mean=(0.75, 0.75, 0.75), std=(0.25, 0.25, 0.25)``."""

FORMATS = {
    name: Format(keys, {"attention": "factorised"} if name == "scenic_factorised" else {})
    for name, keys in TORCH_KEYS.items()
}

SPECS = {
    "vivit_base": ModelSpec(
        build,
        {"norm_epsilon": 1e-6},
        # Pixels from -1 to 1.
        ClipSpec(num_frames=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        dropout=0.0,
        classifier_std=0.02,
        formats=FORMATS,
        tiny={**TINY, "temporal_depth": 1},
    )
}
