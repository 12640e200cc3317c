import dataclasses
import functools
import json

import pytest

from flaxvid.data.clips.cut import ClipConfig
from flaxvid.tasks.frame_flexible import FfnRecipe
from flaxvid.tasks.supervised import SupervisedRecipe
from flaxvid.train.limits import check
from flaxvid.train.loop import run
from flaxvid.train.recipe import DataRecipe, ModelRecipe, OptimizerRecipe, Recipe, read_recipe, to_json
from flaxvid.train.setup import make_model


def test_the_default_recipe_is_valid():
    check(Recipe())


def test_all_problems_are_said_at_once():
    recipe = Recipe(optimizer=OptimizerRecipe("adam", schedule="cos", ema=1.0), epochs=0)
    recipe.data.clips.interval = 0
    with pytest.raises(ValueError) as error:
        check(recipe)
    heading, *problems = str(error.value).splitlines()
    assert heading == "the recipe cannot run:"
    assert [line.split()[0] for line in problems] == [
        "optimizer.name",
        "optimizer.schedule",
        "epochs",
        "optimizer.ema",
        "data.clips.interval:",
    ]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe(task=FfnRecipe(frames=(16,))), "task.frames: FFN needs two frame counts or more"),
        (Recipe(task=SupervisedRecipe(frames=(4, 4))), "task.frames must be distinct positive frame counts"),
        (Recipe(optimizer=OptimizerRecipe(accumulate=3)), "accumulate=3 must divide batch_size=32"),
        (Recipe(optimizer=OptimizerRecipe(accumulate=0)), "accumulate=0"),
        (Recipe(data=DataRecipe(max_broken=5.0)), r"data.max_broken must lie in \[0, 1\], got 5.0"),
        (Recipe(data=DataRecipe(clips=ClipConfig(repeats=3))), "data.clips.repeats=3 must divide batch_size=32"),
        (Recipe(batch_size=0), "batch_size must be positive"),
    ],
)
def test_single_problems(recipe, message):
    with pytest.raises(ValueError, match=message):
        check(recipe)


def changed(**values):
    """The default recipe with other values, ``optimizer__momentum=1.0``; ``task`` comes first if it is another."""
    recipe = Recipe()
    for name, value in values.items():
        *owners, field = name.split("__")
        setattr(functools.reduce(getattr, owners, recipe), field, value)
    return recipe


NAN, INF = float("nan"), float("inf")
REFUSED = {
    "epochs": (0, -1, 1.5, "abc", True, None),
    "batch_size": (0, -8, "32"),
    "eval_batch_size": (0, -1),
    "norm_groups": (0, -1, 10**9),
    "fsdp": (0, -1, 1.5),
    "tensor": (0, -1, "2"),
    "seed": (-1, 0.5, 1 << 31, 10**400),
    "keep": (0, -3),
    "checkpoint_every": (0,),
    "log_every": (0,),
    "eval_every": (-1,),
    "keep_every": (-1,),
    "eval_frames": ((0, 4), (4, 4), (4, -8), (4.5,), "4"),
    "freeze": (("body(",), (3,)),
    "model__num_frames": (0, -4),
    "model__image_size": (0, -1),
    "model__dropout": (-0.1, 1.0, 1.5, NAN, "0.5"),
    "model__dtype": ("float16", "float64", "half", ""),
    "model__remat": ("no",),
    "model__options": (
        {"classifier_std": NAN},
        {"backbone_options": {"dropout": 1.0}},
        3,
        {"backbone_options": {"dtype": "float16"}},
    ),
    "data__num_threads": (0, -1),
    "data__num_workers": (-1,),
    "data__fold": (-1,),
    "data__clips__test_size": (-1, 0, 100),
    "data__clips__frames": ((4, 8),),
    "data__clips__image_size": (112,),
    "data__clips__repeats": (0, -1, 3),
    "data__max_broken": (-0.1, 1.1, NAN),
    "data__clips__interval": (0, -8),
    "data__clips__clips": (0, -1),
    "data__clips__crops": (0, 2, -3),
    "data__clips__scales": ((), (0.0,), (1.5,), (NAN,), ("1",)),
    "data__clips__augmentation__area": ((0.5,), (0.5, 0.1), (0.0, 1.0), (0.1, 2.0)),
    "data__clips__augmentation__aspect": ((2.0, 1.0), (-1.0, 1.0), (0.5, INF)),
    "data__clips__augmentation__colour_jitter": ((0.1,), (0, 0, 0, 0.9), (-0.1, 0, 0, 0)),
    "data__clips__augmentation__randaugment": (-1,),
    "data__clips__augmentation__magnitude": (-1.0, 11.0, NAN),
    "data__clips__augmentation__deviation": (-0.5, NAN),
    "data__clips__sampling": ("dence",),
    "data__clips__short": ("repaet",),
    "data__missing": ("kept", ""),
    "data__clips__augmentation__crop": ("centre",),
    "task__frames": ((), (0, 4), (4, 4), (-4, 8), (16,), ("4", "8")),
    "task__weight": (-1.0, NAN, INF),
    "task__alteration": ("norml",),
    "task__label_smoothing": (-0.1, 1.0, 2.0, NAN),
    "task__mixup": (-0.2, NAN),
    "task__cutmix": (-1.0, INF),
    "task__erasing": (-0.1, 1.5, NAN),
    "task__target_weights": ({"actor": -1.0}, {"actor": NAN}, {"actor": "1"}),
    "optimizer__learning_rate": (-0.1, NAN, INF, "0.1", 10**400),
    "optimizer__momentum": (-0.9, 1.0, 1.1, NAN),
    "optimizer__b2": (-0.1, 1.0, NAN),
    "optimizer__weight_decay": (-1e-4, NAN),
    "optimizer__milestones": ((40, 20), (20, 20), (0, 10), (-5,), (1.5,)),
    "optimizer__warmup_epochs": (-1.0, 50.5, NAN, INF),
    "optimizer__clip_norm": (-1.0, NAN, INF),
    "optimizer__accumulate": (0, -2, 3),
    "optimizer__ema": (-0.1, 1.0, NAN),
    "optimizer__cosine_from_start": (True,),
    "optimizer__layer_decay": (-0.5, 0.0, 1.1, NAN),
    "optimizer__rules": (
        ((".*norm.*", -1.0, 0.0),),
        ((".*norm.*", 1.0, -1.0),),
        ((".*norm.*", 1.0, NAN),),
        (("norm(", 1.0, 0.0),),
        ((".*norm.*", 1.0),),
        ("norm",),
    ),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in REFUSED.items() for value in values])
