"""TimeSformer (arXiv 2102.05095): a vision transformer on frames, whose blocks attend along time, then within frames.

With this divided attention a patch sees its own place in all frames, then all places of its own frame, which costs far
less than all places of all frames. The class token takes part within each frame; the mean over the frames of what it
sees there is what it gets.

Differs from transformers' implementation: any frame count and image size, the learnt tables interpolated (there the
nearest entry is taken). A frame that only pads a clip has no part in the class token. Space-only attention gives one
class token a frame. Its authors and mmaction2 take the mean of these before the last norm; transformers takes none and
gives logits of each frame, whose mean is what a mean behind the norm gives (`mean_first=False`).
"""

import functools
from typing import Annotated, Any

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from flaxvid.layers.attention import Attention
from flaxvid.layers.blocks import FrameMask, Grid, mean_over_time
from flaxvid.layers.heads import ClassToken, TokenHead
from flaxvid.layers.position import resize_space, resize_time, token_keys
from flaxvid.layers.transformer import Block, DropPath, Mlp, PatchEmbed, drop_rates
from flaxvid.models.options import Count, Flag, Rate, choice
from flaxvid.models.spec import Common, Format, KeyTable, ModelSpec
from flaxvid.models.video_model import VideoModel
from flaxvid.models.vit import TINY, MakeBlock, TableClip, block_keys, block_layers, table_shape
from flaxvid.types import ClipSpec


class DividedBlock(nn.Module):
    """Attention along time, attention within each frame, and an mlp; each on a norm and beside a shortcut.

    Attributes:
        num_heads: of both attentions.
        hidden: channels inside the mlp.
        drop_path: rate at which a clip loses a branch in training.
        dtype: compute type.
        norm_epsilon: of all norms.
    """

    num_heads: int
    hidden: int
    drop_path: float = 0.0
    dtype: jnp.dtype = jnp.float32
    norm_epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: ClassToken, train: bool = False, frame_mask: FrameMask = None) -> ClassToken:
        """The class token (b, c) and the grid (b, t, h, w, c), to the same."""
        token, grid = x
        b, t, h, w, c = grid.shape
        attend = functools.partial(Attention, self.num_heads, dtype=self.dtype)
        norm = functools.partial(nn.LayerNorm, epsilon=self.norm_epsilon, dtype=self.dtype)

        y = rearrange(norm(name="norm_time")(grid), "b t h w c -> b (h w) t c")
        y = attend(name="attention_time")(y, None if frame_mask is None else frame_mask[:, None])
        y = nn.Dense(c, dtype=self.dtype, name="project_time")(y)
        y = rearrange(y, "b (h w) t c -> b t h w c", h=h)
        grid = grid + DropPath(self.drop_path, name="drop_time")(y, train)

        tokens = jnp.broadcast_to(token[:, None, None], (b, t, 1, c))
        y = jnp.concatenate([tokens, grid.reshape(b, t, h * w, c)], axis=2)
        y = attend(name="attention")(norm(name="norm1")(y))
        y = _pack(mean_over_time(y[:, :, 0], frame_mask), y[:, :, 1:])
        row = _pack(token, grid) + DropPath(self.drop_path, name="drop1")(y, train)

        y = Mlp(self.hidden, dtype=self.dtype, name="mlp")(norm(name="norm2")(row))
        row = row + DropPath(self.drop_path, name="drop2")(y, train)
        return ClassToken(row[:, 0], row[:, 1:].reshape(grid.shape))


def _pack(token, grid):
    """The class token (b, c), then the others, in one row (b, 1 + n, c)."""
    return jnp.concatenate([token[:, None], grid.reshape(token.shape[0], -1, token.shape[-1])], axis=1)


