"""Heads: from the body's activations to logits."""

from collections.abc import Mapping

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

Logits = Float[Array, "b k"] | dict[str, Float[Array, "b k"]]


def mean_over_time(x: Float[Array, "b t c"], frame_mask: Bool[Array, "b t"] | None = None) -> Float[Array, "b c"]:
    """Mean over axis 1, only of the frames where `frame_mask` is True."""
    if frame_mask is None:
        return x.mean(axis=1)
    return x.mean(axis=1, where=frame_mask[..., None])


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

    def pool(self, x: Float[Array, "b t h w c"], frame_mask: Bool[Array, "b t"] | None = None) -> Float[Array, "b c"]:
        """The clip's feature: the mean over space and time."""
        return mean_over_time(x.mean(axis=(2, 3), dtype=jnp.float32), frame_mask)

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t h w c"], train: bool = False, frame_mask: Bool[Array, "b t"] | None = None
    ) -> Logits:
        """Activations to logits."""
        x = x.mean(axis=(2, 3), dtype=jnp.float32)  # (b, t, c)
        x = nn.Dropout(self.dropout)(x, deterministic=not train)

        def classify(name: str, classes: int) -> Float[Array, "b k"]:
            dense = nn.Dense(classes, kernel_init=nn.initializers.normal(self.classifier_std), name=name)
            return mean_over_time(dense(x), frame_mask)

        if isinstance(self.num_classes, Mapping):
            return {task: classify(f"classifier_{task}", classes) for task, classes in self.num_classes.items()}
        return classify("classifier", self.num_classes)
