"""docs/weights.md: its tables are those of the formats, and what it says of lists of keys names what there is."""

import re
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

import flaxvid
from flaxvid.models.registry import get_spec
from flaxvid.weights.known import KNOWN

ROOT = Path(__file__).parents[2]
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "reproduce" / "weights.py"))
PAGE = (ROOT / "docs" / "weights.md").read_text()
START, _, LISTS = PAGE.partition("\n## Checked on lists of keys\n")
ROWS = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in LISTS.splitlines() if line[:3] == "| `"]


def test_the_page_is_what_its_script_makes_of_the_formats():
    assert SCRIPT["page"]() == START
    assert f"that {len(KNOWN)} published ones have names" in START
    assert "| PySlowFast | `.pkl` of Caffe2 | `c2d_r50` | `caffe2_nopool` | yes | yes | `pool=False` |" in START
    assert "`slow_r{50,101}`, `res3dcnn` | `mmaction2` | yes | yes | ImageNet's pixels |" in START


def test_every_checked_list_is_of_a_format_that_is_there():
    assert len(ROWS) >= 60
    for name, model, format, *_ in ROWS:
        assert SCRIPT["model_of"](name) == model
        assert format in get_spec(model).formats
    assert {name for name, *_ in ROWS} >= SCRIPT["MODELS"].keys() | SCRIPT["FORMATS"].keys()
    assert not {name for name, *_ in ROWS} & SCRIPT["NOT_READ"].keys()


def test_a_list_is_read_in_full_and_written_alike(tmp_path):
    """A tensor too many, and one of another shape, is an error."""
    model = flaxvid.create_model("x3d_xs")
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 4, 64, 64, 3), np.uint8))
    blank = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes)
    lines = [f"{key} {list(array.shape)}" for key, array in flaxvid.to_torch("x3d_xs", blank).items()]
    name, path = "pytorchvideo_x3d_xs", tmp_path / "list.txt"

    def check(*lines):
        path.write_text("\n".join(["# a network", *lines]))
        return SCRIPT["check_list"](name, SCRIPT["read_list"](path))

    assert check(*lines) == (f"`{name}`", "`x3d_xs`", "`pytorchvideo`", str(len(jax.tree.leaves(shapes))), "")
    for wrong in ("more.weight [3]", re.sub(r"\[\d+", "[7", lines[0])):
        with pytest.raises(ValueError, match=re.escape(wrong.partition(" ")[0])):
            check(wrong, *lines[1:])
