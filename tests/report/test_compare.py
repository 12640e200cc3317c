import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from flaxvid.report.compare import write_comparison
from flaxvid.report.intervals import newcombe, wilson

SCRIPT = Path(__file__).parents[2] / "scripts" / "compare.py"


@pytest.fixture
def trained(tmp_path):
    """Two runs of the same name in two folders: other rates, other accuracies, and one setting in common."""
    folders = [tmp_path / "old" / "ffn", tmp_path / "new" / "ffn"]
    for number, folder in enumerate(folders):
        folder.mkdir(parents=True)
        recipe = {"optimizer": {"learning_rate": 0.1 * (number + 1), "momentum": 0.9}}
        (folder / "recipe.json").write_text(json.dumps(recipe))
        rows = [{"frames": n, "top1": 0.5 + number / 10, "top5": 1, "gflops": n, "clips": 60 + number} for n in (4, 8)]
        (folder / "any_frame.json").write_text(json.dumps(rows))
        (folder / "metrics.jsonl").write_text('{"step": 1, "train/loss": 2.0}\n{"step": 2, "train/loss": 1.0}\n')
    return folders


def test_runs_are_laid_side_by_side(trained, evaluated, tmp_path, parse_page):
    path = write_comparison([*trained, evaluated], tmp_path / "out" / "compare.html")
    page = parse_page(path.read_text())
    for expected in ("3 runs compared", "old/ffn", "new/ffn", "60.00 *", "optimizer.learning_rate", "0.2", "61"):
        assert expected in page.text
    assert "momentum" in page.text  # the run without a recipe has none
    assert "script" not in page.tags
    # Accuracy against frames and GFLOPs of both kinds of videos, milliseconds of one, and the loss.
    assert len(page.sources) == 6
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.sources)
    page = parse_page(write_comparison(trained, path).read_text())
    assert "momentum" not in page.text
    untimed = json.loads((evaluated / "evaluation.json").read_text())
    for row in untimed["frames"]:
        del row["milliseconds"]
    (evaluated / "evaluation.json").write_text(json.dumps(untimed))
    page = parse_page(write_comparison([*trained, evaluated], path).read_text())
    assert len(page.sources) == 5


def rows_of(text, start):
    """The rows of a page's tables that begin with a text."""
    rows = [re.findall(r"<td>(.*?)</td>", row, re.DOTALL) for row in re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL)]
    return [row for row in rows if row and row[0] == start]


def test_accuracies_have_intervals(trained, tmp_path):
    text = write_comparison(trained, tmp_path / "compare.html").read_text()
    for name, right, videos, mark in (("old/ffn", 0.5, 60, ""), ("new/ffn", 0.6, 61, " *")):
        low, high = wilson(right, videos)
        cell = f"{100 * right:.2f}{mark} ({100 * low:.1f} to {100 * high:.1f})"
        assert rows_of(text, name)[0] == [name, cell, cell]


def test_changes_are_told_class_by_class(evaluated, evaluation, tmp_path):
    """Figures from the two confusion matrices by numpy; classes are matched by name, in whatever order they are."""
    other = tmp_path / "other"
    other.mkdir()
    names = [evaluation["classes"][number] for number in (2, 0, 1)]
    rows = [{**row, "confusion": [[1, 1, 4], [2, 2, 4], [0, 0, 1], [0, 2, 1]]} for row in evaluation["frames"]]
    (other / "evaluation.json").write_text(json.dumps({**evaluation, "classes": names, "frames": rows, "examples": []}))
    text = write_comparison([evaluated, other], tmp_path / "compare.html").read_text()
    matrices = []
    for classes, record in ((evaluation["classes"], evaluation["frames"][1]), (names, rows[1])):
        matrix = np.zeros((3, 3))
        for label, guess, videos in record["confusion"]:
            matrix[evaluation["classes"].index(classes[label]), evaluation["classes"].index(classes[guess])] = videos
        matrices.append(matrix)
    before, after = (100 * np.diag(matrix) / matrix.sum(1) for matrix in matrices)
    for number, (name, mark) in enumerate((("&lt;b&gt;bold", ""), ("$run$", " *"), ("jump", ""))):
        (row,) = rows_of(text, name)
        low, high = newcombe(
            (before[number] / 100, int(matrices[0].sum(1)[number])),
            (after[number] / 100, int(matrices[1].sum(1)[number])),
        )
        assert row[1] == f"{matrices[0].sum(1)[number]:.0f}"
        assert row[2:4] == [f"{before[number]:.1f}", f"{after[number]:.1f}"]
        change = after[number] - before[number]
        wanted = (
            f"{change:+.1f}{mark} ({100 * low:.1f} to {100 * high:.1f})"
            if change
            else f"0.0 ({100 * low:.1f} to {100 * high:.1f})"
        )
        assert row[4] == wanted.replace("-", "\u2212")
    (whole,) = rows_of(text, "all classes")
    totals = [100 * np.trace(matrix) / matrix.sum() for matrix in matrices]
    assert whole[1:4] == ["10", *(f"{total:.1f}" for total in totals)]


def test_there_is_no_change_between_networks_of_other_classes(evaluated, evaluation, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "evaluation.json").write_text(json.dumps({**evaluation, "classes": ["a", "b", "c"]}))
    assert "class by class" not in write_comparison([evaluated, other], tmp_path / "compare.html").read_text()


def test_runs_that_have_only_begun_can_be_compared(tmp_path, parse_page):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.json").write_text("{}")
    page = parse_page(write_comparison([tmp_path / "a", tmp_path / "b"], tmp_path / "compare.html").read_text())
    assert "None of them is evaluated yet" in page.text


def test_slips(trained, monkeypatch, capsys, tmp_path):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["compare.py", *map(str, arguments), "--output", str(tmp_path / "x.html")])
        runpy.run_path(str(SCRIPT), run_name="__main__")

    run(*trained)
    assert capsys.readouterr().out.strip() == str(tmp_path / "x.html")
    with pytest.raises(SystemExit, match="expected two runs or more"):
        run(trained[0], trained[0])
    with pytest.raises(SystemExit, match="expected a run's folder"):
        run(trained[0], tmp_path)
