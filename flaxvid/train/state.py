"""The state of a training."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
from flax import struct
from jaxtyping import Array, Int

from flaxvid import trees
from flaxvid.types import Variables

MOVERS = {"params": "gradient", "batch_stats": "forward pass", "ema": "step"}
"""Who changes a collection in training, by the beginning of its name. Nobody changes the others, such as "teacher",
but a task's own `after`; they are saved and restored, and never averaged."""


@struct.dataclass
class TrainState:
    """Step, variables and optimizer state."""

    step: Int[Array, ""]
    variables: dict[str, Any]
    opt_state: optax.OptState


def mover(collection: str) -> str:
    """Who changes a collection: one of `MOVERS`, or "nobody"."""
    return next((who for prefix, who in MOVERS.items() if collection.startswith(prefix)), "nobody")


def is_averaged(collection: str) -> bool:
    """Whether a collection has a moving average."""
    return mover(collection) in ("gradient", "forward pass")


def is_trainable(path: str, freeze: Sequence[str] = ()) -> bool:
    """Whether the gradient changes a variable."""
    return mover(path.partition("/")[0]) == "gradient" and not trees.lies_in(path, freeze)


def trainable(variables: Variables, freeze: Sequence[str] = ()) -> dict[str, Any]:
    """The variables that the gradient changes."""
    return trees.split(variables, lambda path: is_trainable(path, freeze))[0]


def averaged(variables: dict[str, Any]) -> dict[str, Any]:
    """The collections for evaluation: the moving average of each that has one, else the collection itself."""
    averages = {name.removeprefix("ema_"): tree for name, tree in variables.items() if mover(name) == "step"}
    return {name: tree for name, tree in variables.items() if mover(name) != "step"} | averages


def create_state(
    variables: dict[str, Any],
    optimizer: optax.GradientTransformation,
    *,
    ema: bool = False,
    freeze: Sequence[str] = (),
) -> TrainState:
    """The state before the first step; the optimizer keeps nothing for frozen variables.

    Each leaf gets memory of its own, for a step donates the state. Variables may share memory: backbones from one file,
    averages, an optimizer's copies. JAX refuses to donate memory twice on one device, and crashes on several. The
    caller's variables stay valid.
    """
    if ema:
        variables = variables | {f"ema_{name}": tree for name, tree in variables.items() if is_averaged(name)}
    state = TrainState(jax.numpy.zeros((), "int32"), variables, optimizer.init(trainable(variables, freeze)))
    return jax.device_put(state, may_alias=False)


def unfreeze(
    state: TrainState,
    optimizer: optax.GradientTransformation,
    freeze: Sequence[str],
    place: Callable[[Any], Any],
) -> TrainState:
    """The state for steps that freeze less; what learnt already keeps its optimizer state, to the last bit.

    Args:
        state: of the steps before.
        optimizer: of the steps that follow.
        freeze: patterns of what they freeze.
        place: gives the shardings of a part of the state, of its shapes.
    """
    params = trainable(state.variables, freeze)
    sharding = place(jax.eval_shape(optimizer.init, params))
    begun = jax.jit(optimizer.init, out_shardings=sharding)(params)
    old, _ = jax.tree_util.tree_flatten_with_path(state.opt_state)
    kept = {jax.tree_util.keystr(path): leaf for path, leaf in old}
    opt_state = jax.tree_util.tree_map_with_path(lambda path, leaf: kept.get(jax.tree_util.keystr(path), leaf), begun)
    # As in `create_state`: what begins to learn may share memory with the variables.
    return dataclasses.replace(state, opt_state=jax.device_put(opt_state, sharding, may_alias=False))
