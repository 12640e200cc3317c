import functools
import os
import signal
import subprocess
import sys

import chex
import jax
import numpy as np
import optax
import pytest

from flaxvid.models.registry import create_tiny
from flaxvid.tasks.frame_flexible import FfnRecipe
from flaxvid.tasks.supervised import SupervisedRecipe
from flaxvid.train.checkpoint import Checkpoints
from flaxvid.train.mesh import check_batch_size, make_mesh, put_batch, replicated
from flaxvid.train.optimizer import make_optimizer, make_schedule
from flaxvid.train.recipe import OptimizerRecipe
from flaxvid.train.state import averaged, create_state, mover, trainable
from flaxvid.train.step import jit_step, train_step, warmed_decay

KEY = jax.random.key(0)
RATE = 0.01


@pytest.fixture(scope="module")
def optimizer():
    return make_optimizer(OptimizerRecipe("sgd", momentum=0.9, weight_decay=5e-4))


@pytest.fixture(scope="module")
def make(random_variables, optimizer):
    """A plain task and its state; `overrides` are the model's."""

    def state(ema=False, **overrides):
        model = create_tiny("tsm_resnet18", depths=(1,), **overrides)
        task = SupervisedRecipe((4,)).make(model)
        return task, create_state(jax.tree.map(np.copy, random_variables(model)), optimizer, ema=ema)

    return state


@pytest.fixture(scope="module")
def batch(clip):
    return {"video": {4: clip(4, 4, 32, 32)}, "label": np.array([0, 3, 1, 4]), "index": np.arange(4)}


def step_of(task, optimizer, **arguments):
    return jax.jit(lambda s, b, k: train_step(s, b, k, RATE, task=task, optimizer=optimizer, **arguments))


def test_one_step_is_loss_gradient_update(make, optimizer, batch):
    task, state = make()
    new, metrics = step_of(task, optimizer)(state, batch, KEY)

    @jax.jit
    def by_hand(variables, batch):
        def loss(params):
            return task.loss({**variables, "params": params}, batch, jax.random.fold_in(KEY, 0))

        (value, (updated, _)), gradients = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        moved, _ = optimizer.update({"params": gradients}, state.opt_state, {"params": variables["params"]})
        params = jax.tree.map(lambda p, u: p + RATE * u, variables["params"], moved["params"])
        return value, updated, params, optax.tree.norm(gradients)

    value, updated, params, norm = by_hand(state.variables, batch)
    assert int(new.step) == 1
    assert metrics["loss"] == pytest.approx(float(value), rel=1e-5)
    assert metrics["gradient_norm"] == pytest.approx(float(norm), rel=1e-4)
    chex.assert_trees_all_close(new.variables, {"params": params, **updated}, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_equal_shapes_and_dtypes(new, state)


def test_the_key_moves_with_the_step(make, optimizer, batch):
    task, state = make(dropout=0.5)
    step = step_of(task, optimizer)
    losses = [float(step(state.replace(step=np.int32(n)), batch, KEY)[1]["loss"]) for n in (0, 1, 0)]
    assert losses[0] == losses[2] != losses[1]


def test_the_jitted_step_donates_its_state_and_compiles_once(make, optimizer, batch):
    task, state = make()
    mesh = make_mesh()
    state = jax.device_put(state, replicated(mesh))
    chex.clear_trace_counter()

    class Counted:
        model, frames, init, select, after = task.model, task.frames, task.init, task.select, task.after
        loss = staticmethod(chex.assert_max_traces(task.loss, n=1))

    step = jit_step(functools.partial(train_step, task=Counted(), optimizer=optimizer), mesh)
    for _ in range(3):
        old = state
        state, metrics = step(state, put_batch(batch, mesh), KEY, RATE)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves((old.variables, old.opt_state)))
    assert step._cache_size() == 1
    assert int(state.step) == 3
    chex.assert_tree_all_finite((state.variables, metrics))


