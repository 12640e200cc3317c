"""VideoMAE's vision transformer (arXiv 2203.12602), the plain one: every patch of a clip attends to every other.

A patch is a cube of 2 x 16 x 16 pixels, positions are fixed sines and cosines, and the mean of all tokens is
classified. The norm stands behind that mean, in the head, so the body has the same parameters in pre-training, where it
runs on the visible tokens alone.

Differs from transformers' implementation: any frame count and image size. The table of positions is numbered along the
clip that it is made for, and interpolated for others.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Annotated

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from flaxvid.layers.blocks import FrameMask, Grid, Strides, global_mean
from flaxvid.layers.heads import Logits, classify
from flaxvid.layers.position import fit_positions, sine_cosine, token_keys, token_mask
from flaxvid.layers.transformer import Block, PatchEmbed, drop_rates
from flaxvid.models.options import Count, Kind, Positive, Rate, or_none, several, whole
from flaxvid.models.spec import Common, Format, KeyTable, ModelSpec
from flaxvid.models.video_model import VideoModel
from flaxvid.types import ClipSpec

MakeBlock = Callable[..., nn.Module]


TableClip = Annotated[
    tuple[int, int] | None, or_none(Kind("(frames, height and width) of a clip", several(whole, 2, 2)))
]


def table_shape(clip: ClipSpec, table: tuple[int, int] | None, patch: Strides) -> Strides:
    """Patches of the clip that a table of positions is made for: along time, height and width.

    Args:
        clip: the model's.
        table: frames, and height and width, where the table is made for another clip than the model's.
        patch: frames, height and width of a patch.

    Raises:
        ValueError: patches do not divide that clip.
    """
    frames, size = table or (clip.num_frames, clip.image_size)
    if frames % patch[0] or size % patch[1] or size % patch[2]:
        raise ValueError(
            f"num_frames and image_size must be multiples of {patch[0]} and {math.lcm(*patch[1:])}, the patch's, got "
            f"{frames} and {size}"
        )
    return frames // patch[0], size // patch[1], size // patch[2]


def block_layers(first: str, blocks: str, depth: int) -> tuple[str, ...]:
    """`VideoModel.layers` of a stack: what stands before it, then block by block."""
    return (first, *(rf"{blocks}_{index}/.*" for index in range(depth)))


class Body(nn.Module):
    """Fixed positions, then the blocks. There is no norm behind them: the head has it.

    Attributes:
        block: makes a `Block`.
        depth: number of blocks.
        table: (t, h, w) of the grid that the table of positions is made for.
        drop_path: rate of the last block, see `drop_rates`.
    """

    block: MakeBlock
    depth: int
    table: Strides
    drop_path: float = 0.0

    @nn.compact
    def __call__(
        self, x: Grid, train: bool = False, frame_mask: FrameMask = None, keep: Int[Array, "b k"] | None = None
    ) -> Grid | Float[Array, "b k c"]:
        """Grid to grid; with `keep`, tokens of the grid alone.

        Args:
            x: (b, t, h, w, c) of the stem.
            train: dropping of branches.
            frame_mask: of the clip.
            keep: which tokens of each clip the blocks see, counted along t, h and w; all k must be different. None
                for all.

        Returns:
            (b, t, h, w, c), or (b, k, c) in the order of `keep`.
        """
        b, t, h, w, c = x.shape
        mask = token_mask(frame_mask, t)
        table = jnp.asarray(sine_cosine(math.prod(self.table), c)).reshape(*self.table, c)
        tokens = (x + fit_positions(table, t, h, w, mask).astype(x.dtype)).reshape(b, t * h * w, c)
        keys = token_keys(mask, h * w)
        if keep is not None:
            tokens = jnp.take_along_axis(tokens, keep[..., None], axis=1)
            keys = None if keys is None else jnp.take_along_axis(keys, keep, axis=1)
        for index, rate in enumerate(drop_rates(self.drop_path, self.depth)):
            tokens = self.block(drop_path=rate, name=f"block_{index}")(tokens, train, keys)
        return tokens.reshape(x.shape) if keep is None else tokens


class Head(nn.Module):
    """Takes the mean of all tokens, normalises it, then classifies. All in float32.

    Attributes:
        num_classes: a number, or ``{"action": 9, "actor": 4}`` for one classifier each and a dict of logits.
        dropout: rate on the feature in training; needs a "dropout" key.
        classifier_std: deviation of the initial kernels.
        norm_epsilon: of the norm.
    """

    num_classes: int | Mapping[str, int]
    dropout: float = 0.0
    classifier_std: float = 0.02
    norm_epsilon: float = 1e-5

    def setup(self):
        """Makes what `pool` needs here, for it is called by itself, too."""
        self.norm = nn.LayerNorm(epsilon=self.norm_epsilon)

    def pool(self, x: Grid, train: bool = False, frame_mask: FrameMask = None) -> Float[Array, "b c"]:
        """The clip's feature: the norm of the mean over the tokens that `frame_mask`, the clip's, leaves."""
        return self.norm(global_mean(x, token_mask(frame_mask, x.shape[1])))

    @nn.compact
    def __call__(self, x: Grid, train: bool = False, frame_mask: FrameMask = None) -> Logits:
        """Activations to logits."""
        x = nn.Dropout(self.dropout)(self.pool(x, train, frame_mask), deterministic=not train)
        return classify(x, self.num_classes, self.classifier_std)


def build(
    common: Common,
    *,
    depth: Count = 12,
    width: Count = 768,
    num_heads: Count = 12,
    mlp_ratio: Count = 4,
    patch_frames: Count = 2,
    patch_size: Count = 16,
    positions: TableClip = None,
    drop_path: Rate = 0.0,
    head_epsilon: Positive = 1e-5,
) -> VideoModel:
    """VideoMAE's encoder with a classifier.

    Args:
        common: what every model takes.
        depth: number of blocks.
        width: channels of a token.
        num_heads: of every attention; divides the width.
        mlp_ratio: how many times more channels an mlp has inside.
        patch_frames: frames of a patch.
        patch_size: height and width of a patch.
        positions: (frames, size) of the clip that positions are numbered along, where it is another than the model's:
            (16, 224) in a model for 384 pixels that starts from weights for 224.
        drop_path: rate of the last block.
        head_epsilon: of the head's norm; `norm_epsilon` is that of all others.
    """
    patch = (patch_frames, patch_size, patch_size)
    block = functools.partial(
        nn.remat(Block, static_argnums=(2,)) if common.remat else Block,
        num_heads,
        mlp_ratio * width,
        bias="qv",
        dtype=common.dtype,
        norm_epsilon=common.norm_epsilon,
    )
    return VideoModel(
        stem=PatchEmbed(width, patch, common.dtype),
        body=Body(block, depth, table_shape(common.clip, positions, patch), drop_path),
        head=Head(common.num_classes, common.dropout, common.classifier_std, head_epsilon),
        feature_dim=width,
        clip=common.clip,
        altered=ALTERED,
        multiple_of=patch,
        layers=block_layers(r"stem/.*", r"body/block", depth),
    )


# A gain on the input of `qkv` or `fc1` would be the private norm before it once more.
ALTERED = ((r"body/block_\d+/(attention/project|mlp/fc2)/kernel", -2),)


def block_keys(ours: str, theirs: str, *, packed: str) -> KeyTable:
    """Renames of a `Block` from our module path to transformers'; `packed` is where queries, keys and values are."""
    return (
        (rf"{ours}/attention/qkv", packed),
        (rf"{ours}/attention/project", rf"{theirs}.attention.output.dense"),
        (rf"{ours}/mlp/fc1", rf"{theirs}.intermediate.dense"),
        (rf"{ours}/mlp/fc2", rf"{theirs}.output.dense"),
        (rf"{ours}/norm1", rf"{theirs}.layernorm_before"),
        (rf"{ours}/norm2", rf"{theirs}.layernorm_after"),
    )


