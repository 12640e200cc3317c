"""A trained network in the hand: it answers to videos, gives their features, and is written into a file."""

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

from flaxvid import trees
from flaxvid.adapt.surgery import CLASSIFIER
from flaxvid.data.clips.cut import ClipConfig
from flaxvid.data.sources.class_names import as_classes
from flaxvid.evaluate.predictor import Predictor
from flaxvid.evaluate.runtimes import Program, open_program
from flaxvid.evaluate.streams import Stream, make_stream, open_stream
from flaxvid.frames import FrameFlexible
from flaxvid.models.video_model import VideoModel
from flaxvid.tasks.frame_flexible import FfnRecipe
from flaxvid.tasks.supervised import SupervisedRecipe
from flaxvid.train.recipe import DataRecipe, ModelRecipe, Recipe
from flaxvid.train.setup import clip_config, count_classes
from flaxvid.types import Classes, Variables, by_target
from flaxvid.weights.native import WeightsInfo, save_variables

Clip = UInt8[np.ndarray, "t h w 3"]
AnyVideo = str | Path | bytes | Clip | Mapping[str, str | Path | bytes | Clip]
"""An encoded video, a folder of numbered images, or a clip that is cut already; or such a one of each camera."""


@dataclasses.dataclass(frozen=True)
class Trained:
    """A network, its weights, and how it was made. `load` gives one; ``Trained(model, variables)`` makes one by hand.

    Attributes:
        model: the ordinary model. A `FrameFlexible` may be given, with its variables.
        variables: the model's, or those of `FrameFlexible`.
        frames: the frame counts that it was trained at, ascending; () is what the variables or the model say.
        classes: class names in the order of the logits; of several targets those of each. () numbers them.
        recipe: the run's; of a file what the file says, with a data set without a name. None makes one of the model.
        folder: the run's; None for a file.
        named: False if the names of the classes are unknown; `classes` then numbers them.
        checkpoint: "name" and "step" of a run's checkpoint; None for a file.
        runtime: what answers to videos: "jax", or a runtime of exported programs, "onnxruntime" or "openvino".
        programs: the ONNX file of each frame count, for such a runtime.
        streams: the same, of programs for streams.
        fresh: paths of random variables, which the torch file does not have: a head for other classes.

    Raises:
        ValueError: the variables have no "params", or other numbers of classes than `classes`.
    """

    model: VideoModel
    variables: Variables
    frames: tuple[int, ...] = ()
    classes: Classes = ()
    recipe: Recipe = None  # pyright: ignore[reportAssignmentType]  (only until it is made)
    folder: Path | None = None
    named: bool = True
    checkpoint: Mapping[str, Any] | None = None
    fresh: tuple[str, ...] = ()
    runtime: str = "jax"
    programs: Mapping[int, Path] = dataclasses.field(default_factory=dict)
    streams: Mapping[int, Path] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if not isinstance(self.variables, Mapping) or "params" not in self.variables:
            got = ", ".join(map(str, self.variables)) if isinstance(self.variables, Mapping) else type(self.variables)
            raise ValueError(f'expected variables {{"params": ..., ...}} as model.init gives them, got {got}: pass all')
        given, counts = self.model, private_counts(self.variables)
        model, trained_at = (given.model, given.frames) if isinstance(given, FrameFlexible) else (given, counts)
        frames = tuple(sorted(self.frames or trained_at)) or (model.clip.num_frames,)
        own: dict[str, Any] = {"model": model, "frames": frames}
        if not self.classes:
            own |= {"classes": _number_classes(self.variables), "named": False}
        elif not self.headless:
            own["classes"] = check_classes(self.classes, self.variables, self.folder or "the variables")
        if self.recipe is None:
            own["recipe"] = make_recipe(model, frames, flexible=bool(counts))
        for name, value in own.items():
            object.__setattr__(self, name, value)

    @property
    def headless(self) -> bool:
        """Whether the network was pre-trained without labels, so that it has no head."""
        return "head" not in self.variables["params"]

    def select(self, num_frames: int) -> Variables:
        """The ordinary variables of `model` for any frame count."""
        if counts := private_counts(self.variables):
            flexible = FrameFlexible(self.model, counts, private_norms="batch_stats" not in self.variables)
            return flexible.select(self.variables, num_frames)
        return {name: self.variables[name] for name in ("params", "batch_stats") if name in self.variables}

    def answering(self, num_frames: int) -> Variables | Program:
        """What answers to clips of so many frames: the variables of `select`, or an exported program.

        Raises:
            ValueError: there is no program for that count.
        """
        if self.runtime == "jax":
            return self.select(num_frames)
        if num_frames not in self.programs:
            raise ValueError(
                f"expected a frame count that was exported, {_counted(self.programs)}, got {num_frames}: export it, "
                "too, with --frames"
            )
        return open_program(self.programs[num_frames], self.runtime)

    def stream(self, frames: int | None = None) -> Stream:
        """The network on a stream, which answers to one frame after the other; see `Stream`.

        Args:
            frames: the frame count whose variables it has; None is the largest.

        Raises:
            ValueError: the network is not causal, or the export has no program for streams.
        """
        count = max(self.frames) if frames is None else frames
        if self.runtime == "jax":
            size = clip_config(self.recipe, self.frames).image_size or self.model.clip.image_size
            return make_stream(self.model, self.select(count), size)
        if count not in self.streams:
            raise ValueError(
                f"expected a program for streams of {count} frames, got {_counted(self.streams)}: export one with "
                f"--only stream --frames {count}"
            )
        return open_stream(self.streams[count], self.runtime)

    @functools.cached_property
    def predictor(self) -> Predictor:
        """Answers to batches and to long videos; it sees videos as the test of the run does."""
        if self.headless:
            raise ValueError(
                "this network was pre-trained without labels and has no classifier: fine-tune it first, with "
                f"--config.model.weights={self.folder or 'ITS_RUN'}"
            )
        return Predictor(self.model, self.answering, self.classes, clip_config(self.recipe, self.frames))

    def predict(self, video: AnyVideo, frames: int | None = None) -> dict[str, Any]:
        """What a video shows.

        Args:
            video: a path or an encoded file's bytes, which are cut as in the run's test; a folder of numbered images;
                or a clip of `read_video`, uint8 (t, h, w, 3), which is taken as it is. For a network of several cameras
                a dict of them.
            frames: frames to look at; None is the largest count that it was trained at, or the clip's own.

        Returns:
            ``{"probabilities": {"run": 0.7, ...}, "frames": 8}``, the likeliest class first; of several targets
            ``{"probabilities": {"action": {...}, "actor": {...}}, ...}``.

        Raises:
            VideoError: the video cannot be read.
            ValueError: a clip is not uint8 (t, h, w, 3), `frames` is not its length, or there are several videos.
        """
        views = self._views(video, frames)
        probabilities = {target: own[0] for target, own in self.predictor(views).items()}
        return self._answer(probabilities, jax.tree.leaves(views)[0].shape[2])

    def predict_windows(
        self, video: str | Path | bytes, seconds: float, frames: int | None = None
    ) -> Iterator[dict[str, Any]]:
        """Yields the answer of `predict` to each `seconds` of a video, with "start" and "end" in seconds.

        Raises:
            VideoError: the video cannot be read, or its frames have no times.
            ValueError: the window is too short.
        """
        frames = max(self.frames) if frames is None else frames
        for one in self.predictor.predict(video, frames, seconds):
            yield {"start": one.start, "end": one.end, **self._answer(one.probabilities, frames)}

    def features(self, video: AnyVideo, frames: int | None = None) -> Float[np.ndarray, " c"]:
        """The pooled feature before the classifier, (model.feature_dim,): the mean over the views of `predict`.

        Arguments and errors are those of `predict`.
        """
        return self.predictor.features(self._views(video, frames))[0]

    def _views(self, video: Any, frames: int | None) -> Any:
        """A video as a batch of one, uint8 (1, v, n, h, w, 3)."""
        if isinstance(video, list | tuple):
            raise ValueError(
                f"expected one video, got a {type(video).__name__} of {len(video)}: give one after the other"
            )
        parts = jax.tree.leaves(video)
        if any(isinstance(part, str | Path | bytes) for part in parts):
            views = self.predictor.views(video, max(self.frames) if frames is None else frames)
            return jax.tree.map(lambda clips: clips[None], views)
        for clip in map(np.asarray, parts):
            if clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[-1] != 3 or frames not in (None, len(clip)):
                wanted = f"uint8 (frames, height, width, 3){f' with {frames} frames' if frames else ''}"
                raise ValueError(
                    f"expected a path or a clip, {wanted}, got {clip.dtype} {clip.shape}: flaxvid.read_video gives one"
                )
        return jax.tree.map(lambda clip: np.asarray(clip)[None, None], video)

    def _answer(self, probabilities: Mapping[str, Float[np.ndarray, " k"]], frames: int) -> dict[str, Any]:
        named: dict[str, dict[str, float]] = {}
        for target, ranked in self.predictor.top(probabilities, max(map(len, probabilities.values()))).items():
            own = named[target] = {}
            for name, probability in ranked:
                own[name] = own.get(name, 0.0) + probability  # two classes may have one name
        return {"probabilities": named.get("", named), "frames": frames}


