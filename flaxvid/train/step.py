"""One training step, compiled over a mesh."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from flaxvid import trees
from flaxvid.adapt.freezing import keep_statistics
from flaxvid.compress.prune import MASKS, Pruning, masked, sparsity
from flaxvid.tasks.task import Metrics, Task, count_rows
from flaxvid.train.mesh import divided, replicated
from flaxvid.train.sharding import gather, place_state
from flaxvid.train.state import TrainState, is_averaged, is_trainable, mover
from flaxvid.types import Batch
from flaxvid.writing import cache_folder

TrainStep = Callable[[TrainState, Batch, jax.Array, jax.Array], tuple[TrainState, Metrics]]


try:
    from jax._src.lru_cache import LRUCache  # JAX's own: it may move

    _put = LRUCache.put
except (ImportError, AttributeError):
    LRUCache = None


def train_step(
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    rate: jax.Array | float = 1.0,
    *,
    task: Task,
    optimizer: optax.GradientTransformation,
    accumulate: int = 1,
    ema: float = 0.0,
    norm_groups: int = 1,
    freeze: Sequence[str] = (),
    mesh: Mesh | None = None,
    pruning: Pruning | None = None,
) -> tuple[TrainState, Metrics]:
    """Computes loss and gradient, and updates the state.

    Args:
        state: the state before the step.
        batch: a batch of all processes.
        key: the run's key; the step number is folded in.
        rate: the learning rate; it multiplies the optimizer's updates.
        task: gives the loss.
        optimizer: updates the ``params*`` collections.
        accumulate, ema, norm_groups, freeze: see `Recipe` and `OptimizerRecipe`.
        mesh: over which parameters are divided; None if they are not.
        pruning: removes weights; the variables then have `MASKS`.

    Returns:
        The new state and the batch's mean metrics, with the gradient's norm before clipping.
    """
    key = jax.random.fold_in(key, state.step)
    params, fixed = trees.split(state.variables, lambda path: is_trainable(path, freeze))
    frozen, _ = trees.split(state.variables, lambda path: trees.lies_in(path, freeze))

    if accumulate == norm_groups == 1:

        def loss(params):
            with keep_statistics(freeze):
                return task.loss(gather(trees.merge(params, fixed), mesh), batch, key)

        grads, (updated, metrics) = jax.grad(loss, has_aux=True)(params)
    else:
        grads, (updated, metrics) = gradient_in_parts(
            params,
            fixed,
            batch,
            key,
            task=task,
            accumulate=accumulate,
            norm_groups=norm_groups,
            freeze=freeze,
            mesh=mesh,
        )

    if pruning:
        grads = {**grads, "params": masked(grads["params"], state.variables[MASKS])}
    updates: Any
    updates, opt_state = optimizer.update(grads, state.opt_state, params)
    moved_params: Any = optax.apply_updates(params, optax.tree.scale(rate, updates))
    variables = trees.merge(fixed, updated, moved_params)
    variables = task.after(variables, state.step)
    if pruning:
        variables = pruning.prune(variables, state.step + 1)
    if ema:
        current = {name: tree for name, tree in variables.items() if is_averaged(name)}
        averages = {name: variables[f"ema_{name}"] for name in current}
        moved: Any = optax.incremental_update(current, averages, 1 - warmed_decay(ema, state.step))
        variables = {**variables, **{f"ema_{name}": tree for name, tree in moved.items()}}
    variables = trees.merge(variables, frozen)  # a mean over groups or over time may change the last bit
    metrics = {**metrics, "gradient_norm": optax.tree.norm(grads)}
    if pruning:
        metrics["sparsity"] = sparsity(variables[MASKS])
    return TrainState(state.step + 1, variables, opt_state), metrics


def gradient_in_parts(
    params: dict[str, Any],
    fixed: dict[str, Any],
    batch: Batch,
    key: jax.Array,
    *,
    task: Task,
    accumulate: int,
    norm_groups: int,
    freeze: Sequence[str],
    mesh: Mesh | None = None,
) -> tuple[Any, tuple[dict[str, Any], Metrics]]:
    """Gradient, updated collections and metrics of a batch that is computed in parts; arguments as in `train_step`.

    The batch is mixed and divided as a whole. A part has at most ``batch / accumulate`` rows.
    """
    limit = count_rows(batch) // accumulate

    def loss(params, moved, part, key):
        variables = gather(trees.merge(params, {**fixed, **moved}), mesh)
        with keep_statistics(freeze):
            return task.share_loss(variables, part, key, norm_groups)

    def add_part(carry, part):
        total, moved = carry
        grads, (updated, metrics) = jax.grad(loss, has_aux=True)(params, moved, *part)
        return (optax.tree.add(total, grads), {**moved, **updated}), metrics

    moved = {name: tree for name, tree in fixed.items() if mover(name) == "forward pass"}
    grads, metrics, number = optax.tree.zeros_like(params), [], 1  # mixing takes key 0
    for share in task.divide(batch, key, norm_groups):
        for parts in cut(share, limit, norm_groups):
            count, rows = jax.tree.leaves(parts)[0].shape[:2]
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, number + jnp.arange(count))
            (sums, moved), means = jax.lax.scan(add_part, (optax.tree.zeros_like(params), moved), (parts, keys))
            weight, number = rows / count_rows(batch), number + count
            grads = optax.tree.add_scale(grads, weight, sums)
            metrics.append(jax.tree.map(lambda m, weight=weight: weight * m.sum(axis=0), means))
    return grads, (moved, jax.tree.map(lambda *values: sum(values), *metrics))


def cut(share: Any, limit: int, groups: int) -> Iterator[Any]:
    """Cuts rows into the fewest parts of at most `limit` rows; sizes differ by at most one row of each group.

    Yields the parts of one size on a new first axis, then those of the other size. Each part has equally many rows of
    each of the `groups` blocks. Of n parts each takes every n-th row, so each device of a mesh keeps its own rows.
    """
    own = count_rows(share) // groups
    count = -(-own * groups // limit)
    least, longer = divmod(own, count)
    for start, parts, rows in ((0, longer, least + 1), (longer * (least + 1), count - longer, least)):
        if parts:

            def take(x, start=start, parts=parts, rows=rows):
                chosen = x.reshape(groups, own, *x.shape[1:])[:, start : start + parts * rows]
                return jnp.moveaxis(chosen.reshape(-1, parts, *x.shape[1:]), 1, 0)

            yield jax.tree.map(take, share)


def warmed_decay(decay: float, step: jax.Array) -> jax.Array:
    """The decay of the moving average after `step` steps, ``min(decay, (1 + step) / (10 + step))``.

    A small decay at the beginning soon forgets the random start, as `tf.train.ExponentialMovingAverage` with
    `num_updates` does.
    """
    return jnp.minimum(decay, (1 + step) / (10 + step))


def jit_step(step: TrainStep, mesh: Mesh, state: TrainState | None = None) -> Any:
    """Jits a step over `mesh`: the batch is divided; the state is donated.

    Args:
        step: a `train_step` with its options.
        mesh: of `make_mesh`.
        state: the state or its shapes, where the mesh divides parameters; without it all of it is on every device.
    """
    same = replicated(mesh)
    places = same if state is None else place_state(state, mesh)
    return jax.jit(
        step, in_shardings=(places, divided(mesh), same, same), out_shardings=(places, same), donate_argnums=0
    )


@jax.transfer_guard("allow")
def compile_step(jitted: Any, arguments: tuple[Any, ...], say: Callable[[str], None]) -> TrainStep:
    """Compiles the step before its first use, and says so before and after: it may take minutes."""
    say("compiling the training step")
    begin = time.perf_counter()
    compiled = jitted.lower(*arguments).compile()
    seconds = time.perf_counter() - begin
    say(f"compiled the training step in {seconds:.1f} s (the next start with the same shapes takes it from the cache)")
    return compiled


@contextlib.contextmanager
def explained_memory(advice: str) -> Iterator[None]:
    """Says in one line that a device has too little memory, where XLA says it in a page.

    Args:
        advice: what to do then.

    Raises:
        ValueError: it has too little.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        first = str(error).partition("\n")[0]
        if "RESOURCE_EXHAUSTED" not in first:
            raise
        kind = jax.local_devices()[0].device_kind
        raise ValueError(f"expected work that fits into the memory of {kind}, got {first}: {advice}") from error


def enable_compilation_cache() -> None:
    """Keeps compiled programs between runs, unless JAX_COMPILATION_CACHE_DIR or the program itself chose a place."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
    if LRUCache is not None:
        LRUCache.put = _put_whole


def _put_whole(self: Any, key: str, value: bytes) -> None:
    """Gives a compiled program its name in the cache when the file is whole.

    JAX writes under that name. Another process may read a part then; and the part that a killed process leaves stays
    for ever: each start would warn and compile anew.
    """
    file = Path(self.path) / f"{key}-cache"
    if self.eviction_enabled or not file.parent.is_dir():  # JAX has more to write then, or the place is no disk's
        _put(self, key, value)
    elif not file.exists():
        beside = file.with_name(f".{key}.{os.getpid()}-{threading.get_ident()}")
        try:
            beside.write_bytes(value)
            os.replace(beside, file)
        finally:
            beside.unlink(missing_ok=True)
