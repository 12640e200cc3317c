"""What a run leaves in its folder, read without knowing anything else of the library."""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from flaxvid.writing import read_json


@dataclasses.dataclass(frozen=True)
class Run:
    """One run's records.

    Attributes:
        name: of the folder.
        recipe: nested settings of recipe.json; {} if there is none.
        metrics: the objects of metrics.jsonl by step: {"step", "epoch", "time", "train/loss", "eval/top1_4", ...}.
        any_frame: rows of any_frame.json, {"frames", "top1", "top5", "gflops", "clips"}, accuracies in [0, 1], and
            "task" where there are several; those of the evaluation where training has left none.
        evaluation: evaluation.json: "protocol", "data", "device", "classes"; "frames", rows like those above with
            "mean_class", "calibration_error", "milliseconds", "confusion" as [label, guess, videos] and "reliability";
            "examples", videos with their "label", "guesses" and "strip". {} if there is none. Of several tasks,
            "classes" are by task, and rows and examples have a "task".
        folder: where it lies; the strips are read from there.
    """

    name: str
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    metrics: tuple[Mapping[str, Any], ...] = ()
    any_frame: tuple[Mapping[str, Any], ...] = ()
    evaluation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    folder: Path = Path()

    def series(self, key: str) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """The steps and values at which a metric was written; NaN where it was not finite."""
        rows = [row for row in self.metrics if key in row]
        values = [math.nan if row[key] is None else row[key] for row in rows]
        return np.array([row["step"] for row in rows], float), np.array(values, float)

    def by_task(self) -> dict[str, "Run"]:
        """The run as each of its tasks sees it, with its own rows, classes and examples; an only task is called ""."""
        rows, classes = (*self.any_frame, *self.evaluation.get("frames", ())), self.evaluation.get("classes")
        parts = {}
        for task in dict.fromkeys(row.get("task", "") for row in rows) or [""]:
            own = {key: _of_task(self.evaluation[key], task) for key in ("frames", "examples") if self.evaluation}
            own |= {"classes": classes[task]} if task and classes else {}
            parts[task] = dataclasses.replace(
                self, any_frame=tuple(_of_task(self.any_frame, task)), evaluation={**self.evaluation, **own}
            )
        return parts


def read_run(folder: str | Path) -> Run:
    """Reads a run's folder, of a finished run or of one still running; a file that is not there yet reads as empty.

    Raises:
        FileNotFoundError: the folder does not exist or holds none of a run's files.
        ValueError: a file is damaged.
    """
    folder = Path(folder)
    names = ("recipe.json", "metrics.jsonl", "any_frame.json", "evaluation.json")
    if not any((folder / name).exists() for name in names):
        raise FileNotFoundError(f"expected a run's folder with {', '.join(names)}, got none of them in {folder}")
    recipe, evaluation = (_read(folder / f"{name}.json", dict) for name in ("recipe", "evaluation"))
    any_frame = _read(folder / "any_frame.json", list) or evaluation.get("frames", [])
    try:
        rows = tuple(sorted(any_frame, key=lambda row: (row.get("task", ""), row["frames"])))
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"expected rows with their frames in {folder / 'any_frame.json'}, got {error!r}") from error
    return Run(folder.resolve().name, recipe, read_metrics(folder / "metrics.jsonl"), rows, evaluation, folder)


def read_metrics(path: str | Path) -> tuple[dict[str, Any], ...]:
    """Reads metrics.jsonl, without a last line that a killed process left half written.

    Raises:
        ValueError: any other line is no JSON object with a step.
    """
    path = Path(path)
    lines = path.read_bytes().splitlines() if path.exists() else []
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and isinstance(row.get("step"), int | float):
            rows.append(row)
        elif number < len(lines):
            raise ValueError(
                f"expected a JSON object with its step in line {number} of {path}, got {line[:60]!r}: remove that line"
            )
    return tuple(rows)


def _of_task(rows: Iterable[Mapping[str, Any]], task: str) -> list[dict[str, Any]]:
    return [{key: row[key] for key in row if key != "task"} for row in rows if row.get("task", "") == task]


def _read(path: Path, kind: type) -> Any:
    return read_json(path, kind) if path.exists() else kind()
