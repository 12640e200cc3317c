import json

import numpy as np

from flaxvid.report.page import write_page
from flaxvid.report.plots import confusion_plot, reliability_plot
from flaxvid.report.tables import evaluation_table


def test_the_page_shows_scores_facts_and_clips(evaluated, parse_page):
    page = parse_page(write_page(evaluated).read_text())
    assert "script" not in page.tags
    for expected in (
        "10 of 12 of ucf101 test1 evaluated, 1 missing, 1 unreadable",
        "accurate: 2 clips x 3 crops, full resolution, 256 x 256 pixels",
        "CPU with 2 cores; one clip, batch 1",
        "gone.avi",
        "torn.avi",
        "$run$ → <b>bold",
        "✓ 8 frames: <b>bold 80\u00a0%",
        "✗ 8 frames: $run$ 90\u00a0%",
        "Right at 8 frames",
        "12.50",
    ):
        assert expected in page.text
    strips = [source for source in page.sources if source.startswith("data:image/jpeg;base64,")]
    assert len(strips) == 2
    assert all(source.startswith("data:image/") for source in page.sources)


def test_only_the_folders_own_strips_are_shown(evaluated, evaluation, parse_page):
    secret = evaluated.parent / "secret.jpg"
    secret.write_bytes(b"secret")
    evaluation["examples"] = [{**evaluation["examples"][0], "strip": "../secret.jpg"}]
    (evaluated / "evaluation.json").write_text(json.dumps(evaluation))
    page = parse_page(write_page(evaluated).read_text())
    assert not [source for source in page.sources if "jpeg" in source]


def test_the_table_is_of_all_scores(evaluation):
    header, _, four, _ = evaluation_table(evaluation).splitlines()
    assert header.split("|")[1].strip() == "frames"
    assert four.replace("|", "").split() == ["4", "50.00", "100.00", "45.00", "12.50", "16.4", "10.0"]


def test_reliability_leaves_empty_bins_out(evaluation):
    (axes,) = reliability_plot(evaluation).axes
    np.testing.assert_allclose(axes.lines[1].get_xydata(), [[50, 200 / 3], [90, 50]])
    few, many = axes.collections[0].get_sizes()
    assert few < many
    assert axes.get_legend().get_texts()[0].get_text() == "4 frames, error 12.5 %"


def test_confusion_is_by_true_class(evaluation):
    (axes,) = confusion_plot(evaluation).axes
    np.testing.assert_allclose(axes.images[0].get_array(), [[1, 0, 0], [0.75, 0.25, 0], [0, 1, 0]])
    assert sorted(text.get_text() for text in axes.texts) == ["1", "2", "3", "4"]
    evaluation["classes"] = [f"class {number}" for number in range(50)]
    (axes,) = confusion_plot(evaluation).axes
    assert not axes.texts
