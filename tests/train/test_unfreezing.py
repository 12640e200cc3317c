"""Real runs that unfreeze a network step by step, from a trained one."""

import dataclasses
import itertools

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

import flaxvid
from flaxvid import trees
from flaxvid.train import session
from flaxvid.train.checkpoint import restore_variables
from flaxvid.train.limits import check

EPOCHS = 4


@pytest.fixture(scope="module", params=["sgd", "adamw"])
def recipe(request, colour_recipe, colour_run):
    """The head for an epoch, then the body too, then all; every epoch leaves a checkpoint."""
    return dataclasses.replace(
        colour_recipe,
        model=dataclasses.replace(colour_recipe.model, weights=str(colour_run)),
        optimizer=dataclasses.replace(
            colour_recipe.optimizer, name=request.param, decay_to_start=("stem", "body"), ema=0.9
        ),
        epochs=EPOCHS,
        freeze=("stem", "body"),
        unfreeze=((1, "body"), (3, "stem")),
        keep=EPOCHS,
    )


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "gradual"
    flaxvid.run(recipe, folder)
    return folder


def checkpoints(folder):
    return sorted(
        (path for path in (folder / "checkpoints").iterdir() if path.name.isdigit()), key=lambda p: int(p.name)
    )


def training(checkpoint):
    return ocp.PyTreeCheckpointHandler().restore(epath.Path(checkpoint / "training"))


def test_each_part_learns_from_its_epoch_on(run, colour_run):
    parts = ("stem", "body", "head")
    states = [restore_variables(colour_run), *map(restore_variables, checkpoints(run))]
    for collection in ("params", "batch_stats", "ema_params"):
        for epoch, (before, after) in enumerate(itertools.pairwise(states)):
            for part in [part for part in parts if part in after[collection]]:
                old = before.get(collection, before[collection.removeprefix("ema_")])[part]
                moved = any(
                    np.any(leaf != trees.flatten(old)[path])
                    for path, leaf in trees.flatten(after[collection][part]).items()
                )
                assert moved == (epoch >= {"head": 0, "body": 1, "stem": 3}[part]), (collection, epoch, part)


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_run_that_was_cut_short_ends_the_same(recipe, run, tmp_path, monkeypatch, epoch, capfd):
    """At the last step of a phase, and in the middle of one."""
    step = int(checkpoints(run)[epoch - 1].name)

    def fail(self, now, state):
        if now == step:
            raise RuntimeError("cut short")

    with monkeypatch.context() as patched:
        patched.setattr(session.Session, "evaluate_if_due", fail)
        with pytest.raises(RuntimeError, match="cut short"):
            flaxvid.run(recipe, tmp_path / "run")
    assert int(checkpoints(tmp_path / "run")[-1].name) == step
    capfd.readouterr()
    flaxvid.run(recipe, tmp_path / "run")
    said = capfd.readouterr().out.replace("\n", " ")
    compiled = {1: 2, 2: 2, 3: 1}[epoch]
    assert said.count("compiled the training step in") == compiled
    assert said.count("after 3 epochs training goes on with stem, too: the step is compiled anew") == 1
    assert said.count("after 1 epochs training goes on with body, too") == (epoch == 1)
    whole, again = checkpoints(run)[-1], checkpoints(tmp_path / "run")[-1]
    chex.assert_trees_all_equal(restore_variables(whole), restore_variables(again), strict=True)
    chex.assert_trees_all_equal(training(whole), training(again), strict=True)
    if recipe.optimizer.name == "adamw":
        leaves, _ = jax.tree_util.tree_flatten_with_path(training(whole))
        counts = {int(leaf) for place, leaf in leaves if jax.tree_util.keystr(place[-1:]) == "['count']"}
        assert counts == {steps * int(whole.name) // EPOCHS for steps in (4, 3, 1)}


def test_slips_are_told(colour_recipe):
    with pytest.raises(
        ValueError, match=r"unfreeze must have ascending epochs between 1 and 7, got \(\(8, 'body'\),\)"
    ):
        check(dataclasses.replace(colour_recipe, freeze=("body",), unfreeze=((8, "body"),)))
    with pytest.raises(ValueError, match=r"unfreeze: '\(' is no regular expression"):
        check(dataclasses.replace(colour_recipe, freeze=("body",), unfreeze=((1, "("),)))
    optimizer = dataclasses.replace(colour_recipe.optimizer, decay_to_start=("body",))
    with pytest.raises(ValueError, match=r"optimizer.decay_to_start needs model.weights to start from"):
        check(dataclasses.replace(colour_recipe, optimizer=optimizer))