def save(trained: Trained, path: str | Path) -> None:
    """Writes a network into one .safetensors file: its weights, options and class names, and how its test cuts clips.

    `load` makes the same network of it, without the run and its data.

    Raises:
        ValueError: this is no `Trained`; the path does not end in .safetensors; the network has no head; or its model
            was not made by `create_model` or `load_model`, so that a file cannot say what it is.
    """
    if not isinstance(trained, Trained):
        raise ValueError(
            f"expected a network of flaxvid.load or flaxvid.Trained(model, variables), got {type(trained).__name__}"
        )
    model, counts = trained.model, private_counts(trained.variables)
    if trained.headless or not model.zoo_name:
        why = "was put together by hand: make it by flaxvid.create_model"
        why = "was pre-trained without labels and has no head: fine-tune it first" if trained.headless else why
        raise ValueError(f"expected a classifier of the zoo to write into {path}, got a network that {why}")
    overrides = {**model.overrides, "num_classes": count_logits(trained.variables)}
    clips = clip_config(trained.recipe, () if counts else trained.frames)
    info = WeightsInfo(model.zoo_name, overrides, counts or None, trained.classes if trained.named else None, clips)
    moving = re.compile(r"(params|batch_stats)(_\d+f)?")
    variables = {name: tree for name, tree in trained.variables.items() if moving.fullmatch(name)}
    save_variables(path, variables, info)


