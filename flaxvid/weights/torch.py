"""PyTorch weights in and out, by one table of module renames a family (`ModelSpec.formats`).

A table takes module paths of ours to the reference's, ``(r"body/layer(\\d+)_(\\d+)/conv1", r"layer\\1.\\2.conv1")``;
what is private to a frame count stands under its count (``16f/stem/norm1``). Import looks up, for each variable of the
model, the tensor that the table names; export writes it there. So one direction of one table serves both, and they
cannot disagree.
"""

import dataclasses
import functools
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flaxvid import trees
from flaxvid.frames import FrameFlexible
from flaxvid.models.registry import create_model, get_spec
from flaxvid.models.spec import KeyTable
from flaxvid.models.video_model import Video, VideoModel
from flaxvid.types import Variables
from flaxvid.weights.download import resolve_weights
from flaxvid.weights.tensors import read_tensors, unwrapped

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "gain": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
_ANY_COUNT = 54321
_MOST_COUNTS = 32
_CLASSIFIER = "params/head/classifier"


@dataclasses.dataclass(frozen=True)
class Imported:
    """What `import_torch` made of a checkpoint.

    Attributes:
        variables: of the model, or of `FrameFlexible` where there are `frames`.
        format: the reference whose keys the checkpoint has.
        frames: the frame counts with variables of their own; None for a plain model.
        num_classes: of the model's head; None where neither the checkpoint nor the caller says.
        keys: variable path to source key, for all that came from the source.
        fresh: paths of the variables that were initialised instead.
    """

    variables: dict[str, Any]
    format: str
    frames: tuple[int, ...] | None
    num_classes: int | Mapping[str, int] | None
    keys: dict[str, str]
    fresh: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Plan:
    """One reading of a checkpoint: which tensor (by its `unwrapped` key) each variable would come from."""

    format: str
    frames: tuple[int, ...] | None
    shapes: Mapping[str, tuple[int, ...]]
    keys: Mapping[str, str]


def load_torch(
    name: str,
    source: str | Path | Mapping[str, Any],
    *,
    num_classes: int | Mapping[str, int] | None = None,
    frames: Sequence[int] | None = None,
    format: str | None = None,
    key: Array | None = None,
    overrides: Mapping[str, Any] | None = None,
    allow_nonfinite: bool = False,
) -> dict[str, Any]:
    """Variables for ``create_model(name)`` out of a PyTorch checkpoint, strictly, and without running code in the file.

    Args:
        name: one of `flaxvid.list_models`.
        source: a .pth, .pt (these need torch) or .safetensors file, a known name such as
            "torchvision/resnet50-imagenet1k-v1", or a state_dict of torch tensors or arrays.
        num_classes: None takes the file's. Another number than the file's gives a fresh head and a warning.
        frames: gives `FrameFlexible` variables: a plain file is copied into each count's set. A frame-flexible file
            gives variables for its own counts with or without this.
        format: the reference whose keys to expect, a key of the family's `TORCH_KEYS`; None detects it.
        key: for what the file does not hold: a fresh head, and the gains of `frames` (zero without a key).
        overrides: further options of `create_model` that change shapes, such as ``{"width": 32}``.
        allow_nonfinite: takes NaN and infinite numbers, which are refused otherwise.

    Returns:
        Variables in float32.

    Raises:
        ValueError: tensors without a place, variables without a tensor and wrong shapes, all in one error; an unknown
            name; a file that would run code, is damaged, or holds other than dense floats, NaN or infinite numbers;
            other frame counts than the file's.
        FileNotFoundError: no such file.
        ImportError: a torch file, and torch is not installed.
    """
    return import_torch(
        name,
        source,
        num_classes=num_classes,
        frames=frames,
        format=format,
        key=key,
        overrides=overrides,
        allow_nonfinite=allow_nonfinite,
    ).variables


