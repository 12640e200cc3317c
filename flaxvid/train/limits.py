"""What a recipe's values may be: each of the wrong types, out of range, or at odds with another, in a line of its own.

Rules that a part of the library has for itself (of clips, mixing, sampling) stand there and are only asked for here.
"""

import copy
import dataclasses
import functools
import math
import operator
import re
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax

from flaxvid.tasks.frame_flexible import FfnRecipe
from flaxvid.tasks.supervised import SupervisedRecipe, rows_by_count

CHOICES = {
    "task.name": ("ffn", "supervised"),
    "optimizer.name": ("sgd", "adamw"),
    "optimizer.schedule": ("step", "cosine", "constant"),
    "model.inflate": ("", "mean", "centre"),
    "data.missing": ("error", "keep"),
    "model.dtype": ("float32", "bfloat16"),
}

RANGES: tuple[tuple[str, Callable[[Any], bool], tuple[str, ...]], ...] = (
    (
        "be positive",
        lambda value: value > 0,
        (
            *("epochs", "batch_size", "eval_batch_size", "norm_groups", "keep", "checkpoint_every", "log_every"),
            *("model.num_frames", "data.num_threads"),
        ),
    ),
    (
        "not be negative",
        lambda value: value >= 0,
        (
            *("seed", "eval_every", "keep_every", "data.num_workers", "data.fold"),
            *("optimizer.learning_rate", "optimizer.weight_decay", "optimizer.clip_norm"),
            *("optimizer.warmup_epochs", "optimizer.warmup_start"),
        ),
    ),
    (
        "lie in [0, 1)",
        lambda value: 0 <= value < 1,
        ("optimizer.momentum", "optimizer.ema", "model.dropout"),
    ),
    ("lie in [0, 1]", lambda value: 0 <= value <= 1, ("data.max_broken",)),
)


def find_problems(recipe: Any, clip_config: Callable[[Any, tuple[int, ...]], Any]) -> list[str]:
    """All that is wrong with a recipe, as far as it shows without its data and its network; [] if nothing.

    Args:
        recipe: a `Recipe`, whose module knows this one.
        clip_config: its rules for clips of given frame counts.
    """
    problems, recipe = _misfits(recipe)
    half = {"float16": ": nothing scales the loss in it, and small gradients would be rounded to zero"}
    problems += [
        f"{name} must be {_either(choices)}, got {value!r}{half.get(value, '')}"
        for name, choices in CHOICES.items()
        if (value := _value(recipe, name)) not in choices
    ]
    problems += [
        f"{name} must {rule}, got {value}"
        for rule, holds, names in RANGES
        for name in names
        if not holds(value := _value(recipe, name))
    ]
    problems += [message for rules in (_batches, _schedules, _groups) for message in rules(recipe)]
    return [*dict.fromkeys([*problems, *_others_rules(recipe, clip_config)])]


