"""Cuts a training clip, or the views of a test, from one video: sampling, crop and augmentation in one decode."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from flaxvid.data.clips.colours import jitter_colours, randaugment
from flaxvid.data.clips.crops import Crop, multiscale_crop, resized_crop, view_crops
from flaxvid.data.clips.decode import Chosen, OpenVideo, VideoError, open_video
from flaxvid.data.clips.sampling import dense_indices, even_indices, segment_indices
from flaxvid.data.mirror import FlipLabels, Label, mirror, mirrored_names

UNREADABLE = (VideoError, FileNotFoundError)
"""Errors of a video that its source or the decoder cannot read."""

MAX_FRAMES = 2**20
"""Most frames of all clips of a video. A file of weights says how many clips a test cuts, and could say any number."""

Clips = dict[int, Any]
"""uint8 (n, h, w, 3) for each frame count n. A test adds an axis of views in front. Several cameras have such an array
each, ``{n: {camera: ...}}``."""


@dataclass
class Augmentation:
    """How training clips vary, besides their frames and their mirroring. One draw serves all frames.

    Attributes:
        crop: "multiscale" is TSN's, by `ClipConfig.scales`; "resized" takes any part of the frame, by area and aspect.
        area: Least and largest part of the frame that a resized crop takes.
        aspect: Least and largest width over height of a resized crop.
        colour_jitter: Largest changes of brightness, contrast, saturation (shares) and hue (turns); zeros for none.
        randaugment: How many operations of RandAugment change each clip; 0 for none.
        magnitude: Strength of RandAugment's operations, from 0 to 10.
        deviation: Of the strength, from one operation to the next; 0 for none.
    """

    crop: Literal["multiscale", "resized"] = "multiscale"
    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    colour_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    randaugment: int = 0
    magnitude: float = 9.0
    deviation: float = 0.0

    def problems(self) -> Iterator[str]:
        """Finds wrong values: a line each, which begins with the field's name."""
        if self.crop not in ("multiscale", "resized"):
            yield f'crop: expected crop="multiscale" or "resized", got {self.crop!r}'
        if len(self.area) != 2 or not 0 < self.area[0] <= self.area[1] <= 1:
            yield f"area: expected the area of crops as 0 < least <= largest <= 1, got {self.area}"
        if len(self.aspect) != 2 or not 0 < self.aspect[0] <= self.aspect[1]:
            yield f"aspect: expected the aspect of crops as 0 < least <= largest, got {self.aspect}"
        jitter = self.colour_jitter
        if len(jitter) != 4 or not all(0 <= s <= most for s, most in zip(jitter, (1, 1, 1, 0.5), strict=True)):
            yield (
                "colour_jitter: expected brightness, contrast and saturation in [0, 1] and hue in [0, 0.5], got "
                f"{jitter}"
            )
        if self.randaugment < 0:
            yield f"randaugment: expected 0 operations or more, got {self.randaugment}"
        if not 0 <= self.magnitude <= 10:
            yield f"magnitude: expected 0 to 10, got {self.magnitude}"
        if self.deviation < 0:
            yield f"deviation: expected 0 or more, got {self.deviation}"

    def __post_init__(self):
        refuse(self.problems())


