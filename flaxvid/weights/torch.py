"""PyTorch weights in and out, by the formats of a model (`ModelSpec.formats`): a table of names, and what it implies.

A table takes module paths of ours to the reference's, ``(r"body/layer(\\d+)_(\\d+)/conv1", r"layer\\1.\\2.conv1")``;
what is private to a frame count stands under its count (``16f/stem/norm1``). Import looks up, for each variable of the
model, the tensors that the table names, and joins several; export splits them and writes them there. So one direction
of one table serves both, and they cannot disagree.

What an origin computes is more than names: some take another epsilon in their norms, some shift in every second block.
No tensor shows that. `load_model` makes the model so. `load_torch` gives variables alone, and refuses a file that needs
another model than the caller has.
"""

import dataclasses
import functools
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flaxvid import trees
from flaxvid.frames import FrameFlexible
from flaxvid.models.registry import list_options
from flaxvid.models.spec import Format
from flaxvid.models.video_model import VideoModel, blank_video
from flaxvid.types import Variables
from flaxvid.weights.download import resolve_weights
from flaxvid.weights.keys import from_tensors, to_tensors, torch_keys
from flaxvid.weights.known import known_of
from flaxvid.weights.readings import (
    as_options,
    check_fit,
    choose,
    count_classes,
    describe,
    find_implied,
    known_formats,
    read_tree,
    some,
)
from flaxvid.weights.tensors import read_tensors


@dataclasses.dataclass(frozen=True)
class Imported:
    """What `import_torch` made of a checkpoint.

    Attributes:
        model: computes what the checkpoint's origin computes: a `FrameFlexible` where there are `frames`.
        variables: the model's.
        format: the reference whose keys the checkpoint has.
        implied: the options of `model` that the format or the published file implies, the caller did not give, and
            the name does not have by itself.
        frames: the frame counts with variables of their own; None for a plain model.
        num_classes: of the model's head; None where neither the checkpoint nor the caller says.
        keys: variable path to source keys, for all that came from the source.
        fresh: paths of the variables that were initialised instead.
        left_out: source keys that are no part of the model, such as those of a decoder that pre-training alone needs,
            or of the file's head where the model has another.
    """

    model: VideoModel | FrameFlexible
    variables: dict[str, Any]
    format: str
    implied: Mapping[str, Any]
    frames: tuple[int, ...] | None
    num_classes: int | Mapping[str, int] | None
    keys: dict[str, tuple[str, ...]]
    fresh: tuple[str, ...]
    left_out: tuple[str, ...]


def load_model(
    name: str,
    weights: str | Path | Mapping[str, Any],
    *,
    num_classes: int | Mapping[str, int] | None = None,
    frames: Sequence[int] | None = None,
    format: str | None = None,
    part: str | None = None,
    key: Array | None = None,
    allow_nonfinite: bool = False,
    **overrides: Any,
) -> tuple[VideoModel | FrameFlexible, dict[str, Any]]:
    """A model and its variables out of a PyTorch checkpoint, which together compute what its origin computes.

    Args:
        name: one of `flaxvid.list_models`.
        weights: a file of torch (.pth, .pt, .pth.tar, .pyth), a pickle of arrays (Caffe2's .pkl), a .safetensors, .npz
            or flax msgpack file; a name of `flaxvid.list_weights`, which need not repeat the model's,
            "pytorchvideo/kinetics400"; a file of the Hugging Face Hub, "hf://OWNER/REPO/FILE"; or a state_dict of
            torch tensors or arrays. torch is not needed.
        num_classes: None takes the file's. Another number than the file's gives a fresh head and a warning, which also
            says what is left out of a file of pre-training. So does ``head="attention"``, which no file has.
        frames: gives a `FrameFlexible` and its variables: a plain file is copied into each count's set. A
            frame-flexible file gives one for its own counts with or without this.
        format: the reference that wrote the file, a key of the model's formats; None detects it.
        part: which part of the file is read where it holds several networks, such as "target_encoder" or "ema".
        key: for what the file does not hold: a fresh head, and the gains of `frames` (zero without a key).
        allow_nonfinite: takes NaN and infinite numbers, which are refused otherwise.
        **overrides: of `create_model`. They go above what the file's origin implies.

    Returns:
        The model, and its variables in float32.

    Raises:
        ValueError: tensors without a place, variables without a tensor and wrong shapes, all in one error; a file that
            two references may have written whose models compute different things; an unknown name; a file that could
            run code, is damaged, holds several networks, or holds other than dense floats, NaN or infinite numbers;
            other frame counts than the file's.
        FileNotFoundError: no such file, and no such name.
        ConnectionError: the file cannot be fetched.
        ImportError: a file of the Hub, and huggingface_hub is not installed.
    """
    imported = import_torch(
        name,
        weights,
        num_classes=num_classes,
        frames=frames,
        format=format,
        part=part,
        key=key,
        overrides=overrides,
        allow_nonfinite=allow_nonfinite,
    )
    return imported.model, imported.variables


