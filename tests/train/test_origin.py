"""A recipe's network is made as its starting weights imply, unless the recipe says otherwise."""

import dataclasses
import pickle
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import flaxvid
from flaxvid.train.checkpoint import Checkpoints
from flaxvid.train.origin import with_implied
from flaxvid.train.recipe import DataRecipe, ModelRecipe, Recipe, to_json
from flaxvid.train.start import load_start
from flaxvid.train.state import TrainState
from flaxvid.train.trained import load
from flaxvid.weights.native import WeightsInfo, save_variables

OPTIONS = {"width": 8, "depths": (2, 1)}


def implied(recipe):
    return with_implied(recipe, load_start(recipe, 3))


@pytest.fixture(scope="module")
def variables():
    model = flaxvid.create_model("tsm_resnet101", num_classes=3, shift_every=2, **OPTIONS)
    return jax.jit(model.init)(jax.random.key(0), np.zeros((1, 2, 32, 32, 3), np.uint8))


@pytest.fixture
def recipe(variables, tmp_path):
    file = tmp_path / "tsm.safetensors"
    save_file(flaxvid.to_torch("tsm_resnet101", variables, "tsm", overrides={"shift_every": 2}), file)
    return Recipe(ModelRecipe("tsm_resnet101", str(file), options=OPTIONS))


def test_what_a_torch_file_implies_is_added_and_said(recipe, capsys):
    made = implied(recipe)
    assert made.model.options == {**OPTIONS, "shift_every": 2}
    assert recipe.model.options == OPTIONS
    assert capsys.readouterr().out == f"{recipe.model.weights}: implies shift_every=2, which tsm_resnet101 gets\n"
    assert implied(made) == made  # as on resume
    assert not capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*left out")
def test_a_recipe_names_the_part_of_a_file(recipe, tmp_path):
    network = load_file(recipe.model.weights)
    content = {"model": {key: tensor + 1 for key, tensor in network.items()}, "ema": network}
    whole = load_start(recipe, 3)
    recipe.model.weights = str(tmp_path / "two.pth")
    Path(recipe.model.weights).write_bytes(pickle.dumps(content, 4))
    with pytest.raises(ValueError, match="got 'model' and 'ema': choose by part="):
        load_start(recipe, 3)
    recipe.model.part = "ema"
    chex.assert_trees_all_equal(load_start(recipe, 3).variables, whole.variables)


def test_the_recipe_has_the_last_word(recipe, capsys):
    recipe.model.options = {**OPTIONS, "shift_every": 1}
    assert implied(recipe) == recipe
    assert "implies shift_every=2, but tsm_resnet101 gets the recipe's 1" in capsys.readouterr().out


def test_files_of_ours_imply_what_they_say(variables, tmp_path, capsys):
    file = tmp_path / "w.safetensors"
    overrides = {
        **OPTIONS,
        "shift_every": 2,
        "mean": (0.4, 0.5, 0.6),
        "num_classes": 3,
        "num_frames": 4,
        "dropout": 0.1,
    }
    save_variables(file, variables, WeightsInfo("tsm_resnet101", overrides))
    made = implied(Recipe(ModelRecipe("tsm_resnet101", str(file), options=OPTIONS)))
    assert made.model.options == {**OPTIONS, "shift_every": 2, "mean": [0.4, 0.5, 0.6]}
    assert "depths" not in capsys.readouterr().out
    other = Recipe(ModelRecipe("tsm_resnet152", str(file), options=OPTIONS))
    assert implied(other) == other


def test_a_backbone_gets_it_too(recipe):
    options = {"backbone": "tsm_resnet101", "backbone_options": OPTIONS}
    model = dataclasses.replace(recipe.model, name="ts_cva", options=options)
    made = implied(Recipe(model, DataRecipe(cameras=("front", "left"))))
    assert made.model.options == {**options, "backbone_options": {**OPTIONS, "shift_every": 2}}


def test_no_weights_imply_nothing(recipe):
    plain = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, weights=""))
    assert implied(plain) == plain


def test_a_run_implies_what_its_recipe_says(variables, recipe, tmp_path, capsys):
    run = tmp_path / "run"
    with Checkpoints(run / "checkpoints") as checkpoints:
        checkpoints.save(1, TrainState(np.zeros((), np.int32), variables, ()))
    options = {**OPTIONS, "shift_every": 2, "norm_epsilon": 1e-3, "classifier_std": 0.1}
    (run / "recipe.json").write_text(to_json(Recipe(ModelRecipe("tsm_resnet101", options=options))))
    recipe.model.weights = str(run)
    assert implied(recipe).model.options == {**OPTIONS, "shift_every": 2, "norm_epsilon": 1e-3}
    assert capsys.readouterr().out.splitlines() == [
        f"{run}: implies {option}, which tsm_resnet101 gets" for option in ("shift_every=2", "norm_epsilon=0.001")
    ]
    recipe.model.options = {**OPTIONS, "shift_every": 2, "norm_epsilon": 1e-5}
    assert implied(recipe) == recipe
    assert "implies norm_epsilon=0.001, but tsm_resnet101 gets the recipe's 1e-05" in capsys.readouterr().out


def test_a_run_and_its_evaluation_have_what_the_file_implies(recipe, colour_recipe, tmp_path):
    model = dataclasses.replace(
        colour_recipe.model, name="tsm_resnet101", weights=recipe.model.weights, options=OPTIONS
    )
    colours = dataclasses.replace(colour_recipe, model=model, epochs=1)
    rows = flaxvid.run(colours, tmp_path / "run")
    assert load(tmp_path / "run").model.body.shift_every == 2
    assert flaxvid.run(colours, tmp_path / "run") == rows  # the finished run is the same recipe's