@dataclass
class ClipConfig:
    """How clips are cut from videos.

    A recipe leaves `frames` and `image_size` empty, because its task and its network set them.

    Attributes:
        frames: Frame counts; every video yields one clip of each, drawn independently.
        image_size: Side of the square clips, pixels.
        test_size: Short side of a test video before its crop, pixels; None is `image_size * 256 / 224`.
        scales: Sides of the training crops, as shares of the short side.
        flip: Whether to mirror half of the training videos, as far as the source's `flip_labels` allow it.
        short: What to do with a video that has fewer frames than asked for: "error" counts it as broken, "repeat"
            repeats frames.
        sampling: Which frames: "segment" divides the video into equal parts and takes one from each; "dense" takes
            frames `interval` apart; "even" takes always the same ones, from the first to the last.
        interval: Distance of frames in dense sampling, in frames.
        clips: Clips of a test video.
        crops: Crops of each clip of a test video: 1, 3, 5 or 10, of which five are mirrored; see `view_crops`.
        augmentation: How training clips vary.
        repeats: Clips of each video in a training batch, drawn independently (repeated augmentation, arXiv 1901.09335).
        shuffle_frames: Whether each clip's frames come in random order, to show how much their order matters.
        fixed: Whether a training clip is always the same, cut like the first view of a test: nothing is drawn, and
            `scales` have no part in it.
    """

    frames: tuple[int, ...] = ()
    image_size: int = 0
    test_size: int | None = None
    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
    flip: bool = False
    short: Literal["error", "repeat"] = "error"
    sampling: Literal["segment", "dense", "even"] = "segment"
    interval: int = 8
    clips: int = 1
    crops: int = 1
    augmentation: Augmentation = field(default_factory=Augmentation)
    repeats: int = 1
    shuffle_frames: bool = False
    fixed: bool = False

    @property
    def views(self) -> int:
        """Views of a test video."""
        return self.clips * self.crops

    def problems(self) -> Iterator[str]:
        """Finds wrong values: a line each, which begins with the field's name."""
        if min(self.frames, default=1) < 1 or len(set(self.frames)) < len(self.frames):
            yield f"frames: expected distinct frame counts such as (4, 8, 16), got frames={self.frames}"
        if not self.scales or not all(0 < scale <= 1 for scale in self.scales):
            yield f"scales: expected crop scales in (0, 1] such as (1.0, 0.75), got scales={self.scales}"
        if self.image_size < 0:
            yield f"image_size: expected pixels, got {self.image_size}"
        if self.test_size is not None and self.test_size < max(1, self.image_size):
            yield (
                "test_size: expected 1 <= image_size <= test_size, got "
                f"image_size={self.image_size}, test_size={self.test_size}"
            )
        if self.short not in ("error", "repeat"):
            yield f'short: expected short="error" or "repeat", got {self.short!r}'
        if self.sampling not in ("segment", "dense", "even"):
            yield f'sampling: expected sampling="segment", "dense" or "even", got {self.sampling!r}'
        if self.interval < 1:
            yield f"interval: expected interval >= 1, got {self.interval}"
        if self.sampling == "even" and self.clips > 1:
            yield f'clips: expected one clip with sampling="even", got clips={self.clips}: take "segment"'
        if self.repeats < 1:
            yield f"repeats: expected repeats >= 1, got {self.repeats}"
        if self.clips < 1:
            yield f"clips: expected clips >= 1, got clips={self.clips}"
        if self.crops not in (1, 3, 5, 10):
            yield f"crops: expected crops 1, 3, 5 or 10, got crops={self.crops}"
        vary = self.augmentation
        drawn = {
            "flip": self.flip,
            "repeats": self.repeats > 1,
            "shuffle_frames": self.shuffle_frames,
            'augmentation.crop="resized"': vary.crop == "resized",
            "augmentation.colour_jitter": any(vary.colour_jitter),
            "augmentation.randaugment": vary.randaugment > 0,
        }
        if self.fixed and (names := [name for name, on in drawn.items() if on]):
            yield f"fixed: expected clips that nothing varies, got {', '.join(names)}: leave it out, or fixed=False"

    def __post_init__(self):
        refuse(self.problems())


def refuse(problems: Iterator[str]) -> None:
    """Raises ValueError for the first problem, if there is one."""
    for problem in problems:
        raise ValueError(problem)


class Drawn(NamedTuple):
    """What was cut from one video. The cameras of a scene must have the same `facts`: length, height and width."""

    clips: Clips
    facts: tuple[int, int, int]
    label: Label = 0
    flipped: bool = False


def draw_clips(
    item: dict[str, Any], clips: ClipConfig, mirrored: FlipLabels, rng: np.random.Generator
) -> tuple[Clips, Label]:
    """Draws one clip of each frame count from a video, all with one crop and one mirroring, and gives their label.

    All cameras of a scene get the same frames, crop, mirroring and colours. In a mirror the left camera becomes the
    right one. A scene that has only one of the two is not mirrored.

    Args:
        item: An item of a source: "video", "label", "id".
        clips: How clips are cut.
        mirrored: The source's `flip_labels`.
        rng: All draws come from it.

    Raises:
        VideoError: The video cannot be read, or is too short; or its cameras differ in length or size.
    """
    if clips.fixed:
        views = cut_views(item, replace(clips, clips=1, crops=1), rng)
        return first_views(views), item["label"]
    if not isinstance(item["video"], Mapping):
        drawn = _draw(item, clips, mirrored, rng)
        return drawn.clips, drawn.label
    cameras = tuple(item["video"])
    sides: Any = mirrored_names(cameras) or range(len(cameras))
    if None in sides:
        clips = replace(clips, flip=False)
    drawn = _by_camera(item, rng, lambda one, own: _draw(one, clips, mirrored, own))
    first = next(iter(drawn.values()))
    sources = [cameras[sides[i]] if first.flipped else cameras[i] for i in range(len(cameras))]
    seen = {camera: drawn[source].clips for camera, source in zip(cameras, sources, strict=True)}
    return _by_count(seen, clips), first.label


