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
"""What the data path yields: ``{"video": {n: uint8 (b, n, h, w, 3)}, "label": (b,), "index": (b,), "broken": (b,)}``,
where several targets have labels ``{target: (b,)}`` and several cameras of a scene videos ``{n: {camera: ...}}``; and,
in evaluation, ``"mask": (b,)``, False where a row only pads the last batch or its video cannot be read, and video with
an axis of views, (b, v, n, h, w, 3); see `data.pipeline`."""


def by_target(value: Any) -> dict[str, Any]:
    """Labels, logits or class names as a dict by target; what is no dict is of the only target, whose name is ""."""
    return dict(value) if isinstance(value, Mapping) else {"": value}


RGB = tuple[float, float, float]
"""One number for each colour."""


@dataclasses.dataclass(frozen=True)
class ClipSpec:
    """What a model wants to see; it travels with the weights.

    Attributes:
        num_frames: frames of a clip, the count that the model was made for.
        image_size: height and width of a frame in pixels.
        mean: per-channel mean of RGB in [0, 1], subtracted inside the model from uint8 video.
        std: per-channel standard deviation of RGB in [0, 1].
    """

    num_frames: int = 16
    image_size: int = 224
    mean: RGB = (0.485, 0.456, 0.406)
    std: RGB = (0.229, 0.224, 0.225)
