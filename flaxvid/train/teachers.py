"""The teachers of a distillation: read, fitted to the data's classes, and the same ones on every resume."""

import hashlib
import json
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flaxvid import trees
from flaxvid.adapt.surgery import arrange_head
from flaxvid.data.sources.class_names import find_classes
from flaxvid.data.sources.names import list_names
from flaxvid.models.video_model import VideoModel
from flaxvid.tasks.distil import DistilRecipe, Teacher
from flaxvid.tasks.task import Task
from flaxvid.train.trained import Trained, load
from flaxvid.train.workdir import has_results
from flaxvid.types import Classes, Variables, by_target
from flaxvid.writing import read_json

TEACHERS_FILE = "teachers.json"
"""The file of a distillation's folder that says who taught: weights, network, clips, and a digest of the weights."""


def load_teachers(recipe: Any) -> list[Trained]:
    """Loads the teachers of a task's recipe; another task has none.

    Raises:
        ValueError: a distillation names none, or a file cannot be read.
        FileNotFoundError: there is no such run or file.
    """
    if not isinstance(recipe, DistilRecipe):
        return []
    if not recipe.teachers:
        raise ValueError(
            "task.teachers is empty: name trained networks, as in --config.task.teachers=\"('runs/tsm-motion',)\""
        )
    models = recipe.teacher_models or [""] * len(recipe.teachers)
    return [_load(path, name) for path, name in zip(recipe.teachers, models, strict=True)]


def _load(path: str, name: str) -> Trained:
    trained = load(path, model=name)
    if name and trained.model.zoo_name != name:
        raise ValueError(
            f"task.teacher_models: expected {trained.model.zoo_name} for {path}, got {name}: correct it, or write '' "
            "where the file says it"
        )
    return trained


def make_task(recipe: Any, model: VideoModel, teachers: Sequence[Trained], classes: Classes) -> Task:
    """The task of a run, with its teachers.

    Args:
        recipe: the task's.
        model: the run's network, the student.
        teachers: of `load_teachers`.
        classes: of the data, in the order of the student's logits.

    Raises:
        ValueError: a teacher has other classes, takes other cameras, or cannot take clips of its frame count.
    """
    if not isinstance(recipe, DistilRecipe):
        return recipe.make(model)
    chosen = list(zip_longest(teachers, recipe.teacher_frames, recipe.teacher_sizes, recipe.teachers))
    return recipe.make(model, [_make_teacher(recipe, model, classes, *one) for one in chosen])


def _make_teacher(
    recipe: DistilRecipe,
    student: VideoModel,
    classes: Classes,
    trained: Trained,
    frames: int | None,
    size: int | None,
    path: str,
) -> Teacher:
    frames, size = frames or max(trained.frames), size or trained.recipe.model.image_size or 0
    if trained.model.cameras != student.cameras:
        mine, theirs = (", ".join(model.cameras) or "one video" for model in (student, trained.model))
        raise ValueError(f"expected teachers that see what the student sees, {mine}; {path} takes {theirs}")
    multiples = trained.model.multiple_of
    if any(side % multiple for side, multiple in zip((frames, size, size), multiples, strict=True)):
        raise ValueError(
            f"{path} takes clips whose frames, height and width are multiples of {multiples}, got {frames} frames of "
            f"{size} x {size}: change task.teacher_frames or task.teacher_sizes"
        )
    variables = trained.select(frames)
    if recipe.logit_weight:
        variables = arrange_head(variables, _columns(trained, classes, path))
    return Teacher(trained.model, variables, frames, size)


def _columns(trained: Trained, classes: Classes, path: str) -> dict[str, tuple[int, ...]]:
    """The teacher's number of each class of the data, for each target; names that it does not know are numbers."""
    theirs, columns = by_target(trained.classes), {}
    for target, wanted in by_target(classes).items():
        known = theirs.get(target, ())
        order = find_classes(wanted, known) if trained.named else tuple(range(len(wanted)))
        if None in order or len(known) != len(wanted):
            raise ValueError(
                f"expected teachers of the data's classes {list_names(wanted)}, got {list_names(known) or 'none'} in "
                f"{path}{f' for {target}' if target else ''}: take a teacher of these classes, or let it teach its "
                "features alone, with task.logit_weight=0 and task.feature_weight=1"
            )
        columns[target] = order
    return columns


def claim_teachers(task: Any, workdir: Path) -> None:
    """Writes teachers.json into a new work folder, or checks that an old run has the same teachers.

    They may lie in another folder; their weights, the order of their classes and their clips must be the same.

    Raises:
        ValueError: they are others now.
    """
    teachers: Sequence[Teacher] = getattr(task, "teachers", ())
    if not teachers:
        return
    mine = [
        {
            "weights": weights,
            "model": teacher.model.zoo_name,
            "frames": teacher.frames,
            "image_size": teacher.image_size,
            "digest": digest(teacher.variables),
        }
        for weights, teacher in zip(task.recipe.teachers, teachers, strict=True)
    ]
    file = workdir / TEACHERS_FILE
    if has_results(workdir):
        theirs = read_json(file, list)
        if [{**one, "weights": ""} for one in mine] != [{**one, "weights": ""} for one in theirs]:
            shown = [
                "; ".join("{weights}, {frames} x {image_size}, {digest}".format(**one) for one in who)
                for who in (theirs, mine)
            ]
            raise ValueError(
                f"expected the teachers of the run in {workdir} ({shown[0]}), got others ({shown[1]}): give them back, "
                "or give --workdir another folder"
            )
    file.write_text(json.dumps(mine, indent=2))  # every host writes the same
    if jax.process_index() == 0:
        for one in mine:
            print("teacher: {model} of {weights}, {frames} frames of {image_size} pixels, {digest}".format(**one))


def digest(variables: Variables) -> str:
    """A short digest of variables: paths, types, shapes and numbers."""
    total = hashlib.sha256()
    for path, leaf in sorted(trees.flatten(variables).items()):
        array = np.ascontiguousarray(leaf)
        total.update(f"{path} {array.dtype} {array.shape}".encode())
        total.update(array.tobytes())
    return total.hexdigest()[:16]