class Body(nn.Module):
    """A class token, learnt positions in space and in time, the blocks, and a norm.

    Attributes:
        block: makes a `DividedBlock`, or a `Block`.
        depth: number of blocks.
        attention: "divided", "joint" or "space".
        table: (t, h, w) of the grid that the tables of positions are made for.
        drop_path: rate of the last block, see `drop_rates`.
        mean_first: of space-only attention: the mean over the frames comes before the last norm, not behind it.
        dtype: compute type.
        norm_epsilon: of the last norm.
    """

    block: MakeBlock
    depth: int
    attention: str
    table: tuple[int, int, int]
    drop_path: float = 0.0
    mean_first: bool = True
    dtype: jnp.dtype = jnp.float32
    norm_epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Grid, train: bool = False, frame_mask: FrameMask = None) -> ClassToken:
        """Grid (b, t, h, w, c) to the class token (b, c) and a grid of the same shape."""
        b, t, h, w, c = x.shape
        t0, h0, w0 = self.table
        init = nn.initializers.truncated_normal(0.02)
        positions = self.param("positions", init, (1, 1 + h0 * w0, c))
        token = self.param("class_token", nn.initializers.zeros, (1, 1, c)) + positions[:, :1]
        x = x + resize_space(positions[:, 1:].reshape(1, h0, w0, c), h, w).astype(self.dtype)
        if self.attention != "space":
            times = self.param("times", nn.initializers.zeros, (1, t0, c))
            x = x + resize_time(times[0], t, frame_mask)[:, :, None, None].astype(self.dtype)
        token = token[0].astype(self.dtype)

        rates = enumerate(drop_rates(self.drop_path, self.depth))
        norm = nn.LayerNorm(epsilon=self.norm_epsilon, dtype=self.dtype, name="norm")
        if self.attention == "divided":
            y = ClassToken(jnp.broadcast_to(token, (b, c)), x)
            for index, rate in rates:
                y = self.block(drop_path=rate, name=f"block_{index}")(y, train, frame_mask)
            return ClassToken(norm(y.token), norm(y.grid))

        keys = token_keys(frame_mask, h * w, before=1)
        if self.attention == "space":  # each frame is a row of its own
            x, keys = x.reshape(b * t, 1, h, w, c), None
        y = _pack(jnp.broadcast_to(token, (x.shape[0], c)), x)
        for index, rate in rates:
            y = self.block(drop_path=rate, name=f"block_{index}")(y, train, keys)
        token, grid = y[:, 0], norm(y[:, 1:]).reshape(b, t, h, w, c)
        if self.attention == "joint":
            return ClassToken(norm(token), grid)
        token = token.reshape(b, t, c)
        if self.mean_first:
            return ClassToken(norm(mean_over_time(token, frame_mask)), grid)
        return ClassToken(mean_over_time(norm(token), frame_mask), grid)


def build(
    common: Common,
    *,
    depth: Count = 12,
    width: Count = 768,
    num_heads: Count = 12,
    mlp_ratio: Count = 4,
    patch_size: Count = 16,
    attention: Annotated[str, choice("divided", "joint", "space")] = "divided",
    mean_first: Flag = True,
    positions: TableClip = None,
    drop_path: Rate = 0.0,
) -> VideoModel:
    """TimeSformer.

    Args:
        common: what every model takes.
        depth: number of blocks.
        width: channels of a token.
        num_heads: of every attention; divides the width.
        mlp_ratio: how many times more channels an mlp has inside.
        patch_size: height and width of a patch, which is of one frame.
        attention: "divided", along time, then within each frame; "joint", between all patches; or "space", within each
            frame alone.
        mean_first: of space-only attention: takes the mean of the frames' class tokens before the last norm, not
            behind it.
        positions: (frames, size) of the clip that the tables of positions are made for, where it is another than the
            model's: (8, 224) in a model for 16 frames that starts from weights for 8.
        drop_path: rate of the last block.
    """
    patch = (1, patch_size, patch_size)
    computed = {"dtype": common.dtype, "norm_epsilon": common.norm_epsilon}
    table = table_shape(common.clip, positions, patch)
    make_block = DividedBlock if attention == "divided" else Block
    make_block = nn.remat(make_block, static_argnums=(2,)) if common.remat else make_block
    block = functools.partial(make_block, num_heads, mlp_ratio * width, **computed)
    return VideoModel(
        stem=PatchEmbed(width, patch[1:], common.dtype),
        body=Body(block, depth, attention, table, drop_path, mean_first, **computed),
        head=TokenHead(common.num_classes, common.dropout, common.classifier_std),
        feature_dim=width,
        clip=common.clip,
        # Not what takes a private norm's output; see `vit.ALTERED`.
        altered=((r"body/block_\d+/(attention(_time)?/project|mlp/fc2)/kernel", -2),),
        multiple_of=patch,
        layers=block_layers(r"stem/.*|body/(class_token|positions|times)", r"body/block", depth),
    )


_LAYER = r"timesformer.encoder.layer.\1"


def _authors_attention(ours: str, theirs: str) -> KeyTable:
    return (
        (rf"body/block_(\d+)/{ours}/qkv", rf"model.blocks.\1.{theirs}.qkv"),
        (rf"body/block_(\d+)/{ours}/project", rf"model.blocks.\1.{theirs}.proj"),
    )


def _mmaction2_attention(ours: str, theirs: str) -> KeyTable:
    attention = rf"{_MMACTION2}.{theirs}.attn"
    return (
        (rf"body/block_(\d+)/{ours}/qkv/kernel", rf"{attention}.in_proj_weight"),
        (rf"body/block_(\d+)/{ours}/qkv/bias", rf"{attention}.in_proj_bias"),
        (rf"body/block_(\d+)/{ours}/project", rf"{attention}.out_proj"),
    )


