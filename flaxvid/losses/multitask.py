"""One loss for several tasks."""

from collections.abc import Callable, Mapping
from typing import Any

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
    if not isinstance(logits, Mapping) and not isinstance(labels, Mapping):
        return loss(logits, labels)
    tasks = [sorted(tree) if isinstance(tree, Mapping) else ["one task without a name"] for tree in (logits, labels)]
    if tasks[0] != tasks[1]:
        raise ValueError(
            f"labels are of {', '.join(tasks[1])}, logits of {', '.join(tasks[0])}: create the model with a number of "
            'classes for each task, num_classes={"action": 9, "actor": 4}'
        )
    total, parts = 0.0, {}
    for task in labels:
        own, own_parts = loss(logits[task], labels[task])
        total += weights.get(task, 1.0) * own
        parts |= {f"{task}_{name}": part for name, part in {"loss": own, **own_parts}.items()}
    return total, parts
