"""Reads a trained network: from a run, one of its checkpoints, a file of flaxvid, or a torch file.

Evaluation, prediction and starting weights all come in here.
"""

import dataclasses
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flaxvid import trees
from flaxvid.adapt.surgery import CLASSIFIER
from flaxvid.data.clips.cut import ClipConfig
from flaxvid.data.sources.class_names import as_classes
from flaxvid.frames import FrameFlexible
from flaxvid.models.registry import create_model, get_spec
from flaxvid.models.video_model import VideoModel
from flaxvid.tasks.frame_flexible import FfnRecipe
from flaxvid.tasks.supervised import SupervisedRecipe
from flaxvid.train.checkpoint import find_checkpoint, restore_variables
from flaxvid.train.recipe import DataRecipe, ModelRecipe, Recipe, read_recipe
from flaxvid.train.setup import count_classes, make_model, open_data
from flaxvid.train.state import averaged
from flaxvid.train.workdir import CLASSES_FILE, read_classes, run_folder
from flaxvid.types import Classes, Variables, by_target
from flaxvid.weights.download import resolve_weights
from flaxvid.weights.native import check_fit, is_native, load_variables
from flaxvid.weights.readings import find_implied
from flaxvid.weights.torch import import_torch


@dataclasses.dataclass(frozen=True)
class Trained:
    """A network, its weights, and how it was made.

    Attributes:
        model: the ordinary model.
        variables: the model's, or those of `FrameFlexible`.
        frames: the frame counts that it was trained at, ascending.
        classes: class names in the order of the logits; of several targets those of each.
        recipe: the run's; of a file what the file says, with a data set without a name.
        folder: the run's; None for a file.
        named: False if the names of the classes are unknown; `classes` then numbers them.
        checkpoint: "name" and "step" of a run's checkpoint; None for a file.
        fresh: paths of random variables, which the torch file does not have: a head for other classes.
    """

    model: VideoModel
    variables: Variables
    frames: tuple[int, ...]
    classes: Classes
    recipe: Recipe
    folder: Path | None = None
    named: bool = True
    checkpoint: Mapping[str, Any] | None = None
    fresh: tuple[str, ...] = ()

    @property
    def headless(self) -> bool:
        """Whether the network was pre-trained without labels, so that it has no head."""
        return "head" not in self.variables["params"]

    def select(self, num_frames: int) -> Variables:
        """The ordinary variables of `model` for any frame count."""
        if counts := _private_counts(self.variables):
            flexible = FrameFlexible(self.model, counts, private_norms="batch_stats" not in self.variables)
            return flexible.select(self.variables, num_frames)
        return {name: self.variables[name] for name in ("params", "batch_stats") if name in self.variables}


def load(
    path: str | Path,
    checkpoint: str | int = "latest",
    *,
    classes: Classes | None = None,
    model: str = "",
    overrides: Mapping[str, Any] | None = None,
    num_classes: int | Mapping[str, int] | None = None,
    headless: bool = False,
) -> Trained:
    """Loads the weights of a run (their moving averages, if it keeps them) or of a file.

    Args:
        path: a run's folder, the folder of one of its checkpoints, a .safetensors file that flaxvid wrote, a torch
            file, or a known name such as "torchvision/resnet50-imagenet1k-v1".
        checkpoint: of a run: "latest", "best" or a step; see `find_checkpoint`.
        classes: class names in the order of the logits; None takes those of the run or the file.
        model: name of the model, for a torch file or a folder of checkpoints alone. Others say it themselves.
        overrides: the model's options; what a torch file's origin implies is added.
        num_classes: of a torch file; another number than the file's gives a fresh head, None takes the file's.
        headless: whether a run of masked pre-training will do, whose variables have no head.

    Raises:
        FileNotFoundError: there is no such run, file or checkpoint.
        ValueError: `model` is missing, `checkpoint` is given for a file, the number of `classes` is not the network's,
            or the file is damaged or of another model.
    """
    path = Path(path)
    if path.is_dir():
        trained = _from_folder(path, checkpoint, classes, model, overrides)
        if trained.headless and not headless:
            raise ValueError(
                f"{path} is a masked pre-training, whose network has no classifier: fine-tune it first, with "
                f"--config.model.weights={path}"
            )
        return trained
    try:
        file = resolve_weights(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"expected a run's folder or a .safetensors file, got no folder and {error}") from error
    if checkpoint != "latest":
        raise ValueError(f"expected a run's folder for checkpoint {checkpoint}, got the file {path}: leave it out")
    if is_native(file):
        return _from_file(file, classes)
    if not model:
        raise ValueError(
            f"expected a run's folder or a .safetensors file that flaxvid wrote, got {path}: name the network of a "
            "torch file (--model tsm_resnet50), or turn it into a file of ours with scripts/import_torch.py"
        )
    imported = import_torch(model, file, num_classes=num_classes, overrides=overrides)
    plain = imported.model.model if isinstance(imported.model, FrameFlexible) else imported.model
    implied = find_implied(model, get_spec(model).formats[imported.format], {})
    trained = _of_file(path, model, plain, imported.variables, imported.frames, classes, implied)
    return dataclasses.replace(trained, fresh=imported.fresh)


