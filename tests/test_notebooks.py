"""The notebooks in docs/: every cell runs, in order; the outputs that are kept are of a whole run, and small."""

import contextlib
import json
import tempfile
from pathlib import Path

import matplotlib
import pytest

NOTEBOOKS = {path.stem: path for path in (Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb")}


def code(path):
    """The cells of code."""
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def best(answer):
    return next(iter(answer["probabilities"]))


def check_predict(names):
    assert best(names["trained"].predict("videos/left/0.mp4")) == "left"
    windows = names["windows"]
    assert (best(windows[1]), best(windows[-2]), len(windows)) == ("left", "right", 8)


def check_finetune(names):
    scores = {name: row["top1"] for name, (row,) in names["scores"].items()}
    assert max(scores["the head alone"], scores["all of it"]) > max(0.7, scores["from scratch"])


def check_frames(names):
    at_two = [rows[0]["top1"] for rows in (names["plain_rows"], names["flexible_rows"])]
    assert at_two[1] > max(0.7, at_two[0])


def check_features(names):
    scores = {name: row["top1"] for name, (row,) in names["scores"].items()}
    assert min(scores.values()) > 0.7


def check_export(names):
    assert names["answer"]["class"] == "left"
    assert best(names["served"].predict("videos/right/0.mp4", frames=8)) == "right"


def check_cameras(names):
    scores = {name: row["top1"] for name, (row,) in names["scores"].items()}
    assert scores["both"] > max(scores["front"], scores["side"], 0.75)


@pytest.mark.parametrize("name", sorted(NOTEBOOKS))
def test_every_cell_runs(name, tmp_path, monkeypatch):
    if name == "export":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
    matplotlib.use("Agg")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names = {"__name__": name}
    with contextlib.chdir(tmp_path):
        for number, cell in enumerate(code(NOTEBOOKS[name]), 1):
            exec(compile("".join(cell["source"]), f"{name}.ipynb, cell {number}", "exec"), names)
        globals()[f"check_{name}"](names)


@pytest.mark.parametrize("name", sorted(NOTEBOOKS))
def test_the_kept_outputs_are_of_one_whole_run(name):
    """They name no place of the machine that made them, and hold no warning and no error."""
    cells = code(NOTEBOOKS[name])
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "execute_result", "display_data"}
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}
    said = json.dumps([output for output in outputs if "image/png" not in output.get("data", {})])
    assert not [place for place in ("/tmp", "/home", "/root", "/work", "/Users") if place in said]
    assert NOTEBOOKS[name].stat().st_size < 100_000


def test_there_is_one_for_each_question():
    assert sorted(NOTEBOOKS) == ["cameras", "export", "features", "finetune", "frames", "predict"]
