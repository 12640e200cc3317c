"""Checks a recipe: a line for each value of a wrong type, out of range, or at odds with another.

Clips, augmentation and tasks check their own fields.
"""

import copy
import dataclasses
import difflib
import operator
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from flaxvid.layers.int8 import find_qwix
from flaxvid.models.registry import list_options
from flaxvid.tasks.domain import DomainRecipe
from flaxvid.tasks.labelled import LabelledRecipe
from flaxvid.tasks.masked import MaskedRecipe
from flaxvid.tasks.supervised import SupervisedRecipe, rows_by_count
from flaxvid.train.fields import choices, misfit
from flaxvid.train.recipe import FILLED, OptimizerRecipe, Recipe
from flaxvid.train.setup import TARGET_FIELDS, complete, make_model
from flaxvid.train.trackers import is_installed

RANGES: tuple[tuple[str, Callable[[Any], bool], tuple[str, ...]], ...] = (
    (
        "be positive",
        lambda value: value > 0,
        (
            *("epochs", "batch_size", "eval_batch_size", "norm_groups", "keep", "checkpoint_every", "log_every"),
            *("fsdp", "tensor"),
            *("model.num_frames", "model.image_size", "data.num_threads", "pruning.every"),
        ),
    ),
    (
        "not be negative",
        lambda value: value >= 0,
        (
            *("seed", "eval_every", "keep_every", "data.num_workers", "data.fold"),
            *("optimizer.learning_rate", "optimizer.weight_decay", "optimizer.clip_norm"),
            *("optimizer.warmup_epochs", "optimizer.warmup_start", "pruning.begin", "feature_cache"),
        ),
    ),
    (
        "lie in [0, 1)",
        lambda value: 0 <= value < 1,
        ("optimizer.momentum", "optimizer.b2", "optimizer.ema", "model.dropout", "pruning.sparsity"),
    ),
    ("lie in [0, 1]", lambda value: 0 <= value <= 1, ("data.max_broken",)),
    ("lie in (0, 1]", lambda value: 0 < value <= 1, ("optimizer.layer_decay",)),
)
"""Ranges of numbers. None is allowed where the type allows it."""


def check(recipe: Recipe) -> None:
    """Refuses a recipe that cannot run, before any work.

    Raises:
        ValueError: a line for each problem; or the network cannot be made.
    """
    problems, mended = _misfits(recipe)
    problems += [
        f"{name} must {rule}, got {value}"
        for rule, holds, names in RANGES
        for name in names
        if (value := operator.attrgetter(name)(mended)) is not None and not holds(value)
    ]
    problems += [f"task.{problem}" for problem in mended.task.problems()]
    rules = (_batches, _schedules, _pruning, _rounding, _groups, _features, _domains, _trackers)
    problems += [message for rule in rules for message in rule(mended)]
    network = None
    if not any(problem.startswith("model.") for problem in problems):
        try:
            mended = complete(mended)
            problems += [*_patches(mended), *_heads(mended)]
        except ValueError as error:
            network = error
    problems += _clips(mended)
    if network and not problems:
        raise network
    if problems := [*problems, *([str(network)] if network else [])]:
        raise ValueError("the recipe cannot run:\n  " + "\n  ".join(dict.fromkeys(problems)))


def _clips(recipe: Recipe) -> Iterator[str]:
    """Clips and frame counts."""
    clips = copy.copy(recipe.data.clips)
    for path, owner in FILLED.items():
        if value := operator.attrgetter(path)(recipe):
            yield f"{path} follows {owner}, got {value}: leave it empty"
    clips.frames, clips.image_size = (), max(0, recipe.model.image_size or 0)
    yield from (f"data.clips.{problem}" for problem in clips.problems())
    yield from (f"data.clips.augmentation.{problem}" for problem in clips.augmentation.problems())
    if min(recipe.eval_frames, default=1) < 1 or len({*recipe.eval_frames}) < len(recipe.eval_frames):
        yield f"eval_frames must be distinct positive frame counts such as (4, 8, 16), got {recipe.eval_frames}"


