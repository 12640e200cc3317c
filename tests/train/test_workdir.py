import contextlib
import dataclasses
import errno
import fcntl
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import flaxvid
from flaxvid.data.sources.open import open_source
from flaxvid.tasks import labelled
from flaxvid.tasks.frame_flexible import FfnRecipe
from flaxvid.train.checkpoint import restore_variables
from flaxvid.train.recipe import ModelRecipe, OptimizerRecipe, Recipe, read_recipe
from flaxvid.train.workdir import check_name, claim_videos, claim_workdir, lock_workdir


def test_a_work_folder_is_claimed_once_something_was_saved(tmp_path):
    folder = tmp_path / "runs" / "mine"
    claim_workdir(Recipe(seed=1), folder)
    assert json.loads((folder / "recipe.json").read_text())["seed"] == 1
    claim_workdir(Recipe(seed=2), folder)  # nothing was saved yet: mended and started again
    assert json.loads((folder / "recipe.json").read_text())["seed"] == 2
    (folder / "checkpoints" / "10").mkdir(parents=True)
    claim_workdir(Recipe(seed=2), folder)
    other = Recipe(seed=3, model=ModelRecipe(options={"width": 8}), task=FfnRecipe(frames=(4, 8)))
    with pytest.raises(ValueError, match="holds a run of another recipe") as error:
        claim_workdir(other, folder)
    lines = {line.strip() for line in str(error.value).splitlines()}
    expected = {
        "seed: 2 there, 3 here",
        "task.frames: [4, 8, 16] there, [4, 8] here",
        "model.options.width: None there, 8 here",
    }
    assert expected <= lines
    assert "delete" not in str(error.value)
    assert json.loads((folder / "recipe.json").read_text())["seed"] == 2


def test_what_changes_no_number_may_change(tmp_path, capsys):
    claim_workdir(Recipe(), tmp_path)
    (tmp_path / "checkpoints" / "10").mkdir(parents=True)
    other = Recipe(log_every=5, keep=9, eval_every=7, published="41.2", eval_frames=(8,))
    other.data.root, other.data.num_threads, other.data.clips.crops = "elsewhere", 7, 3
    claim_workdir(other, tmp_path)
    assert read_recipe(tmp_path) == other
    out = capsys.readouterr().out
    assert "goes on with changes:\n" in out
    assert "data.root:  there, elsewhere here" in out
    other.data.num_workers = 2  # divides the videos into other batches
    with pytest.raises(ValueError, match=r"another recipe:\n  data\.num_workers: 0 there, 2 here\ngive"):
        claim_workdir(other, tmp_path)


@pytest.mark.parametrize(
    ("schedule", "epochs", "message"),
    [
        ("step", 70, None),
        ("constant", 70, None),
        ("cosine", 70, "epochs: 50 there, 70 here\n  a cosine ends with its epochs: .* --config.model.weights="),
        ("step", 30, "epochs: 50 there, 30 here\n  a run cannot be shortened"),
    ],
)
def test_a_finished_run_is_extended_where_its_schedule_allows_it(tmp_path, schedule, epochs, message):
    claim_workdir(Recipe(optimizer=OptimizerRecipe(schedule=schedule)), tmp_path)
    (tmp_path / "any_frame.json").write_text("[]")
    longer = Recipe(optimizer=OptimizerRecipe(schedule=schedule), epochs=epochs)
    with contextlib.nullcontext() if message is None else pytest.raises(ValueError, match=message):
        claim_workdir(longer, tmp_path)
    assert (tmp_path / "any_frame.json").exists() == (message is not None)  # its results were those of 50 epochs
    assert read_recipe(tmp_path).epochs == (epochs if message is None else 50)


def test_an_extended_run_is_the_longer_run(colour_recipe, tmp_path):
    """To the last bit; then it is tested again at other frame counts, without a step."""
    short, whole = (dataclasses.replace(colour_recipe, epochs=epochs) for epochs in (1, 2))
    for name, recipe in (("whole", whole), ("run", short), ("run", whole)):
        flaxvid.run(recipe, tmp_path / name)
    ours, theirs = (restore_variables(tmp_path / name) for name in ("run", "whole"))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    rows = flaxvid.run(dataclasses.replace(whole, eval_frames=(2, 4)), tmp_path / "run")
    assert [row["frames"] for row in rows] == [2, 4]


