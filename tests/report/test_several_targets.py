import json

import pytest

from flaxvid.report.compare import write_comparison
from flaxvid.report.page import write_page
from flaxvid.report.plots import training_plots
from flaxvid.report.run import read_run
from flaxvid.report.tables import any_frame_table, evaluation_table, seed_table


@pytest.fixture
def folder(tmp_path, evaluation):
    """A run of two targets, with its evaluation."""
    targets = {"action": evaluation["classes"], "actor": ["<i>me", "you", "her"]}
    tagged = {
        key: [{**row, "target": target} for target in targets for row in evaluation[key]]
        for key in ("frames", "examples")
    }
    folder = tmp_path / "targets"
    folder.mkdir()
    (folder / "evaluation.json").write_text(json.dumps({**evaluation, **tagged, "classes": targets}))
    metrics = {"step": 1, "train/action_loss": 2.0, "train/actor_kl_4": 0.1, "train/action_accuracy_4": 0.5}
    (folder / "metrics.jsonl").write_text(json.dumps({**metrics, "eval/actor_top1_4": 0.25}) + "\n")
    return folder


def test_tables_have_the_target_in_front(folder):
    run = read_run(folder)
    header, _, *rows = any_frame_table(run).splitlines()
    assert header.replace("|", "").split()[:2] == ["target", "frames"]
    assert [row.replace("|", "").split()[:3] for row in rows] == [
        [target, str(n), top1] for target in ("action", "actor") for n, top1 in ((4, "50.00"), (8, "60.00"))
    ]
    assert evaluation_table(run.evaluation).splitlines()[2].replace("|", "").split()[:2] == ["action", "4"]


def test_the_page_has_sections_for_each_target(folder, parse_page):
    page = parse_page(write_page(folder).read_text())
    for expected in (
        "Evaluation: action",
        "Calibration and confusion: actor",
        "Clips and answers: actor",
        "action top-1, 8 frames",
        "✓ 8 frames: <i>me 80\u00a0%",
        "✓ 8 frames: <b>bold 80\u00a0%",
    ):
        assert expected in page.text


def test_curves_of_all_targets_are_with_their_kind(folder):
    figures = training_plots(read_run(folder))
    assert list(figures) == ["Loss", "Accuracy"]
    labels = [text.get_text() for text in figures["Accuracy"].axes[0].get_legend().get_texts()]
    assert labels == ["train action accuracy, 4 frames", "eval actor top-1, 4 frames"]


def test_comparisons_show_targets_apart_and_seeds_are_of_one(folder, evaluated, tmp_path, parse_page):
    page = parse_page(write_comparison([folder, evaluated], tmp_path / "compare.html").read_text())
    for name in ("targets action", "targets actor", "evaluated"):
        assert name in page.text
    run = read_run(folder)
    with pytest.raises(ValueError, match="rows of one target, got action, actor"):
        seed_table({"FFN": [run]})
    assert "| FFN" in seed_table({"FFN": [run.by_target()["actor"]]})