def _mmaction2(*block: tuple[str, ...]) -> KeyTable:
    return (
        (r"stem/patch", r"backbone.patch_embed.projection"),
        (r"body/class_token", r"backbone.cls_token"),
        (r"body/positions", r"backbone.pos_embed"),
        (r"body/times", r"backbone.time_embed"),
        *block,
        (r"body/block_(\d+)/mlp/fc1", rf"{_MMACTION2}.ffns.0.layers.0.0"),
        (r"body/block_(\d+)/mlp/fc2", rf"{_MMACTION2}.ffns.0.layers.1"),
        (r"body/norm", r"backbone.norm"),
        (r"head/classifier(_[^/]+)?", r"cls_head.fc_cls\1"),
    )


_MMACTION2 = r"backbone.transformer_layers.layers.\1"

TORCH_KEYS = {
    "transformers": (
        (r"stem/patch", r"timesformer.embeddings.patch_embeddings.projection"),
        (r"body/class_token", r"timesformer.embeddings.cls_token"),
        (r"body/positions", r"timesformer.embeddings.position_embeddings"),
        (r"body/times", r"timesformer.embeddings.time_embeddings"),
        (r"body/block_(\d+)/norm_time", rf"{_LAYER}.temporal_layernorm"),
        (r"body/block_(\d+)/attention_time/qkv", rf"{_LAYER}.temporal_attention.attention.qkv"),
        (r"body/block_(\d+)/attention_time/project", rf"{_LAYER}.temporal_attention.output.dense"),
        (r"body/block_(\d+)/project_time", rf"{_LAYER}.temporal_dense"),
        *block_keys(r"body/block_(\d+)", _LAYER, packed=rf"{_LAYER}.attention.attention.qkv"),
        (r"body/norm", r"timesformer.layernorm"),
        (r"head/classifier(_[^/]+)?", r"classifier\1"),
    ),
    "authors": (
        (r"stem/patch", r"model.patch_embed.proj"),
        (r"body/class_token", r"model.cls_token"),
        (r"body/positions", r"model.pos_embed"),
        (r"body/times", r"model.time_embed"),
        (r"body/block_(\d+)/norm_time", r"model.blocks.\1.temporal_norm1"),
        (r"body/block_(\d+)/project_time", r"model.blocks.\1.temporal_fc"),
        *_authors_attention("attention_time", "temporal_attn"),
        *_authors_attention("attention", "attn"),
        (r"body/block_(\d+)/(norm[12])", r"model.blocks.\1.\2"),
        (r"body/block_(\d+)/mlp/(fc[12])", r"model.blocks.\1.mlp.\2"),
        (r"body/norm", r"model.norm"),
        (r"head/classifier(_[^/]+)?", r"model.head\1"),
    ),
    "mmaction2": _mmaction2(
        *_mmaction2_attention("attention_time", "attentions.0"),
        *_mmaction2_attention("attention", "attentions.1"),
        (r"body/block_(\d+)/norm_time", rf"{_MMACTION2}.attentions.0.norm"),
        (r"body/block_(\d+)/project_time", rf"{_MMACTION2}.attentions.0.temporal_fc"),
        (r"body/block_(\d+)/norm1", rf"{_MMACTION2}.attentions.1.norm"),
        (r"body/block_(\d+)/norm2", rf"{_MMACTION2}.ffns.0.norm"),
    ),
    "mmaction2_joint": _mmaction2(
        *_mmaction2_attention("attention", "attentions.0"),
        (r"body/block_(\d+)/norm1", rf"{_MMACTION2}.norms.0"),
        (r"body/block_(\d+)/norm2", rf"{_MMACTION2}.norms.1"),
    ),
}
"""The keys of transformers, of TimeSformer's authors and of mmaction2. A file's keys show which attention it is for."""

# mmaction2 (configs/recognition/timesformer) subtracts 127.5 and divides by it; others have 0.45 and 0.225.
_PIXELS = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def _format(table: str, attention: str, **implied: Any) -> Format:
    return Format(TORCH_KEYS[table], {"attention": attention, **implied})


FORMATS = {
    "transformers": _format("transformers", "divided"),
    "transformers_joint": _format("transformers", "joint"),
    "transformers_space": _format("transformers", "space", mean_first=False),
    "authors": _format("authors", "divided"),
    "authors_joint": _format("authors", "joint"),
    "authors_space": _format("authors", "space"),
    "mmaction2": _format("mmaction2", "divided", **_PIXELS),
    "mmaction2_joint": _format("mmaction2_joint", "joint", **_PIXELS),
    "mmaction2_space": _format("mmaction2_joint", "space", **_PIXELS),
}

SPECS = {
    "timesformer_base": ModelSpec(
        build,
        {"norm_epsilon": 1e-6},
        ClipSpec(8, mean=(0.45, 0.45, 0.45), std=(0.225, 0.225, 0.225)),
        dropout=0.0,
        classifier_std=0.02,
        formats=FORMATS,
        tiny=TINY,
    )
}
