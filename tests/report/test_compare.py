import json
import runpy
import sys
from pathlib import Path

import pytest

from flaxvid.report.compare import write_comparison

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
