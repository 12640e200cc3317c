"""Real runs of domain adaptation on videos of class folders: resumed, blind to the target's labels, tested on it."""

import dataclasses
import json
import shutil
import signal

import chex
import numpy as np
import pytest

import flaxvid
from flaxvid.data.sources.open import open_source
from flaxvid.data.sources.without_labels import WithoutLabels
from flaxvid.report.run import read_metrics
from flaxvid.tasks.domain import DomainRecipe
from flaxvid.tasks.supervised import SupervisedRecipe
from flaxvid.train import session
from flaxvid.train.checkpoint import restore_variables
from flaxvid.train.interrupt import Interrupted, StopRequest
from flaxvid.train.limits import check
from flaxvid.train.recipe import read_recipe
from flaxvid.train.testing import choose_data, is_own
from flaxvid.train.trained import load


@pytest.fixture(scope="module")
def other_videos(make_videos, tmp_path_factory):
    """The same classes, but more videos of each."""
    return make_videos(tmp_path_factory.mktemp("other"), {name: name for name in ("red", "green", "blue")}, 15, 4)


@pytest.fixture(scope="module")
def recipe(colour_recipe, other_videos):
    return dataclasses.replace(
        colour_recipe,
        data=dataclasses.replace(colour_recipe.data, target={"root": str(other_videos)}),
        task=DomainRecipe(method="adversarial", ramp_steps=9, discriminator_width=8),
        epochs=3,
        log_every=1,
    )


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "domain"
    rows = flaxvid.run(recipe, folder)
    return folder, rows


def test_it_learns_from_both_and_is_tested_on_the_target(run, recipe, capsys):
    folder, ((row),) = run
    logged = [row for row in read_metrics(folder / "metrics.jsonl") if "train/loss" in row]
    assert [row["step"] for row in logged] == list(range(1, 10))
    assert {"train/domain_loss", "train/domain_accuracy", "train/accuracy"} <= logged[0].keys()
    weights = [row["train/domain_weight"] for row in logged]
    np.testing.assert_allclose(weights, [2 / (1 + np.exp(-10 * step / 9)) - 1 for step in range(9)], atol=1e-6)
    test = open_source("folder", recipe.data.target["root"], "test")
    assert row["clips"] == len(test) != len(open_source("folder", recipe.data.root, "test"))
    trained = load(folder)
    assert isinstance(trained.recipe.task, DomainRecipe)
    assert set(trained.select(2)) == {"params", "batch_stats"}
    data = choose_data(trained.recipe.data, "", {})
    assert data.root == recipe.data.target["root"]
    assert is_own(trained.recipe.data, data)
    assert "params_discriminator" in restore_variables(folder)


def test_a_run_that_was_cut_short_ends_the_same(recipe, run, tmp_path, monkeypatch):
    def fail(self, step, state):
        if step == 3:
            raise RuntimeError("cut short")

    with monkeypatch.context() as patched:
        patched.setattr(session.Session, "evaluate_if_due", fail)
        with pytest.raises(RuntimeError, match="cut short"):
            flaxvid.run(recipe, tmp_path / "run")
    assert flaxvid.run(recipe, tmp_path / "run") == run[1]
    chex.assert_trees_all_equal(restore_variables(tmp_path / "run"), restore_variables(run[0]), strict=True)


def test_stopped_in_mid_epoch_with_worker_processes_it_ends_the_same(recipe, run, tmp_path, monkeypatch):
    """One worker for each of the two loaders gives the batches that threads give."""

    def tell(self, step):
        self.signal = signal.SIGTERM if step == 5 else None
        return step == 5

    working = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, num_workers=1))
    with monkeypatch.context() as patched:
        patched.setattr(StopRequest, "reached", tell)
        with pytest.raises(Interrupted, match="after step 5 of 9"):
            flaxvid.run(working, tmp_path / "run")
    assert flaxvid.run(working, tmp_path / "run") == run[1]
    chex.assert_trees_all_equal(restore_variables(tmp_path / "run"), restore_variables(run[0]), strict=True)


