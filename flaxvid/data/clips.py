"""How one video becomes a training clip, or what a test sees of it: sampling, crop and augmentation, in one decode."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from flaxvid.data.decode import VideoError, decode
from flaxvid.data.sampling import segment_indices
from flaxvid.data.transforms import Crop, centre_crop, multiscale_crop

Clips = dict[int, UInt8[np.ndarray, "n h w 3"]]


@dataclass(frozen=True)
class ClipConfig:
    """How clips are cut from videos.

    Attributes:
        frames: Frame counts; every video yields one clip of each, drawn independently.
        image_size: Side of the square clips, pixels.
        test_size: Short side of a test video before its centre crop; None is `image_size * 256 / 224`.
        scales: Sides of the training crops, as parts of the short side.
        flip: Whether to mirror half of the training videos, as far as the source's `flip_labels` allow it.
        short: What a video with fewer frames than asked for is: an "error", which makes it a broken one, or to "repeat"
            frames of.
        shuffle_frames: Whether every clip's frames come in random order: shows what a model owes to their order.
    """

    frames: tuple[int, ...] = (16,)
    image_size: int = 224
    test_size: int | None = None
    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
    flip: bool = True
    short: Literal["error", "repeat"] = "error"
    shuffle_frames: bool = False

    def __post_init__(self):
        if not self.frames or min(self.frames) < 1 or len(set(self.frames)) < len(self.frames):
            raise ValueError(f"expected distinct frame counts such as (4, 8, 16), got frames={self.frames}")
        if not self.scales or not all(0 < scale <= 1 for scale in self.scales):
            raise ValueError(f"expected crop scales in (0, 1] such as (1.0, 0.75), got scales={self.scales}")
        if self.image_size < 1 or (self.test_size is not None and self.test_size < self.image_size):
            raise ValueError(
                f"expected 1 <= image_size <= test_size, got image_size={self.image_size}, test_size={self.test_size}"
            )
        if self.short not in ("error", "repeat"):
            raise ValueError(f'expected short="error" or "repeat", got {self.short!r}')


def draw_clips(
    item: dict[str, Any], clips: ClipConfig, mirrored: tuple[int | None, ...] | None, rng: np.random.Generator
) -> tuple[Clips, int]:
    """Draws one clip of each frame count from a video, with one crop and one mirroring for all, and the clips' label.

    Args:
        item: Of a source: "video", "label", "id".
        clips: How clips are cut.
        mirrored: The source's `flip_labels`.
        rng: All draws come from it.

    Raises:
        VideoError: The video cannot be read, or is too short.
    """
    video = _read(item, clips, lambda h, w: multiscale_crop(h, w, clips.image_size, clips.scales, rng), rng)
    label = item["label"]
    mirror_label = label if mirrored is None else mirrored[label]
    if clips.flip and rng.random() < 0.5 and mirror_label is not None:
        video, label = video[:, :, ::-1], mirror_label
    return _split(video, clips, rng), label


def cut_clips(item: dict[str, Any], clips: ClipConfig, rng: np.random.Generator) -> Clips:
    """Centre frames and centre crop of a video for each frame count.

    Args:
        item: Of a source: "video", "id".
        clips: How clips are cut.
        rng: For `shuffle_frames` only.

    Raises:
        VideoError: The video cannot be read, or is too short.
    """
    short_side = clips.test_size or round(clips.image_size * 256 / 224)
    video = _read(item, clips, lambda h, w: centre_crop(h, w, clips.image_size, short_side))
    return _split(video, clips, rng)


def find_fault(item: dict[str, Any], clips: ClipConfig) -> str | None:
    """Says what keeps clips from being cut from a video, by decoding the whole of it; None if nothing does."""

    def last_frame(length: int) -> list[int]:
        _indices(length, clips, None)
        return [length - 1]

    try:
        decode(item["video"], last_frame, size=8, name=_name(item))
    except VideoError as error:
        return str(error)
    return None


def _read(
    item: dict[str, Any],
    clips: ClipConfig,
    choose: Callable[[int, int], Crop],
    rng: np.random.Generator | None = None,
) -> UInt8[np.ndarray, "t h w 3"]:
    """The frames of all counts, one count after the other, from one pass over the video and with one crop."""
    crop = Crop(0, 0, 0, 0)

    def size(height: int, width: int) -> tuple[int, int]:
        nonlocal crop
        crop = choose(height, width)
        return crop.height, crop.width

    video = decode(item["video"], lambda length: _indices(length, clips, rng), size=size, name=_name(item))
    return crop.cut(video, clips.image_size)


def _indices(length: int, clips: ClipConfig, rng: np.random.Generator | None) -> np.ndarray:
    return np.concatenate([segment_indices(length, n, rng, short=clips.short) for n in clips.frames])


def _name(item: dict[str, Any]) -> str | None:
    return item["id"] if isinstance(item["video"], bytes) else None


def _split(video: UInt8[np.ndarray, "t h w 3"], clips: ClipConfig, rng: np.random.Generator) -> Clips:
    parts = np.split(video, np.cumsum(clips.frames)[:-1])
    return {
        n: rng.permutation(part) if clips.shuffle_frames else part for n, part in zip(clips.frames, parts, strict=True)
    }
