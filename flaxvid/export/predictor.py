"""Prediction: videos in, class probabilities out, at any frame count."""

import dataclasses
import functools
import glob
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8

from flaxvid.data.clips import ClipConfig, cut_views
from flaxvid.data.decode import IMAGE_SUFFIXES, Video, VideoError, count_frames, decode, open_video
from flaxvid.data.sampling import dense_indices, even_indices, segment_indices
from flaxvid.data.sources import VIDEO_SUFFIXES
from flaxvid.data.transforms import Crop, view_crops
from flaxvid.evaluate.any_frame import clip_milliseconds
from flaxvid.evaluate.views import average_views
from flaxvid.models.video_model import VideoModel
from flaxvid.types import Classes, Variables

TOGETHER = 32
"""Stretches of a long video that are decoded together: more need more memory, fewer more passes over the file."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What the network says to one stretch of a video.

    Attributes:
        start, end: where the stretch begins and ends, in seconds; None for a whole video.
        probabilities: of the classes; of several tasks those of each.
    """

    start: float | None
    end: float | None
    probabilities: Float[np.ndarray, " k"] | Mapping[str, Float[np.ndarray, " k"]]


class Predictor:
    """A trained network for videos as they come.

    Args:
        model: the ordinary model.
        select: gives its ordinary variables for a frame count, such as ``lambda n: flexible.select(variables, n)``.
        classes: class names in the order of the logits; of several tasks those of each.
        clips: how a video is seen, as in evaluation, whatever its frame counts; the default is one clip from all of the
            video and the centre crop. Videos shorter than a clip repeat frames.
    """

    def __init__(
        self,
        model: VideoModel,
        select: Callable[[int], Variables],
        classes: Classes,
        clips: ClipConfig | None = None,
    ):
        self.model, self.classes = model, classes
        self._select = functools.cache(lambda num_frames: jax.device_put(select(num_frames)))
        clips = clips or ClipConfig(image_size=model.clip.image_size)
        self._clips = dataclasses.replace(clips, short="repeat")

    def __call__(
        self, video: UInt8[np.ndarray, "b v n h w 3"] | Mapping[str, UInt8[np.ndarray, "b v n h w 3"]]
    ) -> Float[np.ndarray, "b k"] | dict[str, Float[np.ndarray, "b k"]]:
        """Probabilities of a batch of uint8 videos, the mean over each one's views; of several tasks those of each.

        Of a scene with several cameras `video` is a dict of theirs.

        Raises:
            ValueError: the video is not uint8, or not of that shape; or other cameras than the network knows.
        """
        num_frames = jax.tree.leaves(video)[0].shape[2]
        on_device: Any = jax.tree.map(jax.numpy.asarray, video)
        return jax.device_get(average_views(self.model, self._select(num_frames), on_device))

    def _answer(self, view: Any) -> Any:
        one = self(jax.tree.map(lambda clips: clips[None], view))
        return jax.tree.map(lambda probabilities: probabilities[0], one)

    def predict(
        self, video: Video | Mapping[str, Video], num_frames: int, window: float | None = None
    ) -> Iterator[Prediction]:
        """Yields the answer to a video, or to one stretch of it after the other; memory holds the clips of a few dozen.

        Args:
            video: an encoded file's bytes or path, or the path of a folder of numbered images; of a scene a dict of its
                cameras', in which those that the network knows may be missing.
            num_frames: frames of each clip.
            window: seconds of a stretch, seen as a video of its own with one view; the video is divided into equal ones
                about as long. None takes it whole.

        Raises:
            VideoError: the video cannot be read, or has no frame rate to tell its stretches by.
            ValueError: the window is not positive, or given for a scene of several cameras.
        """
        clips = dataclasses.replace(self._clips, frames=(num_frames,))
        if window is None:
            views = cut_views({"video": video, "id": "video"}, clips, np.random.default_rng(0))[num_frames]
            yield Prediction(None, None, self._answer(views))
            return
        if isinstance(video, Mapping):
            raise ValueError("expected one video to go through by a window, got several cameras: take the scene whole")
        if window <= 0:
            raise ValueError(f"expected a window of more than 0 seconds, got {window}")
        count, rate = count_frames(video), frame_rate(video)
        edges = np.linspace(0, count, min(count, max(1, round(count / (rate * window)))) + 1).astype(int)
        stretches = list(itertools.pairwise(edges.tolist()))
        for first in range(0, len(stretches), TOGETHER):
            together = stretches[first : first + TOGETHER]
            for (begin, end), view in zip(together, _cut(video, together, clips), strict=False):
                yield Prediction(begin / rate, end / rate, self._answer(view[None]))

    def top(self, probabilities: Any, count: int) -> Any:
        """The likeliest classes and their probabilities, as many as asked for and there are.

        Args:
            probabilities: of a `Prediction`.
            count: how many.

        Returns:
            ``[("run", 0.7), ...]``; of several tasks that for each of them.
        """

        def likeliest(names: tuple[str, ...], own: Float[np.ndarray, " k"]) -> list[tuple[str, float]]:
            return [(names[i], float(own[i])) for i in np.argsort(-own, kind="stable")[:count]]

        if isinstance(self.classes, Mapping):
            return {task: likeliest(names, probabilities[task]) for task, names in self.classes.items()}
        return likeliest(self.classes, probabilities)

    def milliseconds(self, num_frames: int) -> float:
        """What a clip of so many frames takes here; see `clip_milliseconds`."""
        return clip_milliseconds(self.model, self._select(num_frames), num_frames, self._clips.image_size)


