import subprocess
import sys

import numpy as np
import pytest

from flaxvid.report.plots import (
    accuracy_plot,
    confusion_plot,
    metric_plot,
    running_mean,
    save_figure,
    to_svg,
    training_plots,
)
from flaxvid.report.run import Run


def make_run(score):
    return Run("run", any_frame=tuple({"frames": n, "top1": score * n / 16, "top5": 1.0} for n in (4, 8, 16)))


def test_accuracy_plot_has_a_line_and_error_bars_for_each_method():
    figure = accuracy_plot({"FFN": [make_run(0.5), make_run(0.7)], "$f$ $": [make_run(0.4)], "later": []})
    (axes,) = figure.axes
    ffn, separate = axes.containers
    np.testing.assert_allclose(ffn[0].get_xydata(), [[4, 15], [8, 30], [16, 60]])
    assert ffn.has_yerr
    assert not separate.has_yerr
    segments = ffn[2][0].get_segments()
    np.testing.assert_allclose(segments[2][:, 1], [60 - np.sqrt(200), 60 + np.sqrt(200)])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["FFN", "$f$ $"]
    assert to_svg(figure)
    with pytest.raises(ValueError, match=r"any_frame\.json"):
        accuracy_plot({"FFN": [Run("empty")]})


def test_training_plots_group_losses_accuracies_and_the_rest():
    metrics = (
        {"step": 1, "time": 0.0, "train/loss": 2.0, "train/kl_4": 0.1, "train/kl_16": 0.1, "train/accuracy": 0.5},
        {"step": 2, "train/loss": None, "eval/top1_4": 0.25, "eval/top5_4": 0.5, "train/learning_rate": 0.1},
    )
    figures = training_plots(Run("run", metrics=metrics))
    assert list(figures) == ["Loss", "Accuracy", "Learning rate", "Top-5 accuracy"]
    loss, accuracy = figures["Loss"].axes[0], figures["Accuracy"].axes[0]
    labels = [text.get_text() for text in loss.get_legend().get_texts()]
    assert labels == ["train kl, 4 frames", "train kl, 16 frames", "train loss"]
    np.testing.assert_array_equal(loss.lines[2].get_ydata(), [2.0, np.nan])
    np.testing.assert_array_equal([line.get_ydata()[0] for line in accuracy.lines], [50.0, 25.0])


def test_a_curve_of_one_entry_can_be_seen():
    runs = {"short": 1, "long": 100}
    runs = {name: Run(name, metrics=tuple({"step": n, "train/loss": 2.0} for n in range(runs[name]))) for name in runs}
    short, long = metric_plot(runs, "train/loss", "loss").axes[0].lines
    assert short.get_marker() == "o"
    assert long.get_marker() == "None"


def test_running_mean_is_of_those_that_exist():
    values = np.array([1.0, 3.0, np.nan, 5.0, 7.0])
    np.testing.assert_allclose(running_mean(values, 2), [2.0, 3.0, np.nan, 5.0, 6.0])
    assert running_mean(values, 1) is values
    assert running_mean(values, 9).shape == values.shape


@pytest.mark.parametrize(("suffix", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_figures_are_saved_in_each_format(tmp_path, suffix, magic):
    path = save_figure(accuracy_plot({"FFN": [make_run(0.5)]}), tmp_path / "new" / f"plot.{suffix}")
    assert path.read_bytes().startswith(magic)


def test_class_names_of_any_letters_are_drawn():
    names = ["ru\nn", "caf\udce9", "$x", "\x00", "jump"]
    rows = [{"confusion": [[i, 4 - i, 1] for i in range(5)]}]
    drawn = to_svg(confusion_plot({"classes": names, "frames": rows})).decode()
    assert all(f"<!-- {text} -->" in drawn for text in (r"ru\nn", r"caf\udce9", "$x", r"\x00", "jump"))


def test_svg_has_no_date():
    assert b"<dc:date>" not in to_svg(accuracy_plot({"FFN": [make_run(0.5)]}))


def test_matplotlib_is_imported_only_to_plot():
    code = "import sys, flaxvid.report.page; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
