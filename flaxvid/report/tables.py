"""Tables of accuracy against frames, as Markdown."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flaxvid.report.intervals import wilson
from flaxvid.report.run import Run

NAMED = 10
"""Most class names that a note lists."""

RECONSTRUCTION_HEADER = ("frames", "reconstruction error", "clips")
FEW = 5
"""Of so many classes or fewer, top-5 says nothing: it is always 100 %."""


def any_frame_table(run: Run) -> str:
    """Tabulates one set of weights at each frame count, by `score_table`.

    With several targets each has rows of its own, with its name in the first column. GFLOPs count a multiply-add once,
    as video papers do.

    Raises:
        ValueError: The run has no any-frame evaluation.
    """
    if not run.any_frame:
        raise ValueError(f"expected any_frame.json in the folder of run {run.name!r}, got none: evaluate it first")
    return _all_targets(run.any_frame, run.evaluation.get("classes"))


def results_table(run: Run) -> str:
    """Tabulates a finished run: `any_frame_table`, or of masked pre-training the reconstruction errors."""
    if not run.reconstruction:
        return any_frame_table(run)
    return reconstruction_table(run.reconstruction["frames"])


def reconstruction_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Tabulates the rows of a reconstruction.json."""
    return render(RECONSTRUCTION_HEADER, list(map(reconstruction_cells, rows)))


def reconstruction_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """One row of reconstruction.json as the strings of `reconstruction_table`."""
    return str(row["frames"]), f"{row['error']:.4f}", f"{row['clips']:,}"


def evaluation_table(evaluation: Mapping[str, Any]) -> str:
    """Tabulates evaluation.json: a row a frame count, as `any_frame_table` with more columns."""
    return _all_targets(evaluation["frames"], evaluation["classes"])