def _patches(recipe: Recipe) -> Iterator[str]:
    """Frame counts that the network's patches do not divide."""
    multiple, *_ = make_model(recipe, 1).multiple_of
    for name, counts in (("task.frames", recipe.task.frames), ("eval_frames", recipe.eval_frames)):
        if wrong := [count for count in counts if count > 0 and count % multiple]:
            yield f"{name} must be multiples of {multiple}, the frames of a patch of {recipe.model.name}, got {wrong}"


def _heads(recipe: Recipe) -> Iterator[str]:
    """Heads that tensor parallelism cannot divide: the network's, and those of a decoder of masked pre-training."""
    heads = {**list_options(recipe.model.name), **recipe.model.options}.get("num_heads")
    if recipe.tensor < 2 or not isinstance(heads, int):
        return
    if heads % recipe.tensor:
        yield f"tensor={recipe.tensor} must divide the heads of {recipe.model.name}, got num_heads={heads}"
    elif isinstance(recipe.task, MaskedRecipe):
        model = make_model(recipe, 1)
        width = recipe.task.make(model).decoder.width
        own = width * heads // model.feature_dim
        if own % recipe.tensor:
            yield (
                f"tensor={recipe.tensor} must divide the heads of the decoder, got {own}: change task.decoder_width, "
                f"now {width}, or lower tensor"
            )


