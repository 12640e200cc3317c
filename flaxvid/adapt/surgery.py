"""Changing parts of trained variables."""

from typing import Any

from flaxvid import trees
from flaxvid.types import Variables


def adopt(template: Variables, trained: Variables) -> tuple[dict[str, Any], list[str]]:
    """Trained variables for another number of classes: everything but a head that does not fit.

    Args:
        template: freshly initialised variables of the model wanted.
        trained: ordinary variables of the same architecture.

    Returns:
        The variables, and the paths of the head's parameters that were left as initialised.

    Raises:
        ValueError: anything outside the head differs in path or shape.
    """
    want, have = trees.flatten(template), trees.flatten(trained)
    fresh = [path for path in want if path not in have or want[path].shape != have[path].shape]
    spare = [path for path in have if path not in want]
    wrong = [path for path in (*fresh, *spare) if not path.startswith("params/head/")]
    if wrong:
        raise ValueError(
            f"these weights are of another architecture: {len(wrong)} parameters do not fit, such as "
            f"{', '.join(wrong[:4])}: create the model with the name and options that they were trained with"
        )
    return trees.unflatten({path: leaf if path in fresh else have[path] for path, leaf in want.items()}), fresh