def _cut(
    video: bytes | str | Path, stretches: list[tuple[int, int]], clips: ClipConfig
) -> list[UInt8[np.ndarray, "n s s 3"]]:
    """One view of each stretch from a frame to another; fewer where the file ends before its header says."""
    (n,), length = clips.frames, 0
    crop = Crop(0, 0, 0, 0)

    def positions(count: int) -> np.ndarray:
        nonlocal length
        length = count
        wanted = [begin + _positions(end - begin, n, clips) for begin, end in stretches]
        return np.minimum(np.concatenate(wanted), count - 1)

    def resized(height: int, width: int) -> tuple[int, int]:
        nonlocal crop
        short_side = clips.test_size or round(clips.image_size * 256 / 224)
        (crop,) = view_crops(height, width, clips.image_size, short_side, crops=1)
        return crop.height, crop.width

    frames = decode(video, positions, size=resized)
    squares = crop.cut(frames, clips.image_size)
    return np.split(squares, len(stretches))[: sum(begin < length for begin, _ in stretches)]


def _positions(length: int, n: int, clips: ClipConfig) -> Int[np.ndarray, " n"]:
    if clips.sampling == "even":
        return even_indices(length, n, short="repeat")[0]
    if clips.sampling == "dense":
        return dense_indices(length, n, interval=clips.interval, short="repeat")[0]
    return segment_indices(length, n, short="repeat")[0]


def frame_rate(video: bytes | str | Path) -> float:
    """Frames a second, as the file says.

    Raises:
        VideoError: it says nothing, as a folder of images does not.
    """
    if isinstance(video, bytes) or not Path(video).is_dir():
        with open_video(video) as container:
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


def find_scenes(places: Iterable[str | Path], views: Sequence[str]) -> dict[str, dict[str, Path]]:
    """The scenes in folders that have a folder for each camera, in which the files of a scene have the same name.

    Args:
        places: folders such as `videos`, with `videos/front/jump/a.mp4` and `videos/left/jump/a.mp4` in them.
        views: the cameras that the network knows; a scene may lack some of them.

    Returns:
        The files of each scene, ``{"videos/jump/a": {"front": Path(...), "left": Path(...)}}``.

    Raises:
        FileNotFoundError: a place with no video in any of the cameras' folders.
        ValueError: two videos of one camera with the same name.
    """
    scenes: dict[str, dict[str, Path]] = {}
    for place in map(Path, places):
        cameras = {view: place / view for view in views if (place / view).is_dir()}
        if not any(map(_videos_in, cameras.values())):
            raise FileNotFoundError(
                f"expected a folder of videos for each camera in {place}, {' or '.join(views)}, got none: files of one "
                "scene have the same name in each"
            )
        for view, folder in cameras.items():
            for video in _videos_in(folder):
                name = str(place / video.relative_to(folder)).removesuffix(video.suffix)
                other = scenes.setdefault(name, {}).setdefault(view, video)
                if other != video:
                    raise ValueError(
                        f"expected one video of {name} in each camera, got {other} and {video}: rename one"
                    )
    return scenes


def _videos_in(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    videos = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES]
    images = any(path.parent == folder and path.suffix.lower() in IMAGE_SUFFIXES for path in files)
    return videos or ([folder] if images else [])
