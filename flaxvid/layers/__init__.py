"""Building blocks that the families share; each can be used alone."""

from flaxvid.layers.attention import Attention
from flaxvid.layers.attentive import AttentiveHead
from flaxvid.layers.blocks import ConvNorm, SqueezeExcitation
from flaxvid.layers.conv import Conv
from flaxvid.layers.heads import ClassToken, ConsensusHead, PoolHead, TokenHead
from flaxvid.layers.norm import BatchNorm
from flaxvid.layers.pooling import max_pool
from flaxvid.layers.shift import TemporalShift, causal_shift, temporal_shift
from flaxvid.layers.transformer import Block, DropPath, Mlp, PatchEmbed

__all__ = [
    "Attention",
    "AttentiveHead",
    "BatchNorm",
    "Block",
    "ClassToken",
    "ConsensusHead",
    "Conv",
    "ConvNorm",
    "DropPath",
    "Mlp",
    "PatchEmbed",
    "PoolHead",
    "SqueezeExcitation",
    "TemporalShift",
    "TokenHead",
    "causal_shift",
    "max_pool",
    "temporal_shift",
]
