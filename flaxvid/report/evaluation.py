"""What evaluation.json and its film strips look like on a run's page."""

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flaxvid.report.html import data_uri, image, quiet, scroll, table
from flaxvid.report.plots import confusion_plot, reliability_plot
from flaxvid.report.run import Run
from flaxvid.report.tables import EVALUATION_HEADER, evaluation_cells, evaluation_notes

CONFUSED = 10
"""Pairs of classes that the table of confusions shows."""


def evaluation_section(run: Run, target: str = "", data: str = "") -> str:
    """Scores and costs at each frame count, what they were taken on, calibration, confusion; of one target.

    Args:
        run: with an evaluation.
        target: its name, where there are several.
        data: the data set's name, where it is not the run's own.
    """
    evaluation = run.evaluation
    last = evaluation["frames"][-1]
    header = [f"{name} (%)" if i in (1, 2, 3, 4) else name for i, name in enumerate(EVALUATION_HEADER)]
    rows = scroll(table([evaluation_cells(row) for row in evaluation["frames"]], header))
    notes = "".join(map(quiet, evaluation_notes(evaluation)))
    plots = [
        image(reliability_plot(evaluation), "Accuracy against confidence; the larger a mark the more videos"),
        image(confusion_plot(evaluation), f"Confusion at {last['frames']} frames, shares of each true class"),
    ]
    of = _of(target, data)
    return (
        f"<h2>Evaluation{of}</h2>{rows}{notes}{_faults(evaluation)}"
        f'<h2>Calibration and confusion{of}</h2><div class="plots">{"".join(plots)}</div>{_confused(evaluation)}'
    )


def clips_section(run: Run, target: str = "", data: str = "") -> str:
    """Film strips of some videos, the right answers apart from the wrong ones; arguments as above."""
    evaluation = run.evaluation
    last = str(evaluation["frames"][-1]["frames"])
    right = [clip for clip in evaluation["examples"] if clip["guesses"][last][0] == clip["label"]]
    wrong = [clip for clip in evaluation["examples"] if clip["guesses"][last][0] != clip["label"]]
    parts = [
        f'<h3>{title}</h3><div class="clips">{"".join(_clip(run, clip) for clip in clips)}</div>'
        for title, clips in ((f"Right at {last} frames", right), (f"Wrong at {last} frames, the surest first", wrong))
        if clips
    ]
    return f"<h2>Clips and answers{_of(target, data)}</h2>" + "".join(parts)


def _of(target: str, data: str) -> str:
    return html.escape(f" on other videos, {data}" * bool(data) + f": {target}" * bool(target))


def _clip(run: Run, clip: Mapping[str, Any]) -> str:
    classes, label = run.evaluation["classes"], clip["label"]
    answers = []
    for count, (guess, confidence) in clip["guesses"].items():
        kind, sign = ("right", "✓") if guess == label else ("wrong", "✗")
        text = html.escape(f"{count} frames: {classes[guess]} {100 * confidence:.0f}\u00a0%")
        answers.append(f'<span class="{kind}">{sign} {text}</span>')
    name, truth = html.escape(clip["id"]), html.escape(classes[label])
    # Only of the folder's own strips: evaluation.json may come from anywhere.
    path = run.folder / "strips" / Path(clip.get("strip", "")).name
    shown = path.suffix == ".jpg" and path.is_file()
    strip = f'<img alt="{name}" src="{data_uri(path.read_bytes(), "jpeg")}">' if shown else ""
    return (
        f'<figure><div class="strip">{strip}</div><figcaption><b>{truth}</b> · {name}'
        f'<div class="answers">{"".join(answers)}</div></figcaption></figure>'
    )


def _confused(evaluation: Mapping[str, Any]) -> str:
    """The pairs of classes that are most often taken one for the other."""
    classes, last = evaluation["classes"], evaluation["frames"][-1]
    totals: dict[int, int] = {}
    for label, _, videos in last["confusion"]:
        totals[label] = totals.get(label, 0) + videos
    wrong = sorted((entry for entry in last["confusion"] if entry[0] != entry[1]), key=lambda entry: -entry[2])
    rows = [
        (f"{classes[label]} → {classes[guess]}", str(videos), f"{100 * videos / totals[label]:.0f}")
        for label, guess, videos in wrong[:CONFUSED]
    ]
    if not rows:
        return ""
    header = ("most often confused", "videos", "of the class (%)")
    return f"<h3>At {last['frames']} frames</h3>" + scroll(table(rows, header, kind="words"))


def _faults(evaluation: Mapping[str, Any]) -> str:
    faults = evaluation["data"]["faults"]
    if not faults:
        return ""
    rows = [(fault["id"], "missing" if fault["missing"] else "unreadable") for fault in faults]
    return f"<details><summary>Videos that could not be read</summary>{table(rows, kind='recipe')}</details>"
