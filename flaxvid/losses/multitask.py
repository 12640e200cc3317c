"""One loss for several tasks."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

Loss = Callable[[Any, Any], tuple[Float[Array, ""], dict[str, Float[Array, ""]]]]


def sum_over_tasks(
    loss: Loss, logits: Any, labels: Any, weights: Mapping[str, float]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The weighted sum of the tasks' losses; of an only task just its loss.

    Args:
        loss: of one task's logits and labels; gives the loss and what is to be known of it, by name.
        logits: ``{"action": ..., "actor": ...}``, or those of the only task.
        labels: likewise.
        weights: of the tasks; 1 for those that are not in it.

    Returns:
        The sum, and each task's parts, ``{"action_loss", "action_accuracy", "actor_loss", ...}``; losses unweighted.

    Raises:
        ValueError: logits and labels are not of the same tasks.
    """
    of_logits, of_labels = _tasks(logits), _tasks(labels)
    if of_logits != of_labels:
        known, got = (", ".join(tasks) or "one task without a name" for tasks in (of_logits, of_labels))
        raise ValueError(
            f"labels are of {got}, logits of {known}: create the model with a number of classes for each task, "
            'num_classes={"action": 9, "actor": 4}'
        )
    if not of_labels:
        return loss(logits, labels)
    total, parts = jnp.zeros(()), {}
    for task in labels:
        own, own_parts = loss(logits[task], labels[task])
        total += weights.get(task, 1.0) * own
        parts |= {f"{task}_{name}": part for name, part in {"loss": own, **own_parts}.items()}
    return total, parts


def _tasks(tree: Any) -> list[str]:
    """Names of tasks; the keys of an only task's logits at several frame counts are numbers."""
    return sorted(name for name in tree if isinstance(name, str)) if isinstance(tree, Mapping) else []
