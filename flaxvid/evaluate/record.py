"""What an evaluation leaves in a run's folder: evaluation.json, and film strips of some videos with their answers."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, UInt8

from flaxvid.data.broken import why_broken
from flaxvid.data.clips import UNREADABLE, ClipConfig
from flaxvid.data.decode import decode
from flaxvid.data.sampling import segment_indices
from flaxvid.data.sources import Source
from flaxvid.evaluate.evaluator import Evaluation, Evaluations, Result, score_rows
from flaxvid.types import by_task
from flaxvid.writing import written_whole

RIGHT, WRONG = 4, 8
"""How many videos are shown of those that the network got right, and of the most confident wrong ones."""

STRIP_FRAMES, STRIP_HEIGHT, GAP = 8, 96, 2
"""Frames of a strip, their short side and the gap between them in pixels."""


def evaluation_record(
    evaluation: Evaluations,
    source: Source,
    *,
    clips: ClipConfig,
    protocol: Mapping[str, Any],
    costs: Mapping[int, Mapping[str, float]],
) -> dict[str, Any]:
    """What is known after an evaluation, as JSON values; see `flaxvid.report.run.Run.evaluation` for the keys.

    Args:
        evaluation: of `source`.
        source: the videos.
        clips: how their clips were cut, of any pass; tells what is wrong with those that could not be read.
        protocol: how they were evaluated: its "name", "views" and "size".
        costs: "gflops" of a clip at each frame count, and "milliseconds" where they were measured.
    """
    tasks: dict[str, Evaluation] = by_task(evaluation)
    first, classes = next(iter(tasks.values())), source.classes
    faults = [find_fault(source, position, clips) for position in first.broken]
    missing = sum(fault["missing"] for fault in faults)
    device = jax.devices()[0]
    return {
        "protocol": dict(protocol),
        "data": {
            "name": source.name,
            "videos": len(source),
            "evaluated": max(len(part.index) for part in tasks.values()),
            "missing": missing,
            "unreadable": len(faults) - missing,
            "faults": faults,
        },
        "device": device.device_kind if device.platform != "cpu" else f"CPU with {os.cpu_count()} cores",
        "classes": dict(classes) if isinstance(classes, Mapping) else list(classes),
        "frames": [
            {**row, **costs[row["frames"]], **_details(tasks[row.get("task", "")].frames[row["frames"]])}
            for row in score_rows(evaluation)
        ],
        "examples": [
            {
                **({"task": task} if task else {}),
                "id": str(source[int(part.index[row])]["id"]),
                "label": int(part.label[row]),
                "guesses": {
                    str(count): [int(result.guess[row]), round(float(result.confidence[row]), 4)]
                    for count, result in sorted(part.frames.items())
                },
            }
            for task, part in tasks.items()
            for row in choose_examples(part)
        ],
    }


def write_record(folder: str | Path, record: dict[str, Any], evaluation: Evaluations, source: Source) -> Path:
    """Writes the record as evaluation.json and a strip for each of its examples; replaces an earlier evaluation.

    Returns:
        The path of evaluation.json.
    """
    folder = Path(folder)
    strips = folder / "strips"
    shutil.rmtree(strips, ignore_errors=True)
    strips.mkdir(parents=True)
    positions = [int(part.index[row]) for part in by_task(evaluation).values() for row in choose_examples(part)]
    for number, (example, position) in enumerate(zip(record["examples"], positions, strict=True)):
        item = source[position]
        path = strips / f"{number:02d}.jpg"
        _save(path, film_strip(item["video"], name=str(item["id"])))
        example["strip"] = path.relative_to(folder).as_posix()
    with written_whole(folder / "evaluation.json") as path:
        path.write_text(json.dumps(record))
    return folder / "evaluation.json"


def choose_examples(evaluation: Evaluation) -> list[int]:
    """Rows of an evaluation worth a look, by its largest frame count: some right, the most confident wrong."""
    result = evaluation.frames[max(evaluation.frames)]
    right = np.flatnonzero(result.guess == evaluation.label)
    wrong = np.flatnonzero(result.guess != evaluation.label)
    spread = right[np.linspace(0, len(right) - 1, min(RIGHT, len(right))).astype(int)]
    surest = wrong[np.argsort(-result.confidence[wrong], kind="stable")][:WRONG]
    return [*spread.tolist(), *surest.tolist()]


def film_strip(
    video: bytes | str | Path | Mapping[str, bytes | str | Path], name: str | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """Frames from all of a video side by side, whole ones and not the network's crop; a row for each camera."""
    if isinstance(video, Mapping):
        rows = [
            np.pad(film_strip(one, name), ((0, GAP), (0, 0), (0, 0)), constant_values=255) for one in video.values()
        ]
        return np.concatenate(rows)[:-GAP]
    frames = decode(
        video, lambda length: segment_indices(length, STRIP_FRAMES, short="repeat")[0], size=STRIP_HEIGHT, name=name
    )
    padded = np.pad(frames, ((0, 0), (0, 0), (0, GAP), (0, 0)), constant_values=255)
    return np.concatenate(list(padded), axis=1)[:, :-GAP]


def find_fault(source: Source, position: int, clips: ClipConfig) -> dict[str, Any]:
    """Why a video could not be read: {"id", "missing": whether it is not there at all, "reason"}."""
    reason = why_broken(source, position, clips)
    try:
        item = source[position]
    except UNREADABLE as error:
        return {"id": f"video {position}", "missing": isinstance(error, FileNotFoundError), "reason": reason}
    video = item["video"]
    files = [one for one in (video.values() if isinstance(video, Mapping) else [video]) if not isinstance(one, bytes)]
    return {"id": str(item["id"]), "missing": not all(Path(file).exists() for file in files), "reason": reason}


def _details(result: Result) -> dict[str, Any]:
    bins = {name: [_number(value) for value in values.tolist()] for name, values in result.reliability.items()}
    return {"confusion": sparse(result.confusion), "reliability": bins}


def sparse(confusion: Int[np.ndarray, "k k"]) -> list[list[int]]:
    """The entries that are not zero, as [label, guess, videos]: of a thousand classes nearly all are zero."""
    return [[int(i), int(j), int(confusion[i, j])] for i, j in zip(*np.nonzero(confusion), strict=True)]


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value  # JSON has no NaN


def _save(path: Path, picture: UInt8[np.ndarray, "h w 3"]) -> None:
    from matplotlib.image import imsave

    imsave(path, picture, pil_kwargs={"quality": 80})
