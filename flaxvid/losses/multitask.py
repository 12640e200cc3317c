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
        loss: gives one target's loss and its parts, from its logits and labels.
        logits: ``{"action": ..., "actor": ...}``; of a single target ``{"": ...}``.
        labels: likewise.
        weights: of the targets; 1 for the others.

    Returns:
        The sum, and the parts of each target, unweighted: ``{"action_loss", "action_accuracy", "actor_loss", ...}``, of
        a single target ``{"loss", "accuracy"}``.

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
