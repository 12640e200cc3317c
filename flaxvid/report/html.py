"""Makes pages from the templates of this folder. A page is one file without scripts, so it is safe to send."""

import base64
from pathlib import Path
from typing import Any

import jinja2

from flaxvid.report.plots import to_svg
from flaxvid.writing import written_whole


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("flaxvid.report"),
    autoescape=True,  # names come from anybody's files
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters |= {
    "svg": lambda figure: _data_uri(to_svg(figure), "svg+xml"),
    "jpeg": lambda data: _data_uri(data, "jpeg"),
    "png": lambda data: _data_uri(data, "png"),
}


def write_html(path: str | Path, template: str, **facts: Any) -> Path:
    """Fills a template with facts, writes the page whole or not at all, and returns its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = _TEMPLATES.get_template(template).render(facts)
    with written_whole(path) as page:
        page.write_text(text, encoding="utf-8", errors="backslashreplace")  # for odd file names
    return path
