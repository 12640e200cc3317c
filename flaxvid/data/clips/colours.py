"""Colour jitter and RandAugment, which change all frames of a video alike.

Extremes, histogram and mean are measured on the whole video. Measured on each frame, they would make it flicker.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, UInt8

Video = UInt8[np.ndarray, "t h w 3"]

LUMA = np.array([0.299, 0.587, 0.114])
# Luma and two colour differences. A rotation in the plane of the differences changes the hue.
YIQ = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
FILL = 128
"""Grey level of places outside the picture."""


def colour_matrix(
    mean: Float[np.ndarray, " 3"], brightness: float, contrast: float, saturation: float, hue: float
) -> tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, " 3"]]:
    """Brightness, contrast, saturation and hue, in this order, as one matrix and offset for RGB columns.

    Args:
        mean: The video's mean RGB. Contrast moves values away from its luma.
        brightness: Factor; 1 changes nothing.
        contrast: Factor.
        saturation: Factor; 0 is grey.
        hue: Turn of the colour circle; 1 is a whole turn.
    """
    grey, angle = brightness * LUMA @ mean, 2 * np.pi * hue
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    saturated = saturation * np.eye(3) + (1 - saturation) * LUMA
    return np.linalg.inv(YIQ) @ turn @ YIQ @ saturated * contrast * brightness, np.full(3, (1 - contrast) * grey)


def jitter_colours(video: Video, strengths: tuple[float, float, float, float], rng: np.random.Generator) -> Video:
    """Draws brightness, contrast, saturation and hue.

    Args:
        video: RGB.
        strengths: Largest changes s. Factors lie between 1 - s and 1 + s, the turn of hue between -s and s.
        rng: Draws them.
    """
    brightness, contrast, saturation, hue = rng.uniform(-1, 1, 4) * strengths
    matrix, offset = colour_matrix(video.mean((0, 1, 2)), 1 + brightness, 1 + contrast, 1 + saturation, hue)
    return _to_uint8(video.astype(np.float32) @ matrix.T.astype(np.float32) + offset.astype(np.float32))


def randaugment(video: Video, count: int, magnitude: float, rng: np.random.Generator, deviation: float = 0.0) -> Video:
    """Applies operations drawn from `OPERATIONS` one after the other (RandAugment, arXiv 1909.13719).

    Args:
        video: RGB.
        count: How many operations. The same one may come twice.
        magnitude: Their strength, from 0 to 10. Operations with two directions draw one.
        rng: Draws them.
        deviation: Of each operation's strength, drawn from a normal distribution around the magnitude and cut off at 0
            and 10, as recipes of transformers have it; 0 for none.
    """
    for name in rng.choice(list(OPERATIONS), count) if count else ():
        direction = rng.choice((-1, 1))
        strength = float(np.clip(rng.normal(magnitude, deviation), 0, 10)) if deviation else magnitude
        video = OPERATIONS[name](video, direction * strength / 10)
    return video


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return np.rint(values).clip(0, 255).astype(np.uint8)


def _look_up(video: Video, table: np.ndarray) -> Video:
    """Replaces every value by its entry in a table, (256,), or in the table of its channel, (3, 256)."""
    if table.ndim == 1:
        return table[video]
    return np.stack([table[channel][video[..., channel]] for channel in range(3)], axis=-1)


def _brightness(video: Video, factor: float) -> Video:
    return _look_up(video, _to_uint8(factor * np.arange(256)))


def _contrast(video: Video, factor: float) -> Video:
    grey = LUMA @ video.mean((0, 1, 2))
    return _look_up(video, _to_uint8(grey + factor * (np.arange(256) - grey)))


def _saturation(video: Video, factor: float) -> Video:
    grey = (video @ LUMA.astype(np.float32))[..., None]
    return _to_uint8(grey + np.float32(factor) * (video - grey))


def _sharpness(video: Video, factor: float) -> Video:
    """Moves the picture away from its smoothed copy, or towards it. Pixels at the edge stay."""
    height, width = video.shape[1:3]
    inner, total = video[:, 1:-1, 1:-1], np.zeros((1,), np.float32)
    for down in range(3):
        for right in range(3):
            total = total + video[:, down : height - 2 + down, right : width - 2 + right]
    smooth = (total + 4 * inner.astype(np.float32)) / 13
    result = video.copy()
    result[:, 1:-1, 1:-1] = _to_uint8(smooth + np.float32(factor) * (inner - smooth))
    return result


def _autocontrast(video: Video, _: float) -> Video:
    low, high = video.min((0, 1, 2)).astype(float), video.max((0, 1, 2)).astype(float)
    scale = np.where(high > low, 255 / np.maximum(high - low, 1), 1)
    return _look_up(video, _to_uint8((np.arange(256) - np.where(high > low, low, 0)[:, None]) * scale[:, None]))


def _equalize(video: Video, _: float) -> Video:
    """Makes all values about equally frequent, in each channel."""
    tables = []
    for channel in range(3):
        counts = np.bincount(video[..., channel].ravel(), minlength=256)
        before, step = counts.cumsum() - counts, (counts.sum() - counts[counts.nonzero()[0][-1]]) // 255
        tables.append(((before + step // 2) // step).clip(0, 255) if step else np.arange(256))
    return _look_up(video, np.stack(tables).astype(np.uint8))


def _solarize(video: Video, threshold: float) -> Video:
    values = np.arange(256)
    return _look_up(video, np.where(values < threshold, values, 255 - values).astype(np.uint8))


def _posterize(video: Video, bits: int) -> Video:
    return video & np.uint8(256 - 2 ** (8 - bits))


def _warp(video: Video, rows: tuple[float, float, float], columns: tuple[float, float, float]) -> Video:
    """Takes each pixel from the nearest one at (rows, columns) · (y, x, 1). y and x count from the centre."""
    height, width = video.shape[1:3]
    y, x = np.mgrid[:height, :width] - np.array([height - 1, width - 1])[:, None, None] / 2
    # floor(v + 1/2), because np.rint rounds halves to even and would take every other column twice.
    top = np.floor(rows[0] * y + rows[1] * x + rows[2] * height + height / 2).astype(int)
    left = np.floor(columns[0] * y + columns[1] * x + columns[2] * width + width / 2).astype(int)
    outside = (top < 0) | (top >= height) | (left < 0) | (left >= width)
    warped = video[:, top.clip(0, height - 1), left.clip(0, width - 1)]
    warped[:, outside] = FILL
    return warped


def _rotate(video: Video, degrees: float) -> Video:
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return _warp(video, (cosine, sine, 0), (-sine, cosine, 0))


OPERATIONS: dict[str, Callable[[Video, float], Video]] = {
    "identity": lambda video, s: video,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "rotate": lambda video, s: _rotate(video, 30 * s),
    "solarize": lambda video, s: _solarize(video, 256 * (1 - abs(s))),
    "saturation": lambda video, s: _saturation(video, 1 + 0.9 * s),
    "posterize": lambda video, s: _posterize(video, 8 - round(4 * abs(s))),
    "contrast": lambda video, s: _contrast(video, 1 + 0.9 * s),
    "brightness": lambda video, s: _brightness(video, 1 + 0.9 * s),
    "sharpness": lambda video, s: _sharpness(video, 1 + 0.9 * s),
    "shear_x": lambda video, s: _warp(video, (1, 0, 0), (0.3 * s, 1, 0)),
    "shear_y": lambda video, s: _warp(video, (1, 0.3 * s, 0), (0, 1, 0)),
    "translate_x": lambda video, s: _warp(video, (1, 0, 0), (0, 1, 0.45 * s)),
    "translate_y": lambda video, s: _warp(video, (1, 0, 0.45 * s), (0, 1, 0)),
}
"""RandAugment's fourteen: functions of a video and a strength, in [-1, 1] where there are two directions."""
