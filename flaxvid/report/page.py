"""Writes the page of a run, index.html: one file, readable on a phone."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flaxvid.report.html import write_html
from flaxvid.report.plots import accuracy_plot, confusion_plot, reliability_plot, training_plots
from flaxvid.report.run import Run, read_run
from flaxvid.report.tables import (
    RECONSTRUCTION_HEADER,
    describe_data,
    evaluation_notes,
    reconstruction_cells,
    score_table,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONFUSED = 10
"""Most pairs of classes in the table of confusions."""

TILES = 4
"""Most headline numbers."""

MAIN = ("Loss", "Accuracy")
"""The curves of training that are shown at once."""


def write_page(folder: str | Path) -> Path:
    """Writes a run's index.html from what its folder has so far, and returns its path.

    Raises:
        FileNotFoundError: The folder has none of a run's files.
    """
    run = read_run(folder)
    curves = [(figure, caption) for caption, figure in training_plots(run).items()]
    return write_html(
        Path(folder) / "index.html",
        "run.html",
        title=str(run.recipe.get("name") or run.name),
        headlines=_headlines(run),
        scores=[] if run.evaluation else _scores(run),
        reconstruction=_reconstruction(run) if run.reconstruction else None,
        evaluations=[
            evaluation_part(part, _of(record, run) + f": {target}" * bool(target))
            for record in (run, *run.others)
            if record.evaluation
            for target, part in record.by_target().items()
        ],
        curves=[curve for curve in curves if curve[1] in MAIN],
        more_curves=[curve for curve in curves if curve[1] not in MAIN],
        settings=list(flatten(run.recipe)) if run.recipe else [],
    )


def _headlines(run: Run) -> list[tuple[str, str]]:
    """The accuracy at the largest frame count, or what there is so far: the steps and the speed, and the loss."""
    longest = {row.get("target", ""): row for row in run.any_frame}  # rows are by frame count
    pairs = [
        (f"{100 * row['top1']:.2f} %", f"{target} top-1, {row['frames']} frames".lstrip())
        for target, row in longest.items()
    ]
    pairs += [
        (f"{row['error']:.3f}", f"reconstruction error, {row['frames']} frames")
        for row in run.reconstruction.get("frames", ())[-1:]
    ]
    rest = [("train/clips_per_second", "{:,.1f}", "clips a second")]
    for name, form, label in rest if pairs else [("train/loss", "{:.4g}", "last training loss"), *rest]:
        _, values = run.series(name)
        if len(values):
            pairs.append((form.format(values[-1]), label))
    if run.metrics:
        pairs.append((f"{run.metrics[-1]['step']:,}", "steps"))
    return pairs[:TILES]


def _scores(run: Run) -> list[dict[str, Any]]:
    """The tables of a run that has any_frame.json alone: one of each target."""
    return [
        {"target": target, **_table(part.any_frame), "accuracy": _accuracy(part)}
        for target, part in run.by_target().items()
        if part.any_frame
    ]


def _table(rows: Sequence[Mapping[str, Any]], classes: int | None = None) -> dict[str, Any]:
    header, cells = score_table(rows, classes)
    return {"header": header, "rows": cells}


def _accuracy(run: Run) -> "Figure | None":
    """Accuracy against frames, if there are several counts."""
    return accuracy_plot({run.name: [run]}) if len(run.any_frame) > 1 else None


def _reconstruction(run: Run) -> dict[str, Any]:
    """The page's section on a masked pre-training."""
    record = run.reconstruction
    pictures = [
        {
            "id": picture["id"],
            "frames": picture["frames"],
            "data": _picture(run.folder / "reconstructions", picture["picture"], ".png"),
        }
        for picture in record["pictures"]
    ]
    return {
        "header": RECONSTRUCTION_HEADER,
        "rows": list(map(reconstruction_cells, record["frames"])),
        "masked": f"{100 * record['mask_ratio']:.0f} %",
        "by_cube": record.get("by_cube", True),
        "data": describe_data(record["data"]),
        "pictures": pictures,
    }


def _picture(folder: Path, name: str, suffix: str) -> bytes:
    """A picture of the run's own folder alone, because records may come from anywhere; b"" if there is none."""
    path = folder / Path(name).name
    return path.read_bytes() if path.suffix == suffix and path.is_file() else b""


