"""Every config, with every argument, builds: recipe, network, task, optimizer, sampling; nothing is computed."""

import dataclasses
import importlib.util
import re
from pathlib import Path

import jax
import pytest

from flaxvid import trees
from flaxvid.data.sources.open import SOURCES
from flaxvid.train.groups import check_rules, group_factors, layer_factors
from flaxvid.train.limits import check
from flaxvid.train.optimizer import make_optimizer, make_schedule
from flaxvid.train.recipe import ModelRecipe, Recipe, to_json
from flaxvid.train.setup import clip_config, complete, make_model
from flaxvid.train.state import create_state, trainable
from flaxvid.weights.download import KNOWN

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))
CLASSES = {"ssv1": 174, "ssv2": 174, "kinetics400": 400, "hmdb51": 51, "ucf101": 101}


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arguments(path):
    """The arguments that a config's own docstring names."""
    text = re.search(r"Arguments: (.*?)\.\n", load(path).__doc__, re.DOTALL)[1]
    return re.findall(r"\w+", re.sub(r"\(default\)| is .*", "", text.replace("\n", " ")))


OWN_DATA = ("domain", "finetune")
"""Configs whose arguments are no data sets."""
EMBEDDED = [path for path in CONFIGS if path.stem not in OWN_DATA]

CASES = [(path, argument) for path in CONFIGS for argument in arguments(path)]
IDS = [f"{path.stem}:{argument}" for path, argument in CASES]


def test_the_issues_arguments_are_there():
    names = {path.stem: arguments(path) for path in CONFIGS}
    common = {"motion", "ssv1", "ssv2", "kinetics400", "hmdb51", "ucf101", "folder"}
    assert common <= set(names["ffn"])
    assert common | {"ssv2_cosine"} <= set(names["tsm"])


@pytest.mark.parametrize(("path", "argument"), CASES, ids=IDS)
def test_every_config_builds(path, argument):
    recipe = load(path).get_config(argument)
    assert isinstance(recipe, Recipe)
    if path.stem == "finetune":  # the weights say the network
        recipe.model = ModelRecipe("tsm_resnet18", str(path))
    check(recipe)
    recipe = complete(recipe)
    assert recipe.data.name in SOURCES
    assert recipe.model.weights in ("", str(path), *KNOWN)
    for frames in (recipe.task.frames, recipe.eval_frames):
        clip_config(recipe, frames)
    model = make_model(recipe, CLASSES.get(recipe.data.name, 9))
    task = recipe.task.make(model)
    optimizer = make_optimizer(recipe.optimizer)
    assert make_schedule(recipe.optimizer, recipe.epochs, 100)(0) >= 0
    ema = recipe.optimizer.ema > 0
    state = jax.eval_shape(lambda key: create_state(task.init(key), optimizer, ema=ema), jax.random.key(0))
    assert task.frames[-1] == model.clip.num_frames
    check_rules(trainable(state.variables), recipe.optimizer.rules)
    to_json(recipe)


@pytest.mark.parametrize("path", EMBEDDED, ids=lambda path: path.stem)
def test_the_default_is_the_embedded_data_set(path):
    assert dataclasses.asdict(load(path).get_config()) == dataclasses.asdict(load(path).get_config("motion"))


@pytest.mark.parametrize("path", EMBEDDED, ids=lambda path: path.stem)
def test_an_unknown_argument_names_the_known_ones(path):
    with pytest.raises(ValueError, match="unknown data set 'mtion': this config has motion, ssv1"):
        load(path).get_config("mtion")


def config(name):
    return load(next(path for path in CONFIGS if path.stem == name))


def test_configs_do_not_share_what_flags_change():
    get_config = config("ffn").get_config
    get_config().model.options["width"] = 1
    get_config().optimizer.learning_rate = 7.0
    assert get_config().model.options["width"] != 1
    assert get_config().optimizer.learning_rate != 7.0


def test_parameters_of_the_something_something_recipe():
    recipe = config("ffn").get_config("ssv2")
    shapes = jax.eval_shape(recipe.task.make(make_model(recipe, 174)).init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(trainable(shapes))) == 24_010_158


@pytest.mark.parametrize(("name", "argument"), [("slow", "kinetics400"), ("slowfast", "kinetics400"), ("x3d", "m")])
def test_pyslowfasts_recipes_decay_all_but_norms(name, argument):
    """Its configs/Kinetics/*.yaml and config/defaults.py; the classifier's bias decays, too."""
    recipe = complete(config(name).get_config(argument))
    assert recipe.model.options["zero_init"]
    recipe.model.options["depths"] = (1,)  # as good as all of them for what follows
    model = make_model(recipe, 400)
    shapes = jax.eval_shape(recipe.task.make(model).init, jax.random.key(0))
    _, decays = group_factors({"params": shapes["params"]}, recipe.optimizer.rules)
    flat = trees.flatten(decays)
    assert {path for path, factor in flat.items() if not factor} == {path for path in flat if "norm" in path}
    assert flat["params/head/classifier/bias"] == 1
    assert model.head.classifier_std == 0.01


@pytest.mark.parametrize("name", ["vivit", "timesformer"])
def test_a_fine_tuned_transformer_learns_the_slower_the_deeper_a_layer_lies(name):
    recipe = complete(config(name).get_config("folder"))
    model = make_model(recipe, 9)
    shapes = jax.eval_shape(recipe.task.make(model).init, jax.random.key(0))
    factors = trees.flatten(layer_factors({"params": shapes["params"]}, model.layers, recipe.optimizer.layer_decay))
    assert factors["params/stem/patch/kernel"] == factors["params/body/positions"] == pytest.approx(0.75**13)
    assert factors["params/body/block_0/mlp/fc1/kernel"] == pytest.approx(0.75**12)
    assert factors["params/body/block_11/mlp/fc1/kernel"] == pytest.approx(0.75)
    assert factors["params/head/classifier/kernel"] == 1


@pytest.mark.parametrize("name", ["vivit", "timesformer"])
def test_a_probe_trains_the_attentive_head_alone(name):
    recipe = complete(config(name).get_config("probe"))
    state = jax.eval_shape(recipe.task.make(make_model(recipe, 9)).init, jax.random.key(0))
    trained = [path for path in trees.flatten(trainable(state)) if not trees.lies_in(path, recipe.freeze)]
    assert {path.split("/")[2] for path in trained} == {"attention_0", "classifier"}
