import base64
import json
import re
from xml.etree import ElementTree

import pytest

from flaxvid.report.page import write_page
from flaxvid.report.run import read_run

HOSTILE = "<script>alert('x')</script>"


@pytest.fixture
def folder(tmp_path):
    recipe = {"name": "FFN & friends", "model": {"name": HOSTILE, "dropout": 0.5, "options": {}}, "frames": [4, 8]}
    rows = [
        {"step": s, "epoch": s / 10, "time": 1.0, "train/loss": 1 / s, f"train/{HOSTILE}": 1.0} for s in range(1, 9)
    ]
    frames = [{"frames": n, "top1": 0.5, "top5": 0.75, "gflops": 4.1 * n, "clips": 60} for n in (16, 4)]
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 9, "tra')
    (tmp_path / "any_frame.json").write_text(json.dumps(frames))
    return tmp_path


def test_page_is_whole_self_contained_and_escaped(folder, parse_page):
    path = write_page(folder)
    text = path.read_text()
    page = parse_page(text)
    assert path == folder / "index.html"
    assert "script" not in page.tags
    assert 'name="viewport"' in text
    for expected in ("FFN & friends", HOSTILE, "model.dropout", "0.5", "[4, 8]", "65.6", "50.00 %", "step"):
        assert expected in page.text
    assert len(page.sources) == 3  # any-frame, loss, and the metric with the hostile name
    for source in page.sources:
        kind, data = source.split(",")
        assert kind == "data:image/svg+xml;base64"
        assert ElementTree.fromstring(base64.b64decode(data)).tag.endswith("svg")
    assert not re.search(r"https?://", text)


def test_a_run_that_has_only_begun_has_a_page(tmp_path, parse_page):
    (tmp_path / "recipe.json").write_text("{}")
    text = parse_page(write_page(tmp_path).read_text()).text
    assert "Not evaluated yet" in text
    assert "No metrics yet" in text


def test_a_stopped_run_shows_its_curves(folder, parse_page):
    (folder / "any_frame.json").unlink()
    page = parse_page(write_page(folder).read_text())
    assert "Not evaluated yet" in page.text
    assert [card for card in ("0.125", "last training loss", "8", "steps") if card not in page.text] == []
    assert len(page.sources) == 2  # the loss, and the metric with the hostile name


def test_wide_things_scroll_in_boxes_that_the_keyboard_reaches(folder, evaluated):
    """What a phone cannot show at once; names of boxes come from anybody's files, too."""
    for place in (folder, evaluated):
        boxes = re.findall(r'<div class="(?:scroll|strip)"([^>]*)>', write_page(place).read_text())
        assert boxes
        assert all('tabindex="0" role="group" aria-label="' in box for box in boxes)


def test_read_run_sorts_frames_and_skips_only_a_torn_last_line(folder):
    run = read_run(folder)
    assert run.name == folder.name
    assert [row["frames"] for row in run.any_frame] == [4, 16]
    steps, values = run.series("train/loss")
    assert steps.tolist() == list(range(1, 9))
    assert values[1] == 0.5


def test_a_folder_without_a_run_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="a run's folder"):
        read_run(tmp_path)
