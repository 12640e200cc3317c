"""Evaluation of a model at several frame counts in one pass over the videos."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Float, Int

from flaxvid.data.mirror import NO_LABEL
from flaxvid.evaluate.metrics import (
    accuracies,
    accuracy_sums,
    calibration_error,
    calibration_sums,
    confusion_counts,
    mean_class_accuracy,
    reliability,
)
from flaxvid.evaluate.views import average_views
from flaxvid.models.video_model import VideoModel
from flaxvid.types import Batch, Variables, by_target


@dataclasses.dataclass(frozen=True)
class Result:
    """What a network does at one frame count.

    Attributes:
        scores: {"top1", "top5", "mean_class", "calibration_error", "clips"}: shares in [0, 1], and how many videos.
        confusion: videos by (label, guess).
        reliability: "count", "confidence" and "accuracy" of each bin of confidence; see `metrics.reliability`.
        guess: the likeliest class of each video, in the order of `Evaluation.index`.
        confidence: its probability.
    """

    scores: Mapping[str, float]
    confusion: Int[np.ndarray, "k k"]
    reliability: Mapping[str, np.ndarray]
    guess: Int[np.ndarray, " videos"]
    confidence: Float[np.ndarray, " videos"]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The results of one target.

    Attributes:
        frames: the result at each frame count.
        index: position in the source of each video that could be read and has a label.
        label: its class.
        broken: positions in the source of the videos that could not be read; they count nowhere.
    """

    frames: Mapping[int, Result]
    index: Int[np.ndarray, " videos"]
    label: Int[np.ndarray, " videos"]
    broken: tuple[int, ...]

    def scores(self) -> dict[int, dict[str, float]]:
        """``{4: {"top1": 0.61, "top5": 0.93, "mean_class": 0.6, "calibration_error": 0.1, "clips": 2048}, ...}``."""
        return {count: dict(result.scores) for count, result in self.frames.items()}


Evaluations = Mapping[str, Evaluation]
"""The evaluation of each target; an only target is called ""."""


def score_rows(evaluations: Evaluations) -> list[dict[str, Any]]:
    """The any-frame table: ``{"frames": 4, "top1": 0.61, ...}``, and the "target" of each row where there are
    several."""
    return [
        {**({"target": target} if target else {}), "frames": count, **result.scores}
        for target, evaluation in evaluations.items()
        for count, result in sorted(evaluation.frames.items())
    ]


def evaluate_videos(
    model: VideoModel,
    variables: Mapping[int, Variables],
    batches: Iterable[Batch],
    *,
    put: Callable[[Batch], Batch] = lambda batch: batch,
) -> dict[str, Evaluation]:
    """Evaluates every video at each frame count; a video's answer is the mean over its views.

    The devices add up all sums, which are fetched once at the end. Every process of a multi-host run gets the same.

    Args:
        model: the ordinary model.
        variables: ordinary variables for each frame count.
        batches: of `eval_batches`: "video" with uint8 (b, v, n, h, w, 3) for each of these counts, "label", "index",
            "mask" and "broken".
        put: moves a batch to the devices.

    Returns:
        The evaluation of each target; of an only one ``{"": ...}``.

    Raises:
        ValueError: the video is not uint8, no batch, no video that could be read or has a label, or labels of other
            targets.
    """
    totals: dict[tuple[str, int], Any] = {}
    answers: list[Any] = []
    for batch in batches:
        batch = put(batch)
        guesses, labels = {}, by_target(batch["label"])
        for count, plain in variables.items():
            for target, probabilities in average_views(model, plain, batch["video"][count]).items():
                if target not in labels:
                    raise ValueError(
                        f"expected labels of the network's target {target!r}, got those of "
                        f"{', '.join(map(repr, labels))}: evaluate it on the data that it was trained for"
                    )
                mask = batch["mask"] & (labels[target] != NO_LABEL)
                sums, guesses[target, count] = _judge(probabilities, labels[target], mask)
                key = target, count
                totals[key] = jax.tree.map(jnp.add, totals[key], sums) if key in totals else sums
        answers.append({**{name: batch[name] for name in ("index", "label", "mask", "broken")}, "guesses": guesses})
    if not answers:
        raise ValueError("no batch to evaluate: is the split empty?")
    totals, answers = multihost_utils.process_allgather((totals, answers), tiled=True)
    joined: Any = jax.tree.map(lambda *leaves: np.concatenate(leaves), *answers)
    broken = tuple(sorted(int(position) for position in joined["broken"] if position >= 0))
    if broken and not joined["mask"].any():
        raise ValueError(f"none of {len(broken)} videos could be read: check the data set's root and its files")
    evaluations = {}
    for target, label in by_target(joined["label"]).items():
        keep = joined["mask"] & (label != NO_LABEL)
        if not keep.any():
            raise ValueError(
                f"expected videos with a label{f' of {target}' * bool(target)}, got {joined['mask'].sum()} without one"
                ": label some, or drop the column"
            )
        results = {n: _result(totals[target, n], *(g[keep] for g in joined["guesses"][target, n])) for n in variables}
        evaluations[target] = Evaluation(results, joined["index"][keep], label[keep], broken)
    return evaluations


def join(passes: Sequence[Evaluations]) -> dict[str, Evaluation]:
    """One evaluation out of several passes over the same videos, each at other frame counts.

    Raises:
        ValueError: a video could be read in one pass and not in another.
    """
    return {target: _joined([other[target] for other in passes]) for target in passes[0]}


def _joined(passes: Sequence[Evaluation]) -> Evaluation:
    first = passes[0]
    if any(other.broken != first.broken for other in passes):
        counts = [f"{len(other.broken)} at {', '.join(map(str, other.frames))} frames" for other in passes]
        raise ValueError(
            f"expected the same unreadable videos at every frame count, got {'; '.join(counts)}: evaluate the counts "
            "one by one, or repeat frames of short videos (data.clips.short)"
        )
    frames = {count: result for other in passes for count, result in other.frames.items()}
    return dataclasses.replace(first, frames=frames)


@jax.jit
def _judge(
    probabilities: Float[Array, "b k"], labels: Int[Array, " b"], mask: Array
) -> tuple[dict[str, Any], tuple[Array, Array]]:
    """All sums of one batch, and each video's guess and confidence."""
    sums = {
        "accuracy": accuracy_sums(probabilities, labels, mask),
        "confusion": confusion_counts(probabilities, labels, mask),
        "calibration": calibration_sums(probabilities, labels, mask),
    }
    return sums, (probabilities.argmax(-1), probabilities.max(-1))


def _result(sums: Mapping[str, Any], guess: np.ndarray, confidence: np.ndarray) -> Result:
    scores = {
        **accuracies(sums["accuracy"]),
        "mean_class": float(mean_class_accuracy(sums["confusion"])),
        "calibration_error": calibration_error(sums["calibration"]),
        "clips": int(sums["accuracy"]["count"]),
    }
    return Result(scores, sums["confusion"], reliability(sums["calibration"]), guess, confidence)
