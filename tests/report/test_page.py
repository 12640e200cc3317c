import base64
import contextlib
import json
import re
from xml.etree import ElementTree

import pytest

from flaxvid.report.page import write_page
from flaxvid.report.run import read_metrics, read_run

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


def test_read_run_sorts_frames_and_skips_only_a_torn_last_line(folder):
    run = read_run(folder)
    assert run.name == folder.name
    assert [row["frames"] for row in run.any_frame] == [4, 16]
    steps, values = run.series("train/loss")
    assert steps.tolist() == list(range(1, 9))
    assert values[1] == 0.5
    (folder / "metrics.jsonl").write_text('{"step": 1\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"line 1 of .*metrics\.jsonl"):
        read_metrics(folder / "metrics.jsonl")


def test_other_folders_and_damaged_files_say_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="a run's folder"):
        read_run(tmp_path)
    (tmp_path / "recipe.json").write_text("{")
    with pytest.raises(ValueError, match=r"recipe\.json"):
        read_run(tmp_path)


@pytest.mark.parametrize("name", ["recipe", "evaluation", "any_frame"])
@pytest.mark.parametrize("content", [b"\xff\xfe\xff", b"", b"{", b"3", b'["x"]', b'{"x": 1}', b"null"])
def test_whatever_is_in_a_file_the_error_names_it_in_one_line(folder, name, content):
    file = folder / f"{name}.json"
    file.write_bytes(content)
    fits = content == b'{"x": 1}' and name not in ("any_frame", "evaluation")
    with contextlib.nullcontext() if fits else pytest.raises(ValueError, match=rf"{name}\.json") as error:
        read_run(folder)
    assert fits or "\n" not in str(error.value)


@pytest.mark.parametrize(
    "line", [b"\xff\xfe", b"[1]", b"null", b"3", b'{"loss": 1}', b'{"step": "1"}', b"", b"[" * 99999]
)
def test_a_broken_line_of_metrics_is_named_unless_it_is_the_last(tmp_path, line):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 2}\n')
    with pytest.raises(
        ValueError, match=r"expected a JSON object with its step in line 2 of .*metrics\.jsonl"
    ) as error:
        read_metrics(file)
    assert "\n" not in str(error.value)
    file.write_bytes(b'{"step": 1}\n' + line)
    assert [row["step"] for row in read_metrics(file)] == [1]