def test_the_program_is_the_same_for_all_rates_schedules_and_lengths(make, batch):
    """So a second run takes it from the compilation cache; what is a part of it, the decay, does change it."""
    task, state = make()
    mesh = make_mesh()

    def program(epochs, steps, **options):
        recipe = OptimizerRecipe(**options)
        rate = jax.jit(make_schedule(recipe, epochs, steps))(state.step)
        step = jit_step(functools.partial(train_step, task=task, optimizer=make_optimizer(recipe)), mesh)
        return step.lower(state, put_batch(batch, mesh), KEY, rate).as_text()

    first = program(5, 10, learning_rate=0.1, schedule="cosine", warmup_epochs=0.5, warmup_start=0.01)
    assert first == program(300, 7, learning_rate=2e-3, schedule="step", milestones=(20, 40))
    assert first == program(1, 1, learning_rate=1.0, schedule="constant")
    assert first != program(1, 1, learning_rate=1.0, schedule="constant", weight_decay=0.1)


def test_accumulation_gives_the_same_step(make, optimizer, batch, no_batch_statistics):
    """Where nothing couples the clips of a batch, the mean of the parts' gradients is the whole's."""
    task, state = make(dropout=0.0)
    whole, metrics = step_of(task, optimizer)(state, batch, KEY)
    parts, part_metrics = step_of(task, optimizer, accumulate=2)(state, batch, KEY)
    chex.assert_trees_all_close(parts, whole, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(part_metrics, metrics, rtol=1e-4, atol=1e-6)


def test_accumulated_statistics_move_from_part_to_part(make, optimizer, batch):
    task, state = make(dropout=0.0)
    new, _ = step_of(task, optimizer, accumulate=2)(state, batch, KEY)
    variables, update = state.variables, jax.jit(lambda v, b: task.loss(v, b, KEY)[1][0])
    for first in (0, 1):  # parts take every second row
        rows = jax.tree.map(lambda leaf, first=first: leaf[first::2], batch)
        variables = {**variables, **update(variables, rows)}
    chex.assert_trees_all_close(new.variables["batch_stats"], variables["batch_stats"], rtol=1e-4, atol=1e-5)


def test_ema_follows_its_formula(make, optimizer, batch):
    """min(decay, (1 + step) / (10 + step)): short at first, as the recipe says in the end."""
    task, state = make(ema=True)
    assert set(state.variables) == {"params", "batch_stats", "ema_params", "ema_batch_stats"}
    chex.assert_trees_all_equal(averaged(state.variables), {n: state.variables[n] for n in ("params", "batch_stats")})
    with_ema, without_ema = step_of(task, optimizer, ema=0.9), step_of(task, optimizer)
    for step, decay in ((0, 0.1), (8, 0.5), (1000, 0.9)):
        new, _ = with_ema(state.replace(step=np.int32(step)), batch, KEY)
        without, _ = without_ema(make()[1].replace(step=np.int32(step)), batch, KEY)
        for name in ("params", "batch_stats"):
            chex.assert_trees_all_close(new.variables[name], without.variables[name], rtol=1e-5, atol=1e-6)
            average = jax.tree.map(
                lambda old, now, decay=decay: decay * old + (1 - decay) * now,
                state.variables[name],
                new.variables[name],
            )
            chex.assert_trees_all_close(new.variables[f"ema_{name}"], average, rtol=1e-5, atol=1e-6)
            chex.assert_trees_all_equal(averaged(new.variables)[name], new.variables[f"ema_{name}"])
        assert set(trainable(new.variables)) == {"params"}


@pytest.mark.parametrize("arguments", [{}, {"accumulate": 2}])
def test_a_teacher_is_moved_by_nobody(make, optimizer, batch, tmp_path, arguments):
    """It is neither trained nor averaged, and it comes back from a checkpoint."""
    task, state = make()
    teacher = jax.tree.map(lambda leaf: leaf + 1, state.variables["params"])
    state = create_state({**state.variables, "teacher": teacher}, optimizer, ema=True)
    names = {"params", "batch_stats", "teacher", "ema_params", "ema_batch_stats"}
    assert set(state.variables) == names
    assert set(trainable(state.variables)) == {"params"}
    assert {name: mover(name) for name in ("params_4f", "batch_stats_4f", "ema_params_4f", "teacher", "cache")} == {
        "params_4f": "gradient",
        "batch_stats_4f": "forward pass",
        "ema_params_4f": "step",
        "teacher": "nobody",
        "cache": "nobody",
    }
    new, _ = step_of(task, optimizer, ema=0.9, **arguments)(state, batch, KEY)
    assert set(new.variables) == names
    chex.assert_trees_all_equal(new.variables["teacher"], teacher)
    assert all(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (new.variables["params"], teacher)), strict=True))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, new)
        chex.assert_trees_all_equal(checkpoints.restore(state), new)
    chex.assert_trees_all_equal(averaged(new.variables)["teacher"], teacher)
    chex.assert_trees_all_equal(averaged(new.variables)["params"], new.variables["ema_params"])


