"""Writes the results of an evaluation: evaluation.json, film strips of some videos, and the page.

A run's folder holds the record of its own test videos. A record of other videos, or of an earlier checkpoint, has its
own folder, evaluations/<data set>, so none replaces another.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, UInt8

from flaxvid.data.broken import why_broken
from flaxvid.data.clips.cut import UNREADABLE, ClipConfig, cut_views
from flaxvid.data.clips.decode import open_video
from flaxvid.data.clips.sampling import segment_indices
from flaxvid.data.sources.open import Source
from flaxvid.evaluate.cost import clip_milliseconds, model_cost
from flaxvid.evaluate.evaluator import Evaluation, Evaluations, Result, score_rows
from flaxvid.evaluate.looking import draw_look, look
from flaxvid.evaluate.runtimes import Program
from flaxvid.evaluate.views import describe_views
from flaxvid.models.video_model import VideoModel
from flaxvid.report.page import write_page
from flaxvid.report.records import read_evaluation
from flaxvid.report.run import read_run
from flaxvid.types import Variables, by_target
from flaxvid.writing import written_whole

RIGHT, WRONG = 4, 8
"""The numbers of videos to show: of right answers, and of the most confident wrong ones."""

LOOKED = 8
"""Of how many of them, the wrong ones first, it is shown where the network looked."""

Look = Callable[[Mapping[str, Any], Mapping[str, Any]], UInt8[np.ndarray, "h w 3"]]
"""A source's item and its example in the record, to a picture of where the network looked."""

STRIP_FRAMES, STRIP_HEIGHT, GAP = 8, 96, 2
"""Frames of a strip; their short side and the gap between them in pixels."""


def output_folder(run: Path | None, output: Path | None) -> Path | None:
    """The folder for the results: `output`, or the run's, or None.

    Raises:
        ValueError: `output` is another run's folder, or a record there is damaged.
    """
    folder = output or run
    if output and (output / "recipe.json").exists() and not (run and output.samefile(run)):
        raise ValueError(f"expected a folder for the results, got that of another run, {output}: give --output another")
    if folder:
        with contextlib.suppress(FileNotFoundError):
            read_run(folder)
    return folder


def finish_evaluation(
    evaluation: Evaluations,
    source: Source,
    model: VideoModel,
    clips: ClipConfig,
    *,
    origin: Mapping[str, Any],
    checkpoint: Mapping[str, Any] | None,
    folder: Path | None,
    protocol: str = "the recipe's",
    variables: Mapping[int, Variables | Program] | None = None,
    timed: bool = False,
    runtime: str = "jax",
    own: bool = True,
    final: bool = False,
) -> tuple[dict[str, Any], Path | None]:
    """Counts the cost of a clip, makes the record, and writes it with film strips and the page; every process calls it.

    Args:
        evaluation: of `source`.
        source: the videos.
        model: the ordinary model.
        clips: the rules of the clips, of the pass with the most frames.
        origin: "root" and "split" of the videos, and "by_number" if labels are compared by number.
        checkpoint: "name" and "step" of the weights; None for those of a file.
        folder: for the results; None writes nothing.
        protocol: its name.
        variables: what was evaluated, for each frame count; with it some pictures show where the network looked.
        timed: whether a clip's milliseconds are measured, too.
        runtime: what evaluated it.
        own: see `place_record`.
        final: whether this ends a training. The record then replaces that in `folder`, and any_frame.json is written,
            too, which marks the run as finished.

    Returns:
        The record, and its path.
    """
    size = clips.image_size
    costs = {
        row["frames"]: {"gflops": model_cost(model, (1, row["frames"], size, size, 3)).gflops}
        for row in score_rows(evaluation)
    }
    for count, answering in (variables or {}).items() if timed else ():
        costs[count]["milliseconds"] = clip_milliseconds(model, answering, count, size)
    facts = {"name": protocol, "views": describe_views(clips), "size": size}
    record = evaluation_record(
        evaluation,
        source,
        clips=clips,
        protocol=facts,
        costs=costs,
        origin=origin,
        checkpoint=checkpoint,
        runtime=runtime,
    )
    if folder is None or jax.process_index() > 0:
        return record, None
    place = folder if final else place_record(folder, record, own)
    path = write_record(place, record, evaluation, source, make_look(model, variables, clips))
    if final:
        with written_whole(folder / "any_frame.json") as rows:
            rows.write_text(json.dumps(any_frame_rows(record), indent=1))
    write_page(folder)
    return record, path


def any_frame_rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A record's any-frame table: rows of scores and costs."""
    return [{key: row[key] for key in row if key not in ("confusion", "reliability")} for row in record["frames"]]