def _of(record: Run, run: Run) -> str:
    """Says how an evaluation differs from the run's own: by its videos, or by the step of its weights."""
    other = record is not run and record.data.get("digest", record) != run.data.get("digest")
    step = "" if record.step in (None, run.step) else f" at step {record.step}"
    return step + f" on other videos, {describe_data(record.data)}" * other


def evaluation_part(run: Run, of: str = "") -> dict[str, Any]:
    """The page's section about one target of one evaluation.

    Args:
        run: A run with an evaluation.
        of: What headings say about weights, videos and target.
    """
    evaluation, rows = run.evaluation, run.evaluation["frames"]
    classes, longest = evaluation["classes"], rows[-1]["frames"]
    clips = [_clip(run, clip) for clip in evaluation["examples"]]
    faults = evaluation["data"]["faults"]
    known = [(row["frames"], row["top1"], row["clips"]) for row in rows]
    before = [row for row in run.any_frame if (row["frames"], row["top1"], row["clips"]) not in known]
    fault = evaluation.get("look_fault")
    return {
        "of": of,
        "longest": longest,
        **_table(rows, len(classes)),
        "before": _table(before, len(classes)) if before else None,
        "accuracy": _accuracy(Run(run.name, any_frame=tuple(rows))),
        "notes": [
            *evaluation_notes(evaluation),
            *([f"No picture shows where the network looked: {fault}."] if fault else []),
        ],
        "faults": [(fault["id"], "missing" if fault["missing"] else "unreadable") for fault in faults],
        "reliability": reliability_plot(evaluation),
        "calibration": describe_calibration(rows[-1]),
        "confusion": confusion_plot(evaluation),
        "many": len(classes) > 12,
        "confused": _confused(evaluation),
        "right": [clip for clip in clips if clip["right"]],
        "wrong": [clip for clip in clips if not clip["right"]],
    }


def describe_calibration(row: Mapping[str, Any]) -> str:
    """Says how sure a network is, and how sure it may be: from the bins of a row of evaluation.json."""
    bins = list(zip(*(row["reliability"][key] for key in ("count", "confidence", "accuracy")), strict=True))
    videos = sum(count for count, *_ in bins)
    if not videos:
        return ""
    sure, right = (100 * sum(entry[0] * entry[place] for entry in bins if entry[0]) / videos for place in (1, 2))
    gap = f"{abs(sure - right):.1f} points {'too sure' if sure > right else 'less sure than it may be'}"
    return (
        f"At {row['frames']} frames its mean confidence is {sure:.1f} % and its accuracy {right:.1f} %: {gap}. The "
        f"expected calibration error, which adds up the gaps of {len(bins)} bins of confidence (arXiv 1706.04599), is "
        f"{100 * row['calibration_error']:.1f} %."
    )


def _clip(run: Run, clip: Mapping[str, Any]) -> dict[str, Any]:
    """A video's pictures, its label, and the answer at each frame count with whether it is right."""
    classes, label = run.evaluation["classes"], clip["label"]
    answers = [(row["frames"], *clip["guesses"][str(row["frames"])]) for row in run.evaluation["frames"]]
    _, guess, confidence = answers[-1]
    return {
        "id": clip["id"],
        "label": classes[label],
        "guess": classes[guess],
        "confidence": f"{100 * confidence:.0f}\u00a0%",
        "right": guess == label,
        "strip": _picture(run.folder / "strips", clip.get("strip", ""), ".jpg"),
        "look": _picture(run.folder / "strips", clip.get("look", ""), ".jpg"),
        "answers": [
            (guess == label, f"{count} frames: {classes[guess]} {100 * confidence:.0f}\u00a0%")
            for count, guess, confidence in answers
        ],
    }


def _confused(evaluation: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    classes, confusion = evaluation["classes"], evaluation["frames"][-1]["confusion"]
    totals: dict[int, int] = {}
    for label, _, videos in confusion:
        totals[label] = totals.get(label, 0) + videos
    wrong = sorted((entry for entry in confusion if entry[0] != entry[1]), key=lambda entry: -entry[2])
    return [
        (f"{classes[label]} → {classes[guess]}", str(videos), f"{100 * videos / totals[label]:.0f}")
        for label, guess, videos in wrong[:CONFUSED]
    ]


def flatten(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yields the settings of a nested recipe as ("model.dropout", "0.5")."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from flatten(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, str(value)
