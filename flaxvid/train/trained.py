"""A trained network as evaluation and prediction take it: from a run's folder, or from a weights file of ours."""

import dataclasses
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flaxvid import trees
from flaxvid.data.clips.cut import ClipConfig
from flaxvid.data.sources.class_names import as_classes
from flaxvid.frames import FrameFlexible
from flaxvid.models.registry import create_model
from flaxvid.models.video_model import VideoModel
from flaxvid.tasks.frame_flexible import FfnRecipe
from flaxvid.tasks.supervised import SupervisedRecipe
from flaxvid.train.checkpoint import find_checkpoint, restore_variables
from flaxvid.train.recipe import DataRecipe, ModelRecipe, Recipe, read_recipe
from flaxvid.train.setup import count_classes, make_model, make_task, open_data
from flaxvid.train.state import averaged
from flaxvid.train.workdir import CLASSES_FILE, read_classes, run_folder
from flaxvid.types import Classes, Variables, by_target
from flaxvid.weights.native import check_fit, is_native, load_variables


@dataclasses.dataclass(frozen=True)
class Trained:
    """A network, its weights, and what is known of how it was made.

    Attributes:
        model: the ordinary model.
        select: gives its ordinary variables for a frame count, any count.
        frames: the counts that it was trained at, ascending.
        classes: class names in the order of the logits; of several targets those of each.
        recipe: of the run; of a weights file one that says what the file does, with no data set.
        folder: of the run; None for a weights file.
        named: False where nobody knows the classes' names and `classes` only numbers them.
        checkpoint: which weights of a run these are: the "name" that was asked for, and the "step"; None for a file.
    """

    model: VideoModel
    select: Callable[[int], Variables]
    frames: tuple[int, ...]
    classes: Classes
    recipe: Recipe
    folder: Path | None
    named: bool = True
    checkpoint: Mapping[str, Any] | None = None


def load_trained(path: str | Path, classes: Classes | None = None, checkpoint: str | int = "latest") -> Trained:
    """Loads a run's weights (their moving averages where it keeps them), or a weights file.

    Args:
        path: a run's folder, one of its checkpoints' folders, or a .safetensors file that flaxvid wrote.
        classes: class names in the order of the logits; by default those that the run or the file knows, or else
            those of the run's data set.
        checkpoint: of a run: "latest", "best" or a step; see `find_checkpoint`.

    Raises:
        FileNotFoundError: there is no run or file, no such checkpoint in the run, or nothing that tells the classes.
        ValueError: a file of others, a checkpoint of a file, or the number of classes is not the network's.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"expected a run's folder or a .safetensors file, got no folder and no weights file at {path}"
        )
    if path.is_dir():
        return _from_folder(path, classes, checkpoint)
    if checkpoint != "latest":
        raise ValueError(f"expected a run's folder for checkpoint {checkpoint}, got the file {path}: leave it out")
    return _from_file(path, classes)


def _from_folder(path: Path, classes: Classes | None, checkpoint: str | int) -> Trained:
    folder = run_folder(path)
    if folder is None:
        raise FileNotFoundError(
            f"expected a run's folder with recipe.json, or a .safetensors file, got {path}: train a run first"
        )
    recipe, saved = read_recipe(folder), find_checkpoint(path, checkpoint)
    variables = averaged(restore_variables(saved))
    classes = read_classes(folder) if classes is None else classes
    if classes is None:
        warnings.warn(
            f"{folder} has no {CLASSES_FILE}: its class names are taken from its data set as it is now", stacklevel=3
        )
        try:
            classes = open_data(recipe.data, recipe.data.eval_split).classes
        except OSError as error:
            raise FileNotFoundError(
                f"expected class names in {folder / CLASSES_FILE} or in the run's data set, got neither ({error}): "
                "give a file with a name a line"
            ) from error
    classes = _checked(classes, variables, path)
    task = make_task(recipe, make_model(recipe, count_classes(classes)))
    return Trained(
        task.model,
        lambda n: task.select(variables, n),
        tuple(task.frames),
        classes,
        recipe,
        folder,
        checkpoint={"name": str(checkpoint), "step": int(saved.name)},
    )


def _from_file(path: Path, classes: Classes | None) -> Trained:
    if path.exists() and not is_native(path):
        raise ValueError(
            f"expected a run's folder or a .safetensors file that flaxvid wrote, got {path}: turn a torch file into "
            "one with scripts/import_torch.py"
        )
    variables, info = load_variables(path)
    known = classes or info.classes
    classes = _checked(known or _numbered(_num_classes(variables)), variables, path)
    model = create_model(info.model, **{**info.overrides, "num_classes": count_classes(classes)})
    frames = tuple(info.frames or (model.clip.num_frames,))
    recipe = Recipe(
        ModelRecipe(info.model, str(path), model.clip.num_frames, model.clip.image_size),
        DataRecipe(name="", clips=ClipConfig(short="repeat"), cameras=model.cameras),
        FfnRecipe(frames) if info.frames else SupervisedRecipe(frames),
        eval_frames=frames,
    )
    flexible = FrameFlexible(model, frames, private_norms="batch_stats" not in variables)
    check_fit(path, variables, flexible, plain=not info.frames)
    if not info.frames:
        return Trained(model, lambda _: variables, frames, classes, recipe, None, bool(known))
    return Trained(model, lambda n: flexible.select(variables, n), frames, classes, recipe, None, bool(known))


def _num_classes(variables: Variables) -> int | dict[str, int]:
    flat = trees.flatten(variables["params"])
    found = {path: re.fullmatch(r"head/classifier(?:_(\w+))?/kernel", path) for path in flat}
    counts = {match[1] or "": flat[path].shape[-1] for path, match in found.items() if match}
    return counts.get("", counts)


def _numbered(counts: int | dict[str, int]) -> Classes:
    if isinstance(counts, int):
        return tuple(f"class {number}" for number in range(counts))
    return {target: tuple(f"{target} {number}" for number in range(count)) for target, count in counts.items()}


def _checked(classes: Any, variables: Variables, path: Path) -> Classes:
    """Class names as tuples, as many as the network has."""
    classes = as_classes(classes)
    if count_classes(classes) != _num_classes(variables):
        some = [name for names in by_target(classes).values() for name in names][:3]
        raise ValueError(
            f"expected names of the {_num_classes(variables)} classes of the network in {path}, got "
            f"{count_classes(classes)} ({', '.join(some)}, ...): is this the data set that it was trained on?"
        )
    return classes