def _transformers_layer(ours: str, theirs: str, q_bias: str, v_bias: str) -> KeyTable:
    attention = rf"{theirs}.attention.attention"
    return (
        (rf"{ours}/attention/q_bias", rf"{attention}.{q_bias}"),
        (rf"{ours}/attention/v_bias", rf"{attention}.{v_bias}"),
        *block_keys(ours, theirs, packed=rf"{attention}.{{query,key,value}}"),
    )


def _authors_block(ours: str, theirs: str) -> KeyTable:
    return (
        (rf"{ours}/attention/(qkv|q_bias|v_bias)", rf"{theirs}.attn.\2"),
        (rf"{ours}/attention/project", rf"{theirs}.attn.proj"),
        (rf"{ours}/(norm[12])", rf"{theirs}.\2"),
        (rf"{ours}/mlp/(fc[12])", rf"{theirs}.mlp.\2"),
    )


def _transformers(q_bias: str, v_bias: str) -> dict[str, KeyTable]:
    """Of a classifier, and of pre-training."""
    body = (
        (r"stem/patch", r"videomae.embeddings.patch_embeddings.projection"),
        *_transformers_layer(r"body/block_(\d+)", r"videomae.encoder.layer.\1", q_bias, v_bias),
    )
    decoder = _transformers_layer(r"decoder/block_(\d+)", r"decoder.decoder_layers.\1", q_bias, v_bias)
    head = ((r"head/norm", r"fc_norm"), (r"head/classifier(_[^/]+)?", r"classifier\1"))
    norm = (r"decoder/encoder_norm", r"videomae.layernorm")
    return {"": (*body, *head), "_pretraining": (*body, norm, *decoder, *_DECODER)}


