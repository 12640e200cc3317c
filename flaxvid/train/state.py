"""Everything that training moves."""

from typing import Any

import jax
import optax
from flax import struct
from jaxtyping import Array, Int


@struct.dataclass
class TrainState:
    """Step, variables and optimizer state.

    A collection's name says who moves it: ``params*`` the gradient, ``batch_stats*`` the forward pass, ``ema_*`` the
    step.
    """

    step: Int[Array, ""]
    variables: dict[str, Any]
    opt_state: optax.OptState


def trainable(variables: dict[str, Any]) -> dict[str, Any]:
    """The collections that the gradient moves."""
    return {name: tree for name, tree in variables.items() if name.startswith("params")}


def averaged(variables: dict[str, Any]) -> dict[str, Any]:
    """The collections that evaluation uses: the moving averages where they are kept."""
    averages = {name.removeprefix("ema_"): tree for name, tree in variables.items() if name.startswith("ema_")}
    return averages or {name: tree for name, tree in variables.items() if not name.startswith("ema_")}


def create_state(
    variables: dict[str, Any], optimizer: optax.GradientTransformation, *, ema: bool = False
) -> TrainState:
    """The state before the first step."""
    if ema:
        variables = {
            **variables,
            **{f"ema_{name}": jax.tree.map(jax.numpy.array, tree) for name, tree in variables.items()},
        }
    return TrainState(jax.numpy.zeros((), "int32"), variables, optimizer.init(trainable(variables)))
