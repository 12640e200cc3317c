"""Finds the format of a torch checkpoint: each format of the model is one reading of its keys, and the best is taken.

A format is a table of names and the options that its origin implies (`flaxvid.models.spec.Format`). Names and shapes
decide. If they leave formats that imply different models, the error asks the caller.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from flaxvid import trees
from flaxvid.frames import FrameFlexible
from flaxvid.models.registry import create_model, get_spec, list_options
from flaxvid.models.spec import Format
from flaxvid.models.video_model import VideoModel, blank_video
from flaxvid.types import Variables
from flaxvid.weights.keys import source_keys, to_tensors, torch_keys
from flaxvid.weights.tensors import unwrapped, without_prefix

HEAD = "params/head/"
CLASSIFIER = "params/head/classifier"
_NONE = "the format has none: num_classes makes a new head"
_ANY_COUNT = 54321
_MOST_COUNTS = 32


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint as its keys and shapes show it.

    Attributes:
        label: what errors call it.
        argument: how it stands in a call that an error shows.
        names: `unwrapped` key to the checkpoint's own.
        shapes: of the tensors, by their unwrapped keys.
    """

    label: str
    argument: str
    names: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Reading:
    """A checkpoint read in one format: the model that it then is of, and the tensors that each variable comes from.

    Attributes:
        format: its name.
        implied: of `find_implied`.
        model: made with these and the caller's.
        frames: frame counts with variables of their own; () where the checkpoint has none, None for a plain format.
        alteration: of the `FrameFlexible` with these; "" for a plain format.
        keys: path of each variable, without a fresh head's, to its unwrapped keys.
        fresh: paths of a head that starts anew.
        left_out: the checkpoint's keys that the format calls unused, and those of its head where the model has another.
        faults: what does not fit.
        exact: the checkpoint wraps exactly the modules that the format wraps, such as in TSM's ".net".
    """

    format: str
    implied: Mapping[str, Any]
    model: VideoModel
    frames: tuple[int, ...] | None
    alteration: str
    keys: Mapping[str, tuple[str, ...]]
    fresh: tuple[str, ...]
    left_out: tuple[str, ...]
    faults: Mapping[str, Sequence[str]]
    exact: bool


def known_formats(name: str, format: str | None) -> dict[str, Format]:
    """The formats of a model, or the one that is asked for.

    Raises:
        ValueError: there is none of that name.
    """
    formats = dict(get_spec(name).formats)
    if not formats or format not in (None, *formats):
        raise ValueError(f"{name} has the torch formats {', '.join(formats) or '(none)'}, got format={format!r}")
    return formats if format is None else {format: formats[format]}


def describe(tensors: Mapping[str, Any], label: str, argument: str) -> Source:
    """Keys and shapes of a checkpoint's tensors.

    Raises:
        ValueError: two tensors have one name.
    """
    names: dict[str, str] = {}
    for key in tensors:
        if (other := names.setdefault(unwrapped(key), key)) != key:
            raise ValueError(f"{label} holds two models, {other!r} and {key!r}: pass the state_dict of one")
    shapes = {short: tuple(tensors[long].shape) for short, long in names.items()}
    return Source(label, argument, names, shapes)


def count_classes(source: Source, formats: Mapping[str, Format]) -> int | None:
    """Classes of the checkpoint's classifier; None where it has none."""
    keys = [key for format in formats.values() for key in source_keys(f"{CLASSIFIER}/bias", format.keys)]
    return next((source.shapes[key][0] for key in keys if math.prod(source.shapes.get(key) or (0,))), None)


def choose(
    name: str,
    source: Source,
    formats: Mapping[str, Format],
    overrides: Mapping[str, Any],
    num_classes: int | Mapping[str, int] | None,
    frames: Sequence[int] | None,
) -> Reading:
    """The reading with the fewest faults.

    Args:
        name: of the model.
        source: the checkpoint.
        formats: those to try.
        overrides: the caller's options. They go above what a format implies.
        num_classes: of the head; where it is not the checkpoint's number, the head starts anew.
        frames: the counts that a frame-flexible checkpoint should have.

    Raises:
        ValueError: several formats fit and imply different models.
    """
    readings = list(_readings(name, source, formats, overrides, num_classes, frames))
    fewest = min(_count(reading.faults) for reading in readings)
    best = [reading for reading in readings if _count(reading.faults) == fewest]
    if any(reading.implied != best[0].implied for reading in best):
        best = [reading for reading in best if reading.exact] or best
        best = [reading for reading in best if _agrees(formats[reading.format], overrides)] or best
        said = [reading for reading in best if formats[reading.format].overrides.keys() & overrides.keys()]
        best = [reading for reading in said if not reading.implied] or best  # named all that this origin implies
    other = next((reading for reading in best if reading.implied != best[0].implied), None)
    if other is not None and not fewest:
        calls = "\n".join(
            f'  flaxvid.load_model("{name}", {source.argument}, format="{reading.format}")'
            f"  # {as_options(reading.implied) or 'as create_model makes it'}"
            for reading in (best[0], other)
        )
        raise ValueError(
            f"{source.label} fits two formats of {name}, {best[0].format!r} and {other.format!r}, and their models "
            f"compute different things. Say which one wrote it:\n{calls}"
        )
    return best[0]


