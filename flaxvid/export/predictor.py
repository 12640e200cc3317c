"""Prediction: videos in, class probabilities out, at any frame count."""

import functools
import glob
import io
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import jax
import numpy as np
from jaxtyping import Array, Float, UInt8

from flaxvid.data.decode import IMAGE_SUFFIXES, VideoError, count_frames, decode
from flaxvid.data.sampling import segment_indices
from flaxvid.data.sources import VIDEO_SUFFIXES
from flaxvid.data.transforms import Crop, centre_crop
from flaxvid.evaluate.any_frame import clip_milliseconds
from flaxvid.evaluate.views import average_views
from flaxvid.models.video_model import VideoModel
from flaxvid.types import Variables

TOGETHER = 32
"""Stretches of a long video that are decoded together: more need more memory, fewer more passes over the file."""


@dataclass(frozen=True)
class Prediction:
    """What the network says to one stretch of a video.

    Attributes:
        start, end: where the stretch begins and ends, in seconds; None for a whole video.
        probabilities: of the classes.
    """

    start: float | None
    end: float | None
    probabilities: Float[np.ndarray, " k"]


class Predictor:
    """A trained network for videos as they come: one clip and the centre crop, as in evaluation with one view.

    Args:
        model: the ordinary model.
        select: gives its ordinary variables for a frame count, such as ``lambda n: flexible.select(variables, n)``.
        classes: class names in the order of the logits.
        test_size: short side of the resized video before its centre crop; None is the usual image_size * 256 / 224.
    """

    def __init__(
        self,
        model: VideoModel,
        select: Callable[[int], Variables],
        classes: tuple[str, ...],
        test_size: int | None = None,
    ):
        self.model, self.classes = model, classes
        self._select = functools.cache(lambda num_frames: jax.device_put(select(num_frames)))
        self._size = model.clip.image_size
        self._short_side = test_size or round(self._size * 256 / 224)

    def __call__(self, video: UInt8[np.ndarray, "b n h w 3"]) -> Float[Array, "b k"]:
        """Probabilities of a batch of uint8 clips, all of one frame count.

        Raises:
            ValueError: the video is not uint8, or not of that shape.
        """
        if video.ndim != 5:
            raise ValueError(f"expected clips of (batch, frames, height, width, 3), got {tuple(video.shape)}")
        return average_views(self.model, self._select(video.shape[1]), jax.numpy.asarray(video)[:, None])

    def predict(self, video: bytes | str | Path, num_frames: int, window: float | None = None) -> Iterator[Prediction]:
        """Yields the answer to a video, or to one stretch of it after the other; memory holds the clips of a few dozen.

        A video shorter than the clip repeats frames.

        Args:
            video: an encoded file's bytes or path, or the path of a folder of numbered images.
            num_frames: frames of each clip.
            window: seconds of a stretch; the video is divided into equal ones about as long. None takes it whole.

        Raises:
            VideoError: the video cannot be read, or has no frame rate to tell its stretches by.
            ValueError: the window is not positive.
        """
        crop = Crop(0, 0, 0, 0)

        def resized(height: int, width: int) -> tuple[int, int]:
            nonlocal crop
            crop = centre_crop(height, width, self._size, self._short_side)
            return crop.height, crop.width

        def answer(clip: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, " k"]:
            return np.asarray(self(crop.cut(clip, self._size)[None])[0])

        def centres(length: int) -> np.ndarray:
            return segment_indices(length, num_frames, short="repeat")

        if window is None:
            yield Prediction(None, None, answer(decode(video, centres, size=resized)))
            return
        if window <= 0:
            raise ValueError(f"expected a window of more than 0 seconds, got {window}")
        count, rate = count_frames(video), frame_rate(video)
        edges = np.linspace(0, count, min(count, max(1, round(count / (rate * window)))) + 1).astype(int)
        stretches = list(itertools.pairwise(edges.tolist()))
        for first in range(0, len(stretches), TOGETHER):
            together, length = stretches[first : first + TOGETHER], count

            def positions(now: int, together: list[tuple[int, int]] = together) -> np.ndarray:
                nonlocal length
                length = now  # less than the count where the file's header promised too much
                wanted = np.concatenate([begin + centres(end - begin) for begin, end in together])
                return np.minimum(wanted, length - 1)

            frames = decode(video, positions, size=resized)
            for (begin, end), clip in zip(together, np.split(frames, len(together)), strict=True):
                if begin < length:
                    yield Prediction(begin / rate, min(end, length) / rate, answer(clip))

    def top(self, probabilities: Float[np.ndarray, " k"], count: int) -> list[tuple[str, float]]:
        """The likeliest classes and their probabilities, as many as asked for and there are."""
        order = np.argsort(-probabilities, kind="stable")[:count]
        return [(self.classes[i], float(probabilities[i])) for i in order]

    def milliseconds(self, num_frames: int) -> float:
        """What a clip of so many frames takes here; see `clip_milliseconds`."""
        return clip_milliseconds(self.model, self._select(num_frames), num_frames, self._size)


def frame_rate(video: bytes | str | Path) -> float:
    """Frames a second, as the file says.

    Raises:
        VideoError: it says nothing, as a folder of images does not.
    """
    if isinstance(video, bytes) or not Path(video).is_dir():
        with av.open(io.BytesIO(video) if isinstance(video, bytes) else str(video)) as container:
            stream = container.streams.video[0]
            if rate := stream.average_rate or stream.guessed_rate:
                return float(rate)
    name = f"video of {len(video)} bytes" if isinstance(video, bytes) else video
    raise VideoError(f"{name}: expected a video with a frame rate, got none: take it as one clip, without a window")


def find_videos(places: Iterable[str | Path]) -> list[Path]:
    """The videos that files, folders and shell patterns name, without doubles.

    Of a folder all videos in it, at any depth; a folder of nothing but numbered images is one video. A file named as
    such stays in the list even where it does not exist, so that whoever reads it can say so.

    Raises:
        FileNotFoundError: a folder or a pattern that holds no video.
    """
    found: list[Path] = []
    for place in map(str, places):
        if os.path.isdir(place):
            inside = _videos_in(Path(place))
        elif os.path.exists(place) or not glob.has_magic(place):
            inside = [Path(place)]
        else:
            paths = sorted(map(Path, glob.glob(place, recursive=True)))
            inside = [video for path in paths for video in (_videos_in(path) if path.is_dir() else [path])]
        if not inside:
            raise FileNotFoundError(
                f"expected videos ({', '.join(VIDEO_SUFFIXES)}) or numbered images in {place}, got none"
            )
        found += inside
    return list(dict.fromkeys(found))


def _videos_in(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    videos = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES]
    images = any(path.parent == folder and path.suffix.lower() in IMAGE_SUFFIXES for path in files)
    return videos or ([folder] if images else [])
