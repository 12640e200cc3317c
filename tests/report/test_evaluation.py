import base64
import json
import re
import shutil

import numpy as np
from scipy.stats import binomtest

from flaxvid.report.compare import write_comparison
from flaxvid.report.page import describe_calibration, write_page
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


def cells(page):
    """The texts of all cells of tables, row by row."""
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]


def test_there_is_one_table_of_scores(evaluated, evaluation):
    """The rows of the training's end are in the evaluation already; only others have a table of their own."""
    rows = [{**row, "clips": 10} for row in evaluation["frames"]]
    (evaluated / "any_frame.json").write_text(json.dumps(rows))
    header = ["frames", "top-1 (%)", "95 % interval", "mean class (%)", "calibration error (%)"]
    header += ["GFLOPs a clip", "ms a clip", "videos"]  # no top-5 of three classes
    low, high = binomtest(5, 10).proportion_ci(0.95, method="wilson")
    page = write_page(evaluated).read_text()
    tables = [row for row in cells(page) if row and row[0] in ("frames", "4", "8")]
    assert tables[:2] == [
        header,
        ["4", "50.00", f"{100 * low:.1f} to {100 * high:.1f}", "45.00", "12.50", "16.4", "10.0", "10"],
    ]
    assert len(tables) == 3
    assert "When the training ended" not in page
    (evaluated / "any_frame.json").write_text(json.dumps([{**rows[0], "top1": 0.4}, rows[1]]))
    page = write_page(evaluated).read_text()
    assert [row[:2] for row in cells(page) if row and row[0] == "4"] == [["4", "50.00"], ["4", "40.00"]]
    assert "When the training ended" in page


def test_top_5_is_shown_of_many_classes(evaluated, evaluation):
    evaluation["classes"] = [*evaluation["classes"], "a", "b", "c"]
    (evaluated / "evaluation.json").write_text(json.dumps(evaluation))
    assert "top-5 (%)" in write_page(evaluated).read_text()


def test_mistakes_are_film_strips_to_open(evaluated, evaluation, parse_page):
    """What the network took for what, with the strip in the summary; where it looked, and all answers inside."""
    evaluation["examples"][1]["look"] = "strips/01-look.jpg"
    (evaluated / "strips" / "01-look.jpg").write_bytes(b"a look")
    (evaluated / "evaluation.json").write_text(json.dumps(evaluation))
    page = parse_page(text := write_page(evaluated).read_text())
    assert " ".join(page.text.split()).count("✗ jump taken for $run$ 90 % sure · b.avi") == 1
    assert "Bright places spoke for “$run$” (Grad-CAM, arXiv 1610.02391)" in page.text
    assert text.count("<details open>") == 1
    assert [base64.b64decode(source.split(",")[1]) for source in page.sources if "jpeg" in source] == [
        (evaluated / "strips" / name).read_bytes() for name in ("01.jpg", "01-look.jpg", "00.jpg")
    ]


def test_calibration_is_told_in_words(evaluation):
    """The bins of the fixture: 3 videos at 50 % of which 2 are right, 7 at 90 % of which half are."""
    count, sure, right = np.array([3, 7]), np.array([0.5, 0.9]), np.array([2 / 3, 0.5])
    gap = (count * (sure - right)).sum() / 10
    text = describe_calibration(evaluation["frames"][1])
    assert (
        f"its mean confidence is {10 * (count * sure).sum():.1f} % and its accuracy {10 * (count * right).sum():.1f} %"
        in text
    )
    assert f"{100 * gap:.1f} points too sure" in text
    assert "3 bins" in text
    assert (
        describe_calibration({"frames": 4, "reliability": {name: [] for name in ("count", "confidence", "accuracy")}})
        == ""
    )


def test_hostile_names_stay_text(evaluated, evaluation, tmp_path, parse_page):
    """In headings, tables, captions and attributes; of classes, targets, files, data sets and faults."""
    evil = "\"><script>alert('x')</script><b a='"
    evaluation["data"]["name"] = evaluation["data"]["faults"][0]["id"] = evaluation["look_fault"] = evil
    evaluation["classes"] = {evil: [evil, evil + "2", "jump"]}
    for part in (*evaluation["frames"], *evaluation["examples"]):
        part["target"] = evil
    for clip in evaluation["examples"]:
        clip |= {"id": evil, "look": clip["strip"]}
    (evaluated / "evaluation.json").write_text(json.dumps(evaluation))
    other = tmp_path / "other"
    shutil.copytree(evaluated, other)
    for path in (write_page(evaluated), write_comparison([evaluated, other], tmp_path / "compare.html")):
        page = parse_page(path.read_text())
        assert not {"script", "a"} & set(page.tags)
        assert page.text.count(evil) > 3


def test_only_the_folders_own_strips_are_shown(evaluated, evaluation, parse_page):
    secret = evaluated.parent / "secret.jpg"
    secret.write_bytes(b"secret")
    evaluation["examples"] = [{**evaluation["examples"][0], "strip": "../secret.jpg", "look": "../secret.jpg"}]
    (evaluated / "evaluation.json").write_text(json.dumps(evaluation))
    page = parse_page(write_page(evaluated).read_text())
    assert not [source for source in page.sources if "jpeg" in source]


def test_the_table_is_of_all_scores(evaluation):
    header, _, four, _ = evaluation_table(evaluation).splitlines()
    assert header.split("|")[1].strip() == "frames"
    assert [cell.strip() for cell in four.split("|")[1:-1]] == [
        *("4", "50.00", "23.7 to 76.3", "45.00", "12.50", "16.4", "10.0", "10")
    ]


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
