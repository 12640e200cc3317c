"""Every config, with every argument, builds: recipe, network, task, optimizer, sampling; nothing is computed."""

import dataclasses
import importlib.util
import re
from pathlib import Path

import jax
import pytest

from flaxvid import trees
from flaxvid.data.sources.open import SOURCES
from flaxvid.train.groups import check_rules, group_factors
from flaxvid.train.limits import check
from flaxvid.train.optimizer import make_optimizer, make_schedule
from flaxvid.train.recipe import Recipe, to_json
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
    check(recipe)
    recipe = complete(recipe)
    assert recipe.data.name in SOURCES
    assert recipe.model.weights in ("", *KNOWN)
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


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_default_is_the_embedded_data_set(path):
    assert dataclasses.asdict(load(path).get_config()) == dataclasses.asdict(load(path).get_config("motion"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_an_unknown_argument_names_the_known_ones(path):
    with pytest.raises(ValueError, match="unknown data set 'mtion': this config has motion, ssv1"):
        load(path).get_config("mtion")


def test_configs_do_not_share_what_flags_change():
    get_config = load(CONFIGS[0]).get_config
    get_config().model.options["width"] = 1
    get_config().optimizer.learning_rate = 7.0
    assert get_config().model.options["width"] != 1
    assert get_config().optimizer.learning_rate != 7.0


@pytest.mark.parametrize(("name", "parameters"), [("tsm", 23_864_558), ("ffn", 24_010_158)])
def test_parameters_of_the_something_something_recipes(name, parameters):
    path = next(path for path in CONFIGS if path.stem == name)
    recipe = load(path).get_config("ssv2")
    task = recipe.task.make(make_model(recipe, 174))
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    leaves = [
        leaf for collection, tree in shapes.items() if collection.startswith("params") for leaf in jax.tree.leaves(tree)
    ]
    assert sum(leaf.size for leaf in leaves) == parameters


@pytest.mark.parametrize("name", ["ffn", "tsm"])
@pytest.mark.parametrize("dataset", ["ssv1", "ssv2"])
def test_the_papers_recipe(name, dataset):
    """arXiv 2303.14817, section 4.1, and the authors' code."""
    path = next(path for path in CONFIGS if path.stem == name)
    recipe = complete(load(path).get_config(dataset))
    optimizer = recipe.optimizer
    assert (recipe.model.name, recipe.model.image_size, recipe.model.dropout) == ("tsm_resnet50", 224, 0.5)
    assert (optimizer.name, optimizer.learning_rate, optimizer.momentum, optimizer.weight_decay) == (
        "sgd",
        0.01,
        0.9,
        5e-4,
    )
    assert (optimizer.schedule, optimizer.milestones, optimizer.warmup_epochs) == ("step", (20, 40), 0)
    assert (recipe.batch_size, recipe.epochs, recipe.data.clips.flip, optimizer.clip_norm) == (32, 50, False, 20)
    assert recipe.data.clips.scales == (1.0, 0.875, 0.75, 0.66)
    assert (recipe.task.label_smoothing, optimizer.ema, getattr(recipe.task, "weight", 1)) == (0, 0, 1)
    assert recipe.published


@pytest.mark.parametrize(
    ("name", "argument", "rate", "decay", "warmup", "batch", "epochs"),
    [
        ("slow", "kinetics400", 0.1, 1e-4, 34, 64, 196),
        ("slowfast", "kinetics400", 0.1, 1e-4, 34, 64, 196),
        ("slowfast", "kinetics400_4x16", 0.1, 1e-4, 34, 64, 196),
        ("x3d", "xs", 0.1, 5e-5, 35, 128, 300),
        ("x3d", "m", 0.1, 5e-5, 35, 128, 300),
        ("x3d", "l", 0.05, 5e-5, 35, 64, 256),
    ],
)
def test_pyslowfasts_recipes(name, argument, rate, decay, warmup, batch, epochs):
    """Its configs/Kinetics/*.yaml and config/defaults.py."""
    recipe = complete(load(next(path for path in CONFIGS if path.stem == name)).get_config(argument))
    optimizer = recipe.optimizer
    assert (recipe.batch_size, recipe.epochs) == (batch, epochs)
    assert (optimizer.learning_rate, optimizer.momentum, optimizer.weight_decay) == (rate, 0.9, decay)
    assert (optimizer.schedule, optimizer.warmup_epochs, optimizer.warmup_start) == ("cosine", warmup, 0.01)
    assert (optimizer.name, optimizer.cosine_from_start, optimizer.nesterov) == ("sgd", True, True)
    assert (optimizer.clip_norm, recipe.task.label_smoothing, recipe.model.dropout) == (0, 0, 0.5)
    assert recipe.model.options["zero_init"]
    recipe.model.options["depths"] = (1,)  # as good as all of them for what follows
    model = make_model(recipe, 400)
    shapes = jax.eval_shape(recipe.task.make(model).init, jax.random.key(0))
    _, decays = group_factors({"params": shapes["params"]}, optimizer.rules)
    flat = trees.flatten(decays)
    assert {path for path, factor in flat.items() if not factor} == {path for path in flat if "norm" in path}
    assert flat["params/head/classifier/bias"] == 1
    assert model.head.classifier_std == 0.01


def test_the_seeds_recipe():
    recipe = load(next(path for path in CONFIGS if path.stem == "tsm")).get_config("ssv2_cosine")
    optimizer = recipe.optimizer
    assert (recipe.batch_size, recipe.epochs, optimizer.name, optimizer.schedule) == (8, 50, "sgd", "cosine")
