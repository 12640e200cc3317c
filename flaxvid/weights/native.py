"""Our own weights file: a .safetensors file with keys such as "params/stem/conv1/kernel" that names its model."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxvid import trees
from flaxvid.data.clips.cut import ClipConfig
from flaxvid.frames import FrameFlexible
from flaxvid.layers.int8 import pack_kernel
from flaxvid.models.registry import create_model
from flaxvid.models.video_model import blank_video
from flaxvid.types import Classes, Variables, by_target
from flaxvid.weights.pickled import Unreadable
from flaxvid.weights.safetensors_file import looks_like_safetensors, read_safetensors
from flaxvid.weights.tensors import check_finite, check_there, one_error
from flaxvid.writing import written_whole


@dataclasses.dataclass(frozen=True)
class WeightsInfo:
    """What weights belong to; ``create_model(info.model, **info.overrides)`` makes the model again.

    Attributes:
        model: its name.
        overrides: what `create_model` was given: num_classes, num_frames, mean, std, ..., as JSON values.
        frames: the counts of `FrameFlexible` variables; None for a plain model.
        classes: class names in the order of the logits, if known; of several targets those of each.
        clips: how a test cuts clips, and at which frame counts a plain model was trained, if known. A file keeps the
            fields `TEST_FIELDS`.
    """

    model: str
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    frames: tuple[int, ...] | None = None
    classes: Classes | None = None
    clips: ClipConfig = dataclasses.field(default_factory=ClipConfig)


TEST_FIELDS = {"frames": list, "test_size": int, "sampling": str, "interval": int, "clips": int, "crops": int}
"""Fields of `ClipConfig` that say what a test sees of a video, and their types in JSON."""


_KINDS = {"F32", "F16", "BF16", "F64", "I8"}


def save_variables(path: str | Path, variables: Variables, info: WeightsInfo) -> None:
    """Writes variables and what they belong to into one file, whole or not at all.

    The kernels of an int8 network with calibrated ranges take a quarter of their size.

    Raises:
        ValueError: the path does not end in .safetensors.
    """
    from safetensors.numpy import save

    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"expected a path that ends in .safetensors, got {path}")
    flat = {key: np.ascontiguousarray(leaf) for key, leaf in trees.flatten(variables).items()}
    for kernel in _packed(info.overrides, flat):
        flat[kernel], flat[f"{kernel}_step"] = pack_kernel(flat[kernel])
    facts = {field.name: getattr(info, field.name) for field in dataclasses.fields(info) if field.name != "clips"}
    clips = {name: (getattr(info.clips, name), getattr(ClipConfig(), name)) for name in TEST_FIELDS}
    if own := {name: value for name, (value, usual) in clips.items() if value != usual}:
        facts["clips"] = own  # versions that do not know it refuse it
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as part:
        part.write_bytes(save(flat, metadata={"flaxvid": json.dumps(facts, default=_as_json)}))


def is_native(path: str | Path) -> bool:
    """Whether a file was written by `save_variables`.

    Raises:
        ValueError: a damaged .safetensors file.
    """
    with Path(path).open("rb") as file:
        if not looks_like_safetensors(file.read(16)):
            return False
    with one_error(str(path)):
        return "flaxvid" in read_safetensors(Path(path), lambda key: False)[0]


def load_variables(path: str | Path, *, allow_nonfinite: bool = False) -> tuple[dict[str, Any], WeightsInfo]:
    """Reads what `save_variables` wrote.

    Args:
        path: of the file.
        allow_nonfinite: takes NaN and infinite numbers, which are refused otherwise.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file of others (`load_model` reads those), a damaged one, one of an unknown model, or one with
            numbers that are not finite.
    """
    path = Path(path)
    check_there(path)
    with one_error(str(path)):
        metadata, flat = read_safetensors(path, kinds=_KINDS)
        if "flaxvid" not in metadata:
            raise Unreadable("was not written by flaxvid: read a file with torch's keys by flaxvid.load_model")
        info = _read_info(metadata["flaxvid"], len(flat))
        if not any(key.startswith("params/") for key in flat):
            raise Unreadable("has no parameters: save the variables of a model")
        for kernel in _packed(info.overrides, flat):
            if not (f"{kernel}_step" in flat and flat[kernel].dtype == np.int8):
                raise Unreadable(
                    f"must have {kernel} in int8 with its {kernel}_step, as its options say: write it anew"
                )
            flat[kernel] = flat[kernel] * flat.pop(f"{kernel}_step")
        if whole := [key for key, leaf in flat.items() if leaf.dtype == np.int8]:
            raise Unreadable(f"has {whole[0]} in int8, and its options do not say why: write it anew")
        if not allow_nonfinite:
            check_finite(flat)
        return trees.unflatten({key: jnp.asarray(leaf) for key, leaf in flat.items()}), info


def check_fit(path: str | Path, variables: Variables, flexible: FrameFlexible, *, plain: bool) -> None:
    """Checks paths and shapes of a file's variables against the model that the file names.

    A layer notices a kernel of another shape, but not statistics that broadcast.

    Args:
        path: of the file.
        variables: what is in it.
        flexible: the model, and the frame counts that have variables of their own.
        plain: whether the variables are ordinary ones of the model.

    Raises:
        ValueError: they are not.
    """
    model = flexible.model
    with one_error(str(path)):
        want = _shapes(lambda: model.init(jax.random.key(0), blank_video(model)))
        for count in flexible.frames:
            have = _shapes(lambda n=count: variables if plain else flexible.select(variables, n))
            wrong = [key for key in sorted(want.keys() | have.keys()) if want.get(key) != have.get(key)]
            if wrong:
                some = ", ".join(f"{key} (expected {want.get(key)}, got {have.get(key)})" for key in wrong[:4])
                raise Unreadable(
                    f"does not fit the model that it names: {len(wrong)} variables differ, such as {some}: write it "
                    "anew with the options of its model"
                )


def _packed(overrides: Mapping[str, Any], flat: Mapping[str, Any]) -> list[str]:
    """The kernels that a file keeps as int8, those of the layers with calibrated ranges."""
    ranges = overrides.get("int8")
    kernels = [f"params/{layer}/kernel" for layer in ranges] if isinstance(ranges, Mapping) else []
    return [kernel for kernel in kernels if kernel in flat]  # sums have none


def _as_json(value: Any) -> Any:
    """An option as JSON has it: dicts and numbers of other libraries, and the name of a type."""
    if isinstance(value, Mapping):
        return dict(value)
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else np.dtype(value).name


def _shapes(make: Callable[[], Variables]) -> dict[str, tuple[int, ...]]:
    return {path: leaf.shape for path, leaf in trees.flatten(jax.eval_shape(make)).items()}


def _read_info(text: str, tensors: int) -> WeightsInfo:
    """What a file with so many tensors says of its model; the model can be made."""
    fields: dict[str, Any] = {field.name: None for field in dataclasses.fields(WeightsInfo)}
    fields |= {"overrides": {}, "clips": {}}
    facts = json.loads(text)
    if not isinstance(facts, dict) or not set(facts) <= set(fields):
        raise Unreadable(f"must say its {', '.join(fields)}, got {text[:80]!r}: write it by this version of flaxvid")
    facts = fields | facts
    frames, classes = facts["frames"], by_target(facts["classes"] or {})
    if frames is not None and not (isinstance(frames, list) and all(type(n) is int and n > 0 for n in frames)):
        raise Unreadable(f"must have frame counts such as [4, 8] or none, got {str(frames)[:80]}: write it anew")
    if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in classes.values()):
        raise Unreadable(f"must have lists of class names, got {str(facts['classes'])[:80]}: write it anew")
    try:
        clips = _read_clips(facts["clips"])
    except (TypeError, ValueError) as error:
        raise Unreadable(f"must say how clips are cut, got {str(facts['clips'])[:80]} ({error})") from error
    try:
        overrides = _by_new_names(facts["overrides"])
        if (blocks := _count_blocks(overrides)) > tensors:  # to make these would take all memory
            raise ValueError(f"it has {tensors} tensors for {blocks} blocks")
        create_model(facts["model"], **overrides)
    except Exception as error:  # a wrong option may raise anything
        raise Unreadable(f"is of a model that flaxvid cannot make: {error}") from error
    classes = {target: tuple(names) for target, names in classes.items()}
    named = classes.get("", classes) if facts["classes"] else None
    return WeightsInfo(facts["model"], overrides, tuple(frames) if frames else None, named, clips)


def _read_clips(fields: Any) -> ClipConfig:
    if wrong := [name for name, value in dict(fields).items() if type(value) is not TEST_FIELDS.get(name)]:
        raise ValueError(f"{wrong[0]} is unknown or of another type")
    frames = fields.get("frames", [])
    if not all(type(count) is int for count in frames):
        raise ValueError("frames must be whole numbers")
    return ClipConfig(**{**fields, "frames": tuple(frames)})


def _by_new_names(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Renames options of older files. `freeze_norms` is dropped: it changed training alone."""
    names = {"views": "cameras", "view_dropout": "camera_dropout"}
    known = {names.get(name, name): value for name, value in overrides.items() if name != "freeze_norms"}
    if known.get("backbone_options"):
        known["backbone_options"] = _by_new_names(known["backbone_options"])
    return known


def _count_blocks(overrides: Mapping[str, Any]) -> int:
    """Blocks and recurrent layers of the model and of its backbone; what is no whole number is for `create_model`."""
    backbone = overrides.get("backbone_options")
    given = [overrides.get(name) for name in ("depth", "temporal_depth", "num_layers")]
    depths = overrides.get("depths")
    counts = [*given, *(depths if isinstance(depths, list | tuple) else ())]
    own = sum(count for count in counts if isinstance(count, int))
    return own + (_count_blocks(backbone) if isinstance(backbone, Mapping) else 0)
