"""Plots one run or several methods. It does without pyplot, which keeps global state."""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from flaxvid.report.run import Run
from flaxvid.report.tables import interval_of, seed_statistics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

# Okabe and Ito's colours, which colour-blind readers can tell apart, darkest first.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555", "#000000")
MARKERS = "os^Dv<>P"
FEW = 40
"""Curves of so many points or fewer have marks: a line of one point cannot be seen."""
INK, GRID = "#333333", "#e6e6e6"
SIZE, LARGE, SMALL = (4.6, 3.3), 11, 10
"""Of a figure in inches, and of its letters in points: a page shows it at about its own size, or a little smaller."""


def accuracy_plot(methods: Mapping[str, Sequence[Run]], metric: str = "top1") -> "Figure":
    """Plots accuracy against frames: a line for each method, with the deviation over its seeds as error bars.

    Args:
        methods: The runs of each method, one for each seed.
        metric: "top1" or "top5".

    Raises:
        ValueError: No method has an any-frame evaluation.
    """
    statistics = {method: seed_statistics(runs, metric) for method, runs in methods.items()}
    ticks = sorted({n for by_frames in statistics.values() for n in by_frames})
    if not ticks:
        raise ValueError(f"expected any_frame.json in some run of {list(methods)}, got none: evaluate them first")
    figure, axes = _figure(xlabel="frames", ylabel=f"top-{metric.removeprefix('top')} accuracy (%)")
    for i, (method, by_frames) in enumerate(statistics.items()):
        if not by_frames:
            continue
        means, deviations, _ = zip(*by_frames.values(), strict=True)
        several = any(seeds > 1 for *_, seeds in by_frames.values())
        axes.errorbar(
            list(by_frames), means, yerr=deviations if several else None, label=method, capsize=3, lw=1.8,
            color=COLORS[i % len(COLORS)], marker=MARKERS[i % len(MARKERS)], ms=5,
        )  # fmt: skip
    axes.set_xticks(ticks)
    if len(methods) > 1:
        _legend(axes)
    return figure


def training_plots(run: Run) -> dict[str, "Figure"]:
    """Plots every metric of a run against steps: a figure for losses, one for accuracies, one for each other kind.

    Returns:
        {title: figure}, losses and accuracies first. A figure has all frame counts of its metrics.
    """
    names = sorted({name for row in run.metrics for name in row if "/" in name}, key=_natural)
    groups: dict[str, list[str]] = {"Loss": [], "Accuracy": []}
    for name in names:
        groups.setdefault(_title(name), []).append(name)
    return {title: curve_plot(run, group, title) for title, group in groups.items() if group}