def test_values_that_invert_or_void_training_are_refused(name, value):
    """One line for each, that names the field and shows what it is."""
    with pytest.raises(ValueError, match="the recipe cannot run") as error:
        check(changed(**{name: value}))
    (line,) = str(error.value).splitlines()[1:]
    assert name.rpartition("__")[2] in line
    assert isinstance(value, tuple | dict | bool) or str(value) in line


@pytest.mark.parametrize(
    ("name", "part", "kind"),
    [
        ("model", 5, "ModelRecipe"),
        (
            "task",
            "ffn",
            "SupervisedRecipe or a FfnRecipe or a MaskedRecipe or a DistilRecipe or a DomainRecipe",
        ),
        ("optimizer", None, "OptimizerRecipe"),
        ("data", Recipe(), "DataRecipe"),
        ("data__clips", (4, 8), "ClipConfig"),
    ],
)
def test_a_part_of_another_kind_is_one_problem(name, part, kind):
    name_of_flags = name.replace("__", ".")
    with pytest.raises(ValueError, match=f"cannot run:\n  {name_of_flags} must be a {kind}, got ") as error:
        check(changed(**{name: part}))
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    "options",
    [
        {"depths": 3},
        {"depths": "x"},
        {"width": -1},
        {"width": 0},
        {"width": "x"},
        {"shift_div": (1,)},
        {"bottleneck": 1},
    ],
)
def test_options_that_make_no_network_are_one_error(tmp_path, options):
    recipe = Recipe(ModelRecipe("tsm_resnet18", image_size=32, options=options), DataRecipe("folder", "nowhere"))
    with pytest.raises(ValueError, match=rf"^{next(iter(options))} must be [^\n]*, got [^\n]*$"):
        run(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "values",
    [
        {"task": SupervisedRecipe((4, 8, 16)), "task__sampling": "mix"},
        {"task": SupervisedRecipe((4, 8, 16)), "task__share": 0.0},
        {"task": SupervisedRecipe((4, 8, 16)), "task__share": 1.1},
        {"optimizer__nesterov": True, "optimizer__momentum": 0.0},
        {"optimizer__nesterov": True, "optimizer__name": "adamw"},
        {"optimizer__b2": 0.95, "optimizer__name": "sgd"},
        {"optimizer__warmup_epochs": 2, "optimizer__warmup_start": 0.5},
        {"task__mixup": 0.2, "batch_size": 1},
        {"norm_groups": 3},
        {"model__inflate": "mean"},
        {"norm_groups": 16, "optimizer__accumulate": 4},
        {"task__cutmix": 1.0, "batch_size": 8, "data__clips__repeats": 8},
        {"task": SupervisedRecipe((4, 8, 16)), "batch_size": 2},
        {"task": SupervisedRecipe((4, 8, 16)), "task__share": 0.97},
        {"task": SupervisedRecipe((4, 8, 16)), "batch_size": 16, "norm_groups": 8},
        {"task": SupervisedRecipe((4, 8, 16)), "batch_size": 2, "task__sampling": "mixed"},
    ],
)
def test_values_that_do_not_fit_together_are_refused(values):
    with pytest.raises(ValueError, match="the recipe cannot run") as error:
        check(changed(**values))
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize(
    "values",
    [
        {"epochs": 1},  # a short trial of a long recipe: its milestones lie beyond it
        {"epochs": 5, "optimizer__milestones": (2, 10)},
        {"optimizer__milestones": [20, 40], "task__frames": [4, 8]},  # as they come from a file
        {"optimizer__milestones": ()},
        {"optimizer__learning_rate": 0},
        {"optimizer__warmup_epochs": 50},
        {"optimizer__momentum": 0.0, "optimizer__clip_norm": 0},
        {"optimizer__name": "adamw", "optimizer__b2": 0.95},
        {"model__dtype": "bfloat16"},
        {"task": SupervisedRecipe((4, 8, 16)), "task__share": 1.0, "batch_size": 1},
        {"task": SupervisedRecipe((4, 8, 16)), "batch_size": 32, "norm_groups": 8},
        {"task": SupervisedRecipe((4, 8, 16)), "batch_size": 4, "optimizer__accumulate": 4},
        {"task__mixup": 0.2, "batch_size": 8, "data__clips__repeats": 4, "optimizer__accumulate": 8},
    ],
)
def test_values_that_train_are_not(values):
    check(changed(**values))


