"""Building blocks that the families share; each can be used alone."""

from flaxvid.layers.blocks import ConvNorm, SqueezeExcitation
from flaxvid.layers.conv import Conv
from flaxvid.layers.heads import ConsensusHead, PoolHead
from flaxvid.layers.norm import BatchNorm
from flaxvid.layers.pooling import max_pool
from flaxvid.layers.shift import TemporalShift, causal_shift, temporal_shift

__all__ = [
    "BatchNorm",
    "ConsensusHead",
    "Conv",
    "ConvNorm",
    "PoolHead",
    "SqueezeExcitation",
    "TemporalShift",
    "causal_shift",
    "max_pool",
    "temporal_shift",
]
