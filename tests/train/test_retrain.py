"""scripts/prune.py on a real run: the network is smaller or sparse, trains again, resumes, and is used as any other."""

import dataclasses

import chex
import jax
import numpy as np
import pytest

import flaxvid
from flaxvid import trees
from flaxvid.compress.prune import MASKS, sparsity
from flaxvid.report.run import read_metrics
from flaxvid.tasks.frame_flexible import FfnRecipe
from flaxvid.train import session
from flaxvid.train.checkpoint import restore_variables
from flaxvid.train.limits import check
from flaxvid.train.network import Trained
from flaxvid.train.recipe import PruningRecipe
from flaxvid.train.retrain import make_sparse, make_thin, retrained
from flaxvid.train.trained import load


@pytest.fixture(scope="module")
def trained(colour_run):
    return load(colour_run)


def test_a_thin_run_by_command(call_script, colour_run, trained, tmp_path, capsys):
    folder = tmp_path / "thin"
    call_script("prune.py", colour_run, "--channels", 0.5, "--epochs", 2, "--workdir", folder)
    out = capsys.readouterr().out
    assert "GMACs" in out
    thin = load(folder)
    assert thin.model.overrides["inner"] == {"layer1_0": (4,)}
    assert thin.select(2)["params"]["body"]["layer1_0"]["conv1"]["kernel"].shape[-1] == 4
    assert thin.recipe.epochs == 2
    assert thin.recipe.model.weights == str(folder / "pruned.safetensors")
    clip = np.full((2, 32, 32, 3), (220, 20, 20), np.uint8)
    (first, *_) = thin.predict(clip)["probabilities"]
    assert first == "red"
    flaxvid.save(thin, tmp_path / "thin.safetensors")
    chex.assert_trees_all_equal(load(tmp_path / "thin.safetensors").select(2), thin.select(2))
    call_script("prune.py", colour_run, "--channels", 0.5, "--epochs", 2, "--workdir", folder)
    assert "is finished" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="holds a run with other channels: give --workdir another folder"):
        call_script("prune.py", colour_run, "--channels", 0.25, "--epochs", 2, "--workdir", folder)


def test_a_sparse_run_that_was_cut_short_ends_the_same(trained, tmp_path, monkeypatch):
    recipe = make_sparse(retrained(trained, epochs=2), 0.6, "layer")
    recipe = dataclasses.replace(recipe, log_every=1, checkpoint_every=1, eval_every=0)
    recipe.pruning.every = 1
    recipe.optimizer.ema = 0.5
    rows = flaxvid.run(recipe, tmp_path / "whole")
    steps = [row for row in read_metrics(tmp_path / "whole" / "metrics.jsonl") if "train/sparsity" in row]
    shares = [row["train/sparsity"] for row in steps]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(0.6, abs=0.01)
    assert shares[0] < 0.5
    variables = restore_variables(tmp_path / "whole")
    assert float(sparsity(variables[MASKS])) == pytest.approx(0.6, abs=0.01)
    for name in ("params", "ema_params"):
        kernels = trees.flatten(variables[name])
        for path, mask in trees.flatten(variables[MASKS]).items():
            assert not kernels[path][~mask].any()
            assert np.mean(kernels[path] == 0) == pytest.approx(0.6, abs=0.02)
    assert not any(path.startswith(("stem", "head")) for path in trees.flatten(variables[MASKS]))
    kernel = load(tmp_path / "whole").select(2)["params"]["body"]["layer1_0"]["conv1"]["kernel"]
    assert np.mean(np.asarray(kernel) == 0) == pytest.approx(0.6, abs=0.02)

    taken, take = [], session.Session.next_batch

    def die(self, step, state):
        if step > 4:
            raise RuntimeError("cut short")
        taken.append(step)
        return take(self, step, state)

    with monkeypatch.context() as patched:
        patched.setattr(session.Session, "next_batch", die)
        with pytest.raises(RuntimeError, match="cut short"):
            flaxvid.run(recipe, tmp_path / "parts")
    assert taken == [1, 2, 3, 4]
    assert flaxvid.run(recipe, tmp_path / "parts") == rows
    chex.assert_trees_all_equal(variables, restore_variables(tmp_path / "parts"), strict=True)


def test_the_schedule_is_squeezed(trained):
    run = trained.recipe
    run = dataclasses.replace(run, optimizer=dataclasses.replace(run.optimizer, warmup_epochs=2, milestones=(4, 6)))
    short = retrained(dataclasses.replace(trained, recipe=run), epochs=4, learning_rate=0.1)
    assert (short.optimizer.warmup_epochs, short.optimizer.milestones) == (1, (2, 3))
    assert (short.optimizer.learning_rate, short.epochs) == (0.1, 4)
    assert short.model.weights == str(trained.folder)
    assert retrained(trained).epochs == trained.recipe.epochs


def test_a_thinner_network_starts_as_what_is_left(trained, tmp_path):
    recipe, thin = make_thin(retrained(trained), trained, tmp_path, 0.5)
    chex.assert_trees_all_equal(dict(load(tmp_path / "pruned.safetensors").variables), thin.variables)
    assert recipe.model.options["inner"] == {"layer1_0": (4,)}


def test_a_thin_run_of_ffn_keeps_what_each_frame_count_has(colour_recipe, tmp_path, capsys):
    recipe = dataclasses.replace(colour_recipe, task=FfnRecipe((2, 3)), epochs=1, eval_frames=(2, 3))
    flaxvid.run(recipe, tmp_path / "ffn")
    trained = load(tmp_path / "ffn")
    again, thin = make_thin(retrained(trained), trained, tmp_path / "thin", 0.5)
    again.optimizer.learning_rate = 0.0
    flaxvid.run(again, tmp_path / "thin")
    assert "the variables of its own of each frame count are kept" in capsys.readouterr().out
    params = restore_variables(tmp_path / "thin")
    for name in ("params", "params_2f", "params_3f"):
        chex.assert_trees_all_equal(params[name], jax.tree.map(np.asarray, dict(thin.variables[name])))
    assert params["params_2f"]["body"]["layer1_0"]["norm1"]["scale"].shape == (4,)


def test_what_cannot_be(trained, tmp_path):
    with pytest.raises(ValueError, match="expected a run's folder, whose recipe says how the network is trained"):
        retrained(Trained(trained.model, trained.variables))
    recipe = retrained(trained)
    with pytest.raises(ValueError, match=r"pruning must begin before it ends, and end within the run's epochs=8"):
        check(dataclasses.replace(recipe, pruning=PruningRecipe(0.5, end=9.0)))
    with pytest.raises(ValueError, match=r"pruning.sparsity must lie in \[0, 1\)"):
        check(dataclasses.replace(recipe, pruning=PruningRecipe(1.0)))
    with pytest.raises(ValueError, match=r"pruning.keep: '\(' is no regular expression"):
        check(dataclasses.replace(recipe, pruning=PruningRecipe(0.5, keep=("(",))))
    with pytest.raises(ValueError, match="pruning does not go with unfreeze"):
        check(dataclasses.replace(recipe, pruning=PruningRecipe(0.5), freeze=("stem",), unfreeze=((1, "stem"),)))
    with pytest.raises(ValueError, match=r"pruning.keep='boddy' matches no part of the network"):
        flaxvid.run(dataclasses.replace(recipe, pruning=PruningRecipe(0.5, keep=("boddy",))), tmp_path / "run")
