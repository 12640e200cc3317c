"""Reads what a run leaves in its folder. It needs nothing else of the library."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from flaxvid.report.records import read_evaluation, read_metrics, read_object, read_reconstruction, read_rows


@dataclasses.dataclass(frozen=True)
class Run:
    """One run's records.

    Attributes:
        name: of the folder.
        recipe: nested settings of recipe.json; {} if there is none.
        metrics: the objects of metrics.jsonl by step: {"step", "epoch", "time", "train/loss", "eval/top1_4", ...}.
        any_frame: rows of any_frame.json, {"frames", "top1", "top5", "gflops", "clips"}, accuracies in [0, 1], and
            "target" where there are several; those of the evaluation where training has left none.
        evaluation: evaluation.json, of the run's own test videos; "data" says which: "name", "root", "split", "videos",
            "digest", ... Older versions wrote no root, split and digest, and the record may be of other videos.
            Besides there are "protocol", "device", "classes"; "frames", rows like those above with
            "mean_class", "calibration_error", "milliseconds", "confusion" as [label, guess, videos] and "reliability";
            "examples", videos with their "label", "guesses" and "strip". {} if there is none. Of several targets,
            "classes" are by target, and rows and examples have a "target".
        folder: of the run; film strips are read from there.
        others: evaluations of other data sets, each as a run with nothing else.
        reconstruction: reconstruction.json of a masked pre-training: "mask_ratio", "data", "checkpoint"; "frames", rows
            of {"frames", "error", "clips"}; "pictures", {"id", "frames", "picture"}. {} if there is none.
    """

    name: str
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    metrics: tuple[Mapping[str, Any], ...] = ()
    any_frame: tuple[Mapping[str, Any], ...] = ()
    evaluation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    folder: Path = Path()
    others: tuple["Run", ...] = ()
    reconstruction: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def rows(self) -> tuple[Mapping[str, Any], ...]:
        """The rows of the final table, of accuracies or of reconstruction errors."""
        return self.any_frame or tuple(self.reconstruction.get("frames", ()))

    @property
    def data(self) -> Mapping[str, Any]:
        """The videos that it was evaluated on, as far as its record says."""
        return self.evaluation.get("data", {})

    @property
    def step(self) -> int | None:
        """The step of the checkpoint that was evaluated, as far as the record says."""
        return self.evaluation.get("checkpoint", {}).get("step")

    def series(self, key: str) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """The steps and values of a metric; NaN where it was not finite."""
        rows = [row for row in self.metrics if key in row]
        values = [math.nan if row[key] is None else row[key] for row in rows]
        return np.array([row["step"] for row in rows], float), np.array(values, float)

    def by_target(self) -> dict[str, "Run"]:
        """The run as each of its targets sees it, with its own rows, classes and examples; an only target is called
        ""."""
        rows, classes = (*self.any_frame, *self.evaluation.get("frames", ())), self.evaluation.get("classes")
        parts = {}
        for target in dict.fromkeys(row.get("target", "") for row in rows) or [""]:
            own = {key: _of_target(self.evaluation[key], target) for key in ("frames", "examples") if self.evaluation}
            own |= {"classes": classes[target]} if target and classes else {}
            parts[target] = dataclasses.replace(
                self, any_frame=tuple(_of_target(self.any_frame, target)), evaluation={**self.evaluation, **own}
            )
        return parts


def read_run(folder: str | Path) -> Run:
    """Reads the folder of a run, finished or not. A missing file reads as empty.

    Raises:
        FileNotFoundError: the folder does not exist or holds none of a run's files.
        ValueError: a file is damaged.
    """
    folder = Path(folder)
    names = ("recipe.json", "metrics.jsonl", "any_frame.json", "evaluation.json", "reconstruction.json")
    if not any((folder / name).exists() for name in names):
        raise FileNotFoundError(f"expected a run's folder with {', '.join(names)}, got none of them in {folder}")
    recipe, evaluation = read_object(folder / "recipe.json"), read_evaluation(folder / "evaluation.json")
    any_frame = read_rows(folder / "any_frame.json") or evaluation.get("frames", [])
    rows = tuple(sorted(any_frame, key=lambda row: (row.get("target", ""), row["frames"])))
    others = [read_run(path.parent) for path in sorted(folder.glob("evaluations/*/evaluation.json"))]
    name = folder.resolve().name
    if evaluation and "digest" not in evaluation["data"] and evaluation["frames"][0]["clips"] != rows[0]["clips"]:
        # Older versions let an evaluation of other videos take the place of the run's own.
        others.insert(0, Run(name, any_frame=tuple(evaluation["frames"]), evaluation=evaluation, folder=folder))
        evaluation = {}
    metrics, reconstruction = (
        read_metrics(folder / "metrics.jsonl"),
        read_reconstruction(folder / "reconstruction.json"),
    )
    return Run(name, recipe, metrics, rows, evaluation, folder, tuple(others), reconstruction)


def _of_target(rows: Iterable[Mapping[str, Any]], target: str) -> list[dict[str, Any]]:
    return [{key: row[key] for key in row if key != "target"} for row in rows if row.get("target", "") == target]
