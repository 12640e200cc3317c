"""Prediction: videos in, class probabilities out, at any frame count."""

import dataclasses
import functools
import glob
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

from flaxvid.data.clips.cut import ClipConfig, cut_views
from flaxvid.data.clips.decode import Video
from flaxvid.data.clips.windows import cut_windows
from flaxvid.data.sources.search import find_videos as videos_below
from flaxvid.evaluate.cost import clip_milliseconds
from flaxvid.evaluate.views import average_views
from flaxvid.models.video_model import VideoModel
from flaxvid.types import Classes, Variables


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What the network says to one stretch of a video.

    Attributes:
        start, end: where the stretch begins and ends, in seconds; None for a whole video.
        probabilities: of the classes; of several targets those of each.
    """

    start: float | None
    end: float | None
    probabilities: Float[np.ndarray, " k"] | Mapping[str, Float[np.ndarray, " k"]]


class Predictor:
    """A trained network for videos as they come.

    Args:
        model: the ordinary model.
        select: gives its ordinary variables for a frame count, such as ``lambda n: flexible.select(variables, n)``.
        classes: class names in the order of the logits; of several targets those of each.
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
        """Probabilities of a batch of uint8 videos, the mean over each one's views; of several targets those of each.

        Of a scene with several cameras `video` is a dict of theirs.

        Raises:
            ValueError: the video is not uint8, or not of that shape; or other cameras than the network knows.
        """
        num_frames = jax.tree.leaves(video)[0].shape[2]
        on_device: Any = jax.tree.map(jax.numpy.asarray, video)
        answer: Any = average_views(self.model, self._select(num_frames), on_device)
        return jax.device_get(answer.get("", answer))

    def _answer(self, view: Any) -> Any:
        one = self(jax.tree.map(lambda clips: clips[None], view))
        return jax.tree.map(lambda probabilities: probabilities[0], one)

    def predict(
        self, video: Video | Mapping[str, Video], num_frames: int, window: float | None = None
    ) -> Iterator[Prediction]:
        """Yields the answer to a video, or to one stretch of it after the other; memory holds the clip of one.

        Args:
            video: an encoded file's bytes or path, or the path of a folder of numbered images; of a scene a dict of its
                cameras', in which those that the network knows may be missing.
            num_frames: frames of each clip.
            window: seconds of a stretch, seen as a video of its own with one view; see `cut_windows`. None takes the
                video whole.

        Raises:
            VideoError: the video cannot be read, or its frames have no times to tell its stretches by.
            ValueError: the window is too short, or given for a scene of several cameras.
        """
        clips = dataclasses.replace(self._clips, frames=(num_frames,))
        if window is None:
            views = cut_views({"video": video, "id": "video"}, clips, np.random.default_rng(0))[num_frames]
            yield Prediction(None, None, self._answer(views))
            return
        if isinstance(video, Mapping):
            raise ValueError("expected one video to go through by a window, got several cameras: take the scene whole")
        seen: Any = None
        answer: Any = None
        for start, end, clip in cut_windows(video, window, clips):
            if clip is not seen:  # a picture that is shown for long is looked at once
                seen, answer = clip, self._answer(clip[None])
            yield Prediction(start, end, answer)

    def top(self, probabilities: Any, count: int) -> Any:
        """The likeliest classes and their probabilities, as many as asked for and there are.

        Args:
            probabilities: of a `Prediction`.
            count: how many.

        Returns:
            ``[("run", 0.7), ...]``; of several targets that for each of them.
        """

        def likeliest(names: tuple[str, ...], own: Float[np.ndarray, " k"]) -> list[tuple[str, float]]:
            return [(names[i], float(own[i])) for i in np.argsort(-own, kind="stable")[:count]]

        if isinstance(self.classes, Mapping):
            return {target: likeliest(names, probabilities[target]) for target, names in self.classes.items()}
        return likeliest(self.classes, probabilities)

    def milliseconds(self, num_frames: int) -> float:
        """What a clip of so many frames takes here; see `clip_milliseconds`."""
        return clip_milliseconds(self.model, self._select(num_frames), num_frames, self._clips.image_size)


def find_videos(places: Iterable[str | Path]) -> list[str | Path]:
    """The videos that files, folders and shell patterns name; one that is named twice is there once.

    Of a folder all videos in it, at any depth; a folder of nothing but numbered images is one video. A file named as
    such stays in the list even where it does not exist, so that whoever reads it can say so; a URL stays as it is.

    Raises:
        FileNotFoundError: a folder or a pattern that holds no video.
    """
    found: dict[str, str | Path] = {}
    for place in map(str, places):
        if "://" in place:  # as a path it would lose a slash
            found.setdefault(place, place)
            continue
        named = os.path.exists(place) or not glob.has_magic(place)
        paths = [Path(place)] if named else sorted(map(Path, glob.glob(place, recursive=True)))
        inside = [video for path in paths for video in (videos_below(path) if os.path.isdir(path) else [path])]
        if not inside:
            raise FileNotFoundError(f"expected videos or numbered images in {place}, got none")
        for video in inside:
            found.setdefault(os.path.join(os.path.realpath(video.parent), video.name), video)
    return list(found.values())


def find_scenes(places: Iterable[str | Path], cameras: Sequence[str]) -> dict[str, dict[str, Path]]:
    """The scenes in folders that have a folder for each camera, in which the files of a scene have the same name.

    Args:
        places: folders such as `videos`, with `videos/front/jump/a.mp4` and `videos/left/jump/a.mp4` in them.
        cameras: those that the network knows; a scene may lack some of them.

    Returns:
        The files of each scene, ``{"videos/jump/a": {"front": Path(...), "left": Path(...)}}``.

    Raises:
        FileNotFoundError: a place with no video in any of the cameras' folders.
        ValueError: two videos of one camera with the same name.
    """
    scenes: dict[str, dict[str, Path]] = {}
    for place in map(Path, places):
        folders = {camera: place / camera for camera in cameras if (place / camera).is_dir()}
        if not any(map(videos_below, folders.values())):
            raise FileNotFoundError(
                f"expected a folder of videos for each camera in {place}, {' or '.join(cameras)}, got none: files of "
                "one scene have the same name in each"
            )
        for camera, folder in folders.items():
            for video in videos_below(folder):
                name = str(place / video.relative_to(folder)).removesuffix(video.suffix)
                other = scenes.setdefault(name, {}).setdefault(camera, video)
                if other != video:
                    raise ValueError(
                        f"expected one video of {name} in each camera, got {other} and {video}: rename one"
                    )
    return scenes
