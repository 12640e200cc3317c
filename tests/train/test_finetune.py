"""configs/finetune.py: class folders on a network that is trained already, by one command."""

import dataclasses
import re
import runpy
from pathlib import Path

import chex
import numpy as np
import pytest
from safetensors.numpy import save_file

import flaxvid
from flaxvid import trees
from flaxvid.train.checkpoint import restore_variables
from flaxvid.train.origin import with_network
from flaxvid.train.recipe import ModelRecipe, OptimizerRecipe, read_recipe
from flaxvid.train.trained import load

CONFIG = Path(__file__).parents[2] / "configs" / "finetune.py"


@pytest.fixture(scope="module")
def tuned(make_videos, colour_recipe, tmp_path_factory):
    """A recipe of configs/finetune.py in small, on two classes that the network does not know."""
    root = make_videos(tmp_path_factory.mktemp("mine"), {"ruby": "red", "snow": "white"}, 6, 5)
    get_config = runpy.run_path(str(CONFIG))["get_config"]

    def make(way, weights, name=""):
        recipe = get_config(way)
        recipe.model = ModelRecipe(name, str(weights))
        recipe.data.root = str(root)
        recipe.batch_size, recipe.eval_batch_size = 4, 4
        recipe.optimizer.warmup_epochs = 0.0
        recipe.epochs = 2
        recipe.unfreeze = tuple((1, pattern) for _, pattern in recipe.unfreeze)
        return recipe

    return make


def test_one_command_on_class_folders(colour_run, make_videos, start_script, tmp_path):
    root = make_videos(tmp_path / "mine", {"ruby": "red", "snow": "white"}, 6, 5)
    flags = {"model.weights": colour_run, "data.root": root, "epochs": 3, "batch_size": 4, "log_every": 1}
    given = [f"--config.{name}={value}" for name, value in flags.items()]
    run = start_script(
        "scripts/train.py", "--config", "configs/finetune.py", *given, "--workdir", str(tmp_path / "run")
    )
    out, err = run.communicate(timeout=300)
    assert run.returncode == 0, err[-2000:]
    out = out.replace("\n", " ")
    assert re.search(rf"{colour_run}: the network is tsm_resnet18 with {{.*'width': 8", out)
    assert "the head starts anew: its classes are blue, green, red, the data's are ruby, snow" in out
    recipe = read_recipe(tmp_path / "run")
    assert (recipe.model.name, recipe.model.num_frames, recipe.model.image_size) == ("tsm_resnet18", 2, 32)
    assert load(tmp_path / "run").classes == ("ruby", "snow")


@pytest.mark.parametrize("way", ["head", "gradual", "l2_sp"])
def test_the_other_ways_from_a_file_of_ours(tuned, way, colour_run, tmp_path, monkeypatch):
    monkeypatch.setenv("FLAXVID_CACHE", str(tmp_path / "cache"))
    flaxvid.save(load(colour_run), tmp_path / "mine.safetensors")
    flaxvid.run(tuned(way, tmp_path / "mine.safetensors"), tmp_path / "run")
    before, after = restore_variables(colour_run), restore_variables(tmp_path / "run")
    assert after["params"]["head"]["classifier"]["bias"].shape == (2,)
    bodies = [{part: tree["params"][part] for part in ("stem", "body")} for tree in (before, after)]
    if way == "head":
        chex.assert_trees_all_equal(*bodies)
        assert [*(tmp_path / "cache" / "features").glob("*/[0-9a-f]*")]
    else:
        chex.assert_trees_all_close(*bodies, atol=0.2)
        with pytest.raises(AssertionError):
            chex.assert_trees_all_equal(*bodies)


def test_layers_learn_at_their_own_rates_parameter_by_parameter(tuned, colour_run, tmp_path):
    """One step of a whole run by SGD, with the decay of rates and without: each move is the layer's factor of it."""
    moves, start = {}, trees.flatten(restore_variables(colour_run)["params"])
    for decay in (1.0, 0.5):
        recipe = tuned("all", colour_run)
        recipe.optimizer = OptimizerRecipe(
            "sgd", 100.0, 0.0, 0.0, "constant", clip_norm=0.0, rules=(), layer_decay=decay
        )
        recipe.epochs, recipe.batch_size = 1, 10
        flaxvid.run(recipe, tmp_path / f"{decay}")
        after = trees.flatten(restore_variables(tmp_path / f"{decay}")["params"])
        moves[decay] = {path: after[path] - start[path] for path in after if not path.startswith("head/classifier")}
    factors = {"stem": 0.5**2, "layer1_0": 0.5}
    assert len(moves[1.0]) == 9
    for path, move in moves[1.0].items():
        (layer,) = factors.keys() & {*path.split("/")}
        assert np.any(move), path
        np.testing.assert_allclose(moves[0.5][path], factors[layer] * move, rtol=1e-4, atol=1e-7, err_msg=path)


def test_a_torch_file_needs_the_name_of_its_network(tuned, random_variables, tmp_path):
    model = flaxvid.create_model("tsn_resnet18", num_classes=3, width=8)
    save_file(flaxvid.to_torch("tsn_resnet18", random_variables(model)), tmp_path / "torch.safetensors")
    with pytest.raises(ValueError, match=r"does not say which network it is of.*--config.model.name=tsm_resnet50"):
        with_network(tuned("all", tmp_path / "torch.safetensors"))
    recipe = tuned("all", tmp_path / "torch.safetensors", "tsn_resnet18")
    sizes = {"num_frames": 2, "image_size": 32, "options": {"width": 8}}
    recipe.model = dataclasses.replace(recipe.model, **sizes)
    flaxvid.run(dataclasses.replace(recipe, epochs=1), tmp_path / "run")
    assert load(tmp_path / "run").classes == ("ruby", "snow")


def test_neither_network_nor_weights(tuned):
    with pytest.raises(
        ValueError, match=r"the recipe names neither a network nor weights: --config.model.weights=PATH"
    ):
        with_network(tuned("all", ""))
    with pytest.raises(FileNotFoundError):
        with_network(tuned("all", "no/such/run"))
