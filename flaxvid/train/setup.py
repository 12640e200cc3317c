"""Makes the data, the network and the clips that a recipe names."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from flaxvid.data.clips.cut import ClipConfig
from flaxvid.data.sources.cameras import open_scenes
from flaxvid.data.sources.open import Source, open_source
from flaxvid.layers.int8 import DYNAMIC
from flaxvid.models.registry import create_model, list_options
from flaxvid.models.video_model import VideoModel
from flaxvid.tasks.labelled import LabelledRecipe
from flaxvid.train.recipe import DataRecipe, Recipe
from flaxvid.types import Classes, Variables


def open_data(recipe: DataRecipe, split: str) -> Source:
    """Opens one split of the recipe's data set."""
    from flaxvid.data.motion.build import MotionConfig  # tensorflow-datasets takes half a second to import

    known = [field.name for field in dataclasses.fields(MotionConfig)]
    unknown = sorted(set(recipe.motion) - set(known))
    if unknown:
        raise ValueError(f"data.motion has no field {', '.join(unknown)}: valid ones are {', '.join(known)}")
    if not recipe.root and recipe.name != "motion":
        raise ValueError(f"data.root is empty: say where {recipe.name} lies with --config.data.root=FOLDER")
    opener = functools.partial(open_scenes, cameras=recipe.cameras) if recipe.cameras else open_source
    return opener(
        recipe.name,
        recipe.root or None,
        split,
        fold=recipe.fold or None,
        lists=recipe.lists or None,
        group=recipe.group or None,
        motion=MotionConfig(**recipe.motion) if recipe.name == "motion" else None,
        missing=recipe.missing,  # pyright: ignore[reportArgumentType]
    )


TARGET_FIELDS = ("name", "root", "train_split", "eval_split", "fold", "lists", "group", "motion")
"""Fields of the data that may differ in a target domain."""


def tested_data(recipe: DataRecipe) -> DataRecipe:
    """The data of the final test: that of the target domain, where there is one."""
    if not recipe.target:
        return recipe
    motion = {**recipe.motion, **recipe.target.get("motion", {})}
    return dataclasses.replace(recipe, **{**recipe.target, "motion": motion, "target": {}})


def data_origin(recipe: DataRecipe) -> dict[str, Any]:
    """Folder and split of the test videos, for the record of an evaluation."""
    recipe = tested_data(recipe)
    root = str(Path(recipe.root).expanduser().resolve()) if recipe.root else ""
    return {"root": root, "split": recipe.eval_split}


def count_classes(classes: Classes) -> int | dict[str, int]:
    """The number of classes; of several targets, ``{"action": 9, "actor": 4}``."""
    return {target: len(names) for target, names in classes.items()} if isinstance(classes, Mapping) else len(classes)


def make_model(recipe: Recipe, num_classes: int | Mapping[str, int]) -> VideoModel:
    """Makes the recipe's network; a network of several cameras takes the data's.

    Raises:
        ValueError: the network does not have an option, or the data has several cameras and the network takes one
            video, or the other way round.
    """
    model, cameras = recipe.model, tuple(recipe.data.cameras)
    own = {"dtype": model.dtype, "remat": model.remat} | ({"int8": DYNAMIC} if model.int8_training else {})
    sizes = {"num_frames": model.num_frames, "image_size": model.image_size, "dropout": model.dropout}
    repeated = sorted(model.options.keys() & {"num_classes", *own, *sizes})
    if repeated:
        raise ValueError(
            f"model.options repeats {', '.join(repeated)}: leave it out; it is a field of model, or num_classes, which "
            "the data says"
        )
    fuses = "cameras" in list_options(model.name)
    if fuses != bool(cameras):
        raise ValueError(
            f"{model.name} takes several cameras, and data.cameras is empty: name them, as in "
            "data.cameras=('front', 'left')"
            if fuses
            else f"{model.name} takes one video, got data.cameras={cameras}: leave it empty, or take a model of "
            "several cameras such as ts_cva"
        )
    own |= {name: value for name, value in sizes.items() if value is not None}  # else the network's own
    own |= {"cameras": cameras} if fuses else {}
    return create_model(model.name, num_classes=num_classes, **own, **model.options)


def complete(recipe: Recipe) -> Recipe:
    """Fills in what the recipe leaves to the network: dropout, frame counts and the size of clips.

    Raises:
        ValueError: the network cannot be made.
    """
    made: Any = make_model(recipe, 1)
    clip, head = made.clip, getattr(made.head, "head", made.head)  # a mean over cameras has the head inside
    model = dataclasses.replace(
        recipe.model, num_frames=clip.num_frames, image_size=clip.image_size, dropout=head.dropout
    )
    task = dataclasses.replace(recipe.task, frames=tuple(recipe.task.frames) or (clip.num_frames,))
    return dataclasses.replace(recipe, model=model, task=task, eval_frames=tuple(recipe.eval_frames) or task.frames)


def clip_config(recipe: Recipe, frames: tuple[int, ...]) -> ClipConfig:
    """The recipe's rules for clips of these frame counts."""
    return dataclasses.replace(recipe.data.clips, frames=tuple(frames), image_size=recipe.model.image_size or 0)


def find_shapes(recipe: Recipe) -> Variables:
    """The shapes of the recipe's variables. Before the data is open only targets with a weight are known.

    Raises:
        ValueError: its network cannot be made.
    """
    targets = recipe.task.target_weights if isinstance(recipe.task, LabelledRecipe) else {}
    task = recipe.task.make(make_model(recipe, dict.fromkeys(targets, 1) or 1))
    try:
        return jax.eval_shape(task.init, jax.random.key(0))
    except ValueError:
        raise
    except Exception as error:  # options that do not go together raise anything
        model, reason = recipe.model, next(iter(str(error).splitlines()), "")
        raise ValueError(
            f"{model.name} cannot be made with model.options={model.options} "
            f"({type(error).__name__}: {reason}): correct them"
        ) from error
