"""Crops, resizing and flips of whole clips: one draw serves all frames of a video, and all its frame counts."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8

# Where a crop may lie, in quarters of the free margin (down, right): corners, middles of the sides, centre, and the
# four points halfway between centre and corners.
CROP_OFFSETS = (
    *((0, 0), (0, 4), (4, 0), (4, 4), (0, 2), (2, 0), (2, 4), (4, 2), (2, 2)),
    *((1, 1), (1, 3), (3, 1), (3, 3)),
)


class Crop(NamedTuple):
    """A rectangle of a frame, in pixels."""

    top: int
    left: int
    height: int
    width: int


def multiscale_crop(
    height: int, width: int, image_size: int, scales: Sequence[float], rng: np.random.Generator
) -> Crop:
    """Draws TSN's training crop (arXiv 1608.00859): sides from the short side times `scales`, at one of 13 offsets.

    Height and width are drawn from neighbouring scales, so the aspect ratio varies a little. A side within 2 pixels of
    `image_size` becomes `image_size`, which spares resampling.
    """
    sides = [max(1, int(min(height, width) * scale)) for scale in scales]
    sides = [image_size if abs(side - image_size) < 3 and image_size <= min(height, width) else side for side in sides]
    pairs = [(h, w) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= 1]
    crop_height, crop_width = pairs[rng.integers(len(pairs))]
    down, right = CROP_OFFSETS[rng.integers(len(CROP_OFFSETS))]
    return Crop((height - crop_height) // 4 * down, (width - crop_width) // 4 * right, crop_height, crop_width)


def centre_crop(height: int, width: int, image_size: int) -> Crop:
    """The middle square of `image_size` pixels, or what there is of it in a smaller frame."""
    crop_height, crop_width = min(height, image_size), min(width, image_size)
    return Crop((height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width)


def crop_and_resize(
    frames: UInt8[np.ndarray, "t h w 3"], crop: Crop, image_size: int
) -> UInt8[np.ndarray, "t {image_size} {image_size} 3"]:
    """Cuts the same rectangle out of every frame and resizes it bilinearly (area-weighted when shrinking)."""
    top, left, height, width = crop
    frames = frames[:, top : top + height, left : left + width]
    if (height, width) == (image_size, image_size):
        return frames
    reformatter = VideoReformatter()
    out = np.empty((len(frames), image_size, image_size, 3), np.uint8)
    for source, target in zip(frames, out, strict=True):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(source), format="rgb24")
        resized = reformatter.reformat(frame, image_size, image_size, "rgb24", interpolation="BILINEAR", threads=1)
        target[:] = resized.to_ndarray()
    return out


def mirrored_labels(classes: Sequence[str]) -> tuple[int | None, ...] | None:
    """What each class becomes in a mirror, told by the words "left" and "right" in the class names.

    "pushing it from left to right" becomes "pushing it from right to left". A class with such a word and no
    counterpart has None: its videos must not be flipped.

    Returns:
        None where no name has such a word: then every video may be flipped and keeps its label.
    """
    mirrored = [re.sub(_SIDE, lambda match: _MIRROR[match[0]], name) for name in classes]
    if list(classes) == mirrored:
        return None
    index = {name: i for i, name in enumerate(classes)}
    return tuple(index.get(name) for name in mirrored)


_MIRROR = {"left": "right", "right": "left", "Left": "Right", "Right": "Left", "LEFT": "RIGHT", "RIGHT": "LEFT"}
# Whole words, as in "turn_left" and "turn left", and the parts of "TurnLeft", but not "bright" or "leftover".
_SIDE = re.compile(r"(?<![A-Za-z])(?:left|right|LEFT|RIGHT)(?![A-Za-z])|(?<![A-Z])(?:Left|Right)(?![a-z])")
