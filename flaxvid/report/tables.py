"""Tables of accuracy against frames, as Markdown or aligned text."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from flaxvid.report.run import Run

STYLES = ("markdown", "text")
NAMED = 10
"""Class names that a note lists."""


def any_frame_table(run: Run, style: str = "markdown") -> str:
    """Tabulates what one set of weights scores at each frame count: frames, top-1, top-5, GFLOPs a clip, clips.

    Several targets have rows of their own, with the target in front. GFLOPs are multiply-adds counted once, as video
    papers print them; accuracies are in percent.

    Raises:
        ValueError: an unknown style, or a run without any-frame evaluation.
    """
    if not run.any_frame:
        raise ValueError(f"expected any_frame.json in the folder of run {run.name!r}, got none: evaluate it first")
    header = ("frames", "top-1", "top-5", "GFLOPs a clip", "clips")
    return render(*_with_targets(header, run.any_frame, any_frame_cells), style)


def any_frame_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """One row of any_frame.json as the strings of `any_frame_table`."""
    return (str(row["frames"]), *_percent(row, "top1", "top5"), _short(row["gflops"]), f"{row['clips']:,}")


EVALUATION_HEADER = ("frames", "top-1", "top-5", "mean class", "calibration error", "GFLOPs a clip", "ms a clip")


def evaluation_table(evaluation: Mapping[str, Any], style: str = "text") -> str:
    """Tabulates evaluation.json: accuracies and expected calibration error in percent, a row a frame count.

    Raises:
        ValueError: an unknown style.
    """
    return render(*_with_targets(EVALUATION_HEADER, evaluation["frames"], evaluation_cells), style)


def evaluation_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """One row of evaluation.json as the strings of `evaluation_table`."""
    percent = _percent(row, "top1", "top5", "mean_class", "calibration_error")
    milliseconds = _short(row["milliseconds"]) if "milliseconds" in row else "–"
    return (str(row["frames"]), *percent, _short(row["gflops"]), milliseconds)


def evaluation_notes(evaluation: Mapping[str, Any]) -> list[str]:
    """What has to be known to compare figures of evaluation.json: which videos, classes, views, how time was taken."""
    data, protocol = evaluation["data"], evaluation["protocol"]
    size = protocol["size"]
    notes = [
        f"Videos: {data['evaluated']:,} of {data['videos']:,} of {data['name']} evaluated, "
        f"{data['missing']:,} missing, {data['unreadable']:,} unreadable.",
        *([f"Data: {describe_data(data)}."] if "digest" in data else []),
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
    """Which videos a record is of, in words; those of older versions say only their data set's name."""
    place = f" in {data['root']}" if data.get("root") else ""
    split = f", split {data['split']}" if data.get("split") else ""
    digest = f", digest {data['digest']}" if "digest" in data else ""
    return f"{data['name']}{place}{split}, {data['videos']:,} videos{digest}"


def _class_notes(evaluation: Mapping[str, Any]) -> list[str]:
    """Which classes the videos are of, where not of all; and that labels were compared by number, where they were."""
    notes = []
    if evaluation["data"].get("by_number"):
        notes.append("Labels: compared by number, for the names of the network's classes are not known.")
    for row in {row.get("target", ""): row for row in evaluation["frames"]}.values():
        classes, target = evaluation["classes"], row.get("target", "")
        names = classes[target] if isinstance(classes, Mapping) else classes
        there = sorted({label for label, _, _ in row["confusion"]})
        if len(there) < len(names):
            some = ", ".join(names[label] for label in there[:NAMED]) + ", ..." * (len(there) > NAMED)
            notes.append(
                f"Classes{f' of {target}' * bool(target)}: videos of {len(there)} of the network's {len(names)} "
                f"({some}); an answer may be any of them all."
            )
    return notes


def seed_table(methods: Mapping[str, Sequence[Run]], metric: str = "top1", style: str = "markdown") -> str:
    """Tabulates mean and deviation over seeds in percent, one row a method, one column a frame count.

    The deviation is that of a sample (n - 1); a method of one seed shows its number alone, a frame count that
    none of its runs was evaluated at a dash.

    Args:
        methods: the runs of each method, one a seed.
        metric: "top1" or "top5".
        style: "markdown" or "text".

    Raises:
        ValueError: no method has an any-frame evaluation, or an unknown style.
    """
    statistics = {method: seed_statistics(runs, metric) for method, runs in methods.items()}
    frames = sorted({n for by_frames in statistics.values() for n in by_frames})
    if not frames:
        raise ValueError(f"expected any_frame.json in some run of {list(methods)}, got none: evaluate them first")
    rows = [(method, *(_mean(by_frames.get(n)) for n in frames)) for method, by_frames in statistics.items()]
    return render(("method", *(f"{n} frames" for n in frames)), rows, style)


def seed_statistics(runs: Sequence[Run], metric: str = "top1") -> dict[int, tuple[float, float, int]]:
    """Gives {frames: (mean, sample deviation, seeds)} in percent; the deviation of one seed is 0.

    Raises:
        ValueError: rows of several targets.
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


def render(header: Sequence[str], rows: Sequence[Sequence[str]], style: str = "markdown") -> str:
    """Lays out cells with the first column to the left and the others to the right.

    Raises:
        ValueError: an unknown style.
    """
    if style not in STYLES:
        raise ValueError(f"expected a style of {STYLES}, got {style!r}")
    if style == "markdown":
        header, *rows = ([cell.replace("|", r"\|") for cell in row] for row in (header, *rows))
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    widths = [max(width, 3) for width in widths]

    def line(cells: Sequence[str]) -> list[str]:
        return [c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]

    if style == "text":
        return "\n".join(
            "  ".join(cells).rstrip() for cells in (line(header), ["-" * w for w in widths], *map(line, rows))
        )
    rule = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (line(header), rule, *map(line, rows)))


Rows = Sequence[Mapping[str, Any]]


def _with_targets(
    header: Sequence[str], rows: Rows, cells: Callable[[Mapping[str, Any]], tuple[str, ...]]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and cells of rows, with the target in front where rows have one."""
    if not any("target" in row for row in rows):
        return tuple(header), [cells(row) for row in rows]
    return ("target", *header), [(row["target"], *cells(row)) for row in rows]


def _percent(row: Mapping[str, Any], *names: str) -> list[str]:
    return [f"{100 * row[name]:.2f}" for name in names]


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 10 else f"{value:,.1f}"


def _mean(statistics: tuple[float, float, int] | None) -> str:
    if statistics is None:
        return "–"
    mean, deviation, seeds = statistics
    return f"{mean:.2f}" if seeds == 1 else f"{mean:.2f} ± {deviation:.2f}"
