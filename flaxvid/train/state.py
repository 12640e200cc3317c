"""Everything that training moves."""

from collections.abc import Sequence
from typing import Any

import jax
import optax
from flax import struct
from jaxtyping import Array, Int

from flaxvid import trees
from flaxvid.adapt.freezing import is_frozen
from flaxvid.types import Variables

MOVERS = {"params": "gradient", "batch_stats": "forward pass", "ema": "step"}
"""Who moves a collection in training, by how its name begins. Nobody moves the others, such as "teacher": they are
saved and restored, never averaged, and only a task's own `after` may change them."""


@struct.dataclass
class TrainState:
    """Step, variables (each collection moved as `MOVERS` says) and optimizer state."""

    step: Int[Array, ""]
    variables: dict[str, Any]
    opt_state: optax.OptState


def mover(collection: str) -> str:
    """Who moves a collection: one of `MOVERS`, or "nobody"."""
    return next((who for prefix, who in MOVERS.items() if collection.startswith(prefix)), "nobody")


def is_averaged(collection: str) -> bool:
    """Whether the moving average of a collection is worth keeping: of what moves from batch to batch."""
    return mover(collection) in ("gradient", "forward pass")


def is_trainable(path: str, freeze: Sequence[str] = ()) -> bool:
    """Whether the gradient moves a variable, which is not frozen then."""
    return mover(path.partition("/")[0]) == "gradient" and not is_frozen(path, freeze)


def trainable(variables: Variables, freeze: Sequence[str] = ()) -> dict[str, Any]:
    """What the gradient moves."""
    return trees.split(variables, lambda path: is_trainable(path, freeze))[0]


def averaged(variables: dict[str, Any]) -> dict[str, Any]:
    """The collections that evaluation uses: the moving averages where they are kept, else the collections."""
    averages = {name.removeprefix("ema_"): tree for name, tree in variables.items() if mover(name) == "step"}
    return {name: tree for name, tree in variables.items() if mover(name) != "step"} | averages


def create_state(
    variables: dict[str, Any],
    optimizer: optax.GradientTransformation,
    *,
    ema: bool = False,
    freeze: Sequence[str] = (),
) -> TrainState:
    """The state before the first step; the optimizer keeps nothing for what is frozen.

    Each leaf has memory of its own. A step gives the state's memory away (donation), but what variables are made of may
    be in several places: backbones that start from one file, averages, an optimizer's copy of the parameters. JAX
    refuses to give the same memory away twice on one device, and crashes on several. The caller's variables stay valid.
    """
    if ema:
        variables = variables | {f"ema_{name}": tree for name, tree in variables.items() if is_averaged(name)}
    state = TrainState(jax.numpy.zeros((), "int32"), variables, optimizer.init(trainable(variables, freeze)))
    return jax.device_put(state, may_alias=False)
