"""Flags of a recipe's fields, and the list of what they mean."""

import re
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from flaxvid.models.registry import list_models
from flaxvid.tasks.frame_flexible import FfnRecipe
from flaxvid.tasks.supervised import SupervisedRecipe
from flaxvid.train.fields import walk
from flaxvid.train.flags import describe, explain, last_of_each, register_types
from flaxvid.train.recipe import FILLED, OLD_NAMES, DataRecipe, ModelRecipe, Recipe

CONFIGS = Path(__file__).parents[2] / "configs"


def parsed(*words, config="ffn.py"):
    """The recipe that a command line gives, as scripts/train.py reads it."""
    argv, values = last_of_each(["train.py", f"--config={CONFIGS / config}", *words]), flags.FlagValues()
    register_types()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    values(argv)
    return values.config


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_fields_are_overridden_by_flags(path):
    width = {"ts_cva": "backbone_options.width", "cnn_rnn": "hidden_dim"}.get(path.stem, "width")
    argument = {"domain": "source", "finetune": "all"}.get(path.stem, "motion")
    changes = {
        "model.dropout": 0.25,
        "task.frames": "(2, 32)",
        **({"model.options": "{'width': 24}"} if path.stem == "finetune" else {f"model.options.{width}": 24}),
        "optimizer.schedule": "constant",
        "data.clips.sampling": "dense",
        "data.clips.test_size": 72,
        "data.clips.augmentation.area": "(0.5, 1.0)",
    }
    recipe = parsed(*(f"--config.{name}={value}" for name, value in changes.items()), config=f"{path.name}:{argument}")
    assert (recipe.model.dropout, tuple(recipe.task.frames)) == (0.25, (2, 32))
    options = {**recipe.model.options, **recipe.model.options.get("backbone_options", {})}
    assert (options[width.rpartition(".")[-1]], recipe.optimizer.schedule) == (24, "constant")
    clips = recipe.data.clips
    assert (clips.sampling, clips.test_size, clips.augmentation.area) == ("dense", 72, (0.5, 1.0))


def test_an_empty_field_is_filled_and_a_filled_one_emptied():
    recipe = parsed("--config.model.image_size=96", "--config.data.clips.test_size=None", config="tsm.py:folder")
    assert (recipe.model.image_size, recipe.data.clips.test_size) == (96, None)
    assert parsed("--config.model.num_frames=None").model.num_frames is None


def test_a_flag_given_twice_replaces():
    words = [
        "--config.task.frames=(2, 4)",
        "--config.epochs",
        "3",
        "--config.task.frames",
        "(8, 16)",
        "--config.epochs=7",
    ]
    recipe = parsed(*words)
    assert (recipe.task.frames, recipe.epochs) == ((8, 16), 7)
    words = ["--config.data.clips.flip", "--config.batch_size=4", "--noconfig.data.clips.flip"]
    recipe = parsed(*words)
    assert (recipe.data.clips.flip, recipe.batch_size) == (False, 4)


def test_a_dict_is_given_whole():
    recipe = parsed("--config.model.options={'width': 8, 'depths': (1,)}")
    assert recipe.model.options == {"width": 8, "depths": (1,)}


@pytest.mark.parametrize("old", OLD_NAMES)
def test_a_flag_of_before_says_its_new_name(old):
    with pytest.raises(ValueError, match=f"^--config.{re.escape(old)} is --config.{re.escape(OLD_NAMES[old])} now$"):
        parsed(f"--config.{old}=1")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--config.task.name=supervised", "--config.task.name: each task has options of its own: take its config file"),
        ("--config.task=ffn", "--config.task: each task has options of its own: take its config file"),
        ("--config.data.clips=3", "--config.data.clips is .*: give .*, such as --config.data.clips.frames"),
        ("--epochs=3", "unknown flag --epochs: did you mean --config.epochs=3?"),
        ("--views=front", "unknown flag --views: did you mean --config.data.cameras=front?"),
        ("--dropuot=0.5", "unknown flag --dropuot: did you mean --config.model.dropout=0.5?"),
        ("--config.data.smapling=dense", "DataRecipe has no field 'smapling': valid ones are name, root"),
        (
            "--config.model.dropuot=3",
            "ModelRecipe has no field 'dropuot': valid ones are name, weights, num_frames.*; did you mean dropout?",
        ),
        ("--config.modl.dropout=0.3", "Recipe has no field 'modl': valid ones are model, data, task"),
        ("--config.model.options.zero_init=True", "the recipe has no entry 'zero_init': give the whole dict, such as"),
        ("--config.epochs=abc", "flag --config.epochs=abc: invalid literal for int"),
    ],
)
def test_wrong_flags_are_answered_in_one_line(word, message):
    with pytest.raises((ValueError, KeyError, flags.Error)) as error:
        parsed(word)
    text = explain(error.value, ["train.py", word])
    assert re.match(message, text)
    assert "\n" not in text


@pytest.mark.parametrize("name", list_models())
def test_every_field_and_option_is_listed_with_its_meaning(name):
    """A line for each: its flag or its entry, its value, and words."""
    task = FfnRecipe() if name.startswith("ts") else SupervisedRecipe()
    recipe = Recipe(ModelRecipe(name), DataRecipe(motion={"size": 48}), task)
    lines = list(describe(recipe))
    for line in lines:
        assert re.search(r"\S  +\S+ \S+", line), line
        assert "FrozenDict(" not in line
    listed = {line.split("=")[0].removeprefix("--config.") for line in lines if line.startswith("--")}
    assert listed == {field.path for field in walk(recipe)} - {*FILLED} | {"data.motion.size"}
    assert any(re.match("    'norm_epsilon': 1e-(05|06|12) ", line) for line in lines)
    assert any(line.startswith("    'num_frames': 32 ") for line in lines)  # of motion


def test_the_list_of_a_config(start_training):
    out, err = start_training("--help", "--config.epochs=7", tiny=False).communicate(timeout=120)
    assert err == ""
    assert re.search(r"--config.epochs=7 +passes over the training videos", out)
    assert re.search(r"--config.data.clips.interval=8 +Distance of frames in dense sampling", out)
