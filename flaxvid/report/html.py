"""What the pages are made of: the style, the document around a body, tables, figures. No scripts, nothing fetched."""

import base64
import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flaxvid.report.plots import to_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #f6f7f9; margin: 0 auto; padding: 1rem;
  max-width: 72rem }
h1 { font-size: 1.6rem; margin: .5rem 0; overflow-wrap: anywhere } h2 { font-size: 1.15rem; margin: 2rem 0 .6rem }
h3 { font-size: 1rem; margin: 1.2rem 0 .5rem }
.cards, .plots, .clips { display: grid; gap: .8rem }
.cards { grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)) }
.plots { grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); align-items: start }
.clips { grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)) }
.card, figure, .scroll, details { background: #fff; border: 1px solid #e2e4e8; border-radius: .6rem; margin: 0 }
.card { padding: .6rem .9rem } .card b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums }
.card span, figcaption, .quiet { color: #666; font-size: .88rem }
.quiet { margin: .4rem 0; overflow-wrap: anywhere }
figure { padding: .7rem; min-width: 0 } figure img { display: block; width: 100%; height: auto }
.strip { overflow-x: auto } .strip img { min-width: 34rem; border-radius: .2rem }
.strip + figcaption { margin-top: .4rem; overflow-wrap: anywhere } figcaption b { color: #222; font-weight: 600 }
.right { color: #00694e } .wrong { color: #a8430b } .answers span { display: inline-block; margin-right: .9rem }
.scroll { overflow-x: auto; padding: .3rem .7rem }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { padding: .35rem .6rem; text-align: right; border-bottom: 1px solid #eee; white-space: nowrap }
tr:last-child td { border-bottom: 0 } th { color: #666; font-weight: 500; white-space: normal; vertical-align: bottom }
@media (max-width: 32rem) { .scroll { font-size: .85rem } th, td { padding: .3rem .35rem } }
.words td:first-child, .words th:first-child { text-align: left; white-space: normal; min-width: 9rem }
.recipe td { text-align: left; white-space: normal; overflow-wrap: anywhere; vertical-align: top }
.recipe td:first-child { color: #666; width: 40% }
.settings td, .settings th { text-align: left; vertical-align: top }
details { padding: .5rem .9rem } summary { cursor: pointer; font-weight: 500 }
"""


def document(title: str, sections: Sequence[str]) -> str:
    """A whole page around its sections, which are HTML already; the title is text."""
    title = html.escape(title)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        + "\n".join(sections)
        + "\n</body>\n</html>\n"
    )


def table(rows: Sequence[Sequence[str]], header: Sequence[str] = (), kind: str = "numbers") -> str:
    """A table of texts; its kind is a class of the style sheet."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<table class="{kind}">'
        + (f"<thead><tr>{head}</tr></thead>" if head else "")
        + f"<tbody>{body}</tbody></table>"
    )


def scroll(inside: str) -> str:
    """A box that scrolls sideways where its content is wider than a phone."""
    return f'<div class="scroll">{inside}</div>'


def cards(pairs: Sequence[tuple[str, str]]) -> str:
    """Headline numbers, (number, what it is)."""
    inside = "".join(
        f'<div class="card"><b>{html.escape(b)}</b><span>{html.escape(text)}</span></div>' for b, text in pairs
    )
    return f'<div class="cards">{inside}</div>'


def quiet(text: str) -> str:
    """A small grey line of text."""
    return f'<p class="quiet">{html.escape(text)}</p>'


def image(figure: "Figure", caption: str) -> str:
    """A plot with a caption, inside the page."""
    # An <img> and not inline SVG: matplotlib's ids would clash between figures of one page.
    caption = html.escape(caption)
    return (
        f'<figure><img alt="{caption}" src="{data_uri(to_svg(figure), "svg+xml")}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def data_uri(data: bytes, kind: str) -> str:
    """Image bytes as an address that holds them."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