def _agrees(format: Format, overrides: Mapping[str, Any]) -> bool:
    """Whether the caller's options contradict nothing that a format implies."""
    return all(overrides.get(option, value) == value for option, value in format.overrides.items())


def find_implied(name: str, format: Format, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a format implies, the caller does not give, and the model does not have by itself."""
    own = list_options(name)
    return {
        option: value for option, value in format.overrides.items() if option not in overrides and own[option] != value
    }


def as_options(overrides: Mapping[str, Any]) -> str:
    """Options as they stand in a call."""
    return ", ".join(f"{option}={value!r}" for option, value in overrides.items())


def read_tree(
    name: str, source: Source, formats: Mapping[str, Format], shapes: Variables, overrides: Mapping[str, Any]
) -> tuple[str, dict[str, tuple[str, ...]]]:
    """The format that fits variables of any tree best, and the unwrapped keys of each.

    Raises:
        ValueError: no format fits, with every fault of the best in it.
    """
    flat, options, readings = trees.flatten(shapes), {**list_options(name), **overrides}, {}
    for fmt, format in formats.items():
        wanted = {path: _shapes(path, leaf, format, options) for path, leaf in flat.items()}
        readings[fmt] = wanted, _find_faults(source, source.shapes, wanted)
    best = min(readings, key=lambda fmt: _count(readings[fmt][1]))
    wanted, faults = readings[best]
    check_fit(name, source, best, formats[best], faults)
    return best, {path: tuple(tensors) for path, tensors in wanted.items()}


def check_fit(name: str, source: Source, fmt: str, format: Format, faults: Mapping[str, Sequence[str]]) -> None:
    """Raises ValueError, with every fault in it, unless the checkpoint fits."""
    lines = [f"  {len(items)} {fault}: {some(items)}" for fault, items in faults.items() if items]
    if lines:
        implied = f", which implies {as_options(format.overrides)}" if format.overrides else ""
        raise ValueError(
            "\n".join(
                [
                    f"{source.label} does not fit {name} (read as {fmt!r}{implied}):",
                    *lines,
                    "Pass the name of the model that the weights belong to (flaxvid.list_models()), or its overrides.",
                ]
            )
        )


def some(items: Sequence[str], shown: int = 10) -> str:
    """The first items of a list, and how many more there are."""
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return ", ".join(items[:shown]) + more


def _count(faults: Mapping[str, Sequence[str]]) -> int:
    return sum(map(len, faults.values()))


def _readings(
    name: str,
    source: Source,
    formats: Mapping[str, Format],
    overrides: Mapping[str, Any],
    num_classes: int | Mapping[str, int] | None,
    frames: Sequence[int] | None,
) -> Iterator[Reading]:
    in_file = count_classes(source, formats)
    classes = in_file if num_classes is None else num_classes
    asked = {**overrides, **({} if classes is None else {"num_classes": classes})}
    other_head = asked.get("head", "own") != "own" and classes is not None
    made: list[tuple[Mapping[str, Any], VideoModel, Variables, list[str]]] = []
    for fmt, format in formats.items():
        if made and not _shares_keys(source, made[0][2], format):
            continue  # to make its model would take time
        implied = find_implied(name, format, overrides)
        if not any(implied == before for before, *_ in made):
            model = create_model(name, **{**implied, **asked})
            own = _shape_of(create_model(name, **{**implied, **asked, "head": "own"})) if other_head else {}
            made.append((implied, model, _shape_of(model), [path for path in trees.flatten(own) if HEAD in path]))
        _, model, plain, own_head = next(known for known in made if known[0] == implied)
        options = {**list_options(name), **implied, **asked}
        for tree, counts, alteration in _trees(model, plain, source, format, frames):
            shapes = {path: _shapes(path, leaf, format, options) for path, leaf in trees.flatten(tree).items()}
            unread = {short for path in own_head for short in source_keys(path, format.keys)}
            unused = [
                short
                for short in source.shapes
                if short in unread or any(re.fullmatch(key, short) for key in format.unused)
            ]
            found = {short: shape for short, shape in source.shapes.items() if short not in unused}
            fresh = {path for path in shapes if path.startswith(HEAD)} if other_head else set()
            if not other_head and num_classes is not None and num_classes != in_file:
                head = [path for path in shapes if path.startswith(CLASSIFIER)]
                head += [path for path in shapes if path.startswith(HEAD) and not shapes[path]]
                fresh = {path for path in head if not shapes[path] or not shapes[path].items() <= found.items()}
                for leaf in ("kernel", "bias"):
                    for short in source_keys(f"{CLASSIFIER}/{leaf}", format.keys):
                        found.pop(short, None)
            wanted = {path: shape for path, shape in shapes.items() if path not in fresh}
            wrapped = {without_prefix(key) for path in wanted for key in torch_keys(path, format.keys)}
            yield Reading(
                fmt,
                implied,
                model,
                counts,
                alteration,
                keys={path: tuple(shape) for path, shape in wanted.items()},
                fresh=tuple(sorted(fresh)),
                left_out=tuple(source.names[short] for short in unused),
                faults=_find_faults(source, found, wanted),
                exact=all(without_prefix(source.names[short]) in wrapped for short in found),
            )


def _shares_keys(source: Source, variables: Variables, format: Format) -> bool:
    """Whether a checkpoint has a key that the format gives to one of the variables."""
    return any(short in source.shapes for path in trees.flatten(variables) for short in source_keys(path, format.keys))


def _shape_of(model: VideoModel) -> Variables:
    return jax.eval_shape(model.init, jax.random.key(0), blank_video(model))


def _shapes(path: str, leaf: Any, format: Format, options: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The unwrapped keys of a variable's tensors, and their shapes; {} if the format has no place for it."""
    if not torch_keys(path, format.keys):
        return {}
    tensors = to_tensors(path, np.broadcast_to(np.float32(0), leaf.shape), format.keys, options)
    return {unwrapped(key): tensor.shape for key, tensor in tensors.items()}


def _trees(
    model: VideoModel, plain: Variables, source: Source, format: Format, frames: Sequence[int] | None
) -> Iterator[tuple[Variables, tuple[int, ...] | None, str]]:
    """The trees of variables that a checkpoint may hold: the model's, or frame-flexible ones if the format is."""
    if all(torch_keys(path, format.keys) for path in trees.flatten(plain) if not path.startswith(HEAD)):
        yield plain, None, ""
        return

    def flexible(counts: tuple[int, ...], alteration: str) -> Variables:
        return jax.eval_shape(FrameFlexible(model, counts, alteration).specialise, plain)

    private = [path for path in trees.flatten(flexible((_ANY_COUNT,), "none")) if str(_ANY_COUNT) in path]
    keys = [key for path in private for key in source_keys(path, format.keys)]
    if not keys:  # a plain format, of another model than the caller wants
        yield plain, None, ""
        return
    pattern = re.escape(keys[0]).replace(str(_ANY_COUNT), r"(\d{1,5})")
    counts = sorted(int(match[1]) for match in (re.fullmatch(pattern, short) for short in source.shapes) if match)
    if len(counts) > _MOST_COUNTS:
        raise ValueError(
            f"{source.label} has variables for {len(counts)} frame counts, expected {_MOST_COUNTS} or fewer"
        )
    for alteration in ("normal", "none"):
        yield flexible(tuple(counts or frames or (16,)), alteration), tuple(counts), alteration


def _find_faults(
    source: Source, found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, Mapping[str, tuple[int, ...]]]
) -> dict[str, list[str]]:
    used = {short for shapes in wanted.values() for short in shapes}
    return {
        "tensors have no place in the model": [source.names[short] for short in found if short not in used],
        "variables of the model have no tensor": [
            f"{path} ({', '.join(missing) or _NONE})"
            for path, shapes in wanted.items()
            if (missing := [short for short in shapes if short not in found]) or not shapes
        ],
        "tensors have the wrong shape": [
            f"{source.names[short]} (expected {shape}, got {found[short]})"
            for shapes in wanted.values()
            for short, shape in shapes.items()
            if short in found and found[short] != shape
        ],
    }
