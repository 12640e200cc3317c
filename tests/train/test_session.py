"""What a run does beside its steps."""

import dataclasses
import json
import shutil

import jax
import pytest

import flaxvid
from flaxvid.evaluate import record
from flaxvid.report.run import read_metrics
from flaxvid.train.checkpoint import find_checkpoint
from flaxvid.train.session import Session

COLOURS = {"red": "red", "green": "green"}


def test_nothing_moves_between_host_and_device_unasked(colour_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(Session, "log_if_due", lambda self, step, metrics, clips: metrics["loss"] + step)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        flaxvid.run(colour_recipe, tmp_path)


def test_a_run_that_was_killed_between_its_results_and_its_page_gets_the_page(
    colour_recipe, colour_run, tmp_path, monkeypatch
):
    folder = shutil.copytree(colour_run, tmp_path / "run")
    (folder / "any_frame.json").unlink()

    def be_killed(place):
        if (place / "any_frame.json").exists():
            raise KeyboardInterrupt

    page = folder / "index.html"
    page.write_text("of the training")
    with monkeypatch.context() as patched:
        patched.setattr(record, "write_page", be_killed)
        with pytest.raises(KeyboardInterrupt):
            flaxvid.run(colour_recipe, folder)
    flaxvid.run(colour_recipe, folder)
    assert "100.0" in page.read_text()
    page.unlink()
    flaxvid.run(colour_recipe, folder)
    assert page.exists()


def test_a_validation_split_is_evaluated_every_epoch_and_chooses_the_best(colour_recipe, make_videos, tmp_path):
    for split, count in (("train", 6), ("val", 3), ("test", 1)):
        make_videos(tmp_path / "videos" / split, COLOURS, count, count)
    data = dataclasses.replace(colour_recipe.data, root=str(tmp_path / "videos"))
    recipe = dataclasses.replace(colour_recipe, data=data, epochs=3, keep=3)
    rows = flaxvid.run(recipe, tmp_path / "run")
    assert [row["clips"] for row in rows] == [2]
    metrics = read_metrics(tmp_path / "run" / "metrics.jsonl")
    scores = {row["step"]: row["eval/top1_2"] for row in metrics if "eval/top1_2" in row}
    assert list(scores) == [2, 4, 6]
    assert [row["step"] for row in metrics if "test/top1_2" in row] == [6]
    best = find_checkpoint(tmp_path / "run", "best")
    assert scores[int(best.name)] == max(scores.values())
    assert json.loads((best / "metrics" / "metrics").read_text())["score"] == max(scores.values())
