"""One training step: jit over a mesh, state donated."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from flaxvid import trees
from flaxvid.adapt.freezing import is_frozen, keep_statistics
from flaxvid.tasks.task import Metrics, Task
from flaxvid.train.mesh import divided, replicated
from flaxvid.train.state import TrainState, is_trainable
from flaxvid.types import Batch

TrainStep = Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]


def train_step(
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    *,
    task: Task,
    optimizer: optax.GradientTransformation,
    accumulate: int = 1,
    ema: float = 0.0,
    norm_groups: int = 1,
    freeze: Sequence[str] = (),
) -> tuple[TrainState, Metrics]:
    """Loss, gradient, update.

    Args:
        state: is returned moved by one step.
        batch: of the global batch size.
        key: the run's; the step number is folded in.
        task: gives the loss.
        optimizer: moves the ``params*`` collections.
        accumulate: parts that the batch is computed in; statistics move from part to part.
        ema: decay of the ``ema_*`` collections; 0 if there are none.
        norm_groups: groups of rows that are normalised by their own statistics; the running ones are the groups' means.
            With as many groups as devices the forward pass does without communication.
        freeze: patterns of what stays as it is, bit for bit; see `adapt.freezing`.

    Returns:
        The new state and the batch's mean metrics, with the gradient's norm before clipping.
    """
    key = jax.random.fold_in(key, state.step)
    params, fixed = trees.split(state.variables, lambda path: is_trainable(path, freeze))
    frozen, _ = trees.split(state.variables, lambda path: is_frozen(path, freeze))

    def loss(params, fixed, batch, key):
        variables = trees.merge(params, fixed)
        with keep_statistics(freeze):
            if norm_groups == 1:
                return task.loss(variables, batch, key)
            groups = jax.tree.map(lambda x: x.reshape(norm_groups, -1, *x.shape[1:]), batch)
            outputs = jax.vmap(task.loss, in_axes=(None, 0, 0))(variables, groups, jax.random.split(key, norm_groups))
            return jax.tree.map(lambda x: x.mean(axis=0), outputs)

    grad = jax.grad(loss, has_aux=True)
    if accumulate == 1:
        grads, (updated, metrics) = grad(params, fixed, batch, key)
    else:
        # Parts take every n-th row: on a mesh each device then keeps its own rows.
        parts = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)

        def accumulate_part(carry, part):
            total, moved = carry
            number, part_batch = part
            grads, (updated, metrics) = grad(params, {**fixed, **moved}, part_batch, jax.random.fold_in(key, number))
            return (optax.tree.add(total, grads), {**moved, **updated}), metrics

        moving = {name: tree for name, tree in fixed.items() if name.startswith("batch_stats")}
        carry = (optax.tree.zeros_like(params), moving)
        (grads, updated), metrics = jax.lax.scan(accumulate_part, carry, (jnp.arange(accumulate), parts))
        grads = jax.tree.map(lambda g: g / accumulate, grads)
        metrics = jax.tree.map(lambda m: m.mean(axis=0), metrics)

    updates: Any
    updates, opt_state = optimizer.update(grads, state.opt_state, params)
    moved_params: Any = optax.apply_updates(params, updates)
    variables = trees.merge(fixed, updated, moved_params)
    if ema:
        current = {name: tree for name, tree in variables.items() if not name.startswith("ema_")}
        averages = {name: variables[f"ema_{name}"] for name in current}
        moved: Any = optax.incremental_update(current, averages, 1 - ema)
        variables = {**current, **{f"ema_{name}": tree for name, tree in moved.items()}}
    variables = trees.merge(variables, frozen)  # means, of groups or over time, are not exact to the last bit
    metrics = {**metrics, "gradient_norm": optax.tree.norm(grads)}
    return TrainState(state.step + 1, variables, opt_state), metrics


def make_train_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    accumulate: int = 1,
    ema: float = 0.0,
    norm_groups: int = 1,
    freeze: Sequence[str] = (),
) -> Any:
    """`train_step` jitted over `mesh`: the state replicated and donated, the batch divided."""

    step = functools.partial(
        train_step,
        task=task,
        optimizer=optimizer,
        accumulate=accumulate,
        ema=ema,
        norm_groups=norm_groups,
        freeze=freeze,
    )
    same = replicated(mesh)
    return jax.jit(step, in_shardings=(same, divided(mesh), same), out_shardings=same, donate_argnums=0)
