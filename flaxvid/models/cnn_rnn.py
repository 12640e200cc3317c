"""CNN-LSTM and CNN-GRU: a 2-D network sees each frame, a recurrent one reads the frames' features in order.

The feature of a frame is the mean of the backbone's map over height and width. Two layers of LSTM or GRU cells read
the features from both ends (arXiv 1411.4389 is the idea with one layer and one direction). The clip's feature is their
mean over time, their last state, or a mean with learnt weights.

The backbone keeps the names of its variables: variables of it fit as they are, and lack "body/rnn", "body/projection"
and the head. `freeze=("stem", r"body/layer\\d+_\\d+")` in a recipe leaves a ResNet as it is and trains the rest.

Differs from other implementations: no two of them agree on dropout. Here one rate serves behind the projection,
between the recurrent layers and before the classifier.
"""

import operator
from collections.abc import Mapping
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from flaxvid.layers.blocks import FrameMask, Grid, fit_mask, mean_over_time
from flaxvid.layers.heads import Logits, classify
from flaxvid.layers.norm import BatchNorm
from flaxvid.layers.recurrent import Recurrent
from flaxvid.models.multiview import gives_one_grid
from flaxvid.models.options import Count, Flag, Kind, choice, require, whole
from flaxvid.models.resnet2d import TSN_TORCH_KEYS
from flaxvid.models.spec import Common, ModelSpec, formats
from flaxvid.models.video_model import VideoModel

POOLS = ("mean", "last", "attention")


class Body(nn.Module):
    """The backbone's body, the mean over height and width, a projection if there is one, and the recurrent layers.

    Attributes:
        backbone: its body.
        rnn: reads the features.
        projection: size to which features are projected, with batch norm and dropout behind; 0 for none.
        dropout: rate behind the projection.
        dtype: compute type of the projection.
        norm_epsilon: of the projection's norm.
    """

    backbone: nn.Module
    rnn: Recurrent
    projection: int = 0
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32
    norm_epsilon: float = BatchNorm.epsilon

    def setup(self):
        """The backbone's variables keep their names."""
        nn.share_scope(self, self.backbone)

    @nn.compact
    def __call__(self, x: Grid, train: bool = False, frame_mask: FrameMask = None) -> Grid:
        """The stem's grid to a grid of one place, (b, t, 1, 1, c)."""
        x = self.backbone(x, train, frame_mask).mean(axis=(2, 3), dtype=jnp.float32)
        if self.projection:
            x = nn.Dense(self.projection, use_bias=False, dtype=self.dtype, name="projection")(x)
            norm = BatchNorm(epsilon=self.norm_epsilon, dtype=self.dtype, name="projection_norm")
            x = norm(x, train, fit_mask(frame_mask, x.shape[1]))
            x = nn.Dropout(self.dropout)(x, deterministic=not train)
        return self.rnn(x, train, frame_mask)[:, :, None, None]


class AttentionPool(nn.Module):
    """A mean over time whose weights are learnt (the word attention of Yang et al., NAACL 2016): a layer with tanh, a
    score for each frame, softmax. The score has no bias, which the softmax would cancel."""

    @nn.compact
    def __call__(self, x: Float[Array, "b t c"], frame_mask: FrameMask = None) -> Float[Array, "b c"]:
        """Features of frames to one; padded frames have no weight."""
        mask = fit_mask(frame_mask, x.shape[1])
        scores = nn.Dense(1, use_bias=False, name="score")(jnp.tanh(nn.Dense(x.shape[-1], name="hidden")(x)))
        weights = jax.nn.softmax(scores, axis=1, where=None if mask is None else mask[..., None])
        return (weights * x).sum(axis=1)


class RecurrentHead(nn.Module):
    """Pools the recurrent layers' outputs over time, then classifies; all in float32.

    Attributes:
        num_classes: a number, or ``{"action": 9, "actor": 4}`` for one classifier each and a dict of logits.
        pooling: "mean" over the valid frames; "last", each direction's output when it has seen the whole clip; or
            "attention".
        bidirectional: whether the second half of the channels is of the backward direction.
        dropout: rate on the pooled feature in training; needs a "dropout" key.
        classifier_std: deviation of the initial kernels.
    """

    num_classes: int | Mapping[str, int]
    pooling: str = "mean"
    bidirectional: bool = True
    dropout: float = 0.3
    classifier_std: float = 0.01

    def setup(self):
        """`pool` and a call share the attention."""
        if self.pooling == "attention":
            self.attention = AttentionPool()

    def pool(self, x: Grid, train: bool = False, frame_mask: FrameMask = None) -> Float[Array, "b c"]:
        """The clip's feature; `frame_mask` is the clip's."""
        x = x.mean(axis=(2, 3), dtype=jnp.float32)
        if self.pooling == "mean":
            return mean_over_time(x, frame_mask)
        if self.pooling == "attention":
            return self.attention(x, frame_mask)
        if not self.bidirectional:
            return x[:, -1]
        forward, backward = jnp.split(x, 2, axis=-1)
        return jnp.concatenate([forward[:, -1], backward[:, 0]], axis=-1)

    @nn.compact
    def __call__(self, x: Grid, train: bool = False, frame_mask: FrameMask = None) -> Logits:
        """The body's grid to logits."""
        x = nn.Dropout(self.dropout)(self.pool(x, train, frame_mask), deterministic=not train)
        return classify(x, self.num_classes, self.classifier_std)