def test_fewer_target_videos_than_a_batch_are_told_before_any_work(recipe, make_videos, tmp_path):
    few = make_videos(tmp_path / "few", {name: name for name in ("red", "green", "blue")}, 2, 4)
    data = dataclasses.replace(recipe.data, target={"root": str(few)})
    with pytest.raises(ValueError, match=r"at least one batch of videos, got 3 in folder train without labels for 1 x"):
        flaxvid.run(dataclasses.replace(recipe, data=data), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_target_videos_of_another_size_and_length(recipe, encode_video, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (9, 48, 80, 3), np.uint8)
    for number in range(21):
        encode_video(tmp_path / "videos" / ("red", "green", "blue")[number % 3] / f"{number}.mp4", noise)
    data = dataclasses.replace(recipe.data, target={"root": str(tmp_path / "videos")})
    (row,) = flaxvid.run(dataclasses.replace(recipe, data=data, epochs=1), tmp_path / "run")
    assert row["clips"] == len(open_source("folder", str(tmp_path / "videos"), "test"))


def test_labels_of_the_target_play_no_part(recipe, other_videos, tmp_path):
    """The same target videos in two lists, of which one has wrong labels for all training videos."""
    rows = []
    for name, wrong in (("true", 0), ("false", 1)):
        (tmp_path / name).mkdir()
        for split in ("train", "test"):
            source = open_source("folder", str(other_videos), split)
            items = [source[index] for index in range(len(source))]
            labels = [source.classes[(item["label"] + wrong * (split == "train")) % 3] for item in items]
            text = "".join(f"{item['id']},{label}\n" for item, label in zip(items, labels, strict=True))
            (tmp_path / name / f"{split}.csv").write_text(text)
        target = {"name": "list", "root": str(other_videos), "lists": str(tmp_path / name)}
        data = dataclasses.replace(recipe.data, target=target)
        rows.append(flaxvid.run(dataclasses.replace(recipe, data=data), tmp_path / f"run-{name}"))
    assert rows[0] == rows[1]
    runs = [restore_variables(tmp_path / f"run-{name}") for name in ("true", "false")]
    chex.assert_trees_all_equal(*runs, strict=True)


def test_other_target_videos_are_another_run(recipe, run, make_videos, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    (folder / "any_frame.json").unlink()
    fewer = make_videos(tmp_path / "fewer", {name: name for name in ("red", "green", "blue")}, 8, 4)
    data = dataclasses.replace(recipe.data, target={"root": str(fewer)})
    with pytest.raises(ValueError, match=r"expected the \d+ training videos that the run in .* learnt from, got \d+"):
        flaxvid.run(dataclasses.replace(recipe, data=data), folder)


def test_another_task_is_tested_on_the_target_alone(recipe, tmp_path):
    source_only = dataclasses.replace(recipe, task=SupervisedRecipe((2,)), epochs=1)
    (row,) = flaxvid.run(source_only, tmp_path / "run")
    assert row["clips"] == len(open_source("folder", recipe.data.target["root"], "test"))
    assert "params_discriminator" not in restore_variables(tmp_path / "run")
    origin = json.loads((tmp_path / "run" / "evaluation.json").read_text())["data"]
    assert origin["root"] == recipe.data.target["root"]
    assert read_recipe(tmp_path / "run").data.target == recipe.data.target


def test_a_source_without_labels_has_none(other_videos):
    source = open_source("folder", str(other_videos), "train")
    assert {source[index]["label"] for index in range(len(source))} == {0, 1, 2}
    blind = WithoutLabels(source)
    assert {blind[index]["label"] for index in range(len(blind))} == {0}
    assert len(blind) == len(source)
    assert blind[3]["video"] == source[3]["video"]


def test_slips_are_told(recipe):
    with pytest.raises(ValueError, match=r"task domain needs a target domain: say in data.target what differs"):
        check(dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, target={})))
    with pytest.raises(ValueError, match=r"data.target has no field rot: valid ones are name, root"):
        check(dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, target={"rot": "x"})))
