"""A recipe's network is made as its starting weights imply, unless the recipe says otherwise."""

import dataclasses

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import flaxvid
from flaxvid.train.origin import with_implied
from flaxvid.train.recipe import DataRecipe, ModelRecipe, Recipe
from flaxvid.train.trained import load
from flaxvid.weights.native import WeightsInfo, save_variables

OPTIONS = {"width": 8, "depths": (2, 1)}


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
    made = with_implied(recipe)
    assert made.model.options == {**OPTIONS, "shift_every": 2}
    assert recipe.model.options == OPTIONS
    assert capsys.readouterr().out == f"{recipe.model.weights}: implies shift_every=2, which tsm_resnet101 gets\n"
    assert with_implied(made) == made  # as on resume
    assert not capsys.readouterr().out


def test_the_recipe_has_the_last_word(recipe, capsys):
    recipe.model.options = {**OPTIONS, "shift_every": 1}
    assert with_implied(recipe) == recipe
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
    made = with_implied(Recipe(ModelRecipe("tsm_resnet101", str(file), options=OPTIONS)))
    assert made.model.options == {**OPTIONS, "shift_every": 2, "mean": [0.4, 0.5, 0.6]}
    assert "depths" not in capsys.readouterr().out
    other = Recipe(ModelRecipe("tsm_resnet152", str(file), options=OPTIONS))
    assert with_implied(other) == other


def test_a_backbone_gets_it_too(recipe):
    options = {"backbone": "tsm_resnet101", "backbone_options": OPTIONS}
    model = dataclasses.replace(recipe.model, name="ts_cva", options=options)
    made = with_implied(Recipe(model, DataRecipe(cameras=("front", "left"))))
    assert made.model.options == {**options, "backbone_options": {**OPTIONS, "shift_every": 2}}


def test_a_run_and_no_weights_imply_nothing(recipe, tmp_path):
    for weights in ("", str(tmp_path)):
        plain = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, weights=weights))
        assert with_implied(plain) == plain


def test_a_run_and_its_evaluation_have_what_the_file_implies(recipe, colour_recipe, tmp_path):
    model = dataclasses.replace(
        colour_recipe.model, name="tsm_resnet101", weights=recipe.model.weights, options=OPTIONS
    )
    colours = dataclasses.replace(colour_recipe, model=model, epochs=1)
    rows = flaxvid.run(colours, tmp_path / "run")
    assert load(tmp_path / "run").model.body.shift_every == 2
    assert flaxvid.run(colours, tmp_path / "run") == rows  # the finished run is the same recipe's
