import dataclasses
import json

import pytest

from flaxvid.train.recipe import (
    DataRecipe,
    ModelRecipe,
    OptimizerRecipe,
    Recipe,
    TaskRecipe,
    check,
    read_recipe,
    to_json,
)
from flaxvid.train.setup import make_model, make_task


def test_the_default_recipe_is_valid():
    check(Recipe())


def test_all_problems_are_said_at_once():
    recipe = Recipe(task=TaskRecipe("fn"), optimizer=OptimizerRecipe("adam", schedule="cos", ema=1.0), epochs=0)
    with pytest.raises(ValueError) as error:
        check(recipe)
    heading, *problems = str(error.value).splitlines()
    assert heading == "the recipe cannot run:"
    assert [line.split()[0] for line in problems] == [
        "task.name",
        "optimizer.name",
        "optimizer.schedule",
        "epochs",
        "optimizer.ema",
    ]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe(task=TaskRecipe("ffn", frames=(16,))), "FFN needs two frame counts or more"),
        (Recipe(task=TaskRecipe("supervised", frames=())), "task.frames is empty"),
        (Recipe(optimizer=OptimizerRecipe(accumulate=3)), "accumulate=3 must divide batch_size=32"),
        (Recipe(optimizer=OptimizerRecipe(accumulate=0)), "accumulate=0"),
        (Recipe(data=DataRecipe(max_broken=5.0)), r"data.max_broken must lie in \[0, 1\], got 5.0"),
        (Recipe(data=DataRecipe(repeats=3)), "data.repeats=3 must divide batch_size=32"),
        (Recipe(batch_size=0), "batch_size must be positive"),
    ],
)
def test_single_problems(recipe, message):
    with pytest.raises(ValueError, match=message):
        check(recipe)


def test_a_recipe_is_text(tmp_path):
    text = to_json(Recipe())
    assert json.loads(text)["task"]["frames"] == [4, 8, 16]
    assert json.loads(text).keys() == {field.name for field in dataclasses.fields(Recipe)}


def test_a_recipe_makes_its_model_and_task():
    recipe = Recipe(
        model=ModelRecipe("tsn_resnet18", num_frames=5, image_size=40, dropout=0.1, options={"width": 8}),
        task=TaskRecipe("ffn", (2, 6), weight=0.5, distil=False, alteration="zeros", private_norms=False),
    )
    model = make_model(recipe, 7)
    assert (model.clip.num_frames, model.clip.image_size, model.head.num_classes) == (5, 40, 7)
    assert (model.head.dropout, model.feature_dim) == (0.1, 64)
    task = make_task(recipe, model)
    assert (task.frames, task.weight, task.distil) == ((2, 6), 0.5, False)
    assert (task.flexible.alteration, task.flexible.private_norms) == ("zeros", False)
    recipe.task = TaskRecipe("supervised", (4, 8), sampling="mixed", share=0.75, label_smoothing=0.1)
    task = make_task(recipe, model)
    assert (task.frames, task.sampling, task.share, task.label_smoothing) == ((4, 8), "mixed", 0.75, 0.1)


@pytest.mark.parametrize("options", [{"num_classes": 3}, {"dropout": 0.2}])
def test_options_do_not_repeat_fields(options):
    with pytest.raises(ValueError, match=f"model.options repeats {next(iter(options))}"):
        make_model(Recipe(model=ModelRecipe(options=options)), 5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe\xff", "got a damaged file"),
        (b"", "got a damaged file"),
        (b'{"epochs": 5', "got a damaged file"),
        (b"[" * 100_000, "got a damaged file"),
        (b"[]", r"expected a JSON object in .*, got '\[\]'"),
        (b"null", "got 'None'"),
        (b'{"epoch": 5}', "Recipe has no field 'epoch': was it written by a newer version"),
        (b'{"model": {"nam": "x"}}', "ModelRecipe has no field 'nam'"),
        (b'{"model": []}', r"expected model of Recipe to be like dict, got \[\]"),
        (b'{"model": null}', "expected model of Recipe to be like dict, got None"),
        (b'{"epochs": "5"}', "expected epochs of Recipe to be like int, got '5'"),
        (b'{"freeze": "stem"}', "expected freeze of Recipe to be like tuple, got 'stem'"),
        (b'{"data": {"root": 3}}', "expected root of DataRecipe to be like str, got 3"),
    ],
)
def test_a_damaged_recipe_names_its_file_in_one_line(tmp_path, content, message):
    file = tmp_path / "recipe.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_recipe(tmp_path)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)
