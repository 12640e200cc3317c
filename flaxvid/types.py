"""The few types that every room shares."""

import dataclasses
from collections.abc import Mapping
from typing import Any

Variables = Mapping[str, Any]
"""Flax variables: ``{"params": {"stem": ..., "body": ..., "head": ...}, "batch_stats": ...}`` and further
collections."""

Classes = tuple[str, ...] | Mapping[str, tuple[str, ...]]
"""Class names in the order of the logits; of several targets ``{"action": (...), "actor": (...)}``."""

Batch = Mapping[str, Any]
"""A batch of `data.pipeline`: ``{"video": {n: uint8 (b, n, h, w, 3)}, "label": (b,), "index": (b,), "broken": (b,)}``.

Several targets have labels ``{target: (b,)}``, several cameras videos ``{n: {camera: ...}}``. In evaluation video has
an axis of views, (b, v, n, h, w, 3), and ``"mask": (b,)`` is False for padding and for unreadable videos."""


def by_target(value: Any) -> dict[str, Any]:
    """Labels, logits or class names by target; a single target is called ""."""
    return dict(value) if isinstance(value, Mapping) else {"": value}


RGB = tuple[float, float, float]
"""One number for each colour."""


@dataclasses.dataclass(frozen=True)
class ClipSpec:
    """The clip that a model takes; it travels with the weights.

    Attributes:
        num_frames: the frame count that the model was made for.
        image_size: height and width of a frame in pixels.
        mean: per-channel mean of RGB in [0, 1], subtracted inside the model from uint8 video.
        std: per-channel standard deviation of RGB in [0, 1].
    """

    num_frames: int = 16
    image_size: int = 224
    mean: RGB = (0.485, 0.456, 0.406)
    std: RGB = (0.229, 0.224, 0.225)
