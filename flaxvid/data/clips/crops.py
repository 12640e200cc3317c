"""Draws crops. One crop serves all frames of a video and all its frame counts."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

# Offsets of a crop in quarters of the free margin (down, right): corners, middles of the sides, centre, and the four
# points halfway between centre and corners.
CROP_OFFSETS = (
    *((0, 0), (0, 4), (4, 0), (4, 4), (0, 2), (2, 0), (2, 4), (4, 2), (2, 2)),
    *((1, 1), (1, 3), (3, 1), (3, 3)),
)


class Crop(NamedTuple):
    """A square of a resized frame: resize to height x width, then cut at (top, left), in pixels.

    Resizing comes first, because it costs the decoder almost nothing beside the conversion of colours.
    """

    height: int
    width: int
    top: int
    left: int

    def cut(self, video: UInt8[np.ndarray, "t h w 3"], image_size: int) -> UInt8[np.ndarray, "t s s 3"]:
        """Cuts the square out of every frame, without a copy."""
        return video[:, self.top : self.top + image_size, self.left : self.left + image_size]


def multiscale_crop(
    height: int, width: int, image_size: int, scales: Sequence[float], rng: np.random.Generator
) -> Crop:
    """Draws TSN's training crop (arXiv 1608.00859): sides from the short side times `scales`, at one of 13 offsets.

    Height and width come from neighbouring scales, so the aspect ratio varies a little. A side within 2 pixels of
    `image_size` becomes `image_size`, which saves resampling.
    """
    short = min(height, width)
    sides = [max(1, int(short * scale)) for scale in scales]
    sides = [image_size if abs(side - image_size) < 3 and image_size <= short else side for side in sides]
    pairs = [(h, w) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= 1]
    crop_height, crop_width = pairs[rng.integers(len(pairs))]
    down, right = CROP_OFFSETS[rng.integers(len(CROP_OFFSETS))]
    height, width = round(height * image_size / crop_height), round(width * image_size / crop_width)
    return Crop(height, width, (height - image_size) * down // 4, (width - image_size) * right // 4)


def resized_crop(
    height: int,
    width: int,
    image_size: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
    rng: np.random.Generator,
) -> Crop:
    """Draws a part of the frame by area and aspect, which becomes the square (arXiv 1409.4842, section 6).

    Args:
        height: Of the video, pixels.
        width: Of the video, pixels.
        image_size: Side of the square.
        area: Least and largest share of the frame's area. Small ones are slow, because the whole frame is enlarged.
        aspect: Least and largest width over height; its logarithm is drawn evenly.
        rng: Draws parts until one fits into the frame. After ten it is the middle square.
    """
    short = min(height, width)
    part_height, part_width, top, left = short, short, (height - short) // 2, (width - short) // 2
    for _ in range(10):
        pixels, ratio = rng.uniform(*area) * height * width, np.exp(rng.uniform(*np.log(aspect)))
        h, w = round(np.sqrt(pixels / ratio)), round(np.sqrt(pixels * ratio))
        if 1 <= h <= height and 1 <= w <= width:
            part_height, part_width = h, w
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            break
    down, right = image_size / part_height, image_size / part_width
    height, width = round(height * down), round(width * right)
    return Crop(
        height, width, min(round(top * down), height - image_size), min(round(left * right), width - image_size)
    )


def view_crops(height: int, width: int, image_size: int, short_side: int, crops: int) -> list[Crop]:
    """The crops of a test: resize the short side to `short_side`, then cut out squares.

    Args:
        height: Of the video, pixels.
        width: Of the video, pixels.
        image_size: Side of the squares.
        short_side: Of the resized video.
        crops: 1 is the middle. 3 lie along the longer side, at its beginning, middle and end. 5 are the corners and
            the middle. 10 are these five twice; the caller mirrors the second five.
    """
    short = min(height, width)
    height, width = height * short_side // short, width * short_side // short
    down, right = height - image_size, width - image_size
    middle = (down // 2, right // 2)
    along = (
        [(0, middle[1]), middle, (down, middle[1])] if height > width else [(middle[0], 0), middle, (middle[0], right)]
    )
    corners = [(0, 0), (0, right), (down, 0), (down, right), middle]
    places = {1: [middle], 3: along, 5: corners, 10: corners + corners}
    return [Crop(height, width, top, left) for top, left in places[crops]]