def _size(value: object) -> int:
    require(not isinstance(value, bool))
    return whole(value) if operator.index(value) else 0  # pyright: ignore[reportArgumentType]


Size = Annotated[int, Kind("a positive whole number, or 0 for no projection", _size)]


def build(
    common: Common,
    *,
    backbone: VideoModel,
    cell: Annotated[str, choice("lstm", "gru")] = "lstm",
    hidden_dim: Count = 512,
    num_layers: Count = 2,
    bidirectional: Flag = True,
    pool: Annotated[str, choice(*POOLS)] = "mean",
    feature_dim: Size = 0,
) -> VideoModel:
    """A recurrent network over the features that a backbone makes of frames.

    Args:
        common: what every model takes; `dropout` is the rate in all three places, `remat` the backbone's affair.
        backbone: any model of one video whose body gives one grid.
        cell: "lstm" or "gru".
        hidden_dim: size of each direction's output.
        num_layers: of cells.
        bidirectional: read the frames from both ends.
        pool: over time: "mean", "last" or "attention".
        feature_dim: project the backbone's features to this size first, with batch norm and dropout; 0 for no
            projection.

    Raises:
        ValueError: the backbone takes several cameras, or makes more than one grid.
    """
    if backbone.cameras or not gives_one_grid(backbone):
        what = "takes several cameras" if backbone.cameras else "makes more of a clip than one grid"
        raise ValueError(f'the backbone {what}, which a recurrent network cannot read: take one such as "tsn_resnet50"')
    dropout, dtype = common.dropout, common.dtype
    rnn = Recurrent(cell, hidden_dim, num_layers, bidirectional, dropout, dtype)
    return VideoModel(
        stem=backbone.stem,
        body=Body(backbone.body, rnn, feature_dim, dropout, dtype, common.norm_epsilon),
        head=RecurrentHead(common.num_classes, pool, bidirectional, dropout, common.classifier_std),
        feature_dim=hidden_dim * (1 + bidirectional),
        clip=common.clip,
        # What a kernel knows of the pace of frames is in the recurrent ones above all.
        altered=(*backbone.altered, (r"body/rnn/\w+/kernel", -2)),
        multiple_of=backbone.multiple_of,
        layers=(
            *backbone.layers,
            *([r"body/projection(_norm)?/.*"] if feature_dim else []),
            *(rf"body/rnn/(forward|backward)_{index}_\w+/.*" for index in range(num_layers)),
        ),
    )


TORCH_KEYS = {
    "torch": (
        *(
            (ours, f"backbone.{theirs}")
            for ours, theirs in TSN_TORCH_KEYS["torchvision"]
            if ours.startswith(("stem", "body"))
        ),
        (r"body/projection", r"projection.0"),
        (r"body/projection_norm", r"projection.1"),
        *(
            (rf"body/rnn/{direction}_(\d+)_{product}/{leaf}", rf"rnn.{weight}_{short}_l\1{suffix}")
            for direction, suffix in (("forward", ""), ("backward", "_reverse"))
            for product, short in (("input", "ih"), ("hidden", "hh"))
            for leaf, weight in (("kernel", "weight"), ("bias", "bias"))
        ),
        (r"head/attention/hidden", r"attention.0"),
        (r"head/attention/score", r"attention.2"),
        (r"head/classifier(_[^/]+)?", r"fc\1"),
    )
}
"""torchvision's ResNet as `backbone`, `nn.LSTM` or `nn.GRU` as `rnn`, ``projection = Sequential(Linear(bias=False),
BatchNorm1d, Dropout)``, ``attention = Sequential(Linear, Tanh, Linear(bias=False))``, and `fc`."""

TINY = {
    "backbone": "tsn_resnet18",
    "backbone_options": {"width": 8, "depths": (1, 1, 1, 1)},
    "hidden_dim": 8,
    "feature_dim": 12,
    "pool": "attention",
    "num_classes": 5,
    "num_frames": 4,
    "image_size": 32,
}

SPECS = {
    f"cnn_{cell}": ModelSpec(
        build,
        {"cell": cell},
        dropout=0.3,
        classifier_std=0.01,
        backbone="tsn_resnet50",
        formats=formats(TORCH_KEYS),
        tiny=TINY,
    )
    for cell in ("lstm", "gru")
}
