"""Real runs of distillation on coloured videos: the teacher is a run or a file, and stays the same one on resume."""

import dataclasses
import json
import shutil

import chex
import jax
import numpy as np
import pytest

import flaxvid
from flaxvid.models.registry import create_tiny
from flaxvid.tasks.distil import DistilRecipe
from flaxvid.train import session
from flaxvid.train.checkpoint import restore_variables
from flaxvid.train.limits import check
from flaxvid.train.network import save
from flaxvid.train.recipe import read_recipe
from flaxvid.train.setup import make_model
from flaxvid.train.teachers import load_teachers, make_task
from flaxvid.train.trained import load

CLASSES = ("blue", "green", "red")


@pytest.fixture(scope="module")
def recipe(colour_recipe, colour_run):
    """Eight steps of six clips of one frame, smaller than the teacher's two, for a student that is half as wide."""
    options = {**colour_recipe.model.options, "width": 4}
    return dataclasses.replace(
        colour_recipe,
        model=dataclasses.replace(colour_recipe.model, image_size=24, options=options),
        data=dataclasses.replace(colour_recipe.data, validation_split="test"),
        task=DistilRecipe((1,), teachers=(str(colour_run),), feature_weight=0.5),
        epochs=2,
        eval_frames=(1,),
        log_every=1,
    )


@pytest.fixture(scope="module")
def distilled(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "distilled"
    return folder, flaxvid.run(recipe, folder)


def test_a_run_leaves_a_student_and_says_who_taught_it(recipe, distilled, colour_run):
    folder, rows = distilled
    assert [row["frames"] for row in rows] == [1]
    assert set(restore_variables(folder)) == {"params", "batch_stats", "params_projection"}
    (teacher,) = json.loads((folder / "teachers.json").read_text())
    assert teacher == {
        "weights": str(colour_run),
        "model": "tsm_resnet18",
        "frames": 2,
        "image_size": 32,
        "digest": teacher["digest"],
    }
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(row["train/teacher_accuracy"] == 1 for row in logged if "train/loss" in row)
    trained = load(folder)
    assert trained.frames == (1,)
    assert trained.select(1)["params"]["stem"]["conv1"]["kernel"].shape[-1] == 4
    assert dataclasses.asdict(read_recipe(folder).task) == dataclasses.asdict(recipe.task)


def test_a_run_that_was_cut_short_ends_the_same_with_the_teacher_in_another_place(
    recipe, distilled, colour_run, tmp_path, monkeypatch
):
    folder, rows = distilled

    def fail(self, step, state):
        if step:
            raise RuntimeError("cut short")

    with monkeypatch.context() as patched:
        patched.setattr(session.Session, "evaluate_if_due", fail)
        with pytest.raises(RuntimeError, match="cut short"):
            flaxvid.run(recipe, tmp_path / "run")
    shutil.copytree(colour_run, tmp_path / "moved")
    moved = dataclasses.replace(recipe.task, teachers=(str(tmp_path / "moved"),))
    assert flaxvid.run(dataclasses.replace(recipe, task=moved), tmp_path / "run") == rows
    chex.assert_trees_all_equal(restore_variables(folder), restore_variables(tmp_path / "run"), strict=True)


@pytest.mark.parametrize("change", [{"teacher_frames": (1,)}, {"teachers": "other"}])
def test_another_teacher_is_refused(recipe, distilled, colour_run, tmp_path, change):
    if "teachers" in change:
        trained = load(colour_run)
        other = jax.tree.map(lambda leaf: leaf + 1e-3, trained.variables)
        save(dataclasses.replace(trained, variables=other), tmp_path / "other.safetensors")
        change = {"teachers": (str(tmp_path / "other.safetensors"),)}
    changed = dataclasses.replace(recipe, task=dataclasses.replace(recipe.task, **change))
    with pytest.raises(ValueError, match=r"expected the teachers of the run in .* got others .*give them back"):
        flaxvid.run(changed, distilled[0])


def task_of(recipe, classes, *teachers, **options):
    recipe = dataclasses.replace(recipe.task, **options)
    return make_task(recipe, create_tiny("x3d_s", num_classes=len(classes)), teachers or load_teachers(recipe), classes)


def test_a_teachers_classes_are_put_into_the_datas_order(recipe, colour_run, clip):
    trained = load(colour_run)
    assert trained.classes == CLASSES
    (teacher,) = task_of(recipe, ("red", "blue", "green")).teachers
    video = clip(2, 2, 32, 32)
    ours, theirs = (teacher.model.apply(variables, video) for variables in (teacher.variables, trained.select(2)))
    np.testing.assert_array_equal(ours, np.asarray(theirs)[:, [2, 0, 1]])


def test_a_teacher_of_other_classes_teaches_features_alone(recipe):
    with pytest.raises(ValueError, match=r"expected teachers of the data's classes .*cat.*task.logit_weight=0"):
        task_of(recipe, ("red", "green", "cat"))
    (teacher,) = task_of(recipe, ("red", "green", "cat"), logit_weight=0.0).teachers
    assert teacher.frames == 2


def test_a_torch_file_teaches(recipe, colour_run, tmp_path):
    from safetensors.numpy import save_file

    network = create_tiny("slow_r50", num_classes=3)
    variables = network.init(jax.random.key(0), np.zeros((1, 4, 32, 32, 3), np.uint8))
    overrides = {name: value for name, value in network.overrides.items() if name != "num_classes"}
    save_file(flaxvid.to_torch("slow_r50", variables, overrides=network.overrides), tmp_path / "slow.safetensors")
    with pytest.raises(ValueError, match="name the network of a torch file"):
        load_teachers(DistilRecipe(teachers=(str(tmp_path / "slow.safetensors"),)))
    trained = load(tmp_path / "slow.safetensors", model="slow_r50", overrides=overrides)
    options = {"teachers": (str(colour_run), "slow"), "teacher_sizes": (32, 24), "teacher_frames": (2, 4)}
    first, second = task_of(recipe, CLASSES, load(colour_run), trained, **options).teachers
    assert (first.frames, first.image_size, second.frames, second.image_size) == (2, 32, 4, 24)
    chex.assert_trees_all_close(second.variables, dict(variables))


def test_clips_that_a_teacher_cannot_take(recipe):
    network = create_tiny("videomae_base", num_classes=3)
    trained = flaxvid.Trained(network, network.init(jax.random.key(0), np.zeros((1, 4, 32, 32, 3), np.uint8)))
    with pytest.raises(ValueError, match=r"multiples of \(2, 8, 8\), got 3 frames of 32 x 32"):
        task_of(recipe, CLASSES, trained, teachers=("mae",), teacher_frames=(3,))
    cameras = create_tiny("ts_cva", num_classes=3)
    with pytest.raises(ValueError, match="expected teachers that see what the student sees"):
        make_task(dataclasses.replace(recipe.task, teachers=("mae",)), cameras, [trained], CLASSES)


def test_recipes_that_cannot_run(recipe):
    with pytest.raises(ValueError, match=r"task.temperature must be positive"):
        check(dataclasses.replace(recipe, task=dataclasses.replace(recipe.task, temperature=0.0)))
    with pytest.raises(ValueError, match=r"task.teachers is empty: name trained networks"):
        load_teachers(DistilRecipe())
    assert make_model(recipe, 3).clip.image_size == 24
    with pytest.raises(FileNotFoundError):
        flaxvid.run(dataclasses.replace(recipe, task=DistilRecipe(teachers=("no/such/run",))), "nowhere")
