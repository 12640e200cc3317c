"""One self-contained HTML page a run: no scripts, no files beside it, readable on a phone, safe to send around."""

import base64
import html
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flaxvid.report.plots import accuracy_plot, to_svg, training_plots
from flaxvid.report.run import Run, read_run
from flaxvid.report.tables import any_frame_cells

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #f6f7f9; margin: 0 auto; padding: 1rem;
  max-width: 72rem }
h1 { font-size: 1.6rem; margin: .5rem 0; overflow-wrap: anywhere } h2 { font-size: 1.15rem; margin: 2rem 0 .6rem }
.cards, .plots { display: grid; gap: .8rem }
.cards { grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)) }
.plots { grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)) }
.card, figure, .scroll, details { background: #fff; border: 1px solid #e2e4e8; border-radius: .6rem; margin: 0 }
.card { padding: .6rem .9rem } .card b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums }
.card span, figcaption, .quiet { color: #666; font-size: .88rem }
figure { padding: .7rem } figure img { display: block; width: 100%; height: auto }
.scroll { overflow-x: auto; padding: .3rem .7rem }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { padding: .35rem .6rem; text-align: right; border-bottom: 1px solid #eee; white-space: nowrap }
tr:last-child td { border-bottom: 0 } th { color: #666; font-weight: 500 }
.recipe td { text-align: left; white-space: normal; overflow-wrap: anywhere; vertical-align: top }
.recipe td:first-child { color: #666; width: 40% }
details { padding: .5rem .9rem } summary { cursor: pointer; font-weight: 500 }
"""


def write_page(folder: str | Path) -> Path:
    """Writes index.html into a run's folder from what is there so far, and returns its path.

    Raises:
        FileNotFoundError: the folder holds none of a run's files.
    """
    path = Path(folder) / "index.html"
    path.write_text(render_page(read_run(folder)), encoding="utf-8")
    return path


def render_page(run: Run) -> str:
    """Renders a run as HTML: headline numbers, any-frame table and plot, curves, recipe."""
    title = html.escape(str(run.recipe.get("name") or run.name))
    body = [f"<h1>{title}</h1>", _cards(run), _any_frame(run), _curves(run), _recipe(run)]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n" + "\n".join(body) + "\n</body>\n</html>\n"
    )


def _cards(run: Run) -> str:
    cards = [(f"{100 * row['top1']:.2f} %", f"top-1, {row['frames']} frames") for row in run.any_frame]
    if run.metrics:
        cards.append((f"{run.metrics[-1]['step']:,}", "steps"))
    for name, form, label in (
        ("train/loss", "{:.4g}", "last training loss"),
        ("train/clips_per_second", "{:,.1f}", "clips a second"),
    ):
        _, values = run.series(name)
        if len(values):
            cards.append((form.format(values[-1]), label))
    inside = "".join(f'<div class="card"><b>{html.escape(b)}</b><span>{label}</span></div>' for b, label in cards)
    return f'<div class="cards">{inside}</div>'


def _any_frame(run: Run) -> str:
    heading = "<h2>Accuracy at each frame count</h2>"
    if not run.any_frame:
        return f'{heading}<p class="quiet">Not evaluated yet.</p>'
    header = ("frames", "top-1 (%)", "top-5 (%)", "GFLOPs a clip", "clips")
    table = _table([any_frame_cells(row) for row in run.any_frame], header)
    note = '<p class="quiet">One set of weights. GFLOPs are multiply-adds counted once.</p>'
    plot = _image(accuracy_plot({run.name: [run]}), "Top-1 accuracy against frames")
    return f'{heading}<div class="plots"><div><div class="scroll">{table}</div>{note}</div>{plot}</div>'


def _curves(run: Run) -> str:
    images = [_image(figure, title) for title, figure in training_plots(run).items()]
    inside = f'<div class="plots">{"".join(images)}</div>' if images else '<p class="quiet">No metrics yet.</p>'
    return f"<h2>Training</h2>{inside}"


def _recipe(run: Run) -> str:
    if not run.recipe:
        return '<h2>Recipe</h2><p class="quiet">No recipe.json.</p>'
    table = _table(list(_flatten(run.recipe)), kind="recipe")
    return f"<h2>Recipe</h2><details><summary>All settings</summary>{table}</details>"


def _table(rows: Sequence[Sequence[str]], header: Sequence[str] = (), kind: str = "numbers") -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<table class="{kind}">'
        + (f"<thead><tr>{head}</tr></thead>" if head else "")
        + f"<tbody>{body}</tbody></table>"
    )


def _image(figure: "Figure", caption: str) -> str:
    # An <img> and not inline SVG: matplotlib's ids would clash between figures of one page.
    data = base64.b64encode(to_svg(figure)).decode()
    caption = html.escape(caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/svg+xml;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yields the settings of a nested recipe as ("model.dropout", "0.5")."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flatten(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, str(value)