def _batches(recipe: Any) -> Iterator[str]:
    """Batches, and what of them each part and each frame count gets."""
    task, repeats, size = recipe.task, recipe.data.repeats, recipe.batch_size
    for name, parts in (("data.repeats", repeats), ("optimizer.accumulate", recipe.optimizer.accumulate)):
        if size % max(1, parts) or (parts < 1 and name != "data.repeats"):  # clips have that rule themselves
            yield f"{name}={parts} must divide batch_size={size}"
    rows = size // max(1, recipe.optimizer.accumulate)
    if rows % max(1, recipe.norm_groups):
        yield f"norm_groups={recipe.norm_groups} must divide the {rows} clips that are computed at once"
    videos = size // max(1, repeats) // jax.process_count()
    if max(task.mixup, task.cutmix) > 0 and videos < 2 <= size:
        yield (
            f"task.mixup={task.mixup} and task.cutmix={task.cutmix} mix two videos, and with data.repeats={repeats} a "
            f"batch_size of {size} has one (in each process): raise batch_size"
        )
    elif max(task.mixup, task.cutmix) > 0 and videos < 2:
        yield f"task.mixup={task.mixup} and task.cutmix={task.cutmix} need two clips in a batch, got batch_size={size}"
    if task.name == "supervised" and len(task.frames) > 1 and 0 < task.share < 1 and 0 < recipe.norm_groups <= size:
        got = rows_by_count(tuple(sorted(task.frames)), task.share, size // recipe.norm_groups)
        if starved := sorted(count for count, own in got.items() if own.start == own.stop):
            group = f"batch_size={size}" if recipe.norm_groups == 1 else f"each of norm_groups={recipe.norm_groups}"
            yield (
                f"task.share={task.share} of {group} leaves no clip for frames={tuple(starved)}: raise batch_size, or "
                "change task.share"
            )


def _schedules(recipe: Any) -> Iterator[str]:
    """The learning rate over the epochs, and momentum."""
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


def _groups(recipe: Any) -> Iterator[str]:
    """Patterns of parameters, whose matches are known once the network is; and the network's own options."""
    if recipe.model.inflate and not recipe.model.weights:
        yield f"model.inflate={recipe.model.inflate!r} needs model.weights of a 2-D network: name them, or set it to ''"
    for rule in recipe.optimizer.rules:
        if min(rule[1:]) < 0:
            yield f"optimizer.rules: factors of rate and decay must not be negative, got {tuple(rule)}"
    patterns = [("optimizer.rules", rule[0]) for rule in recipe.optimizer.rules]
    for name, pattern in (*patterns, *(("freeze", pattern) for pattern in recipe.freeze)):
        try:
            re.compile(pattern)
        except re.error as error:
            yield f"{name}: {pattern!r} is no regular expression ({error}): correct it"
    backbone = recipe.model.options.get("backbone_options")
    dropout = backbone.get("dropout", 0.0) if isinstance(backbone, Mapping) else 0.0
    if not (isinstance(dropout, int | float) and 0 <= dropout < 1):
        yield f"model.options.backbone_options.dropout must lie in [0, 1), got {dropout!r}"
    if isinstance(backbone, Mapping) and "dtype" in backbone:
        yield f"model.options.backbone_options.dtype is model.dtype's to say, got {backbone['dtype']!r}: leave it out"


def _others_rules(recipe: Any, clip_config: Callable[[Any, tuple[int, ...]], Any]) -> Iterator[str]:
    """What clips, tasks and mixing refuse themselves: they raise their first problem, so each value is asked alone."""
    task, plain, anything = recipe.task, type(recipe)(), (1,)
    if recipe.model.image_size < 1:  # it would be the answer to whatever else is asked
        yield f"model.image_size must be positive, got {recipe.model.image_size}"
        recipe.model.image_size = plain.model.image_size
    plain.model.image_size, alone = recipe.model.image_size, []
    for field in dataclasses.fields(recipe.data):
        one = copy.deepcopy(plain)
        setattr(one.data, field.name, getattr(recipe.data, field.name))
        alone.append((f"data.{field.name}", functools.partial(clip_config, one, anything)))
    together = [("data", functools.partial(clip_config, recipe, anything))]
    yield from _refusals(alone) or _refusals(together)
    asked = [
        ("eval_frames", functools.partial(clip_config, plain, recipe.eval_frames)),
    ]
    yield from _refusals(asked)
    if kind := {"ffn": FfnRecipe, "supervised": SupervisedRecipe}.get(task.name):
        own = kind(**{field.name: getattr(task, field.name) for field in dataclasses.fields(kind)})
        yield from (f"task.{problem}" for problem in own.problems())


def _refusals(asked: Iterable[tuple[str, Callable[[], Any]]]) -> list[str]:
    """What each of these raises, under its name."""
    refusals = []
    for name, ask in asked:
        try:
            ask()
        except ValueError as error:
            refusals.append(f"{name}: {error}")
    return refusals


def _misfits(recipe: Any) -> tuple[list[str], Any]:
    """Values that are of another type than their field, or NaN or infinite; and the recipe with defaults for them."""
    problems, mended, plain = [], copy.deepcopy(recipe), type(recipe)()
    for name, kind in typing.get_type_hints(type(recipe)).items():
        part = getattr(mended, name)
        if isinstance(kind, type) and dataclasses.is_dataclass(kind) and not isinstance(part, kind):
            problems.append(f"{name} must be a {kind.__name__}, got {repr(part)[:60]}")
            setattr(mended, name, getattr(plain, name))
    for part in ("", "model", "data", "task", "optimizer"):
        owner, default = (_value(mended, part), _value(plain, part)) if part else (mended, plain)
        for name, hint in typing.get_type_hints(type(owner)).items():
            if dataclasses.is_dataclass(hint):
                continue
            if wanted := _wrong(getattr(owner, name), hint):
                problems.append(f"{part + '.' * bool(part)}{name} must be {wanted}, got {getattr(owner, name)!r}")
                setattr(owner, name, getattr(default, name))
    return problems, mended


def _wrong(value: Any, hint: Any) -> str:
    """What a value should be instead; "" where it is of the type."""
    parts = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        inner = parts if parts[-1] is not ... else (parts[0],) * (len(value) if isinstance(value, tuple | list) else 0)
        if not isinstance(value, tuple | list) or len(value) != len(inner):
            return f"a tuple of {len(parts)}" if parts[-1] is not ... else "a tuple"
        return next((f"a tuple, each {wrong}" for wrong in map(_wrong, value, inner) if wrong), "")
    if typing.get_origin(hint) is dict:
        if not isinstance(value, Mapping):
            return "a dict"
        return next(
            (f"a dict, each value {wrong}" for wrong in (_wrong(v, parts[1]) for v in value.values()) if wrong), ""
        )
    if hint is Any:
        number = isinstance(value, float) and not math.isfinite(value)
        nested = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
        return "finite" if number or any(_wrong(one, Any) for one in nested) else ""
    if hint is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
        return "" if fits else "a finite number"
    if hint is int:
        fits = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 31
        return "" if fits else "a whole number of 31 bits"
    names = {str: "text", bool: "True or False"}
    return "" if isinstance(value, hint) else names[hint]


def _value(recipe: Any, name: str) -> Any:
    return operator.attrgetter(name)(recipe)


def _either(choices: tuple[str, ...]) -> str:
    quoted = [f'"{choice}"' for choice in choices]
    return f"{', '.join(quoted[:-1])} or {quoted[-1]}"