def score_table(
    rows: Sequence[Mapping[str, Any]], classes: int | None = None
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and cells: all that rows of any_frame.json or evaluation.json have, in percent where it is a share.

    Args:
        rows: of one target.
        classes: how many there are; None if no record says.
    """
    columns: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "frames": lambda row: str(row["frames"]),
        "top-1 (%)": lambda row: _percent(row, "top1"),
        "95 % interval": _interval,
        "top-5 (%)": lambda row: _percent(row, "top5"),
        "mean class (%)": lambda row: _percent(row, "mean_class"),
        "calibration error (%)": lambda row: _percent(row, "calibration_error"),
        "GFLOPs a clip": lambda row: _short(row["gflops"]),
        "ms a clip": lambda row: _short(row["milliseconds"]),
        "videos": lambda row: f"{row['clips']:,}",
    }
    if classes is not None and classes <= FEW:
        del columns["top-5 (%)"]
    needed = {"mean class (%)": "mean_class", "calibration error (%)": "calibration_error", "ms a clip": "milliseconds"}
    there = {name: [needed.get(name, "frames") in row for row in rows] for name in columns}
    columns = {name: cell for name, cell in columns.items() if any(there[name])}
    return tuple(columns), [
        tuple(cell(row) if there[name][number] else "–" for name, cell in columns.items())
        for number, row in enumerate(rows)
    ]


def percent_range(low: float, high: float) -> str:
    """An interval of shares, in percent."""
    return f"{100 * low:.1f} to {100 * high:.1f}".replace("-", "\u2212")


def interval_of(row: Mapping[str, Any]) -> tuple[float, float] | None:
    """The confidence interval of a row's top-1 accuracy; None of a damaged row."""
    return wilson(row["top1"], row["clips"]) if row["clips"] > 0 and 0 <= row["top1"] <= 1 else None


def _interval(row: Mapping[str, Any]) -> str:
    interval = interval_of(row)
    return percent_range(*interval) if interval else "–"


def evaluation_notes(evaluation: Mapping[str, Any]) -> list[str]:
    """Says what figures of evaluation.json depend on: videos, classes, views, and how time was measured."""
    data, protocol, checkpoint = evaluation["data"], evaluation["protocol"], evaluation.get("checkpoint")
    size = protocol["size"]
    notes = [
        f"Videos: {data['evaluated']:,} of {data['videos']:,} of {data['name']} evaluated, "
        f"{data['missing']:,} missing, {data['unreadable']:,} unreadable.",
        *([f"Data: {describe_data(data)}."] if "digest" in data else []),
        *([f"Weights: checkpoint of step {checkpoint['step']:,} ({checkpoint['name']})."] if checkpoint else []),
        *_class_notes(evaluation),
        f"Views: {protocol['name']}: {protocol['views']}, {size} x {size} pixels; a video's answer is the mean of its "
        "views' probabilities.",
    ]
    if any("milliseconds" in row for row in evaluation["frames"]):
        notes.append(
            f"Milliseconds: {evaluation['device']}; one clip, batch 1, from host memory to logits, decoding not "
            "included; median of several runs after a first one."
        )
    return notes


def describe_data(data: Mapping[str, Any]) -> str:
    """Describes a record's videos. Older records have only the data set's name."""
    place = f" in {data['root']}" if data.get("root") else ""
    split = f", split {data['split']}" if data.get("split") else ""
    digest = f", digest {data['digest']}" if "digest" in data else ""
    return f"{data['name']}{place}{split}, {data['videos']:,} videos{digest}"


def _class_notes(evaluation: Mapping[str, Any]) -> list[str]:
    """Says if the videos are of some classes only, and if labels were compared by number."""
    notes = []
    if evaluation["data"].get("by_number"):
        notes.append("Labels: compared by number, because the names of the network's classes are unknown.")
    for row in {row.get("target", ""): row for row in evaluation["frames"]}.values():
        classes, target = evaluation["classes"], row.get("target", "")
        names = classes[target] if isinstance(classes, Mapping) else classes
        there = sorted({label for label, _, _ in row["confusion"]})
        if len(there) < len(names):
            some = ", ".join(names[label] for label in there[:NAMED]) + ", ..." * (len(there) > NAMED)
            notes.append(
                f"Classes{f' of {target}' * bool(target)}: videos of {len(there)} of the network's {len(names)} "
                f"({some}); an answer may be any of all classes."
            )
    return notes


def seed_table(methods: Mapping[str, Sequence[Run]], metric: str = "top1") -> str:
    """Tabulates mean and deviation over seeds in percent: a row for each method, a column for each frame count.

    The deviation is that of a sample (n - 1). A method of one seed has none. A dash means that none of a method's runs
    was evaluated at that frame count.

    Args:
        methods: The runs of each method, one for each seed.
        metric: "top1" or "top5".

    Raises:
        ValueError: No method has an any-frame evaluation.
    """
    statistics = {method: seed_statistics(runs, metric) for method, runs in methods.items()}
    frames = sorted({n for by_frames in statistics.values() for n in by_frames})
    if not frames:
        raise ValueError(f"expected any_frame.json in some run of {list(methods)}, got none: evaluate them first")
    rows = [(method, *(_mean(by_frames.get(n)) for n in frames)) for method, by_frames in statistics.items()]
    return render(("method", *(f"{n} frames" for n in frames)), rows)


def seed_statistics(runs: Sequence[Run], metric: str = "top1") -> dict[int, tuple[float, float, int]]:
    """Gives {frames: (mean, sample deviation, seeds)} in percent; the deviation of one seed is 0.

    Raises:
        ValueError: Rows are of several targets.
    """
    targets = sorted({row.get("target", "") for run in runs for row in run.any_frame})
    if len(targets) > 1:
        raise ValueError(
            f"expected rows of one target, got {', '.join(targets)}: take those of Run.by_target(), one by one"
        )
    scores: dict[int, list[float]] = {}
    for run in runs:
        for row in run.any_frame:
            scores.setdefault(row["frames"], []).append(100 * row[metric])
    return {
        n: (float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0, len(values))
        for n, values in sorted(scores.items())
    }


def render(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: the first column to the left, the others to the right."""
    table = Table(box=box.MARKDOWN)
    for number, cell in enumerate(header):
        table.add_column(Text(cell.replace("|", r"\|")), justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell.replace("|", r"\|")) for cell in row))
    console = Console(file=io.StringIO(), width=100_000, color_system=None, force_jupyter=False)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines() if line.strip())


def _all_targets(rows: Sequence[Mapping[str, Any]], classes: Sequence[str] | Mapping[str, Sequence[str]] | None) -> str:
    """`score_table` as Markdown, with the target in front where rows have one."""
    names = classes.values() if isinstance(classes, Mapping) else [classes or ()]
    header, cells = score_table(rows, max(map(len, names)) or None)
    if any("target" in row for row in rows):
        header, cells = ("target", *header), [(row["target"], *line) for row, line in zip(rows, cells, strict=True)]
    return render(header, cells)


def _percent(row: Mapping[str, Any], name: str) -> str:
    return f"{100 * row[name]:.2f}"


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 10 else f"{value:,.1f}"


def _mean(statistics: tuple[float, float, int] | None) -> str:
    if statistics is None:
        return "–"
    mean, deviation, seeds = statistics
    return f"{mean:.2f}" if seeds == 1 else f"{mean:.2f} ± {deviation:.2f}"