def test_a_misspelt_field_is_named():
    recipe = changed()
    recipe.data.clips.shrt, recipe.colour = "repeat", "red"  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match="cannot run") as error:
        check(recipe)
    assert [line.strip() for line in str(error.value).splitlines()[1:]] == [
        "colour is no field of Recipe: leave it out",
        "data.clips.shrt is no field of ClipConfig: write short",
    ]


def test_float16_says_what_to_take():
    with pytest.raises(
        ValueError, match=r'model.dtype must be "float32" or "bfloat16", got \'float16\': nothing scales the loss'
    ):
        check(changed(model__dtype="float16"))


def test_a_wrong_type_hides_no_other_problem():
    with pytest.raises(ValueError, match="cannot run") as error:
        check(changed(epochs="abc", optimizer__momentum=2.0, task__frames="4"))
    fields = [line.split()[0] for line in str(error.value).splitlines()[1:]]
    assert fields == ["epochs", "task.frames", "optimizer.momentum"]


def test_all_problems_of_clips_are_said_at_once():
    with pytest.raises(ValueError, match="cannot run") as error:
        check(
            changed(
                data__clips__interval=0,
                data__clips__scales=(2.0,),
                data__clips__crops=2,
                data__clips__augmentation__magnitude=20.0,
            )
        )
    fields = [line.split()[0] for line in str(error.value).splitlines()[1:]]
    assert fields == [
        "data.clips.scales:",
        "data.clips.interval:",
        "data.clips.crops:",
        "data.clips.augmentation.magnitude:",
    ]


def test_a_recipe_is_text(tmp_path):
    text = to_json(Recipe())
    assert json.loads(text)["task"]["name"] == "ffn"
    assert json.loads(text)["task"]["frames"] == [4, 8, 16]
    assert json.loads(text).keys() == {field.name for field in dataclasses.fields(Recipe)}


def test_a_recipe_makes_its_model_and_task():
    recipe = Recipe(
        model=ModelRecipe("tsn_resnet18", num_frames=5, image_size=40, dropout=0.1, options={"width": 8}),
        task=FfnRecipe((2, 6), weight=0.5, distil=False, alteration="zeros", private_norms=False),
    )
    model = make_model(recipe, 7)
    assert (model.clip.num_frames, model.clip.image_size, model.head.num_classes) == (5, 40, 7)
    assert (model.head.dropout, model.feature_dim) == (0.1, 64)
    task = recipe.task.make(model)
    assert (task.frames, task.recipe.weight, task.recipe.distil) == ((2, 6), 0.5, False)
    assert (task.flexible.alteration, task.flexible.private_norms) == ("zeros", False)
    recipe.task = SupervisedRecipe((4, 8), sampling="mixed", share=0.75, label_smoothing=0.1)
    task = recipe.task.make(model)
    assert (task.frames, task.recipe) == ((4, 8), recipe.task)


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
        (b'{"epoch": 5}', "Recipe has no field 'epoch': if a newer version wrote it, update flaxvid"),
        (b'{"model": {"nam": "x"}}', "ModelRecipe has no field 'nam'"),
        (b'{"model": []}', r"expected model of Recipe to be like dict, got \[\]"),
        (b'{"model": null}', "expected model of Recipe to be like dict, got None"),
        (b'{"epochs": "5"}', "expected epochs of Recipe to be like int, got '5'"),
        (b'{"freeze": "stem"}', "expected freeze of Recipe to be like tuple, got 'stem'"),
        (b'{"data": {"root": 3}}', "expected root of DataRecipe to be like str, got 3"),
        (b'{"data": {"clips": {"short": 3}}}', "expected short of ClipConfig to be like str, got 3"),
        (
            b'{"task": {"frames": [4]}}',
            "expected the name of task as one of supervised, ffn, masked, distil, domain, got None",
        ),
    ],
)
def test_a_damaged_recipe_names_its_file_in_one_line(tmp_path, content, message):
    file = tmp_path / "recipe.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_recipe(tmp_path)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)
