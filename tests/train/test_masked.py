"""Real runs of masked pre-training on videos of class folders: saved, resumed, finished, and a start for others."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import chex
import numpy as np
import pytest

import flaxvid
from flaxvid.models.registry import get_spec
from flaxvid.report.run import read_metrics, read_run
from flaxvid.tasks.masked import MaskedRecipe
from flaxvid.tasks.supervised import SupervisedRecipe
from flaxvid.train import session
from flaxvid.train.checkpoint import restore_variables
from flaxvid.train.limits import check
from flaxvid.train.recipe import ModelRecipe, read_recipe
from flaxvid.train.trained import load
from flaxvid.train.workdir import is_finished

OPTIONS = {name: get_spec("videomae_base").tiny[name] for name in ("width", "depth", "num_heads", "patch_size")}


@pytest.fixture(scope="module")
def recipe(colour_recipe):
    """Four steps of six clips, with an evaluation in the middle on the test videos."""
    return dataclasses.replace(
        colour_recipe,
        model=ModelRecipe("videomae_base", num_frames=4, image_size=32, options=OPTIONS),
        data=dataclasses.replace(colour_recipe.data, validation_split="test"),
        task=MaskedRecipe(mask_ratio=0.75, decoder_depth=1),
        epochs=2,
        eval_frames=(2, 4),
        log_every=1,
    )


@pytest.fixture(scope="module")
def pretrained(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "pretrained"
    rows = flaxvid.run(recipe, folder)
    return folder, rows


def test_a_run_leaves_its_errors(pretrained):
    folder, rows = pretrained
    assert [row["frames"] for row in rows] == [2, 4]
    assert all(0 < row["error"] < 3 for row in rows)
    logged = read_metrics(folder / "metrics.jsonl")
    steps = [row["step"] for row in logged if "train/loss" in row]
    assert steps == list(range(1, steps[-1] + 1))
    half, whole = (row for row in logged if "eval/reconstruction_error_4" in row)
    assert (half["step"], whole["step"]) == (steps[-1] // 2, steps[-1])
    (test,) = (row for row in logged if "test/reconstruction_error_2" in row)
    assert test["test/reconstruction_error_4"] == pytest.approx(whole["eval/reconstruction_error_4"])
    assert test["test/reconstruction_error_4"] == pytest.approx(rows[1]["error"])
    score = json.loads((folder / "checkpoints" / str(steps[-1]) / "metrics" / "metrics").read_text())["score"]
    assert score == pytest.approx(-rows[1]["error"])


def test_the_page_shows_reconstructions(pretrained):
    folder, rows = pretrained
    pictures = read_run(folder).reconstruction["pictures"]
    assert {picture["frames"] for picture in pictures} == {2, 4}
    page = (folder / "index.html").read_text()
    assert len(re.findall('src="data:image/png;base64,iVBOR', page)) == len(pictures) > 0
    assert all((folder / picture["picture"]).is_file() for picture in pictures)
    assert "Reconstruction of masked video" in page
    assert "Accuracy at each frame count" not in page
    assert f"{rows[1]['error']:.4f}" in page


def test_a_finished_run_only_gives_its_results(recipe, pretrained, capsys):
    folder, rows = pretrained
    assert flaxvid.run(recipe, folder) == rows
    out = capsys.readouterr().out
    assert "is finished" in out
    assert "reconstruction error" in out


def test_a_run_that_was_cut_short_ends_the_same(recipe, pretrained, tmp_path, monkeypatch):
    folder, rows = pretrained

    def fail(self, state):
        raise RuntimeError("cut short")

    with monkeypatch.context() as patched:
        patched.setattr(session.Session, "evaluate_if_due", lambda self, step, state: step and fail(self, state))
        with pytest.raises(RuntimeError, match="cut short"):
            flaxvid.run(dataclasses.replace(recipe, checkpoint_every=1), tmp_path / "run")
    assert not (tmp_path / "run" / "reconstruction.json").exists()
    assert flaxvid.run(recipe, tmp_path / "run") == rows
    chex.assert_trees_all_equal(restore_variables(folder), restore_variables(tmp_path / "run"), strict=True)


def test_a_pretrained_run_is_a_start(recipe, pretrained, tmp_path, capsys):
    folder, _ = pretrained
    tuned = dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, weights=str(folder)),
        task=SupervisedRecipe(),
        optimizer=dataclasses.replace(recipe.optimizer, learning_rate=0.0),
        epochs=1,
        eval_every=0,
    )
    flaxvid.run(tuned, tmp_path / "run")
    said = f"{folder}: pre-trained without labels; stem and body are taken, the head starts anew"
    assert capsys.readouterr().out.count(said) == 1
    before, after = restore_variables(folder)["params"], restore_variables(tmp_path / "run")["params"]
    assert set(after) == {"stem", "body", "head"}
    chex.assert_trees_all_equal({part: after[part] for part in before}, before)
    again = dataclasses.replace(recipe, model=tuned.model, optimizer=tuned.optimizer, epochs=1, eval_every=0)
    flaxvid.run(again, tmp_path / "again")
    chex.assert_trees_all_equal(restore_variables(tmp_path / "again")["params"], before)


def test_a_re_test_gives_the_errors_again_and_leaves_the_runs_own_record(pretrained, call_script, capsys):
    folder, rows = pretrained
    own = (folder / "reconstruction.json").read_bytes()
    call_script("evaluate.py", folder)
    out = capsys.readouterr().out
    for row in rows:
        assert f"| {row['frames']} | {row['error']:.4f} | {row['clips']} |" in re.sub(" +", " ", out)
    record, page = map(Path, out.splitlines()[-2:])
    assert record.parent.parent == folder / "evaluations"
    found, kept = json.loads(record.read_text()), json.loads(own)
    assert [row["error"] for row in found["frames"]] == pytest.approx([row["error"] for row in rows])
    assert found["data"] == kept["data"]
    assert found["checkpoint"] == kept["checkpoint"]
    assert "Reconstruction of masked video" in page.read_text()
    assert (folder / "reconstruction.json").read_bytes() == own


def test_a_re_test_of_another_checkpoint_split_and_count(pretrained, call_script, capsys, tmp_path):
    folder, _ = pretrained
    steps = sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdecimal())
    call_script("evaluate.py", folder, "--checkpoint", steps[0], "--split", "train", "--limit", 3, "--frames", 4,
        "--output", tmp_path / "out")  # fmt: skip
    record = json.loads((tmp_path / "out" / "reconstruction.json").read_text())
    assert record["checkpoint"] == {"name": str(steps[0]), "step": steps[0]}
    assert (record["data"]["split"], record["data"]["videos"]) == ("train", 3)
    (row,) = record["frames"]
    assert (row["frames"], row["clips"]) == (4, 3)
    logged = {row["step"]: row for row in read_metrics(folder / "metrics.jsonl")}
    call_script("evaluate.py", folder, "--checkpoint", steps[0], "--frames", 4, "--output", tmp_path / "test")
    (row,) = json.loads((tmp_path / "test" / "reconstruction.json").read_text())["frames"]
    assert row["error"] == pytest.approx(logged[steps[0]]["eval/reconstruction_error_4"], rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--protocol", "dense"], "is a masked pre-training without classes: leave out --protocol"),
        (["--adapt", "tent"], "is a masked pre-training without classes: leave out --adapt"),
        (["--frames", "3"], r"frames must be multiples of 2, the frames of a patch, got \[3\]: give others"),
    ],
)
def test_what_a_re_test_cannot_do_is_one_line(pretrained, call_script, arguments, message):
    with pytest.raises(SystemExit, match=message):
        call_script("evaluate.py", pretrained[0], *arguments)


def test_an_unfinished_run_stays_unfinished_after_a_re_test(pretrained, call_script, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(
        pretrained[0], folder, ignore=shutil.ignore_patterns("reconstruction*", "index.html", "evaluations")
    )
    call_script("evaluate.py", folder, "--frames", 4, "--output", folder / "checkpoints" / "..")
    assert not is_finished(folder)


def test_predictions_and_comparisons_of_it(pretrained, call_script, capsys, tmp_path):
    folder, rows = pretrained
    with pytest.raises(SystemExit, match=r"has no classifier: fine-tune it first, with --config.model.weights="):
        call_script("predict.py", "--run", folder, "a.mp4")
    with pytest.raises(ValueError, match="has no classifier: fine-tune it first"):
        flaxvid.load(folder)
    shutil.copytree(folder / "checkpoints", tmp_path / "checkpoints")
    with pytest.raises(ValueError, match=r"expected checkpoints of a classifier in .*: give its run"):
        flaxvid.load(tmp_path / "checkpoints", model="videomae_base")
    shutil.copytree(folder, tmp_path / "other")
    call_script("compare.py", folder, tmp_path / "other", "--output", tmp_path / "compare.html")
    page = (tmp_path / "compare.html").read_text()
    assert page.count(f"{rows[0]['error']:.4f}") == 2
    assert page.count(">75 % of the places masked, on folder") == 1
    assert "None of them is evaluated yet" not in page


def test_it_has_no_classifier_to_use(pretrained):
    folder, _ = pretrained
    with pytest.raises(ValueError, match=r"has no classifier: fine-tune it first, with --config.model.weights="):
        load(folder)
    trained = load(folder, headless=True)
    assert trained.headless
    assert set(trained.select(4)["params"]) == {"stem", "body"}
    assert isinstance(trained.recipe.task, MaskedRecipe)


def test_labels_play_no_part(recipe, make_videos, tmp_path):
    """Videos of one class will do, which no classifier could learn from."""
    make_videos(tmp_path / "one", {"red": "red"}, 12, 0)
    splits = {"train_split": "all", "eval_split": "all", "validation_split": ""}
    data = dataclasses.replace(recipe.data, root=str(tmp_path / "one"), **splits)
    (_, row) = flaxvid.run(dataclasses.replace(recipe, data=data, epochs=1, eval_every=0), tmp_path / "run")
    assert np.isfinite(row["error"])


def test_the_recipe_is_read_back(recipe, pretrained):
    assert dataclasses.asdict(read_recipe(pretrained[0]).task) == {
        **dataclasses.asdict(recipe.task),
        "frames": (4,),
    }


def test_recipes_that_cannot_run(recipe):
    with pytest.raises(ValueError, match=r"task.mask_ratio must lie in \(0, 1\)"):
        check(dataclasses.replace(recipe, task=MaskedRecipe(mask_ratio=2.0)))
    with pytest.raises(ValueError, match=r"eval_frames must be multiples of 2, the frames of a patch of .*, got \[3\]"):
        check(dataclasses.replace(recipe, eval_frames=(3, 4)))


def test_a_damaged_record_is_named(pretrained, tmp_path):
    record = json.loads((pretrained[0] / "reconstruction.json").read_text())
    del record["frames"][0]["error"]
    (tmp_path / "reconstruction.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"reconstruction.json is damaged: expected frames\[0\].error, got none"):
        read_run(tmp_path)


def test_errors_of_other_colours_are_not_compared(recipe, pretrained, tmp_path, call_script, capsys):
    folder, _ = pretrained
    rows = flaxvid.run(
        dataclasses.replace(recipe, task=dataclasses.replace(recipe.task, by_cube=False), epochs=1), tmp_path / "seen"
    )
    assert "in colours as the network sees them" in (tmp_path / "seen" / "index.html").read_text()
    call_script("evaluate.py", tmp_path / "seen", "--output", tmp_path / "again")
    again = json.loads((tmp_path / "again" / "reconstruction.json").read_text())
    assert again["by_cube"] is False
    assert [row["error"] for row in again["frames"]] == pytest.approx([row["error"] for row in rows])
    call_script("compare.py", folder, tmp_path / "seen", "--output", tmp_path / "compare.html")
    page = (tmp_path / "compare.html").read_text()
    assert page.count("colours by cube") == page.count("colours as the network sees them") > 0
    assert page.count('<th scope="col">reconstruction error') == 2