def _batches(recipe: Recipe) -> Iterator[str]:
    """The batch, its parts, and the rows of each frame count."""
    task, repeats, size = recipe.task, recipe.data.clips.repeats, recipe.batch_size
    for name, parts in (("data.clips.repeats", repeats), ("optimizer.accumulate", recipe.optimizer.accumulate)):
        if size % max(1, parts) or (parts < 1 and name != "data.clips.repeats"):  # `ClipConfig` checks repeats < 1
            yield f"{name}={parts} must divide batch_size={size}"
    rows = size // max(1, recipe.optimizer.accumulate)
    if rows % max(1, recipe.norm_groups):
        yield f"norm_groups={recipe.norm_groups} must divide the {rows} clips that are computed at once"
    if not isinstance(task, LabelledRecipe):
        return
    videos = size // max(1, repeats) // jax.process_count()
    if max(task.mixup, task.cutmix) > 0 and videos < 2 <= size:
        yield (
            f"task.mixup={task.mixup} and task.cutmix={task.cutmix} mix two videos, and with "
            f"data.clips.repeats={repeats} a batch_size of {size} has one (in each process): raise batch_size"
        )
    elif max(task.mixup, task.cutmix) > 0 and videos < 2:
        yield (
            f"task.mixup={task.mixup} and task.cutmix={task.cutmix} need two clips in a batch, got batch_size={size}: "
            "raise it"
        )
    several = len(task.frames) > 1 and 0 < recipe.norm_groups <= size
    if isinstance(task, SupervisedRecipe) and several and 0 < task.share < 1 and task.sampling != "bucketed":
        got = rows_by_count(tuple(sorted(task.frames)), task.share, size // recipe.norm_groups)
        if starved := sorted(count for count, own in got.items() if own.start == own.stop):
            group = f"batch_size={size}" if recipe.norm_groups == 1 else f"each of norm_groups={recipe.norm_groups}"
            yield (
                f"task.share={task.share} of {group} leaves no clip for frames={tuple(starved)}: raise batch_size, or "
                "change task.share"
            )


def _schedules(recipe: Recipe) -> Iterator[str]:
    """Learning rate and momentum."""
    optimizer, epochs = recipe.optimizer, recipe.epochs
    if epochs > 0 and optimizer.warmup_epochs > epochs:
        yield f"optimizer.warmup_epochs={optimizer.warmup_epochs} is longer than the run, epochs={epochs}: shorten it"
    if optimizer.warmup_epochs > 0 and optimizer.warmup_start > optimizer.learning_rate:
        yield (
            f"optimizer.warmup_start={optimizer.warmup_start} is above learning_rate={optimizer.learning_rate}: "
            "lower it"
        )
    drops = tuple(optimizer.milestones)
    if optimizer.schedule == "step" and not all(b > a for a, b in zip((0, *drops), drops, strict=False)):
        yield f"optimizer.milestones must be positive epochs in ascending order, got {drops}"
    if optimizer.cosine_from_start and optimizer.schedule != "cosine":
        yield f'optimizer.cosine_from_start needs schedule="cosine", got {optimizer.schedule!r}: set it to False'
    if optimizer.nesterov and not (optimizer.name == "sgd" and optimizer.momentum > 0):
        yield (
            f'optimizer.nesterov needs "sgd" with a momentum, got {optimizer.name!r} with {optimizer.momentum}: set it '
            "to False"
        )
    if optimizer.name != "adamw" and optimizer.b2 != OptimizerRecipe.b2 and 0 <= optimizer.b2 < 1:
        yield f'optimizer.b2 is of "adamw" alone, got {optimizer.b2} with {optimizer.name!r}: leave it out'


def _pruning(recipe: Recipe) -> Iterator[str]:
    """The schedule of pruning."""
    pruning = recipe.pruning
    if pruning.sparsity > 0 and not pruning.begin < pruning.end <= recipe.epochs:
        yield (
            f"pruning must begin before it ends, and end within the run's epochs={recipe.epochs}, got "
            f"pruning.begin={pruning.begin}, pruning.end={pruning.end}"
        )
    if pruning.sparsity > 0 and recipe.unfreeze:
        yield "pruning does not go with unfreeze: unfreeze first, and prune in a second run from these weights"


def _rounding(recipe: Recipe) -> Iterator[str]:
    """Training for int8."""
    if recipe.model.int8_training and isinstance(recipe.task, MaskedRecipe):
        yield "model.int8_training does not go with masked pre-training: fine-tune with it"
    if recipe.model.int8_training:
        try:
            find_qwix()
        except ImportError as error:
            yield f"model.int8_training: {error}"


def _groups(recipe: Recipe) -> Iterator[str]:
    """Starting weights, patterns of parameters, and the backbone's options. The network shows later what they match."""
    if recipe.model.inflate and not recipe.model.weights:
        yield f"model.inflate={recipe.model.inflate!r} needs model.weights of a 2-D network: name them, or set it to ''"
    if recipe.optimizer.decay_to_start and not (recipe.model.weights and recipe.optimizer.weight_decay > 0):
        yield (
            "optimizer.decay_to_start needs model.weights to start from and a positive optimizer.weight_decay, got "
            f"{recipe.model.weights!r} and {recipe.optimizer.weight_decay}: give them, or leave it empty"
        )
    after = [epochs for epochs, _ in recipe.unfreeze]
    if after != sorted(after) or not all(0 < epochs < recipe.epochs for epochs in after):
        yield f"unfreeze must have ascending epochs between 1 and {recipe.epochs - 1}, got {recipe.unfreeze}"
    for rule in recipe.optimizer.rules:
        if min(rule[1:]) < 0:
            yield f"optimizer.rules: factors of rate and decay must not be negative, got {tuple(rule)}"
    patterns = {
        "optimizer.rules": [group for group, *_ in recipe.optimizer.rules],
        "optimizer.decay_to_start": recipe.optimizer.decay_to_start,
        "freeze": recipe.freeze,
        "unfreeze": [pattern for _, pattern in recipe.unfreeze],
        "pruning.keep": recipe.pruning.keep,
    }
    for name, pattern in ((name, pattern) for name, several in patterns.items() for pattern in several):
        try:
            re.compile(pattern)
        except re.error as error:
            yield f"{name}: {pattern!r} is no regular expression ({error}): correct it"
    backbone = recipe.model.options.get("backbone_options")
    dropout = backbone.get("dropout", 0.0) if isinstance(backbone, Mapping) else 0.0
    if not (isinstance(dropout, int | float) and 0 <= dropout < 1):
        yield f"model.options.backbone_options.dropout must lie in [0, 1), got {dropout!r}"
    if isinstance(backbone, Mapping) and "dtype" in backbone:
        yield f"model.options.backbone_options.dtype follows model.dtype, got {backbone['dtype']!r}: leave it out"


def _features(recipe: Recipe) -> Iterator[str]:
    """What would change a frozen network's features from step to step."""
    if recipe.feature_cache <= 0:
        return
    task = recipe.task
    if not isinstance(task, SupervisedRecipe):
        yield f"feature_cache={recipe.feature_cache} is for the task supervised, got {task.name}: set it to 0"
        return
    changing = {
        "data.clips.fixed=False": not recipe.data.clips.fixed,
        f"task.mixup={task.mixup}": task.mixup > 0,
        f"task.cutmix={task.cutmix}": task.cutmix > 0,
        f"task.erasing={task.erasing}": task.erasing > 0,
        f"task.sampling={task.sampling!r}": task.sampling != "proportional" and len(task.frames) > 1,
        f"unfreeze={recipe.unfreeze}": bool(recipe.unfreeze),
        f"{jax.process_count()} processes": jax.process_count() > 1,
    }
    if found := [name for name, on in changing.items() if on]:
        yield (
            f"feature_cache={recipe.feature_cache} needs the same features in every step, and one process, got "
            f"{', '.join(found)}: change that, or set feature_cache to 0"
        )


def _domains(recipe: Recipe) -> Iterator[str]:
    """The target domain."""
    target = recipe.data.target
    if isinstance(recipe.task, DomainRecipe) and not target:
        yield "task domain needs a target domain: say in data.target what differs there, such as {'root': FOLDER}"
    if unknown := sorted(target.keys() - {*TARGET_FIELDS}):
        yield f"data.target has no field {', '.join(unknown)}: valid ones are {', '.join(TARGET_FIELDS)}"
    elif not isinstance(target.get("motion", {}), Mapping):
        yield f"data.target.motion must be a dict, got {target['motion']!r}"


def _trackers(recipe: Recipe) -> Iterator[str]:
    """Trackers that are not installed."""
    for name in recipe.trackers:
        if not is_installed(name):
            yield f"trackers: {name} is not installed: pip install 'flaxvid[{name}]'"


def _misfits(recipe: Recipe) -> tuple[list[str], Recipe]:
    """Misspelt fields, values of a wrong type, NaN or infinite; and the recipe with defaults in their place."""
    problems, mended = [], copy.deepcopy(recipe)

    def mend(owner: Any, prefix: str) -> None:
        hints, plain, parts = typing.get_type_hints(type(owner)), type(owner)(), []
        names = [field.name for field in dataclasses.fields(owner)]
        for name in vars(owner).keys() - names:  # set in Python; flags and files refuse it themselves
            near = difflib.get_close_matches(name, names, 1)
            kind = type(owner).__name__
            problems.append(f"{prefix}{name} is no field of {kind}: {f'write {near[0]}' if near else 'leave it out'}")
        for field in dataclasses.fields(owner):
            value, path, hint = getattr(owner, field.name), prefix + field.name, hints[field.name]
            if dataclasses.is_dataclass(value) and isinstance(value, choices(hint)):
                parts.append((value, f"{path}."))
            elif wanted := misfit(value, hint):
                half = ": nothing scales the loss in it, and small gradients would be rounded to zero"
                shown = repr(value)[: 60 if dataclasses.is_dataclass(value) else None]
                problems.append(f"{path} must be {wanted}, got {shown}" + half * (value == "float16"))
                setattr(owner, field.name, getattr(plain, field.name))
        for part in parts:
            mend(*part)

    mend(mended, "")
    return problems, mended
