"""One loss for several targets."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

Loss = Callable[[Any, Any], tuple[Float[Array, ""], dict[str, Float[Array, ""]]]]


def sum_over_targets(
    loss: Loss, logits: Any, labels: Any, weights: Mapping[str, float]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The weighted sum of the targets' losses; of an only target just its loss.

    Args:
        loss: of one target's logits and labels; gives the loss and what is to be known of it, by name.
        logits: ``{"action": ..., "actor": ...}``, or those of the only target.
        labels: likewise.
        weights: of the targets; 1 for those that are not in it.

    Returns:
        The sum, and each target's parts, ``{"action_loss", "action_accuracy", "actor_loss", ...}``; losses unweighted.

    Raises:
        ValueError: logits and labels are not of the same targets.
    """
    of_logits, of_labels = _targets(logits), _targets(labels)
    if of_logits != of_labels:
        known, got = (", ".join(targets) or "one target without a name" for targets in (of_logits, of_labels))
        raise ValueError(
            f"labels are of {got}, logits of {known}: create the model with a number of classes for each target, "
            'num_classes={"action": 9, "actor": 4}'
        )
    if not of_labels:
        return loss(logits, labels)
    total, parts = jnp.zeros(()), {}
    for target in labels:
        own, own_parts = loss(logits[target], labels[target])
        total += weights.get(target, 1.0) * own
        parts |= {f"{target}_{name}": part for name, part in {"loss": own, **own_parts}.items()}
    return total, parts


def _targets(tree: Any) -> list[str]:
    """Names of targets; the keys of an only target's logits at several frame counts are numbers."""
    return sorted(name for name in tree if isinstance(name, str)) if isinstance(tree, Mapping) else []
