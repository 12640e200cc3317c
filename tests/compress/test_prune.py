import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxvid import trees
from flaxvid.compress.prune import MASKS, Pruning, first_masks, magnitude_masks, masked, sparsity
from flaxvid.models.registry import create_tiny
from flaxvid.tasks.frame_flexible import FfnRecipe
from flaxvid.train.state import create_state
from flaxvid.train.step import train_step

KEY = jax.random.key(5)
KERNELS = {
    "body/a/kernel": np.random.default_rng(0).normal(0, 1, (3, 3, 4, 8)).astype(np.float32),
    "body/b/kernel": np.random.default_rng(1).normal(0, 0.1, (1, 1, 8, 8)).astype(np.float32),
}


def test_the_schedule_is_that_of_the_paper():
    """Equation 1 of arXiv 1710.01878, from no sparsity."""
    pruning = Pruning(0.8, begin=100, end=500, every=10)
    for step in (0, 100, 200, 300, 500, 900):
        passed = min(max(step - 100, 0), 400)
        assert pruning.share(step) == pytest.approx(0.8 + (0 - 0.8) * (1 - passed / 400) ** 3, abs=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_the_smallest_weights_go(share):
    each = magnitude_masks(KERNELS, share, "layer")
    for path, kernel in KERNELS.items():
        order = np.argsort(np.abs(kernel), axis=None)
        wanted = np.ones(kernel.size, bool)
        wanted[order[: round(share * kernel.size)]] = False
        np.testing.assert_array_equal(each[path], wanted.reshape(kernel.shape))
    together = np.concatenate([np.abs(kernel).ravel() for kernel in KERNELS.values()])
    border = np.sort(together)[round(share * together.size)]
    for path, mask in magnitude_masks(KERNELS, share, "global").items():
        np.testing.assert_array_equal(mask, np.abs(KERNELS[path]) >= border)


def test_globally_the_layer_of_small_weights_loses_more():
    masks = magnitude_masks(KERNELS, 0.4, "global")
    lost = {path: 1 - np.mean(mask) for path, mask in masks.items()}
    assert lost["body/b/kernel"] > 0.8
    assert lost["body/a/kernel"] < 0.5


def test_masks_are_of_kernels_and_not_of_kept_parts():
    model = create_tiny("r3d_18_se")
    shapes = jax.eval_shape(model.init, KEY, jnp.zeros((1, 4, 32, 32, 3)))
    masks = trees.flatten(first_masks(shapes["params"], ("stem", "head", "body/layer1_.*")))
    wanted = {
        path: leaf.shape
        for path, leaf in trees.flatten(shapes["params"]).items()
        if path.endswith("/kernel") and path.startswith(("body/layer2", "body/layer3", "body/layer4"))
    }
    assert {path: mask.shape for path, mask in masks.items()} == wanted
    assert all(mask.all() for mask in masks.values())
    with pytest.raises(ValueError, match="nothing is left to prune"):
        first_masks(shapes["params"], ("stem", "body", "head"))


@pytest.fixture(scope="module")
def task():
    return FfnRecipe((2, 4)).make(create_tiny("tsm_resnet18", depths=(1,)))


@pytest.fixture(scope="module")
def batch(clip):
    return {"video": {n: clip(4, n, 32, 32, seed=n) for n in (2, 4)}, "label": np.arange(4)}


def test_removed_weights_stay_removed_whatever_the_optimizer_does(task, batch):
    """Momentum, decay and averages would bring them back; private norms, gains and the rest are left alone."""
    variables = task.init(KEY)
    variables[MASKS] = first_masks(variables["params"], ("stem", "head"))
    optimizer = optax.chain(optax.add_decayed_weights(0.1), optax.trace(0.9), optax.scale(-0.05))
    pruning = Pruning(0.7, begin=1, end=5, every=2, scope="global")
    step = jax.jit(functools.partial(train_step, task=task, optimizer=optimizer, ema=0.9, pruning=pruning))
    state = create_state(variables, optimizer, ema=True)
    shares, before = [], variables[MASKS]
    for number in range(1, 8):
        state, metrics = step(state, batch, KEY)
        masks = state.variables[MASKS]
        for name in ("params", "ema_params"):
            kernels = trees.flatten(state.variables[name])
            for path, mask in trees.flatten(masks).items():
                assert not np.asarray(kernels[path])[~np.asarray(mask)].any(), (number, name, path)
        chex.assert_trees_all_equal(jax.tree.map(lambda now, then: now & then, masks, before), masks)
        before = masks
        shares.append(float(metrics["sparsity"]))
    wanted = [float(pruning.share(step)) for step in (1, 1, 3, 3, 5, 5, 5)]
    np.testing.assert_allclose(shares, wanted, atol=2e-3)
    assert shares[-1] == pytest.approx(0.7, abs=2e-3)
    assert shares[-1] == pytest.approx(float(sparsity(masks)))
    momentum = trees.flatten(state.opt_state[1].trace["params"])
    path, mask = next(iter(trees.flatten(masks).items()))
    assert np.abs(np.asarray(momentum[path])[np.asarray(mask)]).min() > 0
    assert not any(path.endswith("gain") for path in trees.flatten(masks))


def test_masked():
    params = {"a": {"kernel": jnp.arange(4.0), "bias": jnp.ones(2)}}
    masks = {"a": {"kernel": jnp.array([True, False, True, False])}}
    chex.assert_trees_all_equal(
        masked(params, masks), {"a": {"kernel": jnp.array([0.0, 0, 2, 0]), "bias": jnp.ones(2)}}
    )
