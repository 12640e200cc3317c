"""Training of several classifiers on one body."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxvid.losses.classification import cross_entropy
from flaxvid.losses.distillation import ffn_loss
from flaxvid.models.registry import create_tiny
from flaxvid.tasks.frame_flexible import FfnRecipe
from flaxvid.tasks.mixing import mix
from flaxvid.tasks.supervised import SupervisedRecipe

KEY = jax.random.key(1)
WEIGHTS = {"actor": 0.25}


@pytest.fixture(scope="module")
def model():
    return create_tiny("tsm_resnet18", depths=(1,), dropout=0.0, num_classes={"action": 5, "actor": 3})


@pytest.fixture(scope="module")
def variables(model, random_variables):
    return random_variables(model)


@pytest.fixture(scope="module")
def batch(clip):
    label = {"action": np.array([0, 1, 4, 3]), "actor": np.array([2, 0, 1, 1])}
    return {"video": {n: clip(4, n, 32, 32, seed=n) for n in (2, 4)}, "label": label}


def test_supervised_training_sums_the_targets(model, variables, batch):
    task = SupervisedRecipe((2, 4), target_weights=WEIGHTS).make(model)

    @jax.jit
    def both(variables, batch):
        video, label, mutable = batch["video"], batch["label"], ["batch_stats"]
        first, state = model.apply(variables, video[4][:2], train=True, mutable=mutable)
        second, _ = model.apply({**variables, **state}, video[2][2:], train=True, mutable=mutable)
        logits = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)
        return task.loss(variables, batch, KEY), {name: cross_entropy(logits[name], label[name]) for name in label}

    (loss, (_, metrics)), expected = both(variables, batch)
    names = {f"{name}_{part}" for name in ("action", "actor") for part in ("loss", "accuracy")}
    assert set(metrics) == {"loss", *names}
    assert loss == metrics["loss"] == pytest.approx(float(expected["action"] + expected["actor"] / 4), rel=1e-5)
    chex.assert_trees_all_close({name: metrics[f"{name}_loss"] for name in expected}, expected, rtol=1e-5)


def test_each_target_is_distilled_by_itself(model, variables, batch):
    task = FfnRecipe((2, 4), weight=2.0, target_weights=WEIGHTS).make(model)
    flexible = task.flexible

    @jax.jit
    def both(variables, batch):
        logits, _ = flexible.apply(variables, batch["video"], train=True, rngs={"dropout": KEY}, mutable=True)
        losses = {
            name: ffn_loss({n: z[name] for n, z in logits.items()}, label, 2.0)
            for name, label in batch["label"].items()
        }
        return task.loss(variables, batch, KEY), losses

    (loss, (_, metrics)), expected = both(flexible.specialise(variables, KEY), batch)
    assert loss == pytest.approx(float(expected["action"][0] + expected["actor"][0] / 4), rel=1e-5)
    for name, (own, parts) in expected.items():
        assert metrics[f"{name}_loss"] == pytest.approx(float(own), rel=1e-5)
        assert metrics[f"{name}_kl_2"] == pytest.approx(float(parts["kl_2"]), rel=1e-4, abs=1e-6)
    assert {"action_accuracy", "action_accuracy_2", "actor_accuracy_4", "actor_ce"} <= set(metrics)


def test_both_classifiers_and_the_body_have_gradients(model, variables, batch):
    task = SupervisedRecipe((4,)).make(model)
    clips = {**batch, "video": {4: batch["video"][4]}}
    gradient = jax.jit(jax.grad(lambda p: task.loss({**variables, "params": p}, clips, KEY)[0]))(variables["params"])
    chex.assert_tree_all_finite(gradient)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient["head"]))
    assert np.abs(gradient["stem"]["conv1"]["kernel"]).max() > 0


def test_mixed_labels_are_shares_of_each_target_s_classes(model, batch):
    _, labels = mix(model, batch, KEY, mixup=0.5)
    assert {name: own.shape for name, own in labels.items()} == {"action": (4, 5), "actor": (4, 3)}
    for name, own in labels.items():
        np.testing.assert_allclose(own.sum(1), 1, rtol=1e-6)
        assert own[0, batch["label"][name][0]] == pytest.approx(float(labels["action"][0, 0]), rel=1e-6)