def load_torch(
    name: str,
    weights: str | Path | Mapping[str, Any],
    *,
    num_classes: int | Mapping[str, int] | None = None,
    frames: Sequence[int] | None = None,
    format: str | None = None,
    part: str | None = None,
    key: Array | None = None,
    overrides: Mapping[str, Any] | None = None,
    allow_nonfinite: bool = False,
) -> dict[str, Any]:
    """The variables of `load_model` alone, for a model that the caller makes: ``create_model(name, **overrides)``.

    Args that are not named here are those of `load_model`.

    Args:
        overrides: the options with which the caller makes the model, such as ``{"width": 32}``.

    Returns:
        Variables in float32.

    Raises:
        ValueError: the file's origin implies options that `overrides` does not name, so that the caller's model would
            compute something else; the error shows the call of `load_model`. Or what `load_model` raises.
        FileNotFoundError: no such file, and no such name.
        ConnectionError: the file cannot be fetched.
        ImportError: a file of the Hub, and huggingface_hub is not installed.
    """
    imported = import_torch(
        name,
        weights,
        num_classes=num_classes,
        frames=frames,
        format=format,
        part=part,
        key=key,
        overrides=overrides,
        allow_nonfinite=allow_nonfinite,
    )
    if imported.implied:
        label, argument = _names_of(weights, part)
        raise ValueError(
            f"{label} is of {imported.format!r}, whose {name} has {as_options(imported.implied)}: with these variables "
            f"another model computes something else. Take both from one call:\n"
            f'  model, variables = flaxvid.load_model("{name}", {argument})\n'
            f"or make the model so and say it here: overrides={dict(imported.implied)!r}"
        )
    return imported.variables


def load_pretraining(
    name: str,
    weights: str | Path | Mapping[str, Any],
    shapes: Variables,
    *,
    format: str | None = None,
    part: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    allow_nonfinite: bool = False,
) -> dict[str, Any]:
    """All variables of a pre-training checkpoint, the decoder's (`params_decoder`) too; `to_torch` writes them.

    `load_model` makes a classifier of the same file, and leaves the decoder out.

    Args:
        name: of the model whose stem and body are pre-trained.
        weights, format, part, allow_nonfinite: see `load_model`.
        shapes: a tree of the variables that are wanted, or of their shapes, as `jax.eval_shape` gives it.
        overrides: the options with which the caller makes the model.

    Returns:
        Variables in float32.

    Raises:
        ValueError: as `load_torch`.
        FileNotFoundError: no such file, and no such name.
    """
    formats, overrides = known_formats(name, format), overrides or {}
    tensors = _read(name, weights, part, allow_nonfinite)
    checkpoint = describe(tensors, *_names_of(weights, part))
    fmt, shorts = read_tree(name, checkpoint, formats, shapes, overrides)
    if implied := find_implied(name, formats[fmt], overrides):
        raise ValueError(
            f"{checkpoint.label} is of {fmt!r}, whose {name} has {as_options(implied)}: make the model so and say it "
            f"here: overrides={implied!r}"
        )
    keys = {path: tuple(checkpoint.names[short] for short in found) for path, found in shorts.items()}
    return trees.unflatten(_take(tensors, keys, formats[fmt]))


def import_torch(
    name: str,
    source: str | Path | Mapping[str, Any],
    *,
    num_classes: int | Mapping[str, int] | None = None,
    frames: Sequence[int] | None = None,
    format: str | None = None,
    part: str | None = None,
    key: Array | None = None,
    overrides: Mapping[str, Any] | None = None,
    allow_nonfinite: bool = False,
) -> Imported:
    """`load_model` with an account of what was matched and implied."""
    known = None if isinstance(source, Mapping) else known_of(source, name)
    published, given = {}, overrides or {}
    if known is not None:
        format = format or known.format
        published = {option: value for option, value in known.options.items() if option not in given}
    formats, overrides = known_formats(name, format), {**published, **given}
    tensors = _read(name, source, part, allow_nonfinite)
    checkpoint = describe(tensors, *_names_of(source, part))
    reading = choose(name, checkpoint, formats, overrides, num_classes, frames)
    if reading.frames and frames is not None and tuple(sorted(set(frames))) != reading.frames:
        raise ValueError(
            f"{checkpoint.label} has variables for frames={reading.frames}, got frames={tuple(frames)}: leave frames "
            "out"
        )
    check_fit(name, checkpoint, reading.format, formats[reading.format], reading.faults)

    keys = {path: tuple(checkpoint.names[short] for short in shorts) for path, shorts in reading.keys.items()}
    flat = _take(tensors, keys, formats[reading.format])
    classes = count_classes(checkpoint, formats)
    if reading.fresh:
        left = f"; {len(reading.left_out)} tensors are left out: {some(reading.left_out)}" if reading.left_out else ""
        head = overrides.get("head", "own")
        why = (
            f"has a classifier of {classes or 'no'} classes, {name} needs {num_classes}: its head"
            if head == "own"
            else f"has not the head that {name} is to have (head={head!r}): that head"
        )
        warnings.warn(
            f"{checkpoint.label} {why} is freshly initialised and needs training{left}",
            stacklevel=3,
        )
        initial = _initial_head(reading.model, jax.random.PRNGKey(0) if key is None else key)
        flat.update({path: initial[path] for path in reading.fresh})
    model, variables, counts = reading.model, trees.unflatten(flat), reading.frames
    own = list_options(name)
    if counts:
        model = FrameFlexible(reading.model, counts, reading.alteration)
    elif frames is not None:
        model = FrameFlexible(reading.model, tuple(frames))
        variables, counts = model.specialise(variables, key), model.frames
    return Imported(
        model,
        variables,
        reading.format,
        {option: value for option, value in {**reading.implied, **published}.items() if value != own[option]},
        counts,
        classes if num_classes is None else num_classes,
        keys,
        reading.fresh,
        reading.left_out,
    )