def test_a_run_goes_on_with_the_same_videos_wherever_they_lie(tmp_path):
    for folder, names in (("one", "ab"), ("two", "ab"), ("three", "abc"), ("four", "ac")):
        for name in names:
            path = tmp_path / folder / "train" / ("run" if name == "a" else "sit") / f"{name}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
    sources = {folder: open_source("folder", tmp_path / folder, "train") for folder in ("one", "two", "three", "four")}
    run = tmp_path / "run"
    run.mkdir()
    claim_videos(sources["one"], run)
    (run / "checkpoints" / "10").mkdir(parents=True)
    claim_videos(sources["two"], run)
    for folder, count in (("three", 3), ("four", 2)):
        with pytest.raises(
            ValueError, match=f"expected the 2 training videos that the run in .* got {count} with other names"
        ):
            claim_videos(sources[folder], run)


def test_a_run_from_before_a_field_was_added_goes_on(tmp_path):
    claim_workdir(Recipe(), tmp_path)
    (tmp_path / "checkpoints" / "10").mkdir(parents=True)
    saved = json.loads((tmp_path / "recipe.json").read_text())
    del saved["norm_groups"], saved["data"]["max_broken"]
    (tmp_path / "recipe.json").write_text(json.dumps(saved))
    claim_workdir(Recipe(), tmp_path)
    with pytest.raises(ValueError, match="norm_groups: 1 there, 2 here"):
        claim_workdir(Recipe(norm_groups=2), tmp_path)


def test_results_keep_their_recipe_when_the_checkpoints_are_gone(tmp_path):
    claim_workdir(Recipe(seed=1), tmp_path)
    (tmp_path / "any_frame.json").write_text("[]")
    with pytest.raises(ValueError, match="seed: 1 there, 2 here"):
        claim_workdir(Recipe(seed=2), tmp_path)
    assert json.loads((tmp_path / "recipe.json").read_text())["seed"] == 1


HOLD = """
import sys, time
from pathlib import Path
from flaxvid.train.workdir import lock_workdir
with lock_workdir(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


def test_a_second_run_in_one_folder_is_refused_until_the_first_is_gone(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(ValueError, match=f"another run is at work in .*run .process {other.pid} on "):
            lock_workdir(tmp_path / "run").__enter__()
    finally:
        other.kill()  # no chance to tidy up
        other.communicate()
    with lock_workdir(tmp_path / "run"):
        pass


@pytest.mark.parametrize(("number", "known"), [(errno.ENOLCK, True), (errno.EIO, False)])
def test_a_disk_that_knows_no_locks_is_no_obstacle(monkeypatch, tmp_path, number, known):
    def refuse(*_):
        raise OSError(number, "no lock")

    monkeypatch.setattr(fcntl, "flock", refuse)
    expected = contextlib.nullcontext() if known else pytest.raises(OSError, match="no lock")
    with expected, lock_workdir(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith("process ")


@pytest.mark.parametrize("change", ["deleted", "moved", "replaced"])
def test_a_folder_that_went_away_is_an_error_and_stays_away(tmp_path, change):
    folder = tmp_path / "run"
    with lock_workdir(folder) as check_there:
        check_there()
        folder.rename(tmp_path / "elsewhere")
        if change == "deleted":
            shutil.rmtree(tmp_path / "elsewhere")
        if change == "replaced":
            folder.mkdir()
            (folder / ".lock").touch()
        with pytest.raises(FileNotFoundError, match="run was deleted or moved while the run was at work"):
            check_there()
        if change == "moved":
            (tmp_path / "elsewhere").rename(folder)
            check_there()


@pytest.mark.parametrize(
    ("name", "message"),
    [("gs://bucket/run", "on a disk, got the address gs:/bucket/run"), ("run-\udcff", r"UTF-8, got b'.*run-\\xff'")],
)
def test_a_name_that_no_disk_has_is_refused_at_the_start(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    for refuse in (lambda: check_name(Path(name)), lambda: flaxvid.run(Recipe(), name)):
        with pytest.raises(ValueError, match=message):
            refuse()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_moved_in_an_evaluation_is_said_to_be(colour_recipe, tmp_path, monkeypatch):
    real = labelled.evaluate_videos

    def move_and_evaluate(*arguments, **options):
        (tmp_path / "run").rename(tmp_path / "elsewhere")
        return real(*arguments, **options)

    monkeypatch.setattr(labelled, "evaluate_videos", move_and_evaluate)
    with pytest.raises(FileNotFoundError, match=r"run was deleted or moved while .*: move it back"):
        flaxvid.run(dataclasses.replace(colour_recipe, epochs=1, eval_every=1, eval_frames=(3,)), tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]
