"""From a recipe's words to the things that they name."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from flaxvid.data.clips.cut import ClipConfig
from flaxvid.data.sources.cameras import open_scenes
from flaxvid.data.sources.open import Source, open_source
from flaxvid.models.registry import create_model, list_options
from flaxvid.models.video_model import VideoModel
from flaxvid.tasks.labelled import LabelledRecipe
from flaxvid.train.recipe import DataRecipe, Recipe
from flaxvid.types import Classes, Variables


def open_data(recipe: DataRecipe, split: str) -> Source:
    """One split of the recipe's data set, of a single video or of several cameras."""
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


def data_origin(recipe: DataRecipe) -> dict[str, Any]:
    """Where the test videos come from, for the record of an evaluation."""
    root = str(Path(recipe.root).expanduser().resolve()) if recipe.root else ""
    return {"root": root, "split": recipe.eval_split}


def count_classes(classes: Classes) -> int | dict[str, int]:
    """How many there are; of several targets, ``{"action": 9, "actor": 4}``."""
    return {target: len(names) for target, names in classes.items()} if isinstance(classes, Mapping) else len(classes)


def make_model(recipe: Recipe, num_classes: int | Mapping[str, int]) -> VideoModel:
    """The recipe's network; one of several cameras takes those of the data.

    Raises:
        ValueError: an option that the network does not have, or several cameras for a network of one video, or none for
            one of several.
    """
    model, cameras = recipe.model, tuple(recipe.data.cameras)
    own = {"dtype": model.dtype, "remat": model.remat}
    sizes = {"num_frames": model.num_frames, "image_size": model.image_size, "dropout": model.dropout}
    repeated = sorted(model.options.keys() & {"num_classes", *own, *sizes})
    if repeated:
        raise ValueError(
            f"model.options repeats {', '.join(repeated)}: these are fields of model itself, and num_classes is "
            "the data's"
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
    """The same recipe with what it leaves to the network: dropout, the size of clips, and their frame counts.

    Raises:
        ValueError: the network cannot be made.
    """
    made: Any = make_model(recipe, 1)
    clip, head = made.clip, getattr(made.head, "head", made.head)  # a mean over cameras has one inside
    model = dataclasses.replace(
        recipe.model, num_frames=clip.num_frames, image_size=clip.image_size, dropout=head.dropout
    )
    task = dataclasses.replace(recipe.task, frames=tuple(recipe.task.frames) or (clip.num_frames,))
    return dataclasses.replace(recipe, model=model, task=task, eval_frames=tuple(recipe.eval_frames) or task.frames)


def clip_config(recipe: Recipe, frames: tuple[int, ...]) -> ClipConfig:
    """How clips of these frame counts are cut from the recipe's videos, at the size of its network."""
    return dataclasses.replace(recipe.data.clips, frames=tuple(frames), image_size=recipe.model.image_size or 0)


def find_shapes(recipe: Recipe) -> Variables:
    """The shapes of the recipe's variables; of the data's targets only those with weights are known yet.

    Raises:
        ValueError: its network cannot be made.
    """
    targets = recipe.task.target_weights if isinstance(recipe.task, LabelledRecipe) else {}
    task = recipe.task.make(make_model(recipe, dict.fromkeys(targets, 1) or 1))
    try:
        return jax.eval_shape(task.init, jax.random.key(0))
    except ValueError:
        raise
    except Exception as error:  # of whatever kind options that do not go together make it
        model, reason = recipe.model, next(iter(str(error).splitlines()), "")
        raise ValueError(
            f"{model.name} cannot be made with model.options={model.options} "
            f"({type(error).__name__}: {reason}): correct them"
        ) from error
