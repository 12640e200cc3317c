"""The registry is data: each family's `SPECS`, merged here."""

import dataclasses
import difflib
import fnmatch
from collections.abc import Mapping
from typing import Any

import jax

from flaxvid import trees
from flaxvid.layers.attentive import AttentiveHead
from flaxvid.layers.blocks import fit_mask
from flaxvid.layers.heads import ClassToken
from flaxvid.layers.int8 import at_operands
from flaxvid.layers.position import token_mask
from flaxvid.models import (
    cnn_rnn,
    multiview,
    mvit,
    r2plus1d,
    resnet2d,
    resnet3d,
    slowfast,
    timesformer,
    vit,
    vivit,
    x3d,
)
from flaxvid.models.options import Kind, option_kinds, read_option
from flaxvid.models.spec import Common, ModelSpec
from flaxvid.models.video_model import VideoModel, blank_video, body_shapes

SPECS: dict[str, ModelSpec] = {
    **resnet2d.SPECS,
    **resnet3d.SPECS,
    **r2plus1d.SPECS,
    **x3d.SPECS,
    **slowfast.SPECS,
    **vit.SPECS,
    **vivit.SPECS,
    **timesformer.SPECS,
    **mvit.SPECS,
    **multiview.SPECS,
    **cnn_rnn.SPECS,
}


def list_models(pattern: str = "*") -> list[str]:
    """The names that `create_model` knows, sorted; `pattern` is a shell pattern such as "tsm*"."""
    return sorted(fnmatch.filter(SPECS, pattern))


def get_spec(name: str) -> ModelSpec:
    """The entry of a model.

    Raises:
        ValueError: no such name; the message lists the nearest ones.
    """
    if not isinstance(name, str) or name not in SPECS:
        near = difflib.get_close_matches(str(name), SPECS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "flaxvid.list_models() gives the names"
        raise ValueError(f"unknown model {name!r}: {hint}")
    return SPECS[name]


def backbone_of(name: str, options: Mapping[str, Any]) -> str:
    """The name of the model that a model is built on, "" for none; "resnet50" is short for "tsn_resnet50"."""
    backbone = options.get("backbone", get_spec(name).backbone)
    return f"tsn_{backbone}" if f"tsn_{backbone}" in SPECS else backbone


def list_options(name: str) -> dict[str, Any]:
    """The overrides that `create_model` takes for a name, sorted, each with the value that it has without one.

    Of a model on a backbone some values are the backbone's: here those of the backbone that it has by default.
    """
    spec = get_spec(name)
    options = dataclasses.asdict(Common()) | (spec.build.__kwdefaults__ or {})
    if spec.backbone:
        options |= {"backbone": spec.backbone, "backbone_options": {}}
        options |= _implied(get_spec(spec.backbone))
    return dict(sorted((options | _implied(spec) | dict(spec.variant)).items()))


def create_model(name: str, **overrides: Any) -> VideoModel:
    """Makes a model of the zoo, without weights: ``model.init(key, video)`` or `flaxvid.load_model` give these.

    A model on a backbone makes it by name: ``backbone="r3d_18"`` takes another one, "resnet18" is short for
    "tsn_resnet18", and ``backbone_options={...}`` are overrides for it alone. The backbone gets the shared options that
    are given here as well.

    Args:
        name: one of `list_models`.
        **overrides: the shared options (`Common`: `num_classes`, `num_frames`, `dropout`, ...) and those of the
            family's `build`. What a saved file holds will do: lists for tuples, "bfloat16" for the type.

    Raises:
        ValueError: unknown name; unknown override, and the message lists the valid ones; or a value that cannot be.
    """
    model, _ = _make(name, overrides)
    _check_layers(model)
    return model.clone(zoo_name=name, overrides=dict(sorted(overrides.items())))


def create_tiny(name: str, **overrides: Any) -> VideoModel:
    """The small sibling of a model, the same code with fewer and narrower layers: for tests and first trials."""
    return create_model(name, **{**get_spec(name).tiny, **overrides})


def _make(name: str, overrides: Mapping[str, Any]) -> tuple[VideoModel, Common]:
    """The model, and the shared options that it was made with."""
    spec, valid = get_spec(name), list_options(name)
    if unknown := sorted(overrides.keys() - valid.keys()):
        raise ValueError(f"{name} has no option {', '.join(unknown)}: valid ones are {', '.join(valid)}")
    given, shared, own = {**spec.variant, **overrides}, option_kinds(Common), option_kinds(spec.build)
    common, parts = Common(), {}
    if spec.backbone:
        for_backbone = {option: value for option, value in overrides.items() if option in shared}
        options = {"num_classes": common.num_classes, **for_backbone, **_options(given.get("backbone_options"))}
        parts["backbone"], common = _make(backbone_of(name, given), options)
    common = dataclasses.replace(common, **_read({**_implied(spec), **given}, shared))
    model = spec.build(common, **parts, **_read(given, own))
    if common.head == "attention" and not model.cameras:  # several cameras have their backbone's head
        model = _with_attentive_head(model, common)
    if common.int8 is not None:
        model = model.clone(int8=common.int8)
    return model, common


def _check_layers(model: VideoModel) -> None:
    """Refuses ranges of layers that a network does not have."""
    if isinstance(model.int8, str) or model.int8 is None:
        return
    paths: set[str] = set()

    def note(path: str, x: Any, kernel: Any) -> tuple[Any, Any]:
        paths.add(path)
        return x, kernel

    with at_operands(note):
        shapes: Any = jax.eval_shape(model.clone(int8=None).init, jax.random.key(0), blank_video(model))
    paths |= {path.removesuffix("/kernel") for path in trees.flatten(shapes["params"]) if path.endswith("/kernel")}
    if unknown := sorted(model.int8.keys() - paths):
        raise ValueError(f"int8: this network has no layers {', '.join(unknown[:4])}: calibrate it anew")


def _with_attentive_head(model: VideoModel, common: Common) -> VideoModel:
    given = body_shapes(model)
    widths = [grid.shape[-1] for grid in ([given.grid] if isinstance(given, ClassToken) else jax.tree.leaves(given))]
    head = AttentiveHead(
        common.num_classes,
        common.dropout,
        common.classifier_std,
        grids=len(widths),
        fit=token_mask if model.multiple_of[0] > 1 else fit_mask,
        dtype=common.dtype,
        norm_epsilon=common.norm_epsilon,
    )
    return model.clone(head=head, feature_dim=sum(widths))


def _implied(spec: ModelSpec) -> dict[str, Any]:
    """The shared options that a name has a value of its own for."""
    rates = {"dropout": spec.dropout, "classifier_std": spec.classifier_std}
    clip = dataclasses.asdict(spec.clip) if spec.clip else {}
    return clip | {option: value for option, value in rates.items() if value is not None}


def _read(given: Mapping[str, Any], kinds: Mapping[str, Kind]) -> dict[str, Any]:
    return {option: read_option(option, kind, given[option]) for option, kind in kinds.items() if option in given}


def _options(given: Any) -> Mapping[str, Any]:
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(f"backbone_options must be a dict of the backbone's options, got {given!r}")
    return given or {}