def name_classes(trained: Trained) -> Trained:
    """Adds class names to a run of an older version, which has none: those of its data set.

    Raises:
        FileNotFoundError: the data set is not there.
        ValueError: it has another number of classes.
    """
    if trained.named or trained.folder is None:
        return trained
    file, data = trained.folder / CLASSES_FILE, trained.recipe.data
    warnings.warn(
        f"{trained.folder} has no {CLASSES_FILE}: its class names are taken from its data set as it is now",
        stacklevel=2,
    )
    try:
        classes = open_data(data, data.eval_split).classes
    except OSError as error:
        raise FileNotFoundError(
            f"expected class names in {file} or in the run's data set, got neither ({error}): give a file with a name "
            "a line"
        ) from error
    return dataclasses.replace(trained, classes=_checked(classes, trained.variables, trained.folder), named=True)


def _from_folder(
    path: Path, checkpoint: str | int, classes: Classes | None, name: str, overrides: Mapping[str, Any] | None
) -> Trained:
    folder = run_folder(path)
    if folder is None and not name:
        raise FileNotFoundError(
            f"expected a run's folder with recipe.json, or a .safetensors file, got {path}: train a run first"
        )
    saved = find_checkpoint(path, checkpoint)
    variables = averaged(restore_variables(saved))
    if folder is None:  # checkpoints alone
        model = create_model(name, **{**(overrides or {}), "num_classes": _num_classes(variables)})
        return _of_file(path, name, model, variables, _private_counts(variables) or None, classes)
    recipe = read_recipe(folder)
    known = classes or read_classes(folder)
    headless = "head" not in variables["params"]
    if headless:
        number, names = count_classes(known or ("none",)), as_classes(known or ("none",))
    else:
        number, names = _num_classes(variables), _checked(known or _numbered(variables), variables, path)
    return Trained(
        make_model(recipe, number),
        variables,
        tuple(sorted(recipe.task.frames)),
        names,
        recipe,
        folder,
        named=bool(known),
        checkpoint={"name": str(checkpoint), "step": int(saved.name)},
    )


def _from_file(path: Path, classes: Classes | None) -> Trained:
    variables, info = load_variables(path)
    model = create_model(info.model, **{**info.overrides, "num_classes": _num_classes(variables)})
    trained = _of_file(path, info.model, model, variables, info.frames, classes or info.classes, info.overrides)
    flexible = FrameFlexible(model, trained.frames, private_norms="batch_stats" not in variables)
    check_fit(path, variables, flexible, plain=not info.frames)
    return trained


def _of_file(
    path: Path,
    name: str,
    model: VideoModel,
    variables: Variables,
    frames: tuple[int, ...] | None,
    classes: Classes | None,
    options: Mapping[str, Any] | None = None,
) -> Trained:
    """The network of a file; `frames` are the counts with private variables, `options` what its origin implies."""
    counts = tuple(frames or (model.clip.num_frames,))
    recipe = Recipe(
        ModelRecipe(name, str(path), model.clip.num_frames, model.clip.image_size, options=dict(options or {})),
        DataRecipe(name="", clips=ClipConfig(short="repeat"), cameras=model.cameras),
        FfnRecipe(counts) if frames else SupervisedRecipe(counts),
        eval_frames=counts,
    )
    names = _checked(classes or _numbered(variables), variables, path)
    return Trained(model, variables, counts, names, recipe, named=bool(classes))


def _private_counts(variables: Variables) -> tuple[int, ...]:
    """The frame counts with private variables, ascending."""
    return tuple(sorted(int(name[len("params_") : -1]) for name in variables if re.fullmatch(r"params_\d+f", name)))


def _num_classes(variables: Variables) -> int | dict[str, int]:
    head = trees.flatten({"params": {"head": variables["params"]["head"]}})
    counts = {match[1] or "": leaf.shape[-1] for path, leaf in head.items() if (match := CLASSIFIER.fullmatch(path))}
    return counts.get("", counts)


def _numbered(variables: Variables) -> Classes:
    counts = _num_classes(variables)
    if isinstance(counts, int):
        return tuple(f"class {number}" for number in range(counts))
    return {target: tuple(f"{target} {number}" for number in range(count)) for target, count in counts.items()}


def _checked(classes: Any, variables: Variables, path: Path) -> Classes:
    """Class names as tuples; refuses another number than the network's."""
    classes = as_classes(classes)
    if count_classes(classes) != _num_classes(variables):
        some = [name for names in by_target(classes).values() for name in names][:3]
        raise ValueError(
            f"expected names of the {_num_classes(variables)} classes of the network in {path}, got "
            f"{count_classes(classes)} ({', '.join(some)}, ...): give those of the data that it was trained on"
        )
    return classes