def evaluation_record(
    evaluation: Evaluations,
    source: Source,
    *,
    clips: ClipConfig,
    protocol: Mapping[str, Any],
    costs: Mapping[int, Mapping[str, float]],
    origin: Mapping[str, Any] | None = None,
    checkpoint: Mapping[str, Any] | None = None,
    runtime: str = "jax",
) -> dict[str, Any]:
    """The record of an evaluation, as JSON values; see `flaxvid.report.run.Run.evaluation` for the keys.

    Args:
        evaluation, source, clips, origin, checkpoint, runtime: as in `finish_evaluation`.
        protocol: its "name", "views" and "size".
        costs: "gflops" of a clip at each frame count, and "milliseconds" if they were measured.
    """
    first, classes = next(iter(evaluation.values())), source.classes
    faults = [find_fault(source, position, clips) for position in first.broken]
    missing = sum(fault["missing"] for fault in faults)
    device = jax.devices()[0]
    kind = f"CPU with {os.cpu_count()} cores" if device.platform == "cpu" or runtime != "jax" else device.device_kind
    return {
        "protocol": dict(protocol),
        "data": {
            "name": source.name,
            **(origin or {}),
            "videos": len(source),
            "digest": digest_videos(source),
            "evaluated": max(len(part.index) for part in evaluation.values()),
            "missing": missing,
            "unreadable": len(faults) - missing,
            "faults": faults,
        },
        **({"checkpoint": dict(checkpoint)} if checkpoint else {}),
        "device": kind if runtime == "jax" else f"{kind}, {runtime}",
        "classes": dict(classes) if isinstance(classes, Mapping) else list(classes),
        "frames": [
            {**row, **costs[row["frames"]], **_details(evaluation[row.get("target", "")].frames[row["frames"]])}
            for row in score_rows(evaluation)
        ],
        "examples": [
            {
                **({"target": target} if target else {}),
                "id": str(source[int(part.index[row])]["id"]),
                "label": int(part.label[row]),
                "guesses": {
                    str(count): [int(result.guess[row]), round(float(result.confidence[row]), 4)]
                    for count, result in sorted(part.frames.items())
                },
            }
            for target, part in evaluation.items()
            for row in choose_examples(part)
        ],
    }


def write_record(
    folder: str | Path, record: dict[str, Any], evaluation: Evaluations, source: Source, look: Look | None = None
) -> Path:
    """Writes evaluation.json and pictures of the examples; replaces old ones. Returns the path of the first.

    Each example gets a film strip, and up to `LOOKED` of each target the picture of `look`.
    """
    folder = Path(folder)
    strips = folder / "strips"
    shutil.rmtree(strips, ignore_errors=True)
    strips.mkdir(parents=True)
    positions, looked = [], []
    for part in evaluation.values():
        rows = choose_examples(part)
        looked += [place >= len(rows) - LOOKED for place in range(len(rows))]
        positions += [int(part.index[row]) for row in rows]
    for number, (example, position) in enumerate(zip(record["examples"], positions, strict=True)):
        item = source[position]
        path = strips / f"{number:02d}.jpg"
        _save(path, film_strip(item["video"], name=str(item["id"])))
        example["strip"] = path.relative_to(folder).as_posix()
        if look and looked[number] and "look_fault" not in record:
            path = strips / f"{number:02d}-look.jpg"
            try:
                _save(path, look(item, example))
            except Exception as error:  # whatever it is: a picture must not cost the results of a training
                first_line = next(iter(str(error).splitlines()), "")  # XLA's have hundreds
                record["look_fault"] = f"{type(error).__name__}: {first_line}"
                warnings.warn(f"no picture shows where the network looked: {record['look_fault']}", stacklevel=2)
            else:
                example["look"] = path.relative_to(folder).as_posix()
    with written_whole(folder / "evaluation.json") as path:
        path.write_text(json.dumps(record))
    return folder / "evaluation.json"


def place_record(folder: Path, record: Mapping[str, Any], own: bool) -> Path:
    """The folder of a record: `folder` for the run's own record, evaluations/NAME in it for others.

    A run's own record is of its own test videos, and of the latest weights that were evaluated.

    Args:
        folder: the run's.
        record: the new one.
        own: whether these are the run's own test videos; it decides if no record in `folder` tells.

    Raises:
        ValueError: the record in `folder` is damaged.
    """
    previous, data = read_evaluation(folder / "evaluation.json"), record["data"]
    there, step, before = previous.get("data", {}), _step(record), _step(previous)
    if "digest" in there:
        own = there["digest"] == data["digest"]
    elif there:  # of an older version
        own = own and all(there[key] == data[key] for key in ("name", "videos"))
    earlier = step is not None and before is not None and step < before
    if own and not earlier:
        return folder
    name = re.sub(r"\W+", "-", data["name"]).strip("-")
    return folder / "evaluations" / f"{name}-{data['digest'][:8]}{f'-step-{step}' * earlier}"


def _step(record: Mapping[str, Any]) -> int | None:
    return record.get("checkpoint", {}).get("step")