def to_torch(
    name: str, variables: Variables, format: str | None = None, *, overrides: Mapping[str, Any] | None = None
) -> dict[str, np.ndarray]:
    """A state_dict under a reference's keys, the inverse of `load_model`.

    For torch: ``{key: torch.from_numpy(array) for key, array in to_torch(...).items()}``, or a file by
    scripts/save_weights.py, which needs no torch. It holds tensors only.
    Whatever else the model has, an epsilon or a shift in every second block, the network in torch needs to have too.

    Args:
        name: the model's name.
        variables: of the model or of `FrameFlexible`.
        format: one of the model's formats; None is the first that has a place for every variable and implies nothing
            else than the model has, for `FrameFlexible` variables thus the FFN authors'.
        overrides: the options with which the model was made.

    Returns:
        float32 arrays, and for each batch norm the counter that torch's strict `load_state_dict` asks for, at zero.

    Raises:
        ValueError: the format has no place for some variables.

    Warns:
        UserWarning: the format implies other options than the model has; its readers, `load_model` too, then compute
            something else than the model that `overrides` tell of.
    """
    formats, overrides = known_formats(name, format), overrides or {}
    flat = trees.flatten(variables)
    homeless = {fmt: [path for path in flat if not torch_keys(path, known.keys)] for fmt, known in formats.items()}
    fitting = [fmt for fmt in formats if not homeless[fmt]]
    if not fitting:
        reasons = "; ".join(f"{fmt!r} has no place for {some(paths, 3)}" for fmt, paths in homeless.items())
        flexible = any(re.match(r"params_\d+f/", path) for path in flat)
        fix = "take FrameFlexible.select(variables, n)" if flexible else "write a file of flaxvid by flaxvid.save"
        raise ValueError(f"{reasons}: {fix}")
    options = {**list_options(name), **overrides}
    unsaid = {
        fmt: {option: value for option, value in formats[fmt].overrides.items() if options[option] != value}
        for fmt in fitting
    }
    chosen = next((fmt for fmt in fitting if not unsaid[fmt]), fitting[0])
    if unsaid[chosen]:
        warnings.warn(
            f"{chosen!r} means a {name} with {as_options(unsaid[chosen])}: pass overrides={unsaid[chosen]!r} if your "
            "model has that; if it has not, whoever reads the file must be told",
            stacklevel=2,
        )
    state_dict = {}
    for path, leaf in flat.items():
        for key, tensor in to_tensors(path, np.asarray(leaf), formats[chosen].keys, options).items():
            state_dict[key] = np.array(tensor, np.float32, order="C")
            if key.endswith(".running_mean"):
                state_dict[key.removesuffix("running_mean") + "num_batches_tracked"] = np.zeros((), np.int64)
    return state_dict


def _read(
    name: str, source: str | Path | Mapping[str, Any], part: str | None, allow_nonfinite: bool
) -> dict[str, np.ndarray]:
    from flaxvid.weights.native import is_native  # imports PyAV

    file = source if isinstance(source, Mapping) else resolve_weights(source, name)
    if isinstance(file, Path) and file.is_file() and is_native(file):
        raise ValueError(f"expected a file with torch's keys, got {source}, which flaxvid wrote: use flaxvid.load")
    return read_tensors(file, part=part, allow_nonfinite=allow_nonfinite)


def _take(tensors: Mapping[str, np.ndarray], keys: Mapping[str, Sequence[str]], format: Format) -> dict[str, jax.Array]:
    """Variables by their paths, each out of the tensors of its keys."""
    return {
        path: jnp.asarray(from_tensors(path, [tensors[key] for key in names], format.keys))
        for path, names in keys.items()
    }


def _names_of(source: str | Path | Mapping[str, Any], part: str | None) -> tuple[str, str]:
    """What errors call a checkpoint, and how it stands in a call."""
    label, argument = ("the state_dict", "state_dict") if isinstance(source, Mapping) else (str(source), f'"{source}"')
    return label, argument if part is None else f'{argument}, part="{part}"'


def _initial_head(model: VideoModel, key: Array) -> dict[str, Array]:
    """The head's own initial parameters, without computing the rest of the model."""
    init = functools.partial(model.init_with_output, method=VideoModel.encode)
    x, _ = jax.eval_shape(init, key, blank_video(model))
    head = model.head.init(key, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), x))
    return trees.flatten({"params": {"head": head["params"]}})
