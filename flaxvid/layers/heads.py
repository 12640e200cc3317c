"""Heads: from the body's activations to logits."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from flaxvid.layers.blocks import global_mean, mean_over_time

Logits = Float[Array, "b k"] | dict[str, Float[Array, "b k"]]
Grids = Float[Array, "b t h w c"] | tuple[Float[Array, "b t h w c"], ...]


class ClassToken(NamedTuple):
    """What a body with a class token gives: the token, and the grid of the others."""

    token: Float[Array, "b c"]
    grid: Float[Array, "b t h w c"]


def classify(x: Float[Array, "*b c"], num_classes: int | Mapping[str, int], std: float) -> Any:
    """One dense classifier, or a dict of one for each entry; call it inside a module's compact method.

    Args:
        x: features.
        num_classes: a number, or ``{"action": 9, "actor": 4}``.
        std: deviation of the initial kernels.
    """

    def dense(name: str, classes: int) -> Float[Array, "*b k"]:
        return nn.Dense(classes, kernel_init=nn.initializers.normal(std), name=name)(x)

    if isinstance(num_classes, Mapping):
        return {target: dense(f"classifier_{target}", classes) for target, classes in num_classes.items()}
    return dense("classifier", num_classes)


class ConsensusHead(nn.Module):
    """Classifies every frame, then takes the mean of the logits over time (TSN and TSM's consensus).

    Dropout falls on each frame's pooled feature. Logits are float32 whatever the compute type.

    Attributes:
        num_classes: a number, or ``{"action": 9, "actor": 4}`` for one classifier each and a dict of logits.
        dropout: rate in training; needs a "dropout" key.
        classifier_std: deviation of the initial kernels. The authors' 0.001 suits a pretrained body; a body from
            scratch learns nothing through so small a kernel for a long time, and 0.1 spares it that.
    """

    num_classes: int | Mapping[str, int]
    dropout: float = 0.5
    classifier_std: float = 0.001

    def pool(
        self, x: Float[Array, "b t h w c"], train: bool = False, frame_mask: Bool[Array, "b t"] | None = None
    ) -> Float[Array, "b c"]:
        """The clip's feature: the mean over space and time."""
        return global_mean(x, frame_mask)

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t h w c"], train: bool = False, frame_mask: Bool[Array, "b t"] | None = None
    ) -> Logits:
        """Activations to logits."""
        x = x.mean(axis=(2, 3), dtype=jnp.float32)  # (b, t, c)
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        logits = classify(x, self.num_classes, self.classifier_std)
        return jax.tree.map(lambda z: mean_over_time(z, frame_mask), logits)


class PoolHead(nn.Module):
    """Takes the mean over time, height and width, whatever their sizes, then classifies: the head of the 3-D ResNets.

    Of several grids, such as SlowFast's two, the means stand side by side. Logits are float32 whatever the compute
    type.

    Attributes:
        num_classes: a number, or ``{"action": 9, "actor": 4}`` for one classifier each and a dict of logits.
        dropout: rate on the pooled feature in training; needs a "dropout" key.
        classifier_std: deviation of the initial kernels.
    """

    num_classes: int | Mapping[str, int]
    dropout: float = 0.5
    classifier_std: float = 0.01

    def pool(self, x: Grids, train: bool = False, frame_mask: Bool[Array, "b t"] | None = None) -> Float[Array, "b c"]:
        """The clip's feature: the mean over space and the frames that `frame_mask`, the clip's, marks True."""
        return jnp.concatenate([global_mean(grid, frame_mask) for grid in jax.tree.leaves(x)], axis=-1)

    @nn.compact
    def __call__(self, x: Grids, train: bool = False, frame_mask: Bool[Array, "b t"] | None = None) -> Logits:
        """Activations to logits."""
        x = nn.Dropout(self.dropout)(self.pool(x, train, frame_mask), deterministic=not train)
        return classify(x, self.num_classes, self.classifier_std)


class TokenHead(nn.Module):
    """Classifies the class token. Logits are float32 whatever the compute type.

    Attributes:
        num_classes: a number, or ``{"action": 9, "actor": 4}`` for one classifier each and a dict of logits.
        dropout: rate on the token in training; needs a "dropout" key.
        classifier_std: deviation of the initial kernels.
    """

    num_classes: int | Mapping[str, int]
    dropout: float = 0.0
    classifier_std: float = 0.02

    def pool(
        self, x: ClassToken, train: bool = False, frame_mask: Bool[Array, "b t"] | None = None
    ) -> Float[Array, "b c"]:
        """The clip's feature: the class token."""
        return x.token.astype(jnp.float32)

    @nn.compact
    def __call__(self, x: ClassToken, train: bool = False, frame_mask: Bool[Array, "b t"] | None = None) -> Logits:
        """Activations to logits."""
        feature = nn.Dropout(self.dropout)(self.pool(x, train, frame_mask), deterministic=not train)
        return classify(feature, self.num_classes, self.classifier_std)
