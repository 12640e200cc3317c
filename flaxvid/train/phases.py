"""The phases of a training: gradual unfreezing lets more of the network learn from one to the next."""

import dataclasses
from collections.abc import Sequence

import optax

from flaxvid.adapt.freezing import Unfreeze, frozen_after
from flaxvid.train.optimizer import make_optimizer
from flaxvid.train.recipe import OptimizerRecipe
from flaxvid.trees import norm_modules
from flaxvid.types import Variables


@dataclasses.dataclass(frozen=True)
class Phase:
    """Steps in which the same parts learn.

    Attributes:
        after: the last step before the phase.
        freeze: patterns of what is frozen.
        optimizer: of what learns.
        news: what begins to learn, in one sentence.
    """

    after: int
    freeze: tuple[str, ...]
    optimizer: optax.GradientTransformation
    news: str


def make_phases(
    recipe: OptimizerRecipe,
    freeze: Sequence[str],
    unfreeze: Unfreeze,
    variables: Variables,
    layers: Sequence[str],
    epoch_steps: int,
) -> list[Phase]:
    """The phases of a run, in their order; one, if nothing is unfrozen.

    Args:
        recipe: of the optimizer.
        freeze, unfreeze: see `frozen_after`.
        variables: of its task.
        layers: of its network, `VideoModel.layers`.
        epoch_steps: steps in one pass over the training videos.
    """
    epochs = [0, *dict.fromkeys(epochs for epochs, _ in unfreeze)]
    frozen = [frozen_after(freeze, unfreeze, after) for after in epochs]
    norms, phases = norm_modules(variables), []
    for number, after in enumerate(epochs):
        parts = ", ".join(pattern for begin, pattern in unfreeze if begin == after)
        so_far = frozen[: number + 1] if unfreeze else []
        optimizer = make_optimizer(recipe, norms, layers, so_far)
        news = f"after {after} epochs training goes on with {parts}, too: the step is compiled anew"
        phases.append(Phase(after * epoch_steps, frozen[number], optimizer, news))
    return phases


def phase_of(phases: Sequence[Phase], step: int) -> Phase:
    """The phase that a step is in. The state that a step leaves is its phase's; step 0 stands for the start."""
    return [phase for phase in phases if phase.after < max(1, step)][-1]
