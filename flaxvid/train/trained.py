"""A trained network, out of a run, one of its checkpoints, a weights file of ours, or a torch file: the one reader.

Evaluation, prediction and the weights that a training starts from all come in here.
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
from flaxvid.data.sources.account import check_labels
from flaxvid.data.sources.class_names import are_numbers, as_classes, list_names, relabel
from flaxvid.data.sources.open import Source
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
from flaxvid.weights.torch import import_torch


@dataclasses.dataclass(frozen=True)
class Trained:
    """A network, its weights, and what is known of how it was made.

    Attributes:
        model: the ordinary model.
        variables: the model's, or those of `FrameFlexible`.
        frames: the frame counts that it was trained at, ascending.
        classes: class names in the order of the logits; of several targets those of each.
        recipe: the run's. The recipe of a file says what the file does; its data set has no name.
        folder: the run's; None for a file.
        named: False where nobody knows the names of the classes, and `classes` numbers them.
        checkpoint: which weights of a run these are: the "name" that was asked for, and the "step"; None for a file.
        fresh: paths of the variables that a torch file does not have: a head for other classes, at random.
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
        """The ordinary variables of `model` for a frame count; any count will do."""
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
    """Loads a run's weights (their moving averages where it keeps them), or those of a file.

    Args:
        path: a run's folder, a folder of one of its checkpoints, a .safetensors file that flaxvid wrote, or a torch
            file or its known name, such as "torchvision/resnet50-imagenet1k-v1".
        checkpoint: of a run: "latest", "best" or a step; see `find_checkpoint`.
        classes: class names in the order of the logits; None takes those that the run or the file knows.
        model: name of the model that a torch file, or a folder with checkpoints alone, is of. Runs and files of flaxvid
            know theirs.
        overrides: options of `create_model` for it; what a torch file's origin implies need not be named.
        num_classes: for a torch file; another number than the file's gives a fresh head. None takes the file's.
        headless: whether a run of masked pre-training will do, whose variables have no head.

    Raises:
        FileNotFoundError: there is no such run, file or checkpoint.
        ValueError: a torch file without `model`; a checkpoint of a file; names of another number of classes than the
            network has; or a file that is damaged, or not of the model.
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
    implied = get_spec(model).formats[imported.format].overrides
    trained = _of_file(path, model, plain, imported.variables, imported.frames, classes, implied)
    return dataclasses.replace(trained, fresh=imported.fresh)


def name_classes(trained: Trained) -> Trained:
    """The same network with class names: a run of an older version has none and takes those of its data set.

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


def open_test(trained: Trained, data: DataRecipe, renames: Mapping[str, Mapping[str, str]]) -> Source:
    """The videos of `data.eval_split`, their labels counting the network's classes: by name, or where it has none by
    number.

    Args:
        trained: the network.
        data: the videos.
        renames: see `relabel`.

    Raises:
        ValueError: the network does not know the classes of some videos, or has no names for `renames`.
    """
    source = open_data(data, data.eval_split)
    if trained.named:
        advice = (
            "leave out videos of classes that it never saw, and for classes of another name give --rename MAP.json, "
            '{"the data\'s name": "the network\'s", ...}'
        )
        if all(map(are_numbers, by_target(trained.classes).values())):
            advice += ", or the network's names by --classes FILE"
        source = relabel(source, trained.classes, "the network", advice, renames)
    elif renames:
        raise ValueError("expected --rename with the network's class names, got none of them: give --classes, too")
    elif count_classes(trained.classes) != count_classes(source.classes):
        names = [name for own in by_target(source.classes).values() for name in own]
        raise ValueError(
            f"expected videos of the network's {count_classes(trained.classes)} classes (their names are not known), "
            f"got {count_classes(source.classes)} classes in {source.name} ({list_names(names)}): give their names, "
            "in the order of the logits, by --classes FILE"
        )
    check_labels(source, fewest=1)
    return source


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
    """The network of a file; `frames` are the counts with variables of their own, `options` what its origin has."""
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
    """The frame counts that have variables of their own, ascending."""
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
    """Class names as tuples, as many as the network has."""
    classes = as_classes(classes)
    if count_classes(classes) != _num_classes(variables):
        some = [name for names in by_target(classes).values() for name in names][:3]
        raise ValueError(
            f"expected names of the {_num_classes(variables)} classes of the network in {path}, got "
            f"{count_classes(classes)} ({', '.join(some)}, ...): is this the data set that it was trained on?"
        )
    return classes