def test_the_average_forgets_its_start_within_a_short_run():
    """Weights that rise evenly from 0 to 1 in 300 steps: with a fixed decay of .999 their average would be 0.14."""
    average = 0.0
    for step in range(300):
        decay = float(warmed_decay(0.999, step))
        average = decay * average + (1 - decay) * (step + 1) / 300
    assert average == pytest.approx(0.9, abs=0.01)
    assert float(warmed_decay(0.999, 10**6)) == pytest.approx(0.999)


def test_a_bfloat16_step_keeps_the_state_in_float32(make, optimizer, batch):
    task, state = make(dtype="bfloat16")
    new, metrics = step_of(task, optimizer)(state, batch, KEY)
    chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
    chex.assert_tree_all_finite((new.variables, metrics))
    exact, _ = step_of(make()[0], optimizer)(state, batch, KEY)
    moved = optax.tree.sub(exact.variables["params"], state.variables["params"])
    difference = optax.tree.sub(new.variables["params"], exact.variables["params"])
    assert 0 < optax.tree.norm(difference) < 0.2 * optax.tree.norm(moved)


def test_ffn_steps_move_every_collection(random_variables, optimizer, clip):
    task = FfnRecipe((2, 4)).make(create_tiny("tsm_resnet18", depths=(1,)))
    state = create_state(task.flexible.specialise(random_variables(task.model), KEY), optimizer)
    batch = {"video": {n: clip(4, n, 32, 32, seed=n) for n in (2, 4)}, "label": np.arange(4)}
    new, metrics = step_of(task, optimizer, accumulate=2)(state, batch, KEY)
    assert set(new.variables) == {"params", "params_2f", "params_4f", "batch_stats_2f", "batch_stats_4f"}
    for name, tree in new.variables.items():
        for leaf, old in zip(jax.tree.leaves(tree), jax.tree.leaves(state.variables[name]), strict=True):
            assert np.any(leaf != old), name
    chex.assert_tree_all_finite((new.variables, metrics))


def test_a_batch_that_does_not_divide_says_what_would():
    mesh = make_mesh()
    check_batch_size(6, mesh, accumulate=2)
    with pytest.raises(ValueError, match=r"batch_size=7 must divide evenly over 1 devices x 2 .* use 6"):
        check_batch_size(7, mesh, accumulate=2)


KILLED = """
import resource, signal, sys
import jax, jax.numpy as jnp
from flaxvid.train.step import enable_compilation_cache

enable_compilation_cache()
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
program = jax.jit(lambda x: jnp.sin(x) @ x)
if len(sys.argv) > 2:  # the system kills who writes more than so many bytes into a file
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
program.lower(jax.ShapeDtypeStruct((3, 3), "float32")).compile()
"""


def test_a_process_that_is_killed_while_it_keeps_a_program_leaves_no_part_of_it(tmp_path):
    """JAX would take the part for the program, warn and compile, at each start."""
    pytest.importorskip("resource")
    environment = {**os.environ, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    for rest, code in ((["killed"], -signal.SIGXFSZ), ([], 0)):
        command = [sys.executable, "-c", KILLED, str(tmp_path), *rest]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (code, "")
        assert len([*tmp_path.glob("*-cache")]) == (not rest)