def make_recipe(
    model: VideoModel, frames: tuple[int, ...], *, flexible: bool, clips: ClipConfig | None = None
) -> Recipe:
    """What is known of a network that no run has made."""
    clips = dataclasses.replace(clips or ClipConfig(), frames=(), short="repeat")
    return Recipe(
        ModelRecipe(model.zoo_name, "", model.clip.num_frames, model.clip.image_size),
        DataRecipe(name="", clips=clips, cameras=model.cameras),
        FfnRecipe(frames) if flexible else SupervisedRecipe(frames),
        eval_frames=frames,
    )


def private_counts(variables: Variables) -> tuple[int, ...]:
    """The frame counts with private variables, ascending."""
    return tuple(sorted(int(name[len("params_") : -1]) for name in variables if re.fullmatch(r"params_\d+f", name)))


def count_logits(variables: Variables) -> int | dict[str, int]:
    """The number of classes of a network; of several targets that of each."""
    head = trees.flatten({"params": {"head": variables["params"]["head"]}})
    counts = {match[1] or "": leaf.shape[-1] for path, leaf in head.items() if (match := CLASSIFIER.fullmatch(path))}
    return counts.get("", counts)


def _counted(programs: Mapping[int, Path]) -> str:
    return ", ".join(map(str, sorted(programs))) or "none"


def _number_classes(variables: Variables) -> Classes:
    counts = count_logits(variables)
    if isinstance(counts, int):
        return tuple(f"class {number}" for number in range(counts))
    return {target: tuple(f"{target} {number}" for number in range(count)) for target, count in counts.items()}


def check_classes(classes: Any, variables: Variables, where: str | Path) -> Classes:
    """Class names as tuples; refuses another number than the network's."""
    classes = as_classes(classes)
    if count_classes(classes) != count_logits(variables):
        some = [name for names in by_target(classes).values() for name in names][:3]
        raise ValueError(
            f"expected names of the {count_logits(variables)} classes of the network in {where}, got "
            f"{count_classes(classes)} ({', '.join(some)}, ...): give those of the data that it was trained on"
        )
    return classes