def cut_views(item: dict[str, Any], clips: ClipConfig, rng: np.random.Generator) -> Clips:
    """Cuts the views of a test from a video, at each frame count: the crops of the first clip, then of the next.

    Args:
        item: An item of a source: "video", "id".
        clips: How clips are cut.
        rng: For `shuffle_frames` only.

    Raises:
        VideoError: The video cannot be read, or is too short; or its cameras differ in length or size.
    """
    if not isinstance(item["video"], Mapping):
        return _cut(item, clips, rng).clips
    cut = _by_camera(item, rng, lambda one, own: _cut(one, clips, own))
    return _by_count({camera: own.clips for camera, own in cut.items()}, clips)


def read_video(video: str | Path | bytes, frames: int = 16, size: int = 224) -> UInt8[np.ndarray, "t h w 3"]:
    """Reads the clip that a test sees: frames from all of the video, resized, and the centre crop.

    A video with fewer frames repeats some.

    Args:
        video: An encoded file's path or bytes, or the path of a folder of numbered images.
        frames: How many.
        size: Height and width of the square crop, in pixels. The short side was resized to 256 / 224 of it.

    Raises:
        VideoError: The video cannot be read.
        ValueError: `frames` or `size` is below 1.
    """
    if min(frames, size) < 1:
        raise ValueError(f"expected frames and size of at least 1, got {frames} and {size}")
    clips = ClipConfig((frames,), size, short="repeat")
    return cut_views({"video": video, "id": "video"}, clips, np.random.default_rng(0))[frames][0]


def first_views(views: Clips) -> Clips:
    """The first view of each clip, without the axis of views."""
    return {
        n: {camera: v[0] for camera, v in own.items()} if isinstance(own, Mapping) else own[0]
        for n, own in views.items()
    }


def find_fault(item: dict[str, Any], clips: ClipConfig) -> str | None:
    """Decodes a whole video and says why no clips can be cut from it; None if they can."""
    try:
        for one in _cameras(item).values() if isinstance(item["video"], Mapping) else [item]:
            with open_video(one["video"], _name(one)) as video:
                frame_indices(video, len(video), clips, None)
                video.frames(range(len(video)), size=8)
        if isinstance(item["video"], Mapping):
            cut_views(item, clips, np.random.default_rng(0))
    except VideoError as error:
        return str(error)
    return None


def frame_indices(
    video: OpenVideo, length: int, clips: ClipConfig, rng: np.random.Generator | None
) -> Int[np.ndarray, " t"]:
    """Positions of the frames, one frame count after the other. A test has those of all its clips.

    Args:
        video: The video that errors name.
        length: How many frames there are to choose from, in the video or in a window of it.
        clips: How clips are cut.
        rng: Draws the frames; None takes the test's.

    Raises:
        VideoError: There are too few frames, or clips ask for more than `MAX_FRAMES`.
        ValueError: `clips` has no frame counts or no size, as in a recipe.
    """
    if not (clips.frames and clips.image_size):
        raise ValueError(
            f"expected frame counts and a size of clips, got frames={clips.frames}, image_size={clips.image_size}: "
            "set both fields"
        )
    count = clips.clips if rng is None else 1
    if count * sum(clips.frames) > MAX_FRAMES:
        raise VideoError(
            f"{video.name}: expected at most {MAX_FRAMES:,} frames in all clips, got clips={count} of "
            f"frames={clips.frames}: take fewer"
        )
    try:
        if clips.sampling == "even":
            draws = [even_indices(length, n, short=clips.short) for n in clips.frames]
        elif clips.sampling == "dense":
            options = {"interval": clips.interval, "short": clips.short, "clips": count}
            draws = [dense_indices(length, n, rng, **options) for n in clips.frames]
        else:
            draws = [segment_indices(length, n, rng, short=clips.short, clips=count) for n in clips.frames]
    except ValueError as error:
        raise VideoError(f"{video.name}: {error}") from error
    return np.concatenate([indices.ravel() for indices in draws])