def import_torch(
    name: str,
    source: str | Path | Mapping[str, Any],
    *,
    num_classes: int | Mapping[str, int] | None = None,
    frames: Sequence[int] | None = None,
    format: str | None = None,
    key: Array | None = None,
    overrides: Mapping[str, Any] | None = None,
    allow_nonfinite: bool = False,
) -> Imported:
    """`load_torch` with an account of what was matched."""
    tables = _tables(name, format)
    label = "the state_dict" if isinstance(source, Mapping) else str(source)
    tensors = read_tensors(
        source if isinstance(source, Mapping) else resolve_weights(source), allow_nonfinite=allow_nonfinite
    )
    names = _by_unwrapped_key(tensors, label)
    found = {short: tuple(tensors[long].shape) for short, long in names.items()}

    classifiers = [_source_key(f"{_CLASSIFIER}/kernel", table) for table in tables.values()]
    classes_in_file = next((found[short][0] for short in classifiers if math.prod(found.get(short) or (0,))), None)
    classes = classes_in_file if num_classes is None else num_classes
    model = create_model(name, **{**(overrides or {}), **({} if classes is None else {"num_classes": classes})})
    plan = min(
        _plans(label, model, tables, found, frames), key=lambda plan: len(found.keys() ^ set(plan.keys.values()))
    )
    if plan.frames and frames is not None and tuple(sorted(set(frames))) != plan.frames:
        raise ValueError(
            f"{label} has variables for frames={plan.frames}, got frames={tuple(frames)}: leave frames out"
        )

    fresh: set[str] = set()
    if num_classes is not None and num_classes != classes_in_file:
        head = {path for path in plan.shapes if path.startswith(_CLASSIFIER)}
        fresh = {path for path in head if found.get(plan.keys[path]) != plan.shapes[path]}
        old = {_source_key(f"{_CLASSIFIER}/{leaf}", tables[plan.format]) for leaf in ("kernel", "bias")}
        found = {short: shape for short, shape in found.items() if short not in old}
    keys = {path: short for path, short in plan.keys.items() if path not in fresh}
    _check(f"{label} does not fit {name} (read as {plan.format!r})", plan, keys, found, names)

    flat = {path: jnp.asarray(_from_torch(path, tensors[names[short]])) for path, short in keys.items()}
    if fresh:
        warnings.warn(
            f"{label} has a classifier of {classes_in_file or 'no'} classes, {name} needs {num_classes}: "
            "its head is freshly initialised and needs training",
            stacklevel=3,
        )
        initial = _initial_head(model, jax.random.PRNGKey(0) if key is None else key)
        flat.update({path: initial[path] for path in fresh})
    variables, counts = trees.unflatten(flat), plan.frames
    if frames is not None and not counts:
        flexible = FrameFlexible(model, tuple(frames))
        variables, counts = flexible.specialise(variables, key), flexible.frames
    sources = {path: names[short] for path, short in keys.items()}
    return Imported(variables, plan.format, counts, classes, sources, tuple(sorted(fresh)))


def to_torch(name: str, variables: Variables, format: str | None = None) -> dict[str, np.ndarray]:
    """A state_dict under a reference's keys, the inverse of `load_torch`.

    For torch: ``{key: torch.from_numpy(array) for key, array in to_torch(...).items()}``.

    Args:
        name: the model's name.
        variables: of the model or of `FrameFlexible`.
        format: a key of the family's `TORCH_KEYS`; None is the first that has a place for every variable, for
            `FrameFlexible` variables thus the FFN authors'.

    Returns:
        float32 arrays, and for each batch norm the counter that torch's strict `load_state_dict` asks for, at zero.

    Raises:
        ValueError: the format has no place for some variables.
    """
    tables = _tables(name, format)
    flat = trees.flatten(variables)
    homeless = {fmt: [path for path in flat if torch_key(path, table) is None] for fmt, table in tables.items()}
    chosen = next((fmt for fmt in tables if not homeless[fmt]), None)
    if chosen is None:
        reasons = "; ".join(f"{fmt!r} has no place for {_some(paths, 3)}" for fmt, paths in homeless.items())
        raise ValueError(f"{reasons}. FrameFlexible.select(variables, n) gives what a plain format can hold")
    state_dict = {}
    for path, leaf in flat.items():
        key = torch_key(path, tables[chosen]) or ""
        state_dict[key] = np.array(_to_torch(path, np.asarray(leaf)), np.float32, order="C")
        if key.endswith(".running_mean"):
            state_dict[key.removesuffix("running_mean") + "num_batches_tracked"] = np.zeros((), np.int64)
    return state_dict


def torch_key(path: str, table: KeyTable) -> str | None:
    """The reference's key of a variable such as "params_4f/stem/norm1/scale"; None if the table has no place for it."""
    collection, _, path = path.partition("/")
    known = re.fullmatch(r"(?:params|batch_stats)(?:_(\d+f))?", collection)
    module, _, leaf = path.rpartition("/")
    # A leaf that no layer makes is a parameter of the model itself: the table names it whole.
    module, suffix = (module, f".{_LEAVES[leaf]}") if leaf in _LEAVES else (path, "")
    if known is None:
        return None
    module = f"{known[1]}/{module}" if known[1] else module
    matches = ((re.fullmatch(pattern, module), replacement) for pattern, replacement in table)
    return next((match.expand(replacement) + suffix for match, replacement in matches if match), None)


def _tables(name: str, format: str | None) -> dict[str, KeyTable]:
    tables = {key: known.keys for key, known in get_spec(name).formats.items()}
    if not tables or format not in (None, *tables):
        raise ValueError(f"{name} has the torch formats {', '.join(tables) or '(none)'}, got format={format!r}")
    return tables if format is None else {format: tables[format]}


