"""Writes the page of a run, index.html: one file, readable on a phone."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flaxvid.report.html import write_html
from flaxvid.report.plots import accuracy_plot, confusion_plot, reliability_plot, training_plots
from flaxvid.report.run import Run, read_run
from flaxvid.report.tables import (
    ANY_FRAME_HEADER,
    EVALUATION_HEADER,
    RECONSTRUCTION_HEADER,
    any_frame_cells,
    describe_data,
    evaluation_cells,
    evaluation_notes,
    in_percent,
    reconstruction_cells,
)

CONFUSED = 10
"""Most pairs of classes in the table of confusions."""


def write_page(folder: str | Path) -> Path:
    """Writes a run's index.html from what its folder has so far, and returns its path.

    Raises:
        FileNotFoundError: The folder has none of a run's files.
    """
    run = read_run(folder)
    by_target = run.by_target()
    return write_html(
        Path(folder) / "index.html",
        "run.html",
        title=str(run.recipe.get("name") or run.name),
        headlines=_headlines(run),
        any_frame={
            target: list(map(any_frame_cells, part.any_frame)) for target, part in by_target.items() if part.any_frame
        },
        any_frame_header=in_percent(ANY_FRAME_HEADER),
        reconstruction=_reconstruction(run) if run.reconstruction else None,
        on_data=f" On {describe_data(run.data)}." if "digest" in run.data else "",
        accuracy=accuracy_plot({target or run.name: [part] for target, part in by_target.items()})
        if run.any_frame
        else None,
        evaluations=[
            evaluation_part(part, _of(record, run) + f": {target}" * bool(target))
            for record in (run, *run.others)
            if record.evaluation
            for target, part in record.by_target().items()
        ],
        curves=[(figure, caption) for caption, figure in training_plots(run).items()],
        settings=list(flatten(run.recipe)) if run.recipe else [],
    )


def _headlines(run: Run) -> list[tuple[str, str]]:
    pairs = [
        (f"{100 * row['top1']:.2f} %", f"{row.get('target', '')} top-1, {row['frames']} frames".lstrip())
        for row in run.any_frame
    ]
    pairs += [
        (f"{row['error']:.3f}", f"reconstruction error, {row['frames']} frames")
        for row in run.reconstruction.get("frames", ())
    ]
    if run.metrics:
        pairs.append((f"{run.metrics[-1]['step']:,}", "steps"))
    for name, form, label in (
        ("train/loss", "{:.4g}", "last training loss"),
        ("train/clips_per_second", "{:,.1f}", "clips a second"),
    ):
        _, values = run.series(name)
        if len(values):
            pairs.append((form.format(values[-1]), label))
    return pairs


def _reconstruction(run: Run) -> dict[str, Any]:
    """The page's section on a masked pre-training."""
    record = run.reconstruction
    pictures = []
    for picture in record["pictures"]:
        # Only of the folder's own pictures: reconstruction.json may come from anywhere.
        path = run.folder / "reconstructions" / Path(picture["picture"]).name
        data = path.read_bytes() if path.suffix == ".png" and path.is_file() else b""
        pictures.append({"id": picture["id"], "frames": picture["frames"], "data": data})
    return {
        "header": RECONSTRUCTION_HEADER,
        "rows": list(map(reconstruction_cells, record["frames"])),
        "masked": f"{100 * record['mask_ratio']:.0f} %",
        "data": describe_data(record["data"]),
        "pictures": pictures,
    }


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
    evaluation, longest = run.evaluation, run.evaluation["frames"][-1]["frames"]
    clips = [_clip(run, clip) for clip in evaluation["examples"]]
    return {
        "of": of,
        "longest": longest,
        "header": in_percent(EVALUATION_HEADER),
        "rows": list(map(evaluation_cells, evaluation["frames"])),
        "notes": evaluation_notes(evaluation),
        "faults": [
            (fault["id"], "missing" if fault["missing"] else "unreadable") for fault in evaluation["data"]["faults"]
        ],
        "plots": [
            (reliability_plot(evaluation), "Accuracy against confidence; a larger mark stands for more videos"),
            (confusion_plot(evaluation), f"Confusion at {longest} frames, shares of each true class"),
        ],
        "confused": _confused(evaluation),
        "clips": {
            f"Right at {longest} frames": [clip for clip in clips if clip["answers"][-1][0]],
            f"Wrong at {longest} frames, the surest first": [clip for clip in clips if not clip["answers"][-1][0]],
        },
    }


def _clip(run: Run, clip: Mapping[str, Any]) -> dict[str, Any]:
    """A video's film strip, its label, and the answer at each frame count with whether it is right."""
    classes, label = run.evaluation["classes"], clip["label"]
    counts = [str(row["frames"]) for row in run.evaluation["frames"]]
    guesses = [(count, *clip["guesses"][count]) for count in counts]
    # Only a strip in the folder itself, because evaluation.json may come from anywhere.
    path = run.folder / "strips" / Path(clip.get("strip", "")).name
    return {
        "id": clip["id"],
        "label": classes[label],
        "strip": path.read_bytes() if path.suffix == ".jpg" and path.is_file() else b"",
        "answers": [
            (guess == label, f"{count} frames: {classes[guess]} {100 * confidence:.0f}\u00a0%")
            for count, guess, confidence in guesses
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