def digest_videos(source: Source) -> str:
    """A digest of a source's videos: their ids, the names of their labels, and their sizes.

    It does not depend on the folder. Sizes tell copies of another quality apart.
    """
    classes = by_target(source.classes)
    rows = []
    for position in range(len(source)):
        try:
            item = source[position]
        except UNREADABLE:
            rows.append(f"{position}")
            continue
        labels = {
            target: classes[target][label] if label >= 0 else None
            for target, label in sorted(by_target(item["label"]).items())
        }
        sizes = {view: _size(video) for view, video in sorted(by_target(item["video"]).items())}
        rows.append(json.dumps([str(item["id"]), labels, sizes]))
    return hashlib.sha256("\n".join(sorted(rows)).encode()).hexdigest()[:16]


def _size(video: bytes | str | Path) -> int | None:
    """The bytes of a video, or the number of files in a folder of frames; None if it is not there."""
    if isinstance(video, bytes):
        return len(video)
    try:
        return len(os.listdir(video)) if os.path.isdir(video) else os.path.getsize(video)
    except OSError:
        return None


def choose_examples(evaluation: Evaluation) -> list[int]:
    """Rows of an evaluation to show, by its largest frame count: some right ones, and the most confident wrong ones."""
    result = evaluation.frames[max(evaluation.frames)]
    right = np.flatnonzero(result.guess == evaluation.label)
    wrong = np.flatnonzero(result.guess != evaluation.label)
    spread = right[np.linspace(0, len(right) - 1, min(RIGHT, len(right))).astype(int)]
    surest = wrong[np.argsort(-result.confidence[wrong], kind="stable")][:WRONG]
    return [*spread.tolist(), *surest.tolist()]


def film_strip(
    video: bytes | str | Path | Mapping[str, bytes | str | Path], name: str | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """Whole frames from all of a video side by side; a row for each camera."""
    if isinstance(video, Mapping):
        return _stack([film_strip(one, name) for one in video.values()])
    with open_video(video, name) as opened:
        frames = opened.frames(segment_indices(len(opened), STRIP_FRAMES, short="repeat")[0], size=STRIP_HEIGHT)
    padded = np.pad(frames, ((0, 0), (0, 0), (0, GAP), (0, 0)), constant_values=255)
    return np.concatenate(list(padded), axis=1)[:, :-GAP]


def make_look(model: VideoModel, variables: Mapping[int, Variables | Program] | None, clips: ClipConfig) -> Look | None:
    """What draws where the network looked for its answer at the largest frame count: in one clip, at its centre crop.

    None if there are no variables, or only an exported program, which has no gradient.
    """
    count = max(variables or {}, default=0)
    if not variables or callable(own := variables[count]):
        return None
    clips = dataclasses.replace(clips, frames=(count,), clips=1, crops=1, short="repeat")

    @functools.cache
    def here() -> Variables:
        return jax.device_put(jax.device_get(own))  # one process alone draws, on its own devices

    def draw(item: Mapping[str, Any], example: Mapping[str, Any]) -> UInt8[np.ndarray, "h w 3"]:
        views = cut_views(dict(item), clips, np.random.default_rng(0))[count]
        guess = np.array([example["guesses"][str(count)][0]])
        maps: Any = look(model, here(), views, guess, example.get("target", ""))
        if not isinstance(views, Mapping):
            return draw_look(views[0], maps[0])
        return _stack([draw_look(view[0], maps[camera][0]) for camera, view in views.items()])

    return draw


def find_fault(source: Source, position: int, clips: ClipConfig) -> dict[str, Any]:
    """Why a video could not be read: {"id", "missing": whether it is not there, "reason"}."""
    reason = why_broken(source, position, clips)
    try:
        item = source[position]
    except UNREADABLE as error:
        return {"id": f"video {position}", "missing": isinstance(error, FileNotFoundError), "reason": reason}
    video = item["video"]
    files = [one for one in (video.values() if isinstance(video, Mapping) else [video]) if not isinstance(one, bytes)]
    return {"id": str(item["id"]), "missing": not all(Path(file).exists() for file in files), "reason": reason}


def _stack(strips: list[UInt8[np.ndarray, "h w 3"]]) -> UInt8[np.ndarray, "height w 3"]:
    """Strips of one width one below the other."""
    return np.concatenate([np.pad(one, ((0, GAP), (0, 0), (0, 0)), constant_values=255) for one in strips])[:-GAP]


def _details(result: Result) -> dict[str, Any]:
    bins = {name: [_number(value) for value in values.tolist()] for name, values in result.reliability.items()}
    return {"confusion": sparse(result.confusion), "reliability": bins}


def sparse(confusion: Int[np.ndarray, "k k"]) -> list[list[int]]:
    """The entries that are not zero, as [label, guess, videos]; of many classes nearly all are zero."""
    return [[int(i), int(j), int(confusion[i, j])] for i, j in zip(*np.nonzero(confusion), strict=True)]


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value  # JSON has no NaN


def _save(path: Path, picture: UInt8[np.ndarray, "h w 3"]) -> None:
    from matplotlib.image import imsave

    imsave(path, picture, pil_kwargs={"quality": 80})
