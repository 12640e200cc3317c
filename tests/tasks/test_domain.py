import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxvid import trees
from flaxvid.losses.classification import cross_entropy
from flaxvid.losses.domain import coral, mmd
from flaxvid.models.registry import create_tiny
from flaxvid.tasks.domain import STATE, DomainRecipe
from flaxvid.train.state import create_state
from flaxvid.train.step import train_step

KEY = jax.random.key(1)
PLAIN = optax.sgd(1.0)


@pytest.fixture(scope="module")
def model():
    return create_tiny("tsm_resnet18", depths=(1,), dropout=0.0, num_classes=5)


@pytest.fixture(scope="module")
def batch(clip):
    target = {"video": {2: clip(4, 2, 16, 16, seed=7) // 3}, "index": np.arange(4), "broken": np.full(4, -1)}
    return {"video": {2: clip(4, 2, 16, 16)}, "label": np.arange(4), "index": np.arange(4), "target": target}


@pytest.fixture(scope="module")
def variables(model, random_variables):
    return random_variables(model)


def make(model, **options):
    return DomainRecipe((2,), **options).make(model)


def step(task, variables, batch, steps=0, **arguments):
    start = task.init(KEY, jax.tree.map(jnp.array, variables))
    start[STATE] = {"steps": jnp.int32(steps)}
    run = jax.jit(lambda s, b: train_step(s, b, KEY, task=task, optimizer=PLAIN, **arguments))
    new, metrics = run(create_state(start, PLAIN), batch)
    return start, new.variables, metrics


@pytest.mark.parametrize(("method", "distance"), [("coral", coral), ("mmd", mmd)])
def test_the_loss_is_the_label_and_the_distance(model, variables, batch, method, distance, no_batch_statistics):
    """Without batch statistics the two domains can be computed apart."""
    _, _, metrics = step(make(model, method=method, weight=0.7), variables, batch)
    features = [
        model.apply(variables, video[2], method="features") for video in (batch["video"], batch["target"]["video"])
    ]
    expected = float(distance(*features))
    logits = model.apply(variables, batch["video"][2])
    np.testing.assert_allclose(metrics["domain_loss"], expected, rtol=1e-4)
    np.testing.assert_allclose(metrics["loss"], cross_entropy(logits, batch["label"]) + 0.7 * expected, rtol=1e-4)
    assert expected > 1e-4


def test_the_discriminator_learns_and_the_network_unlearns(model, variables, batch, no_batch_statistics):
    """A step down the gradient: the discriminator gets better at its task, the network makes it worse."""
    task = make(model, weight=0.5, discriminator_width=16)

    def pays(variables):
        """The discriminator's loss, without any reversal."""
        weightless = make(model, weight=0.0, discriminator_width=16)
        (share,) = weightless.divide(batch, KEY)
        return weightless.share_loss(variables, share, KEY)[1][1]["domain_loss"]

    start, after, metrics = step(task, variables, batch)
    _, plain, _ = step(make(model, weight=0.0, discriminator_width=16), variables, batch)
    small = 1e-3
    moves = {name: jax.tree.map(jnp.subtract, after[name], start[name]) for name in ("params", "params_discriminator")}
    of_labels = jax.tree.map(jnp.subtract, plain["params"], start["params"])
    reversed_part = jax.tree.map(jnp.subtract, moves["params"], of_labels)

    def moved(name, move):
        return {**start, name: jax.tree.map(lambda leaf, way: leaf + small * way, start[name], move)}

    assert pays(moved("params_discriminator", moves["params_discriminator"])) < pays(start)
    assert pays(moved("params", reversed_part)) > pays(start)
    assert 0 <= metrics["domain_accuracy"] <= 1
    assert all(np.any(leaf) for leaf in jax.tree.leaves(moves["params_discriminator"]))
    assert not np.any(trees.flatten(reversed_part)["head/classifier/kernel"])  # the features alone


@pytest.mark.parametrize("method", ["adversarial", "mmd"])
def test_the_weight_grows_as_in_dann(model, method):
    task = make(model, method=method, weight=2.0, ramp_steps=100)
    expected = [2 * (2 / (1 + np.exp(-10 * share)) - 1) for share in (0, 0.1, 0.5, 1, 1)]
    got = [float(task.weight_after(jnp.int32(steps))) for steps in (0, 10, 50, 100, 500)]
    assert got == pytest.approx(expected, abs=1e-6)
    assert float(make(model, weight=2.0).weight_after(jnp.int32(0))) == 2


def test_steps_are_counted_and_weigh(model, variables, batch):
    task = make(model, method="mmd", ramp_steps=10)
    _, after, metrics = step(task, variables, batch, steps=3)
    assert metrics["domain_weight"] == pytest.approx(2 / (1 + np.exp(-3)) - 1)
    assert after[STATE]["steps"] == 1  # that of the state, which is at its first step


def test_norms_see_both_domains(model, variables, batch):
    """The statistics of a step are those of the clips of both."""
    _, after, _ = step(make(model, method="mmd", weight=0.0), variables, batch)
    both = np.concatenate([batch["video"][2], batch["target"]["video"][2]])
    _, state = model.apply(variables, both, train=True, mutable=["batch_stats"], rngs={"dropout": KEY})
    chex.assert_trees_all_close(after["batch_stats"], dict(state["batch_stats"]), rtol=1e-4, atol=1e-5)


def test_parts_and_groups_run(model, variables, batch):
    for arguments in ({"accumulate": 2}, {"norm_groups": 2}):
        _, after, metrics = step(make(model), variables, batch, **arguments)
        chex.assert_tree_all_finite((after, metrics))


def test_slips_are_told():
    recipe = DomainRecipe((2, 4), method="cora", weight=-1.0, discriminator_width=0)
    said = list(recipe.problems())
    assert [line.split()[0] for line in said] == ["method", "frames", "weight", "discriminator_width"]
    assert (
        list(dataclasses.replace(recipe, frames=(2,), method="coral", weight=0.0, discriminator_width=1).problems())
        == []
    )
