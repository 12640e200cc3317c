"""From a recipe's words to the things that they name."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from flaxvid.adapt.surgery import CLASSIFIER, FLAT_SIBLINGS, adopt, arrange_head, inflate, spread
from flaxvid.data.clips.cut import ClipConfig
from flaxvid.data.sources.cameras import open_scenes
from flaxvid.data.sources.class_names import are_numbers, find_classes, list_names
from flaxvid.data.sources.open import Source, open_source
from flaxvid.frames import FrameFlexible
from flaxvid.models.registry import create_model, get_spec, list_options
from flaxvid.models.video_model import VideoModel
from flaxvid.tasks.task import Task, init_model
from flaxvid.train.checkpoint import restore_variables
from flaxvid.train.recipe import DataRecipe, Recipe, read_recipe
from flaxvid.train.state import averaged
from flaxvid.train.workdir import read_classes, run_folder
from flaxvid.types import Classes, Variables, by_target
from flaxvid.weights.download import resolve_weights
from flaxvid.weights.native import is_native, load_variables
from flaxvid.weights.torch import import_torch


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
    fuses = _takes_cameras(model.name)
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
    task = make_task(recipe, make_model(recipe, dict.fromkeys(recipe.task.target_weights, 1) or 1))
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


def make_task(recipe: Recipe, model: VideoModel) -> Task:
    """The recipe's task.

    Raises:
        ValueError: weights of targets that the model has not.
    """
    return recipe.task.make(model)


def load_start(recipe: Recipe, model: VideoModel, classes: Classes | None = None) -> dict[str, Any] | None:
    """Ordinary variables to start from; None from scratch.

    `recipe.model.weights` is a run's folder, a .safetensors file of ours, a torch file, or a known name. Of
    frame-flexible weights the longest frame count's are taken. With `recipe.model.inflate` they are a 2-D network's. Of
    a network of several cameras they may be its backbone's. A fusion that the weights have not starts anew, and that is
    said.

    A head is kept if its classes have the same names, its columns in the order of `classes`; otherwise it starts anew,
    be their number equal or not, and why is said. Where a file has no names, as torch's, or `classes` is None, an equal
    number has to do.

    Args:
        recipe: says which weights.
        model: the network that starts from them.
        classes: what it is to tell apart, in the order of its logits.

    Raises:
        ValueError: the weights do not fit the network.
        FileNotFoundError: there are none.
    """
    weights, rule, key = recipe.model.weights, recipe.model.inflate, jax.random.key(recipe.seed)
    if not weights:
        return None
    if model.cameras and not _knows_cameras(weights):
        single = _of_backbone(recipe)
        backbone = make_model(single, model.head.num_classes)  # pyright: ignore[reportAttributeAccessIssue]
        plain = load_start(single, backbone, classes)
        print(f"{weights}: for the backbone, {single.model.name}, of {', '.join(model.cameras)}; a fusion starts anew")
        return spread(init_model(model, key), plain or {}, model.cameras)
    names, started = None, []
    if Path(weights).is_dir():
        variables = averaged(restore_variables(weights))
        names = read_classes(run_folder(Path(weights)) or Path(weights))
    elif is_native(path := resolve_weights(weights)):
        variables, info = load_variables(path)
        names = info.classes
    elif rule:
        if recipe.model.name not in FLAT_SIBLINGS:
            raise ValueError(
                f"model.inflate: 2-D files are for {', '.join(FLAT_SIBLINGS)}, got {recipe.model.name}: leave it empty"
            )
        shape = {name: value for name, value in recipe.model.options.items() if name in ("width", "depths")}
        variables = import_torch(FLAT_SIBLINGS[recipe.model.name], path, overrides=shape).variables
    else:
        named = dataclasses.asdict(recipe.model)
        overrides = {name: named[name] for name in ("num_frames", "image_size")} | named["options"]
        number = model.head.num_classes  # pyright: ignore[reportAttributeAccessIssue]
        imported = import_torch(recipe.model.name, path, num_classes=number, key=key, overrides=overrides)
        variables, started = imported.variables, list(imported.fresh)
    counts = tuple(int(name.removeprefix("params_")[:-1]) for name in variables if name.startswith("params_"))
    if counts:
        flexible = FrameFlexible(model, counts, private_norms="batch_stats" not in variables)
        variables = flexible.select(variables, max(counts))
    if names and classes:
        variables = _fit_head(weights, variables, names, classes)
    template = init_model(model, key)
    if rule:
        adopted, account = inflate(template, variables, rule)
        fates = {fate: [path for path in account if account[path] == fate] for fate in ("inflated", "taken", "fresh")}
        print(
            f"{weights}: {len(fates['inflated'])} kernels inflated, {len(fates['taken'])} variables taken as they are, "
            f"{len(fates['fresh'])} start anew ({', '.join(fates['fresh'])})"
        )
        started += fates["fresh"]
    else:
        adopted, fresh = adopt(template, variables)
        if fresh and not (names and classes):
            print(f"{weights}: the head has another number of classes and starts anew ({', '.join(fresh)})")
        started += fresh
    if classes and not names and not any(map(CLASSIFIER.fullmatch, started)):
        print(f"{weights}: does not name its classes; the head is kept, since their number is the data's")
    return adopted


def _fit_head(weights: str, variables: Variables, names: Classes, classes: Classes) -> dict[str, Any]:
    """Trained variables with the columns of the head in the order of the data's classes, without those of others."""
    old, columns = by_target(names), {}
    for target, wanted in by_target(classes).items():
        head = f"the head{f' of {target}' if target else ''}"
        if target not in old:
            targets = ", ".join(filter(None, old)) or "one only, without a name"
            print(f"{weights}: {head} starts anew: the targets there are {targets}")
            continue
        order = find_classes(wanted, old[target])
        same = set(order) == set(range(len(old[target]))) and len(wanted) == len(old[target])
        columns[target] = order if same else None
        if not same:
            print(
                f"{weights}: {head} starts anew: its classes are {list_names(old[target])}, the data's are "
                f"{list_names(wanted)}"
            )
        elif order != tuple(range(len(order))):
            print(f"{weights}: {head} is kept, its classes put into the data's order")
        elif are_numbers(wanted):
            print(f"{weights}: {head} is kept; its classes and the data's are known by number only")
    return arrange_head(variables, columns)


def _knows_cameras(weights: str) -> bool:
    """Whether weights are those of a network of several cameras, and not of its backbone."""
    if Path(weights).is_dir():
        return bool(read_recipe(Path(weights)).data.cameras)
    path = resolve_weights(weights)
    return is_native(path) and _takes_cameras(load_variables(path)[1].model)


def _takes_cameras(name: str) -> bool:
    return "cameras" in list_options(name)


def _of_backbone(recipe: Recipe) -> Recipe:
    """The recipe of one video's network that a network of several cameras is made of."""
    options = recipe.model.options
    model = dataclasses.replace(
        recipe.model,
        name=options.get("backbone", get_spec(recipe.model.name).backbone),
        options=dict(options.get("backbone_options") or {}),
    )
    return dataclasses.replace(recipe, model=model, data=dataclasses.replace(recipe.data, cameras=()))
