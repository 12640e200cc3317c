"""What the registry knows about a model, and the options that every model takes."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from flaxvid.models.options import (
    FLOAT32,
    ClassCount,
    Count,
    Deviation,
    Dtype,
    Flag,
    Int8,
    Mean,
    NotNegative,
    Positive,
    Rate,
    choice,
)
from flaxvid.models.video_model import VideoModel
from flaxvid.types import ClipSpec

KeyTable = tuple[tuple[str, ...], ...]
"""``(regex, replacement)`` renames from a module path of ours to the reference's, whole paths, first match.

An entry may name a variable instead, with its leaf; it comes before those of modules, and its replacement is the whole
key. A collection of its own stands first: `params_4f` as ``4f/``, `params_decoder` as ``decoder/``.

``{query,key,value}`` in a replacement names several tensors. They stand one after another along the last axis of ours.

A third part says in einops' way how our axes become the reference's, where it is not as torch has them: ``"1 1 c ->
c"``. An axis may be an option of the model, ``"c (num_heads d) -> c num_heads d"``, and has its value. In
``"(8 + 1) o -> o (1 + 8)"`` an axis has two parts in that proportion, which the reference has the other way round."""


@dataclasses.dataclass(frozen=True)
class Common:
    """The options that every model takes; a family's `build` adds its own.

    Attributes:
        num_classes: classes, or a dict of them for several classifiers on one body.
        num_frames: frames of the clip that the model is made for; it runs on any other count as well.
        image_size: height and width in pixels of that clip; the model runs on any other size as well.
        mean: per-channel mean of RGB in [0, 1], subtracted from uint8 video.
        std: per-channel deviation of RGB in [0, 1], by which uint8 video is divided.
        dropout: rate on the feature before the classifier in training.
        classifier_std: deviation of the classifier's initial kernel.
        dtype: compute type; parameters, statistics and logits stay float32.
        remat: recompute activations in the backward pass, block by block, to save memory.
        norm_epsilon: what every norm adds to the variance. It changes results, and no shape shows it.
        head: "own", or "attention" for an `AttentiveHead` instead, which asks all tokens of the body. With
            ``freeze=("stem", "body")`` in a recipe and weights of the model with its own head, it is the attentive
            probe of a frozen network.
        int8: None; "dynamic" to round inputs and kernels as int8 does, for training that is aware of it; or the ranges
            of `compress.quantise.calibrate`, by which inputs are rounded. See `layers.int8`.
    """

    num_classes: ClassCount = 400
    num_frames: Count = ClipSpec.num_frames
    image_size: Count = ClipSpec.image_size
    mean: Mean = ClipSpec.mean
    std: Deviation = ClipSpec.std
    dropout: Rate = 0.5
    classifier_std: NotNegative = 0.01
    dtype: Dtype = FLOAT32
    remat: Flag = False
    norm_epsilon: Positive = 1e-5
    head: Annotated[str, choice("own", "attention")] = "own"
    int8: Int8 = None

    @property
    def clip(self) -> ClipSpec:
        """The clip that the model is made for."""
        return ClipSpec(self.num_frames, self.image_size, self.mean, self.std)


IMAGENET: Mapping[str, Any] = {"mean": ClipSpec.mean, "std": ClipSpec.std}
"""What a format implies whose origin takes pixels as ImageNet's networks do, on a model whose own are others."""


@dataclasses.dataclass(frozen=True)
class Format:
    """How one reference saves a model, and what its files imply.

    Attributes:
        keys: renames from our module paths to the reference's.
        overrides: options of `create_model` with which our model computes what the reference computes; no shape shows
            them, so nothing in the file can.
        unused: regular expressions of keys that are no part of our model: a table of positions that we compute, or what
            pre-training alone needs.
    """

    keys: KeyTable
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    unused: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """One name of the zoo.

    Attributes:
        build: ``build(common, *, ...)`` makes the model of a `Common` and of the family's own options, each annotated
            with its kind (`models.options`).
        variant: overrides that make this name out of the family.
        clip: the clip that it is made for; None for that of its backbone.
        dropout: its own rate; None for its backbone's or that of `Common`.
        classifier_std: its own deviation; None as for `dropout`.
        backbone: name of the model that it is built on, which `build` takes as `backbone`; "" for none.
        formats: how references save it, by their names ("torchvision", ...); the first is the default for export.
        tiny: overrides that give the small sibling for tests.
    """

    build: Callable[..., VideoModel]
    variant: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    clip: ClipSpec | None = None
    dropout: float | None = None
    classifier_std: float | None = None
    backbone: str = ""
    formats: Mapping[str, Format] = dataclasses.field(default_factory=dict)
    tiny: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def formats(tables: Mapping[str, KeyTable]) -> dict[str, Format]:
    """Formats that imply no option."""
    return {reference: Format(keys) for reference, keys in tables.items()}
