import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxvid import trees
from flaxvid.train.groups import FFN_RULES, group_factors
from flaxvid.train.optimizer import make_optimizer, make_schedule
from flaxvid.train.recipe import OptimizerRecipe
from flaxvid.train.state import TrainState, unfreeze

PARAMS = {
    "params": {
        "body": {"conv1": {"kernel": np.array([[1.0, -2.0], [0.5, 3.0]], np.float32)}},
        "head": {"classifier": {"kernel": np.array([[0.3], [-0.7]], np.float32), "bias": np.array([0.2], np.float32)}},
    },
    "params_4f": {"body": {"norm1": {"scale": np.array([1.5], np.float32)}, "conv1": {"gain": np.ones(2, np.float32)}}},
}


def gradients(step):
    rng = np.random.default_rng(step)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), PARAMS)


def run(recipe, steps=5, schedule=None):
    optimizer, schedule = make_optimizer(recipe), schedule or optax.constant_schedule(recipe.learning_rate)
    params, state = PARAMS, optimizer.init(PARAMS)
    update = jax.jit(optimizer.update)
    for step in range(steps):
        updates, state = update(gradients(step), state, params)
        params = optax.apply_updates(params, optax.tree.scale(schedule(step), updates))
    return params


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_torchs_written_out(nesterov):
    """g = gradient + decay p; m = momentum m + g; p = p - rate factor m, and with Nesterov (g + momentum m) for m"""
    recipe = OptimizerRecipe("sgd", 0.1, 0.9, 0.01, "constant", nesterov=nesterov, clip_norm=0.0, rules=FFN_RULES)
    expected = {path: leaf.astype(np.float64) for path, leaf in trees.flatten(PARAMS).items()}
    momentum = dict.fromkeys(expected, 0.0)
    rates, decays = (trees.flatten(tree) for tree in group_factors(PARAMS, FFN_RULES))
    for step in range(5):
        for path, gradient in trees.flatten(gradients(step)).items():
            gradient = gradient + 0.01 * decays[path] * expected[path]
            momentum[path] = 0.9 * momentum[path] + gradient
            ahead = gradient + 0.9 * momentum[path] if nesterov else momentum[path]
            expected[path] = expected[path] - 0.1 * rates[path] * ahead
    chex.assert_trees_all_close(trees.flatten(run(recipe)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("b2", [0.999, 0.95])
def test_adamw_written_out(b2):
    """m and v are means of gradients and of their squares, both without bias; p = p - rate (m / sqrt(v) + decay p)"""
    recipe = OptimizerRecipe("adamw", 0.1, weight_decay=0.01, schedule="constant", b2=b2, clip_norm=0.0, rules=())
    expected = {path: leaf.astype(np.float64) for path, leaf in trees.flatten(PARAMS).items()}
    mean, square = dict.fromkeys(expected, 0.0), dict.fromkeys(expected, 0.0)
    for step in range(5):
        for path, gradient in trees.flatten(gradients(step)).items():
            mean[path] = 0.9 * mean[path] + 0.1 * gradient
            square[path] = b2 * square[path] + (1 - b2) * gradient.astype(np.float64) ** 2
            slope = mean[path] / (1 - 0.9 ** (step + 1)) / (np.sqrt(square[path] / (1 - b2 ** (step + 1))) + 1e-8)
            expected[path] = expected[path] - 0.1 * (slope + 0.01 * expected[path])
    chex.assert_trees_all_close(trees.flatten(run(recipe)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["sgd", "nesterov", "adamw", "adamw 0.95"])
def test_it_agrees_with_torch(name):
    torch = pytest.importorskip("torch")
    b2 = 0.95 if name == "adamw 0.95" else 0.999
    name, nesterov = ("sgd", True) if name == "nesterov" else (name.partition(" ")[0], False)
    recipe = OptimizerRecipe(
        name, 0.02, 0.9, 0.05, "constant", nesterov=nesterov, b2=b2, clip_norm=1.0, rules=FFN_RULES
    )
    rates, decays = (trees.flatten(tree) for tree in group_factors(PARAMS, FFN_RULES))
    tensors = {path: torch.tensor(leaf, requires_grad=True) for path, leaf in trees.flatten(PARAMS).items()}
    groups = [
        {"params": [tensor], "lr": 0.02 * rates[path], "weight_decay": 0.05 * decays[path]}
        for path, tensor in tensors.items()
    ]
    if name == "sgd":
        optimizer = torch.optim.SGD(groups, 0.02, momentum=0.9, nesterov=nesterov)
    else:
        optimizer = torch.optim.AdamW(groups, 0.02, betas=(0.9, b2))
    for step in range(5):
        for path, gradient in trees.flatten(gradients(step)).items():
            tensors[path].grad = torch.tensor(gradient)
        torch.nn.utils.clip_grad_norm_(list(tensors.values()), 1.0)
        optimizer.step()
    expected = {path: tensor.detach().numpy() for path, tensor in tensors.items()}
    chex.assert_trees_all_close(trees.flatten(run(recipe)), expected, rtol=1e-4, atol=1e-5)


def test_clipping_really_clips_the_global_norm():
    recipe = OptimizerRecipe("sgd", 1.0, 0.0, 0.0, "constant", clip_norm=0.5, rules=())
    optimizer = make_optimizer(recipe)
    large = jax.tree.map(lambda leaf: 100 * leaf, gradients(0))
    updates, _ = optimizer.update(large, optimizer.init(PARAMS), PARAMS)
    assert optax.tree.norm(updates) == pytest.approx(0.5, rel=1e-5)
    scale = 0.5 / float(optax.tree.norm(large))
    chex.assert_trees_all_close(updates, jax.tree.map(lambda leaf: -scale * leaf, large), rtol=1e-5)
    small = jax.tree.map(lambda leaf: 1e-3 * leaf, gradients(0))
    updates, _ = optimizer.update(small, optimizer.init(PARAMS), PARAMS)
    chex.assert_trees_all_close(updates, jax.tree.map(jnp.negative, small), rtol=1e-5)


def rates(recipe, *steps, epochs=50, steps_per_epoch=10):
    schedule = make_schedule(recipe, epochs, steps_per_epoch)
    return [float(schedule(step)) for step in steps]


def test_step_schedule_drops_at_its_milestones():
    recipe = OptimizerRecipe(learning_rate=0.1, schedule="step", milestones=(20, 40))
    expected = [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    assert rates(recipe, 0, 199, 200, 399, 400, 499) == pytest.approx(expected)


def test_warm_up_is_linear_and_milestones_count_from_the_start():
    recipe = OptimizerRecipe(learning_rate=0.1, schedule="step", milestones=(20, 40), warmup_epochs=2)
    expected = [0, 0.005, 0.05, 0.095, 0.1, 0.1, 0.01, 0.001]
    assert rates(recipe, 0, 1, 10, 19, 20, 199, 200, 400) == pytest.approx(expected)


def test_cosine_schedule_ends_at_zero():
    recipe = OptimizerRecipe(learning_rate=0.1, schedule="cosine", warmup_epochs=0)
    expected = [0.1, 0.1 * (1 + math.cos(math.pi / 4)) / 2, 0.05, 0.0]
    assert rates(recipe, 0, 125, 250, 500) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    recipe.warmup_epochs = 0.5  # five steps
    expected = [0, 0.04, 0.1, 0.05, 0]
    assert rates(recipe, 0, 2, 5, 5 + 495 / 2, 500) == pytest.approx(expected, abs=1e-6)


def test_a_cosine_from_the_start_is_joined_by_its_warm_up():
    """PySlowFast's: rise in a line from its own first rate to where the cosine of the whole run is by then."""
    recipe = OptimizerRecipe(
        learning_rate=0.1, schedule="cosine", warmup_epochs=34, warmup_start=0.01, cosine_from_start=True
    )

    def cosine(epoch):
        return 0.1 * (1 + math.cos(math.pi * epoch / 196)) / 2

    expected = [0.01, (0.01 + cosine(34)) / 2, cosine(34), cosine(98), cosine(190)]
    assert expected[2] < 0.093
    assert rates(recipe, 0, 170, 340, 980, 1900, epochs=196) == pytest.approx(expected, rel=1e-5)
    recipe.warmup_epochs = 0
    assert rates(recipe, 0, 980, epochs=196) == pytest.approx([0.1, 0.05])


def test_warm_up_begins_where_it_is_told():
    recipe = OptimizerRecipe(learning_rate=0.1, schedule="step", milestones=(4,), warmup_epochs=2, warmup_start=0.02)
    assert rates(recipe, 0, 10, 20, 39, 40) == pytest.approx([0.02, 0.06, 0.1, 0.1, 0.01])


def test_constant_schedule():
    assert rates(OptimizerRecipe(learning_rate=0.3, schedule="constant"), 0, 1, 499) == pytest.approx([0.3] * 3)


def test_the_schedule_is_applied_step_by_step():
    recipe = OptimizerRecipe("sgd", 1.0, 0.0, 0.0, "step", milestones=(1,), clip_norm=0.0, rules=())
    got = run(recipe, steps=3, schedule=make_schedule(recipe, epochs=2, steps_per_epoch=2))
    expected = jax.tree.map(lambda p, a, b, c: p - a - b - 0.1 * c, PARAMS, *(gradients(step) for step in range(3)))
    chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_layer_decay_multiplies_with_the_rules(name):
    """The whole step of a parameter, weight decay included; the same with and without, but for the factor."""
    recipe = OptimizerRecipe(name, 1.0, 0.9, 0.05, "constant", clip_norm=1.0, rules=FFN_RULES)
    moves = {}
    for decay in (1.0, 0.5):
        layered = dataclasses.replace(recipe, layer_decay=decay)
        optimizer = make_optimizer(layered, layers=(r"body/conv1/.*", r"body/norm1/.*"))
        updates, _ = jax.jit(optimizer.update)(gradients(0), optimizer.init(PARAMS), PARAMS)
        moves[decay] = trees.flatten(updates)
    for path, update in moves[1.0].items():
        factor = 0.25 if "conv1" in path else 0.5 if "norm1" in path else 1.0
        np.testing.assert_allclose(moves[0.5][path], factor * update, rtol=1e-6, err_msg=path)
        assert np.any(update)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_l2_sp_decays_to_the_start(name):
    """arXiv 1802.01483, equation 3: the body's penalty is its distance from the start, the head's its size."""
    recipe = OptimizerRecipe(name, 0.05, 0.0, 0.1, "constant", clip_norm=0.0, rules=(), decay_to_start=("body",))
    optimizer = make_optimizer(recipe)
    params, state = PARAMS, optimizer.init(PARAMS)
    zeros = jax.tree.map(np.zeros_like, PARAMS)
    for _ in range(3):
        before = trees.flatten(params)
        moved = optax.apply_updates(params, optax.tree.scale(0.05, optimizer.update(zeros, state, params)[0]))
        for path, leaf in trees.flatten(moved).items():
            start = trees.flatten(PARAMS)[path] if "/body/" in path else 0.0
            np.testing.assert_allclose(leaf, before[path] - 0.05 * 0.1 * (before[path] - start), rtol=1e-5)
        params = jax.tree.map(lambda leaf: leaf + np.float32(0.3), moved)
    assert {path.partition("/")[2] for path in trees.flatten(trees.split(PARAMS, lambda p: "/body/" in p)[0])} == {
        path.partition("/")[2] for path in trees.flatten(next(part for part in state if isinstance(part, dict)))
    }


def test_what_is_released_has_young_averages_of_its_own():
    """Adam's first step is as long as the rate, whenever a parameter begins; the others go on as they were."""
    recipe = OptimizerRecipe("adamw", weight_decay=0.0, clip_norm=0.0, rules=())
    alone, both = make_optimizer(recipe, frozen=(("body",),)), make_optimizer(recipe, frozen=(("body",), ()))
    params, _ = trees.split(PARAMS, lambda path: "/head/" in path)
    state = TrainState(jnp.zeros((), int), PARAMS, alone.init(params))
    step_of = {id(tx): jax.jit(tx.update) for tx in (alone, both)}
    for step in range(4):
        grads = trees.split(gradients(step), lambda path: "/head/" in path)[0]
        _, opt_state = step_of[id(alone)](grads, state.opt_state, params)
        state = dataclasses.replace(state, opt_state=opt_state)
    wanted, _ = step_of[id(alone)](trees.split(gradients(4), lambda path: "/head/" in path)[0], state.opt_state, params)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    released = unfreeze(state, both, (), lambda tree: jax.tree.map(lambda _: here, tree))
    updates, _ = step_of[id(both)](gradients(4), released.opt_state, PARAMS)
    updates = trees.flatten(updates)
    for path, leaf in trees.flatten(wanted).items():
        np.testing.assert_array_equal(updates.pop(path), leaf)
    for path, leaf in updates.items():
        np.testing.assert_allclose(np.abs(leaf), 1, rtol=1e-4, err_msg=path)
