"""docs/weights.md: its tables are those of the formats, and what it says of lists of keys names what there is."""

import re
import runpy
from pathlib import Path

import pytest

from flaxvid.models.registry import get_spec
from flaxvid.weights.known import KNOWN

ROOT = Path(__file__).parents[2]
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "reproduce" / "weights.py"))
PAGE = (ROOT / "docs" / "weights.md").read_text()
START, _, LISTS = PAGE.partition("\n## Checked on lists of keys\n")
ROWS = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in LISTS.splitlines() if line[:3] == "| `"]


def test_the_page_is_what_its_script_makes_of_the_formats():
    assert START == SCRIPT["page"]()
    assert f"`flaxvid.list_weights()` lists {len(KNOWN)}" in START
    assert "| PySlowFast | `.pkl` of Caffe2 | `c2d_r50` | `caffe2_nopool` | yes | yes | `pool=False` |" in START
    assert "`slow_r{50,101}`, `res3dcnn` | `mmaction2` | yes | yes | ImageNet's pixels |" in START


def test_every_checked_list_is_of_a_format_that_is_there():
    assert len(ROWS) > 60
    for name, model, format, *_ in ROWS:
        assert SCRIPT["model_of"](name) == model
        assert format in get_spec(model).formats
    assert {name for name, *_ in ROWS} >= SCRIPT["MODELS"].keys() | SCRIPT["FORMATS"].keys()
    assert not {name for name, *_ in ROWS} & SCRIPT["NOT_READ"].keys()


def test_a_list_is_read_in_full_and_written_alike(tmp_path):
    """And a tensor too many, or one of another shape, is an error."""
    lines = [line for line in (ROOT / "tests" / "weights" / "stored" / "x").parents[0].glob("*")]
    assert lines
