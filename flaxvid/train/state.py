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


@struct.dataclass
class TrainState:
    """Step, variables and optimizer state.

    A collection's name says who moves it: ``params*`` the gradient, ``batch_stats*`` the forward pass, ``ema_*`` the
    step.
    """

    step: Int[Array, ""]
    variables: dict[str, Any]
    opt_state: optax.OptState


def is_trainable(path: str, freeze: Sequence[str] = ()) -> bool:
    """Whether the gradient moves a variable: those of ``params*`` that are not frozen."""
    return path.startswith("params") and not is_frozen(path, freeze)


def trainable(variables: Variables, freeze: Sequence[str] = ()) -> dict[str, Any]:
    """What the gradient moves."""
    return trees.split(variables, lambda path: is_trainable(path, freeze))[0]


def averaged(variables: dict[str, Any]) -> dict[str, Any]:
    """The collections that evaluation uses: the moving averages where they are kept."""
    averages = {name.removeprefix("ema_"): tree for name, tree in variables.items() if name.startswith("ema_")}
    return averages or {name: tree for name, tree in variables.items() if not name.startswith("ema_")}


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
        variables = {**variables, **{f"ema_{name}": tree for name, tree in variables.items()}}
    state = TrainState(jax.numpy.zeros((), "int32"), variables, optimizer.init(trainable(variables, freeze)))
    return jax.device_put(state, may_alias=False)