def crops_of(shape: tuple[int, int], clips: ClipConfig, crops: int) -> list[Crop]:
    """The crops of a test, in frames of this height and width."""
    short_side = clips.test_size or round(clips.image_size * 256 / 224)
    return view_crops(*shape, clips.image_size, short_side, crops)


def _draw(item: dict[str, Any], clips: ClipConfig, mirrored: FlipLabels, rng: np.random.Generator) -> Drawn:
    """`draw_clips` of one video."""
    vary, size = clips.augmentation, clips.image_size
    with open_video(item["video"], _name(item)) as video:
        length, chosen = _choose(video, clips, rng)
        height, width = chosen.shape
        if vary.crop == "resized":
            crop = resized_crop(height, width, size, vary.area, vary.aspect, rng)
        else:
            crop = multiscale_crop(height, width, size, clips.scales, rng)
        pictures = crop.cut(chosen.pictures((crop.height, crop.width)), size)
    label, flipped = item["label"], False
    mirror_label = mirror(label, mirrored)
    if clips.flip and rng.random() < 0.5 and mirror_label is not None:
        pictures, label, flipped = pictures[:, :, ::-1], mirror_label, True
    if any(vary.colour_jitter):
        pictures = jitter_colours(pictures, vary.colour_jitter, rng)
    pictures = randaugment(pictures, vary.randaugment, vary.magnitude, rng, vary.deviation)
    parts = np.split(pictures, np.cumsum(clips.frames)[:-1])
    shuffle = rng.permutation if clips.shuffle_frames else lambda part: part
    made = {n: shuffle(part) for n, part in zip(clips.frames, parts, strict=True)}
    return Drawn(made, (length, height, width), label, flipped)


def _cut(item: dict[str, Any], clips: ClipConfig, rng: np.random.Generator) -> Drawn:
    """`cut_views` of one video."""
    with open_video(item["video"], _name(item)) as video:
        length, chosen = _choose(video, clips, None)
        crops = crops_of(chosen.shape, clips, clips.crops)
        pictures = chosen.pictures((crops[0].height, crops[0].width))
    squares = np.stack([crop.cut(pictures, clips.image_size) for crop in crops])  # (crops, t, s, s, 3)
    squares[5:] = squares[5:, :, :, ::-1].copy()
    parts = np.split(squares, np.cumsum([clips.clips * n for n in clips.frames])[:-1], axis=1)
    views = {}
    for n, part in zip(clips.frames, parts, strict=True):
        view = part.reshape(clips.crops, clips.clips, n, *part.shape[2:]).swapaxes(0, 1)
        view = view.reshape(clips.views, *view.shape[2:])  # (v, n, s, s, 3)
        views[n] = rng.permutation(view, axis=1) if clips.shuffle_frames else view
    return Drawn(views, (length, *chosen.shape))


def _choose(video: OpenVideo, clips: ClipConfig, rng: np.random.Generator | None) -> tuple[int, Chosen]:
    """The length of a video, and the frames of its clips. A video that is decoded to count it is decoded once."""
    if video.guess:
        with suppress(VideoError):  # the guess may be wrong
            video.keep(frame_indices(video, video.guess, clips, deepcopy(rng)))
    return len(video), video.choose(frame_indices(video, len(video), clips, rng))


def _by_camera(
    item: dict[str, Any], rng: np.random.Generator, cut: Callable[[dict[str, Any], np.random.Generator], Drawn]
) -> dict[str, Drawn]:
    """Cuts each camera's video, with the same draws for all."""
    seed = rng.integers(2**63)
    drawn = {camera: cut(one, np.random.default_rng(seed)) for camera, one in _cameras(item).items()}
    if len({own.facts for own in drawn.values()}) > 1:
        got = ", ".join("{} {} frames of {} x {}".format(camera, *own.facts) for camera, own in drawn.items())
        raise VideoError(
            f"{item['id']}: expected videos of one length and size from all cameras, got {got}: cut and resize them "
            "alike"
        )
    return drawn


def _cameras(item: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        camera: {**item, "video": video, "id": f"{item['id']} ({camera})"} for camera, video in item["video"].items()
    }


def _by_count(seen: Mapping[str, Clips], clips: ClipConfig) -> Clips:
    return {n: {camera: parts[n] for camera, parts in seen.items()} for n in clips.frames}


def _name(item: dict[str, Any]) -> str | None:
    return item["id"] if isinstance(item["video"], bytes) else None
