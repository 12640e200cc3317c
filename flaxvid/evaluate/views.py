"""Views: clips and crops of one video, whose answers are averaged; and protocols by name."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from scipy.special import softmax

from flaxvid.data.clips.cut import ClipConfig
from flaxvid.evaluate.runtimes import Program
from flaxvid.models.video_model import VideoModel
from flaxvid.types import Variables, by_target


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The views of a video.

    Attributes:
        clips, crops, sampling: see `ClipConfig`.
        full: squares have the size of the resized short side (256 for a network of 224 pixels), not the network's.
        window: frames of the video that a dense clip spans.
    """

    clips: int = 1
    crops: int = 1
    full: bool = False
    sampling: Literal["segment", "dense"] = "segment"
    window: int = 64

    def passes(self, clips: ClipConfig, frames: Sequence[int]) -> tuple[ClipConfig, ...]:
        """The passes over the videos: one for all frame counts, or in dense sampling one for each.

        Args:
            clips: the run's own rules; fields that a protocol does not have stay.
            frames: frame counts.
        """
        short_side = clips.test_size or round(clips.image_size * 256 / 224)
        clips = dataclasses.replace(
            clips,
            frames=tuple(frames),
            clips=self.clips,
            crops=self.crops,
            sampling=self.sampling,
            image_size=short_side if self.full else clips.image_size,
            test_size=short_side,
        )
        if self.sampling == "segment":
            return (clips,)
        return tuple(dataclasses.replace(clips, frames=(n,), interval=max(1, self.window // n)) for n in frames)


PROTOCOLS = {
    "efficient": Protocol(),
    "accurate": Protocol(clips=2, crops=3, full=True),
    "dense": Protocol(clips=10, crops=3, full=True, sampling="dense"),
}
"""The protocols of TSM's authors (arXiv 1811.08383, section 5; mit-han-lab/temporal-shift-module, test_models.py):
"efficient" is their `--test_crops=1`, "accurate" `--test_crops=3 --twice_sample --full_res`, "dense" `--test_crops=3
--dense_sample --full_res`. They average logits, we average probabilities; with one view that is the same."""


def describe_views(clips: ClipConfig) -> str:
    """The views in words: "2 clips x 3 crops"."""
    views = f"{clips.clips} clip{'s' * (clips.clips > 1)} x {clips.crops} crop{'s' * (clips.crops > 1)}"
    return views + (f", a frame in {clips.interval}" if clips.sampling == "dense" else "")


def average_views(
    model: VideoModel,
    variables: Variables | Program,
    video: UInt8[Array, "b v n h w 3"] | Mapping[str, UInt8[Array, "b v n h w 3"]],
) -> dict[str, Float[Array, "b k"]]:
    """The mean of the network's probabilities over a video's views, for each target.

    Of probabilities every view has one vote; in a mean of logits one sure view would decide. The views run one after
    the other, so thirty need the memory of one.

    Args:
        model: the ordinary model.
        variables: its ordinary variables for this frame count, or its exported program.
        video: the views of each video; of a scene those of each camera.

    Raises:
        ValueError: the video is not uint8, or has no axis of views.
    """
    return _mean_of_views(_probabilities, model, variables, video)


def average_features(
    model: VideoModel,
    variables: Variables | Program,
    video: UInt8[Array, "b v n h w 3"] | Mapping[str, UInt8[Array, "b v n h w 3"]],
) -> Float[Array, "b c"]:
    """The mean over a video's views of the pooled feature before the classifier; as `average_views`."""
    if callable(variables):
        raise ValueError('an exported program gives no features: use runtime="jax"')
    return _mean_of_views(_features, model, variables, video)


def _mean_of_views(judge: Callable[..., Any], model: VideoModel, variables: Any, video: Any) -> Any:
    for clips in jax.tree.leaves(video):
        if clips.dtype != jnp.uint8:
            raise ValueError(
                f"evaluation takes uint8 video, got {clips.dtype}: give decoded frames, which the model itself "
                "normalises"
            )
        if clips.ndim != 6:
            raise ValueError(
                f"expected video of (videos, views, frames, height, width, 3), got {tuple(clips.shape)}: a single view "
                "is video[:, None]"
            )
    count = jax.tree.leaves(video)[0].shape[1]
    total = judge(model, variables, video, 0)
    for view in range(1, count):
        total = jax.tree.map(jnp.add, total, judge(model, variables, video, view))
    return jax.tree.map(lambda leaf: leaf / count, total)


def _probabilities(model: VideoModel, variables: Variables | Program, video: Any, view: int) -> Any:
    if callable(variables):
        logits = variables(jax.tree.map(lambda clips: np.asarray(clips[:, view]), video))
        return {target: softmax(own, axis=-1) for target, own in logits.items()}
    return _jax_probabilities(model, variables, video, view)


@functools.partial(jax.jit, static_argnames="model")
def _jax_probabilities(model: VideoModel, variables: Variables, video: Any, view: int) -> Any:
    return jax.tree.map(jax.nn.softmax, by_target(model.apply(variables, _one_view(video, view))))


@functools.partial(jax.jit, static_argnames="model")
def _features(model: VideoModel, variables: Variables, video: Any, view: int) -> Any:
    features: Any = model.apply(variables, _one_view(video, view), method="features")
    return features.astype(jnp.float32)


def _one_view(video: Any, view: int) -> Any:
    return jax.tree.map(lambda clips: jax.lax.dynamic_index_in_dim(clips, view, axis=1, keepdims=False), video)
