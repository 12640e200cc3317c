"""One self-contained HTML page a run: no scripts, no files beside it, readable on a phone, safe to send around."""

import html
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flaxvid.report.evaluation import clips_section, evaluation_section
from flaxvid.report.html import cards, document, image, quiet, scroll, table
from flaxvid.report.plots import accuracy_plot, training_plots
from flaxvid.report.run import Run, read_run
from flaxvid.report.tables import any_frame_cells, describe_data
from flaxvid.writing import written_whole


def write_page(folder: str | Path) -> Path:
    """Writes index.html into a run's folder from what is there so far, and returns its path.

    Raises:
        FileNotFoundError: the folder holds none of a run's files.
    """
    path = Path(folder) / "index.html"
    with written_whole(path) as page:
        page.write_text(render_page(read_run(folder)), encoding="utf-8", errors="backslashreplace")  # odd file names
    return path


def render_page(run: Run) -> str:
    """Renders a run as HTML: headline numbers, any-frame table and plot, evaluation, clips, curves, recipe."""
    sections = [_cards(run), _any_frame(run)]
    for record in (run, *run.others):
        data = "" if record is run else describe_data(record.data)
        for target, part in record.by_target().items() if record.evaluation else ():
            sections += [evaluation_section(part, target, data), clips_section(part, target, data)]
    return document(str(run.recipe.get("name") or run.name), [*sections, _curves(run), _recipe(run)])


def _cards(run: Run) -> str:
    pairs = [
        (f"{100 * row['top1']:.2f} %", f"{row.get('target', '')} top-1, {row['frames']} frames".lstrip())
        for row in run.any_frame
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
    return cards(pairs)


def _any_frame(run: Run) -> str:
    heading = "<h2>Accuracy at each frame count</h2>"
    if not run.any_frame:
        return heading + quiet("Not evaluated yet.")
    header = ("frames", "top-1 (%)", "top-5 (%)", "GFLOPs a clip", "clips")
    parts = run.by_target()
    rows = "".join(
        (f"<h3>{html.escape(target)}</h3>" if target else "")
        + scroll(table([any_frame_cells(row) for row in part.any_frame], header))
        for target, part in parts.items()
    )
    data = f" On {describe_data(run.data)}." if "digest" in run.data else ""
    note = quiet(f"One set of weights. GFLOPs are multiply-adds counted once.{data}")
    lines = {target or run.name: [part] for target, part in parts.items()}
    plot = image(accuracy_plot(lines), "Top-1 accuracy against frames")
    return f'{heading}<div class="plots"><div>{rows}{note}</div>{plot}</div>'


def _curves(run: Run) -> str:
    images = [image(figure, title) for title, figure in training_plots(run).items()]
    inside = f'<div class="plots">{"".join(images)}</div>' if images else quiet("No metrics yet.")
    return f"<h2>Training</h2>{inside}"


def _recipe(run: Run) -> str:
    if not run.recipe:
        return "<h2>Recipe</h2>" + quiet("No recipe.json.")
    rows = table(list(flatten(run.recipe)), kind="recipe")
    return f"<h2>Recipe</h2><details><summary>All settings</summary>{rows}</details>"


def flatten(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yields the settings of a nested recipe as ("model.dropout", "0.5")."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from flatten(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, str(value)
