"""Starting weights, fitted to the network of the run: its time axis, its cameras, its head."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from flaxvid import trees
from flaxvid.adapt.surgery import CLASSIFIER, FLAT_SIBLINGS, adopt, arrange_head, has_same_head, inflate, spread
from flaxvid.data.sources.class_names import are_numbers, find_classes
from flaxvid.data.sources.names import list_names
from flaxvid.frames import FrameFlexible
from flaxvid.models.registry import backbone_of, get_spec
from flaxvid.models.video_model import VideoModel
from flaxvid.tasks.frame_flexible import FfnRecipe
from flaxvid.tasks.task import init_model
from flaxvid.train.network import private_counts
from flaxvid.train.recipe import Recipe
from flaxvid.train.setup import make_model
from flaxvid.train.trained import Trained, load
from flaxvid.types import Classes, Variables, by_target


def load_start(recipe: Recipe, num_classes: int | Mapping[str, int]) -> Trained | None:
    """Loads `recipe.model.weights`; None from scratch.

    A torch file is of the recipe's network, of its backbone, or with `recipe.model.inflate` of its 2-D sibling.

    Args:
        recipe: the run's.
        num_classes: of the run's network.

    Raises:
        ValueError: the file cannot be read, or two origins may have written it.
        FileNotFoundError: there is no such file.
    """
    if not recipe.model.weights:
        return None
    backbone = of_backbone(recipe)
    return _load(recipe, num_classes) if backbone is None else _load_either(recipe, backbone, num_classes)


def fit_start(
    recipe: Recipe, model: VideoModel, trained: Trained | None, classes: Classes | None = None
) -> dict[str, Any] | None:
    """Variables to start from; None from scratch.

    They are ordinary ones; frame-flexible weights give those of their longest frame count. But a run of FFN goes on
    with all of them if it has the same frame counts, and this is printed. A network on a backbone takes its own weights
    or its backbone's; what the backbone lacks starts anew, and this is printed.

    The head is kept if its classes have the same names; its columns are put into the order of `classes`. Otherwise it
    starts anew, even with the same number of classes, and the reason is printed. If the weights have no names, as
    torch's, or `classes` is None, the same number is enough.

    Args:
        recipe: the run's.
        model: the run's network.
        trained: the weights, by `load_start`.
        classes: the names of the network's classes, in the order of its logits.

    Raises:
        ValueError: the weights do not fit the network.
    """
    if trained is None:
        return None
    backbone, number = of_backbone(recipe), model.head.num_classes  # pyright: ignore[reportAttributeAccessIssue]
    if backbone is None or type(trained.model.body) is type(model.body):
        return _with_private(recipe, model, trained, _fit(recipe, model, trained, classes))
    what = f", of {', '.join(model.cameras)}" if model.cameras else ""
    print(f"{recipe.model.weights}: for the backbone, {backbone.model.name}{what}; what it lacks starts anew")
    if model.cameras:  # their head is the backbone's
        variables = _fit(backbone, make_model(backbone, number), trained, classes)
    else:
        variables, _ = trees.split(trained.select(max(trained.frames)), lambda path: "/head/" not in path)
    return spread(init_model(model, jax.random.key(recipe.seed)), variables, model.cameras)


def _load_either(recipe: Recipe, backbone: Recipe, number: int | Mapping[str, int]) -> Trained:
    """Loads `recipe.model.weights`, where a torch file may be of the network or of its backbone."""
    if not get_spec(recipe.model.name).formats:
        return _load(backbone, number)
    try:
        return _load(backbone, None)
    except ValueError as error:
        other = str(error)
    try:
        return _load(recipe, number)
    except ValueError as error:
        raise ValueError(f"{error}\nAs the backbone's: {other}") from error


def _load(recipe: Recipe, number: int | Mapping[str, int] | None) -> Trained:
    """Loads `recipe.model.weights`; the head of a torch file gets `number` classes, or for None the file's."""
    wanted, options = recipe.model, recipe.model.options
    if not wanted.inflate:
        sizes = {"num_frames": wanted.num_frames, "image_size": wanted.image_size}
        given = {name: value for name, value in sizes.items() if value is not None} | options
        if number is None:
            given.pop("head", None)  # of a backbone the file's own is read, whatever comes behind it
        return load(
            wanted.weights,
            model=wanted.name,
            overrides=given,
            num_classes=number,
            part=wanted.part or None,
            headless=True,
        )
    if wanted.name not in FLAT_SIBLINGS:
        raise ValueError(
            f"model.inflate: expected one of {', '.join(FLAT_SIBLINGS)}, got {wanted.name}: leave it empty"
        )
    shape = {name: value for name, value in options.items() if name in ("width", "depths")}
    return load(wanted.weights, model=FLAT_SIBLINGS[wanted.name], overrides=shape, part=wanted.part or None)