def curve_plot(run: Run, names: Sequence[str], title: str) -> "Figure":
    """Plots metrics of a run against steps. A long curve is pale, with its running mean in front.

    Args:
        run: The run.
        names: Keys of its metrics.
        title: Title of the y axis. Accuracies are shown in percent.
    """
    percent = title.lower().endswith("accuracy")
    figure, axes = _figure(xlabel="step", ylabel=f"{title.lower()} (%)" if percent else title.lower())
    for i, name in enumerate(names):
        steps, values = run.series(name)
        values = 100 * values if percent else values
        color, few = COLORS[i % len(COLORS)], len(steps) <= FEW
        smooth = running_mean(values, max(1, len(values) // 50))
        if smooth is not values:
            axes.plot(steps, values, color=color, alpha=0.25, lw=0.8)
        marker = MARKERS[i % len(MARKERS)] if few else None
        axes.plot(steps, smooth, color=color, label=_label(name), lw=1.6, marker=marker, ms=4)
    axes.locator_params(axis="x", nbins=6, integer=True)
    if len(names) > 1:  # one curve is what the title says
        _legend(axes)
    return figure


def metric_plot(runs: Mapping[str, Run], name: str, ylabel: str) -> "Figure":
    """Plots one metric of several runs against steps. A long curve is replaced by its running mean.

    Args:
        runs: Runs by their names in the legend.
        name: Key of the metric. Runs without it are left out.
        ylabel: Label of the y axis. If it ends in "(%)", values in [0, 1] are shown in percent.
    """
    figure, axes = _figure(xlabel="step", ylabel=ylabel)
    factor = 100 if ylabel.endswith("(%)") else 1
    for i, (label, run) in enumerate(runs.items()):
        steps, values = run.series(name)
        if len(steps):
            smooth = running_mean(values, max(1, len(values) // 50))
            marker = MARKERS[i % len(MARKERS)] if len(steps) <= FEW else None
            axes.plot(steps, factor * smooth, color=COLORS[i % len(COLORS)], label=label, lw=1.6, marker=marker, ms=4)
    axes.locator_params(axis="x", nbins=6, integer=True)
    _legend(axes)
    return figure


def cost_plot(runs: Mapping[str, Run], cost: str, xlabel: str) -> "Figure":
    """Plots top-1 accuracy against the cost of a clip, a line for each run. Numbers at points are frame counts.

    Args:
        runs: Runs by their names in the legend.
        cost: Key of any-frame rows, "gflops" or "milliseconds". Rows without it are left out.
        xlabel: Label of the x axis.
    """
    figure, axes = _figure(xlabel=xlabel, ylabel="top-1 accuracy (%)")
    for i, (label, run) in enumerate(runs.items()):
        points = [(row[cost], 100 * row["top1"], row["frames"]) for row in run.any_frame if cost in row]
        if points:
            x, y, frames = zip(*points, strict=True)
            color = COLORS[i % len(COLORS)]
            axes.plot(x, y, color=color, marker=MARKERS[i % len(MARKERS)], ms=5, lw=1.8, label=label)
            for point in zip(x, y, frames, strict=True):
                where = {"xy": point[:2], "xytext": (4, -12), "textcoords": "offset points"}
                axes.annotate(str(point[2]), **where, fontsize=SMALL, color=color)
    axes.locator_params(axis="x", nbins=5)
    if len(runs) > 1:
        _legend(axes)
    return figure


def interval_plot(runs: Mapping[str, Run]) -> "Figure":
    """Plots the top-1 accuracy of each run at its largest frame count, with its 95 % interval, one below the other.

    Args:
        runs: Runs by their names, each with a row at least.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(SIZE[0], 0.9 + 0.4 * len(runs)), layout="constrained", facecolor="white")
    axes = figure.subplots()
    for place, run in enumerate(runs.values()):
        row = run.any_frame[-1]
        share, interval = 100 * row["top1"], interval_of(row)
        reach = [[share - 100 * interval[0]], [100 * interval[1] - share]] if interval else None
        axes.errorbar(share, place, xerr=reach, color=COLORS[0], marker="o", ms=6, capsize=4, lw=1.8)
    names = [_shortened(name) for name in runs]
    axes.set_yticks(range(len(runs)), names, fontsize=SMALL, color=INK, parse_math=False)
    axes.set_ylim(len(runs) - 0.5, -0.5)
    axes.set_xlabel("top-1 accuracy (%)", color=INK, fontsize=LARGE)
    _style(axes)
    return figure


def reliability_plot(evaluation: Mapping[str, Any]) -> "Figure":
    """Plots accuracy against confidence by bins, a line for each frame count. Calibrated networks are on the diagonal.

    A mark's area is its bin's share of the videos, so a bin of two videos does not look like one of a thousand.

    Args:
        evaluation: The content of evaluation.json.
    """
    figure, axes = _figure(xlabel="confidence (%)", ylabel="accuracy (%)")
    axes.plot([0, 100], [0, 100], color="#999999", lw=1, ls="--")
    for i, row in enumerate(evaluation["frames"]):
        bins, color = row["reliability"], COLORS[i % len(COLORS)]
        full = [j for j, count in enumerate(bins["count"]) if count]
        x, y = ([100 * bins[name][j] for j in full] for name in ("confidence", "accuracy"))
        areas = [4 + 160 * bins["count"][j] / row["clips"] for j in full]
        axes.plot(x, y, color=color, lw=0.9, alpha=0.6)
        label = f"{row['frames']} frames, error {100 * row['calibration_error']:.1f} %"
        axes.scatter(x, y, areas, color=color, marker=MARKERS[i % len(MARKERS)], alpha=0.8, lw=0, label=label)
    axes.set_xlim(0, 102)
    axes.set_ylim(-2, 102)
    for handle in _legend(axes).legend_handles:
        handle.set_sizes([24])  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
    return figure


def confusion_plot(evaluation: Mapping[str, Any]) -> "Figure":
    """Plots the confusion matrix at the largest frame count. Each row is divided by the videos of its class.

    It shows the names of up to 32 classes.

    Args:
        evaluation: The content of evaluation.json.
    """
    from matplotlib.figure import Figure

    classes, entries = evaluation["classes"], evaluation["frames"][-1]["confusion"]
    counts = np.zeros((len(classes), len(classes)))
    for label, guess, videos in entries:
        counts[label, guess] = videos
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    shown = len(classes) if len(classes) <= 32 else 12
    figure = Figure(figsize=(side := max(SIZE[0], 2.2 + 0.3 * shown), side), layout="constrained", facecolor="white")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xlabel("answer", color=INK, fontsize=LARGE)
    axes.set_ylabel("true class", color=INK, fontsize=LARGE)
    axes.spines[:].set_color("#b0b0b0")
    if len(classes) <= 32:
        size, names = SMALL, [_shortened(name) for name in classes]
        axes.set_xticks(range(len(classes)), names, rotation=90, fontsize=size, color=INK, parse_math=False)
        axes.set_yticks(range(len(classes)), names, fontsize=size, color=INK, parse_math=False)
        for label, guess in zip(*np.nonzero(counts), strict=True):
            color = "white" if shares[label, guess] > 0.5 else INK
            axes.text(guess, label, f"{counts[label, guess]:.0f}", ha="center", va="center", fontsize=size, color=color)
    return figure


def _shortened(name: str, length: int = 24) -> str:
    name = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in name)  # no line ends, no bytes
    return name if len(name) <= length else name[: length - 1] + "…"


def running_mean(values: Float[np.ndarray, " n"], window: int) -> Float[np.ndarray, " n"]:
    """Averages each value with up to `window` values on either side. NaNs stay NaN."""
    window = min(window, (len(values) - 1) // 2)  # otherwise np.convolve gives as many values as the kernel has
    if window < 2:
        return values
    finite = np.isfinite(values)
    ones = np.ones(2 * window + 1)
    sums = np.convolve(np.where(finite, values, 0.0), ones, "same")
    return np.where(finite, sums / np.maximum(np.convolve(finite.astype(float), ones, "same"), 1), np.nan)


def save_figure(figure: "Figure", path: str | Path) -> Path:
    """Writes a figure as .svg, .png or .pdf, by the name, and returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
    return path


def to_svg(figure: "Figure") -> bytes:
    """Draws a figure as SVG, without a ground, and without the date, which would change with every call."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    return buffer.getvalue()


def _figure(xlabel: str, ylabel: str) -> tuple["Figure", "Axes"]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, layout="constrained", facecolor="white")
    axes = figure.subplots()
    axes.set_xlabel(xlabel, color=INK, fontsize=LARGE)
    axes.set_ylabel(ylabel, color=INK, fontsize=LARGE)
    _style(axes)
    return figure, axes


def _style(axes: "Axes") -> None:
    axes.grid(color=GRID, lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#b0b0b0")
    axes.tick_params(colors=INK, length=3, labelsize=SMALL)


def _legend(axes: "Axes") -> "Legend":
    """A legend below the axes, where it hides no curve; the figure grows by its lines."""
    names = axes.get_legend_handles_labels()[1]
    columns = min(2 if max(map(len, names), default=0) <= 20 else 1, max(1, len(names)))
    figure: Any = axes.get_figure(root=True)
    figure.set_figheight(SIZE[1] + 0.21 * -(-len(names) // columns))
    legend = axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=columns, frameon=False, fontsize=SMALL, labelcolor=INK
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a dollar in a name is no formula
    return legend


def _parts(name: str) -> tuple[str, str, str]:
    """Splits "eval/top1_4" into "eval", "top1" and "4"."""
    room, _, metric = name.partition("/")
    base, _, frames = metric.rpartition("_")
    return (room, base, frames) if base and frames.isdigit() else (room, metric, "")


def _title(name: str) -> str:
    _, base, _ = _parts(name)
    kind = base.rpartition("_")[-1]  # a target's name may be in front
    if kind in ("loss", "ce", "kl"):
        return "Loss"
    if kind in ("accuracy", "top1"):
        return "Accuracy"
    if match := re.fullmatch(r"top(\d+)", base):
        return f"Top-{match[1]} accuracy"
    return base.replace("_", " ").capitalize()


def _label(name: str) -> str:
    room, base, frames = _parts(name)
    base = re.sub(r"\btop(\d+)$", r"top-\1", base.replace("_", " "))
    return f"{room} {base}" + (f", {frames} frames" if frames else "")


def _natural(name: str) -> tuple[str, str, int]:
    room, base, frames = _parts(name)
    return ("" if room == "train" else room, base, int(frames or 0))
