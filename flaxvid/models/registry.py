"""The registry is data: each family's `SPECS`, merged here."""

import difflib
import fnmatch
import inspect
from collections.abc import Mapping
from typing import Any

from flax.core import FrozenDict

from flaxvid.models import multiview, r2plus1d, resnet2d, resnet3d, slowfast, x3d
from flaxvid.models.spec import ModelSpec
from flaxvid.models.video_model import VideoModel

SPECS: dict[str, ModelSpec] = {**resnet2d.SPECS, **resnet3d.SPECS, **r2plus1d.SPECS, **x3d.SPECS, **slowfast.SPECS}


def list_models(pattern: str = "*") -> list[str]:
    """The names that `create_model` knows, sorted; `pattern` is a shell pattern such as "tsm*"."""
    return sorted(fnmatch.filter(SPECS, pattern))


def get_spec(name: str) -> ModelSpec:
    """The entry of a model.

    Raises:
        ValueError: no such name; the message lists the nearest ones.
    """
    if name not in SPECS:
        near = difflib.get_close_matches(name, SPECS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "flaxvid.list_models() gives the names"
        raise ValueError(f"unknown model {name!r}: {hint}")
    return SPECS[name]


def create_model(name: str, **overrides: Any) -> VideoModel:
    """Makes a model of the zoo, without weights: ``model.init(key, video)`` or `flaxvid.load_torch` give these.

    Args:
        name: one of `list_models`.
        **overrides: what the family's `build` takes: `num_classes`, `num_frames`, `image_size`, `dropout`, `dtype`, ...

    Raises:
        ValueError: unknown name or override, and the message lists the valid ones; or no classes.
    """
    spec = get_spec(name)
    valid = sorted(inspect.signature(spec.build).parameters)
    unknown = sorted(set(overrides) - set(valid))
    if unknown:
        raise ValueError(f"{name} has no option {', '.join(unknown)}: valid ones are {', '.join(valid)}")
    classes = overrides.get("num_classes", 1)
    if min(classes.values() if isinstance(classes, Mapping) else [classes], default=0) < 1:
        raise ValueError(f"num_classes must be a positive number or a dict of them, got {classes}: count the labels")
    if isinstance(classes, Mapping):
        overrides["num_classes"] = FrozenDict(classes)  # a model with a dict could not be hashed, as `jax.jit` asks
    return spec.build(**{**spec.variant, **overrides})


def create_tiny(name: str, **overrides: Any) -> VideoModel:
    """The small sibling of a model, the same code with fewer and narrower layers: for tests and first trials."""
    return create_model(name, **{**get_spec(name).tiny, **overrides})


SPECS |= multiview.specs(create_model)  # last, for they make their backbones by name