def _by_unwrapped_key(tensors: Mapping[str, Any], label: str) -> dict[str, str]:
    names: dict[str, str] = {}
    for key in tensors:
        if (other := names.setdefault(unwrapped(key), key)) != key:
            raise ValueError(f"{label} holds two models, {other!r} and {key!r}: pass the state_dict of one")
    return names


def _source_key(path: str, table: KeyTable) -> str:
    return unwrapped(torch_key(path, table) or f"<no key for {path}>")


def _plans(
    label: str,
    model: VideoModel,
    tables: Mapping[str, KeyTable],
    found: Mapping[str, Any],
    frames: Sequence[int] | None,
) -> Iterator[_Plan]:
    """The readings that a checkpoint may have: each format as it is, or frame-flexible where its table is."""
    plain = jax.eval_shape(model.init, jax.random.PRNGKey(0), _blank(model))

    def plan(fmt: str, tree: Variables, counts: tuple[int, ...] | None = None) -> _Plan:
        flat = trees.flatten(tree)
        shapes = {
            path: _to_torch(path, np.broadcast_to(np.float32(0), leaf.shape)).shape for path, leaf in flat.items()
        }
        return _Plan(fmt, counts, shapes, {path: _source_key(path, tables[fmt]) for path in flat})

    def flexible(counts: tuple[int, ...], alteration: str = "normal") -> Variables:
        return jax.eval_shape(FrameFlexible(model, counts, alteration).specialise, plain)

    for fmt, table in tables.items():
        if all(torch_key(path, table) for path in trees.flatten(plain)):
            yield plan(fmt, plain)
            continue
        some = next(path for path in trees.flatten(flexible((_ANY_COUNT,), "none")) if str(_ANY_COUNT) in path)
        pattern = re.escape(_source_key(some, table)).replace(str(_ANY_COUNT), r"(\d{1,5})")
        counts = sorted(int(match[1]) for match in (re.fullmatch(pattern, short) for short in found) if match)
        if len(counts) > _MOST_COUNTS:
            raise ValueError(f"{label} has variables for {len(counts)} frame counts, expected {_MOST_COUNTS} or fewer")
        for alteration in ("normal", "none"):
            yield plan(fmt, flexible(tuple(counts or frames or (16,)), alteration), tuple(counts))


def _check(
    title: str, plan: _Plan, keys: Mapping[str, str], found: Mapping[str, tuple[int, ...]], names: Mapping[str, str]
) -> None:
    used = set(keys.values())
    unmatched = [names[short] for short in found if short not in used]
    unfilled = [f"{path} ({short})" for path, short in keys.items() if short not in found]
    wrong = [
        f"{names[short]} (expected {plan.shapes[path]}, got {found[short]})"
        for path, short in keys.items()
        if short in found and found[short] != plan.shapes[path]
    ]
    faults = {
        "tensors have no place in the model": unmatched,
        "variables of the model have no tensor": unfilled,
        "tensors have the wrong shape": wrong,
    }
    lines = [f"  {len(items)} {fault}: {_some(items)}" for fault, items in faults.items() if items]
    if lines:
        advice = "Pass the name of the model that the weights belong to (flaxvid.list_models()), or its overrides."
        raise ValueError("\n".join([f"{title}:", *lines, advice]))


def _some(items: Sequence[str], shown: int = 10) -> str:
    more = len(items) - shown
    return ", ".join(items[:shown]) + (f" and {more} more" if more > 0 else "")


def _blank(model: VideoModel) -> Video:
    size = model.clip.image_size
    return model.for_cameras(jnp.zeros((1, model.clip.num_frames, size, size, 3), jnp.uint8))


def _initial_head(model: VideoModel, key: Array) -> dict[str, Array]:
    """The head's own initial parameters, without computing the rest of the model."""

    def before_head(model: Any, video: Array) -> Any:
        return model.body(model.stem(model.normalise(video)))

    init = functools.partial(model.init_with_output, method=before_head)
    x, _ = jax.eval_shape(init, key, _blank(model))
    head = model.head.init(key, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), x))
    return trees.flatten({"params": {"head": head["params"]}})


def _to_torch(path: str, array: np.ndarray) -> np.ndarray:
    """Our layout to torch's: kernels (*window, in, out) to (out, in, *window), gains to depthwise 1x1 kernels."""
    leaf = path.rpartition("/")[-1]
    if leaf == "gain":
        return array.reshape(-1, 1, 1, 1)
    return array.transpose(-1, -2, *range(array.ndim - 2)) if leaf == "kernel" else array


def _from_torch(path: str, array: np.ndarray) -> np.ndarray:
    leaf = path.rpartition("/")[-1]
    if leaf == "gain":
        return array.reshape(-1)
    return array.transpose(*range(2, array.ndim), 1, 0) if leaf == "kernel" else array
