"""Prediction: videos in, class probabilities out, at any frame count."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

from flaxvid.data.clips.cut import ClipConfig
from flaxvid.data.clips.decode import Video, VideoError
from flaxvid.data.clips.windows import cut_stretches
from flaxvid.evaluate.cost import clip_milliseconds
from flaxvid.evaluate.runtimes import Program
from flaxvid.evaluate.views import average_features, average_views
from flaxvid.models.video_model import VideoModel
from flaxvid.types import Classes, Variables, by_target


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The answer to one stretch of a video.

    Attributes:
        start, end: the stretch in seconds; None for a whole video.
        probabilities: of the classes of each target; a single target is called "".
    """

    start: float | None
    end: float | None
    probabilities: Mapping[str, Float[np.ndarray, " k"]]


class Predictor:
    """A trained network that answers to videos. Videos shorter than a clip repeat frames.

    Args:
        model: the ordinary model.
        select: gives its ordinary variables for a frame count, such as ``lambda n: flexible.select(variables, n)``, or
            its exported program.
        classes: class names in the order of the logits; of several targets those of each.
        clips: the views, whatever frame counts it says; None is one clip from all of the video and the centre crop.
    """

    def __init__(
        self,
        model: VideoModel,
        select: Callable[[int], Variables | Program],
        classes: Classes,
        clips: ClipConfig | None = None,
    ):
        self.model, self.classes = model, by_target(classes)
        self._select = functools.cache(lambda num_frames: _placed(select(num_frames)))
        clips = clips or ClipConfig(image_size=model.clip.image_size)
        self._clips = dataclasses.replace(clips, short="repeat")

    def __call__(
        self, video: UInt8[np.ndarray, "b v n h w 3"] | Mapping[str, UInt8[np.ndarray, "b v n h w 3"]]
    ) -> dict[str, Float[np.ndarray, "b k"]]:
        """The probabilities of a batch of videos; see `average_views`.

        Raises:
            ValueError: the video is not uint8, or of another shape, or from cameras that the network does not have.
        """
        return self._averaged(average_views, video)

    def features(
        self, video: UInt8[np.ndarray, "b v n h w 3"] | Mapping[str, UInt8[np.ndarray, "b v n h w 3"]]
    ) -> Float[np.ndarray, "b c"]:
        """The features of a batch of videos, as a call gives their probabilities; see `average_features`."""
        return self._averaged(average_features, video)

    def _averaged(self, average: Callable[..., Any], video: Any) -> Any:
        num_frames = jax.tree.leaves(video)[0].shape[2]
        on_device: Any = jax.tree.map(jax.numpy.asarray, video)
        return jax.device_get(average(self.model, self._select(num_frames), on_device))

    def views(self, video: Video | Mapping[str, Video], num_frames: int) -> Any:
        """The views of a whole video, uint8 (v, n, h, w, 3); of a scene those of each camera.

        Raises:
            VideoError: the video cannot be read.
        """
        ((_, _, views),) = self._stretches(video, num_frames, None)
        return views

    def clips(self, num_frames: int) -> ClipConfig:
        """How views of so many frames are cut."""
        return dataclasses.replace(self._clips, frames=(num_frames,))

    def _stretches(self, video: Any, num_frames: int, window: float | None) -> Iterator[tuple[Any, Any, Any]]:
        return cut_stretches(video, self.clips(num_frames), window)

    def predict(
        self, video: Video | Mapping[str, Video], num_frames: int, window: float | None = None
    ) -> Iterator[Prediction]:
        """Yields the answer to a video, or to one stretch of it after the other; memory holds the clip of one.

        Args:
            video, window: see `cut_stretches`. A scene may lack cameras of the network.
            num_frames: frames of each clip.

        Raises:
            VideoError: the video cannot be read, or its frames have no times.
            ValueError: the window is too short, or given for a scene.
        """
        seen: Any = None
        answer: dict[str, Any] = {}
        for start, end, views in self._stretches(video, num_frames, window):
            if views is not seen:  # a still picture gives the same views for many stretches
                one = self(jax.tree.map(lambda clips: clips[None], views))
                seen, answer = views, {target: probabilities[0] for target, probabilities in one.items()}
            yield Prediction(start, end, answer)

    def answers(
        self, video: Video | Mapping[str, Video], num_frames: int, window: float | None = None
    ) -> Iterator[Prediction | VideoError | OSError]:
        """As `predict`, but an error that the video ends with is the last answer."""
        try:
            yield from self.predict(video, num_frames, window)
        except (VideoError, OSError) as error:
            yield error

    def top(self, probabilities: Mapping[str, Float[np.ndarray, " k"]], count: int) -> dict[str, list]:
        """The `count` likeliest classes of each target and their probabilities: ``{"": [("run", 0.7), ...]}``."""
        return {
            target: [(names[i], float(own[i])) for i in np.argsort(-own, kind="stable")[:count]]
            for target, names, own in ((target, names, probabilities[target]) for target, names in self.classes.items())
        }

    def milliseconds(self, num_frames: int) -> float:
        """The time of a clip on this machine; see `clip_milliseconds`."""
        return clip_milliseconds(self.model, self._select(num_frames), num_frames, self._clips.image_size)


def _placed(variables: Variables | Program) -> Variables | Program:
    return variables if callable(variables) else jax.device_put(variables)
