"""Reads what a run leaves in its folder."""

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
        name: The folder's name.
        recipe: Nested settings of recipe.json; {} if there is none.
        metrics: The objects of metrics.jsonl by step: {"step", "epoch", "time", "train/loss", "eval/top1_4", ...}.
        any_frame: Rows {"frames", "top1", "top5", "gflops", "clips"} of any_frame.json, otherwise of evaluation.json.
            Accuracies are in [0, 1]. With several targets, rows have a "target".
        evaluation: evaluation.json about the run's own test videos; {} if there is none. "data" describes them: "name",
            "root", "split", "videos", "digest", ... Older records have no root, split and digest, and may be about
            other videos. There are also "protocol", "device" and "classes". "frames" are rows as above with
            "mean_class", "calibration_error", "milliseconds", "confusion" as [label, guess, videos] and "reliability".
            "examples" are videos with "label", "guesses", "strip" and, of some, "look", the picture of where the
            network looked; "look_fault" says why there is none. With several targets, "classes" are by target, and
            rows and examples have a "target".
        folder: The run's folder, which has the film strips.
        others: Evaluations of other videos or weights, each as a run with nothing else.
        target: The target of `by_target`'s parts; "" of an only one, and of a whole run.
        reconstruction: reconstruction.json of masked pre-training: "mask_ratio", "data" and "checkpoint"; "frames" are
            rows {"frames", "error", "clips"}; "pictures" are {"id", "frames", "picture"}. {} if there is none.
    """

    name: str
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    metrics: tuple[Mapping[str, Any], ...] = ()
    any_frame: tuple[Mapping[str, Any], ...] = ()
    evaluation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    folder: Path = Path()
    others: tuple["Run", ...] = ()
    target: str = ""
    reconstruction: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def rows(self) -> tuple[Mapping[str, Any], ...]:
        """The rows of the final table, of accuracies or of reconstruction errors."""
        return self.any_frame or tuple(self.reconstruction.get("frames", ()))

    @property
    def data(self) -> Mapping[str, Any]:
        """The evaluated videos, as far as the record says."""
        return self.evaluation.get("data", {})

    @property
    def step(self) -> int | None:
        """The step of the checkpoint that was evaluated, as far as the record says."""
        return self.evaluation.get("checkpoint", {}).get("step")

    def series(self, key: str) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """The steps and values of a metric. A value that was not finite is NaN."""
        rows = [row for row in self.metrics if key in row]
        values = [math.nan if row[key] is None else row[key] for row in rows]
        return np.array([row["step"] for row in rows], float), np.array(values, float)

    def by_target(self) -> dict[str, "Run"]:
        """A run for each target, with the target's own rows, classes and examples. An only target is called ""."""
        classes = self.evaluation.get("classes")
        targets = [row.get("target", "") for row in (*self.any_frame, *self.evaluation.get("frames", ()))]
        parts = {}
        for target in dict.fromkeys(targets) or [""]:
            own = {key: _of_target(self.evaluation[key], target) for key in ("frames", "examples") if self.evaluation}
            own |= {"classes": classes[target]} if target and classes else {}
            rows = tuple(_of_target(self.any_frame, target))
            parts[target] = dataclasses.replace(
                self, any_frame=rows, evaluation={**self.evaluation, **own}, target=target
            )
        return parts


def read_run(folder: str | Path) -> Run:
    """Reads the folder of a run, finished or not. A missing file reads as empty.

    Raises:
        FileNotFoundError: The folder does not exist or has none of a run's files.
        ValueError: A file is damaged.
    """
    folder = Path(folder)
    names = ("recipe.json", "metrics.jsonl", "any_frame.json", "evaluation.json", "reconstruction.json")
    if not any((folder / name).exists() for name in names):
        raise FileNotFoundError(
            f"expected a run's folder with {', '.join(names)}, got none of them in {folder}: name another folder"
        )
    recipe, evaluation = read_object(folder / "recipe.json"), read_evaluation(folder / "evaluation.json")
    any_frame = read_rows(folder / "any_frame.json") or evaluation.get("frames", [])
    rows = tuple(sorted(any_frame, key=lambda row: (row.get("target", ""), row["frames"])))
    others = [read_run(path.parent) for path in sorted(folder.glob("evaluations/*/evaluation.json"))]
    name = folder.resolve().name
    if evaluation and "digest" not in evaluation["data"] and evaluation["frames"][0]["clips"] != rows[0]["clips"]:
        # Older versions wrote an evaluation of other videos over the run's own.
        others.insert(0, Run(name, any_frame=tuple(evaluation["frames"]), evaluation=evaluation, folder=folder))
        evaluation = {}
    metrics, reconstruction = (
        read_metrics(folder / "metrics.jsonl"),
        read_reconstruction(folder / "reconstruction.json"),
    )
    return Run(name, recipe, metrics, rows, evaluation, folder, tuple(others), reconstruction=reconstruction)


def _of_target(rows: Iterable[Mapping[str, Any]], target: str) -> list[dict[str, Any]]:
    return [{key: row[key] for key in row if key != "target"} for row in rows if row.get("target", "") == target]
