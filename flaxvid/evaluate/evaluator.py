"""Evaluation at several frame counts in one pass over the videos."""

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
from flaxvid.evaluate.runtimes import Program
from flaxvid.evaluate.views import average_views
from flaxvid.models.video_model import VideoModel
from flaxvid.types import Batch, Variables, by_target


@dataclasses.dataclass(frozen=True)
class Result:
    """How a network does at one frame count.

    Attributes:
        scores: {"top1", "top5", "mean_class", "calibration_error", "clips"}: shares in [0, 1], and videos.
        confusion: numbers of videos by (label, guess).
        reliability: see `metrics.reliability`.
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
        index: positions in the source of the videos that count: they have a label and could be read.
        label: their classes.
        broken: positions of the videos that could not be read.
    """

    frames: Mapping[int, Result]
    index: Int[np.ndarray, " videos"]
    label: Int[np.ndarray, " videos"]
    broken: tuple[int, ...]


Evaluations = Mapping[str, Evaluation]
"""The evaluation of each target; a single target is called ""."""


def score_rows(evaluations: Evaluations) -> list[dict[str, Any]]:
    """The any-frame table: rows ``{"frames": 4, "top1": 0.61, ...}``, with a "target" where there are several."""
    return [
        {**({"target": target} if target else {}), "frames": count, **result.scores}
        for target, evaluation in evaluations.items()
        for count, result in sorted(evaluation.frames.items())
    ]


def evaluate_videos(
    model: VideoModel,
    variables: Mapping[int, Variables | Program],
    batches: Iterable[Batch],
    *,
    put: Callable[[Batch], Batch] = lambda batch: batch,
) -> dict[str, Evaluation]:
    """Evaluates every video at each frame count; a video's answer is the mean over its views.

    Sums stay on the devices until the end. All processes of a multi-host run get the same result.

    Args:
        model: the ordinary model.
        variables: ordinary variables for each frame count, or exported programs.
        batches: of `eval_batches`, with video for each of these counts.
        put: moves a batch to the devices.

    Returns:
        The evaluation of each target.

    Raises:
        ValueError: the video is not uint8, there is no batch, no video counts, or the labels are of other targets.
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
        raise ValueError("expected videos to evaluate, got none: choose another split or root")
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
    """Joins passes over the same videos, each at other frame counts.

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
    """One batch's sums, and each video's guess and confidence."""
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