def _fit(recipe: Recipe, model: VideoModel, trained: Trained, classes: Classes | None) -> dict[str, Any]:
    """Makes a network's variables from trained ones; prints what becomes of the head."""
    weights, rule = recipe.model.weights, recipe.model.inflate
    variables, named = trained.select(max(trained.frames)), trained.named and bool(classes)
    template = init_model(model, jax.random.key(recipe.seed))
    same = has_same_head(template, variables)
    if named and same:
        variables = _fit_head(weights, variables, trained.classes, classes or ())
    if rule:
        adopted, account = inflate(template, variables, rule)
        fates = {fate: [path for path in account if account[path] == fate] for fate in ("inflated", "taken", "fresh")}
        fresh = fates["fresh"]
        print(
            f"{weights}: {len(fates['inflated'])} kernels inflated, {len(fates['taken'])} variables taken as they are, "
            f"{len(fresh)} start anew ({', '.join(fresh)})"
        )
    else:
        known = {path: leaf for path, leaf in trees.flatten(variables).items() if path not in trained.fresh}
        adopted, fresh = adopt(template, trees.unflatten(known))
        if trained.headless:
            print(f"{weights}: pre-trained without labels; stem and body are taken, the head starts anew")
        elif not same:
            print(f"{weights}: the head is of another kind and starts anew")
        elif fresh and not named and not trained.fresh:  # `import_torch` has said it of its own
            print(f"{weights}: the head has another number of classes and starts anew ({', '.join(fresh)})")
    if classes and not trained.named and not any(map(CLASSIFIER.fullmatch, fresh)):
        print(f"{weights}: does not name its classes; the head is kept, since their number is the data's")
    return adopted


def _with_private(recipe: Recipe, model: VideoModel, trained: Trained, plain: dict[str, Any]) -> dict[str, Any]:
    """The weights' frame-flexible variables with the head of `plain`, if they are what the run trains; else `plain`."""
    task = recipe.task
    if not (isinstance(task, FfnRecipe) and private_counts(trained.variables) == tuple(sorted(task.frames))):
        return plain
    flexible = FrameFlexible(model, task.frames, task.alteration, task.private_norms)
    want = trees.flatten(jax.eval_shape(flexible.specialise, plain))
    have = trees.flatten(trained.variables) | {
        f"params/{path}": leaf for path, leaf in trees.flatten(plain["params"]).items() if path.startswith("head/")
    }
    if any(path not in have or have[path].shape != leaf.shape for path, leaf in want.items()):
        return plain
    print(f"{recipe.model.weights}: the variables of its own of each frame count are kept")
    return trees.unflatten({path: have[path] for path in want})


def _fit_head(weights: str, variables: Variables, names: Classes, classes: Classes) -> dict[str, Any]:
    """Puts the columns of the head into the order of the data's classes; leaves out the heads of other classes."""
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


def of_backbone(recipe: Recipe) -> Recipe | None:
    """The recipe of the network's backbone; None if it has none."""
    options = recipe.model.options
    name = backbone_of(recipe.model.name, options)
    if not name:
        return None
    own = {option: options[option] for option in ("head",) if option in options} | (
        options.get("backbone_options") or {}
    )
    model = dataclasses.replace(recipe.model, name=name, options=own)
    return dataclasses.replace(recipe, model=model, data=dataclasses.replace(recipe.data, cameras=()))
