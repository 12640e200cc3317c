"""One loss for several targets."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

Loss = Callable[[Any, Any], tuple[Float[Array, ""], dict[str, Float[Array, ""]]]]


def sum_over_targets(
    loss: Loss, logits: Mapping[str, Any], labels: Mapping[str, Any], weights: Mapping[str, float]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The weighted sum of the targets' losses.

    Args:
        loss: of one target's logits and labels; gives the loss and what is to be known of it, by name.
        logits: ``{"action": ..., "actor": ...}``; those of an only target ``{"": ...}``.
        labels: likewise.
        weights: of the targets; 1 for those that are not in it.

    Returns:
        The sum, and each target's parts, ``{"action_loss", "action_accuracy", "actor_loss", ...}``, of an only target
        ``{"loss", "accuracy"}``; losses unweighted.

    Raises:
        ValueError: logits and labels are not of the same targets.
    """
    if set(logits) != set(labels):
        known, got = (", ".join(sorted(own)) or "one target without a name" for own in (logits, labels))
        raise ValueError(
            f"labels are of {got}, logits of {known}: create the model with a number of classes for each target, "
            'num_classes={"action": 9, "actor": 4}'
        )
    total, parts = jnp.zeros(()), {}
    for target in labels:
        own, own_parts = loss(logits[target], labels[target])
        total += weights.get(target, 1.0) * own
        parts |= {f"{target}{'_' * bool(target)}{name}": part for name, part in {"loss": own, **own_parts}.items()}
    return total, parts