_DECODER = (
    (r"decoder/mask_token", r"mask_token", "c -> 1 1 c"),
    (r"decoder/encoder_to_decoder", r"encoder_to_decoder"),
    (r"decoder/(norm|head)", r"decoder.\1"),
)

TORCH_KEYS = {
    **{f"transformers{kind}": keys for kind, keys in _transformers("query.bias", "value.bias").items()},
    **{f"transformers_4{kind}": keys for kind, keys in _transformers("q_bias", "v_bias").items()},
    "authors": (
        (r"stem/patch", r"patch_embed.proj"),
        *_authors_block(r"body/block_(\d+)", r"blocks.\1"),
        (r"head/norm", r"fc_norm"),
        (r"head/classifier(_[^/]+)?", r"head\1"),
    ),
    "authors_pretraining": (
        (r"stem/patch", r"encoder.patch_embed.proj"),
        (r"decoder/encoder_norm", r"encoder.norm"),
        *_authors_block(r"body/block_(\d+)", r"encoder.blocks.\1"),
        *_authors_block(r"decoder/block_(\d+)", r"decoder.blocks.\1"),
        *_DECODER,
    ),
    "mmaction2": (
        (r"stem/patch", r"backbone.patch_embed.projection"),
        (r"body/block_(\d+)/mlp/fc1", r"backbone.blocks.\1.mlp.layers.0.0"),
        (r"body/block_(\d+)/mlp/fc2", r"backbone.blocks.\1.mlp.layers.1"),
        *_authors_block(r"body/block_(\d+)", r"backbone.blocks.\1"),
        (r"head/norm", r"backbone.fc_norm"),
        (r"head/classifier(_[^/]+)?", r"cls_head.fc_cls\1"),
    ),
}
"""The keys of transformers, today's and those of the Hub's older files; of VideoMAE's authors, v2 (arXiv 2303.16727)
too; and of mmaction2. Pre-training has no classifier, and a decoder."""

_DECODES = (r"(encoder|videomae)\.(norm|layernorm)\..*", r"decoder\..*", r"encoder_to_decoder\..*", r"mask_token")

# Pixels are ImageNet's in all (mmaction2: configs/_base_/models/vit_base.py; the Hub: preprocessor_config.json).
_TRANSFORMERS = {"norm_epsilon": 1e-12, "head_epsilon": 1e-5}
_OTHERS = {"norm_epsilon": 1e-6, "head_epsilon": 1e-6}

FORMATS = {
    name: Format(
        keys,
        _TRANSFORMERS if name.startswith("transformers") else _OTHERS,
        # mmaction2 stores the sines and cosines.
        _DECODES if name.endswith("pretraining") else (r"pos_embed",) if name == "mmaction2" else (),
    )
    for name, keys in TORCH_KEYS.items()
}

TINY = {
    "depth": 2,
    "width": 16,
    "num_heads": 2,
    "patch_size": 8,
    "num_classes": 5,
    "num_frames": 4,
    "image_size": 32,
}

SPECS = {
    f"videomae_{size}": ModelSpec(
        build,
        {"norm_epsilon": _TRANSFORMERS["norm_epsilon"], "depth": depth, "width": width, "num_heads": width // 64},
        ClipSpec(num_frames=16),
        dropout=0.0,
        classifier_std=0.02,
        formats=FORMATS,
        tiny=TINY,
    )
    for size, depth, width in (("small", 12, 384), ("base", 12, 768), ("large", 24, 1024))
}
