import pytest

from flaxvid.report.run import Run
from flaxvid.report.tables import any_frame_table, evaluation_table, seed_statistics, seed_table


def make_run(*top1, frames=(4, 8, 16)):
    rows = [
        {"frames": n, "top1": score, "top5": 0.9, "gflops": 4.0871 * n, "clips": 1234}
        for n, score in zip(frames, top1, strict=False)
    ]
    return Run("run", any_frame=tuple(rows))


def test_any_frame_table_is_markdown():
    run = make_run(0.4285, 0.482)
    assert any_frame_table(run).splitlines() == [
        "| frames | top-1 (%) | 95 % interval | top-5 (%) | GFLOPs a clip | videos |",
        "|--------|-----------|---------------|-----------|---------------|--------|",
        "| 4      |     42.85 |  40.1 to 45.6 |     90.00 |          16.3 |  1,234 |",
        "| 8      |     48.20 |  45.4 to 51.0 |     90.00 |          32.7 |  1,234 |",
    ]


@pytest.mark.parametrize("targets", [False, True])
def test_of_few_classes_there_is_no_top_5(targets):
    """Of several targets all must have few."""

    def header(classes):
        rows = [row | ({"target": "who"} if targets else {}) for row in make_run(0.5).any_frame]
        record = {"classes": {"who": list(classes), "what": ["a"]} if targets else list(classes), "frames": rows}
        run = Run("run", any_frame=tuple(rows), evaluation=record)
        (first,) = {table.splitlines()[0] for table in (any_frame_table(run), evaluation_table(record))}
        return first

    assert "top-5" not in header("abcde")
    assert "top-5" in header("abcdef")


def test_seed_table_gives_mean_and_sample_deviation():
    methods = {
        "FFN": [make_run(0.40, 0.50), make_run(0.42, 0.51), make_run(0.44, 0.52)],
        "one|seed": [make_run(0.30)],
    }
    assert seed_statistics(methods["FFN"])[4] == pytest.approx((42.0, 2.0, 3))
    lines = seed_table(methods).splitlines()
    assert lines[0] == r"| method    |     4 frames |     8 frames |"
    assert lines[2] == r"| FFN       | 42.00 ± 2.00 | 51.00 ± 1.00 |"
    assert lines[3] == r"| one\|seed |        30.00 |            – |"
    assert "90.00 ± 0.00" in seed_table(methods, metric="top5")


def test_nothing_to_show_is_an_error():
    with pytest.raises(ValueError, match=r"any_frame\.json"):
        any_frame_table(Run("empty"))
    with pytest.raises(ValueError, match=r"any_frame\.json"):
        seed_table({"FFN": [Run("empty")]})
