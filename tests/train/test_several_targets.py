"""Two classifiers on one body, from encoded files and a list to the trained network's answers."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import flaxvid
from flaxvid.data.motion.build import MotionConfig, build_motion, motion_source
from flaxvid.report.run import read_metrics, read_run
from flaxvid.tasks.frame_flexible import FfnRecipe
from flaxvid.tasks.supervised import SupervisedRecipe
from flaxvid.train.checkpoint import restore_variables
from flaxvid.train.recipe import DataRecipe, ModelRecipe, OptimizerRecipe, Recipe
from flaxvid.train.trained import load
from flaxvid.weights.native import WeightsInfo, save_variables

OPTIONS = {"width": 8, "depths": (1,)}


@pytest.fixture(scope="module")
def videos(motion_data, tmp_path_factory):
    """Eight h264 files and a list that asks two things of each."""
    root = tmp_path_factory.mktemp("videos")
    source = motion_source(build_motion(motion_data, MotionConfig(32, 16, train=24, validation=8, test=8)), "train")
    lines = ["path,action,actor"]
    for index in range(8):
        (root / f"{index}.mp4").write_bytes(source[index]["video"])
        lines.append(f"{index}.mp4,{('run', 'jump', 'sit')[index % 3]},{index % 2}")
    for split in ("train", "test"):
        (root / f"{split}.csv").write_text("\n".join(lines))
    return root


@pytest.fixture(scope="module")
def recipe(videos):
    return Recipe(
        model=ModelRecipe("tsm_resnet18", image_size=32, num_frames=4, options=OPTIONS),
        data=DataRecipe("list", root=str(videos)),
        task=FfnRecipe((2, 4), target_weights={"actor": 0.5}),
        batch_size=4,
        eval_batch_size=4,
        eval_frames=(2, 4),
        eval_every=1,
        epochs=1,
        log_every=1,
    )


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory):
    """The run's folder and the rows that it returned."""
    folder = tmp_path_factory.mktemp("runs") / "targets"
    return folder, flaxvid.run(recipe, folder)


def test_the_run_has_rows_metrics_and_a_page_of_both(run):
    folder, rows = run
    pairs = [("action", 2), ("action", 4), ("actor", 2), ("actor", 4)]
    assert [(row["target"], row["frames"]) for row in rows] == pairs
    assert all(row["clips"] == 8 and row["gflops"] > 0 for row in rows)
    metrics = read_metrics(folder / "metrics.jsonl")
    first = next(row for row in metrics if "train/loss" in row)
    assert {"train/action_kl_2", "train/actor_ce", "train/action_accuracy", "train/actor_accuracy_2"} <= first.keys()
    assert first["train/loss"] == pytest.approx(first["train/action_loss"] + first["train/actor_loss"] / 2, rel=1e-5)
    assert {"test/action_top1_2", "test/actor_top1_4"} <= metrics[-1].keys()
    page = (folder / "index.html").read_text()
    assert "Evaluation: action" in page
    assert "Evaluation: actor" in page
    assert json.loads((folder / "classes.json").read_text()) == {"action": ["jump", "run", "sit"], "actor": ["0", "1"]}
    shapes = {target: leaf["kernel"].shape[-1] for target, leaf in restore_variables(folder)["params"]["head"].items()}
    assert shapes == {"classifier_action": 3, "classifier_actor": 2}


def test_evaluate_and_predict_tell_each_target(run, videos, call_script, capsys):
    folder, rows = run
    before = read_run(folder).any_frame
    call_script("evaluate.py", folder, "--frames", 2, 4)
    table = [line.replace("|", "").split() for line in capsys.readouterr().out.splitlines()[2:6]]
    assert [line[:2] for line in table] == [[row["target"], str(row["frames"])] for row in before]
    assert [float(line[2]) for line in table] == [round(100 * row["top1"], 2) for row in rows]
    with pytest.raises(SystemExit) as status:
        call_script("predict.py", "--run", folder, videos / "0.mp4", "--top", 1)
    assert status.value.code == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.split()[1::3] == ["action:", "actor:"]
    with pytest.raises(SystemExit):
        call_script("predict.py", "--run", folder, videos / "0.mp4", "--json")
    top = json.loads(capsys.readouterr().out)["top"]
    assert {target: {answer["class"] for answer in answers} for target, answers in top.items()} == {
        "action": {"jump", "run", "sit"},
        "actor": {"0", "1"},
    }


def test_a_weights_file_keeps_the_targets_names(run, tmp_path):
    trained = load(run[0])
    overrides = {"num_frames": 4, "image_size": 32, "num_classes": {"action": 3, "actor": 2}, **OPTIONS}
    for classes in (trained.classes, None):
        save_variables(
            tmp_path / "w.safetensors", trained.select(4), WeightsInfo("tsm_resnet18", overrides, None, classes)
        )
        again = load(tmp_path / "w.safetensors")
        assert {target: len(names) for target, names in again.classes.items()} == {"action": 3, "actor": 2}
        video = np.zeros((1, 4, 32, 32, 3), np.uint8)
        assert set(again.model.apply(again.select(4), video)) == {"action", "actor"}
    with pytest.raises(ValueError, match=r"classes of the network in .*, got 2 \(a, b, \.\.\.\)"):
        load(tmp_path / "w.safetensors", classes=("a", "b"))


def test_a_frozen_backbone_takes_another_run_s_weights(run, recipe, tmp_path):
    """The issue's transfer: everything but the new head stays to the last bit."""
    transfer = dataclasses.replace(recipe, freeze=("stem", "body"), epochs=1, eval_every=0, task=SupervisedRecipe((4,)))
    transfer.model = dataclasses.replace(recipe.model, weights=str(run[0]))
    transfer.optimizer = OptimizerRecipe()
    flaxvid.run(transfer, tmp_path / "run")
    start, after = load(run[0]).select(4), restore_variables(tmp_path / "run")
    for collection, part in (("params", "stem"), ("params", "body"), ("batch_stats", "stem"), ("batch_stats", "body")):
        kept, trained = start[collection][part], after[collection][part]
        for leaf, old in zip(jax.tree.leaves(trained), jax.tree.leaves(kept), strict=True):
            np.testing.assert_array_equal(leaf, old)
    heads = zip(jax.tree.leaves(after["params"]["head"]), jax.tree.leaves(start["params"]["head"]), strict=True)
    assert all(np.any(leaf != old) for leaf, old in heads)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze": ("stme",)}, "freeze='stme' matches no part of the network"),
        (
            {"task": FfnRecipe(frames=(2, 4), target_weights={"acter": 1.0})},
            "task.target_weights has acter, .* action, actor",
        ),
        (
            {"task": FfnRecipe(frames=(2, 4), target_weights={"actor": -1.0})},
            "task.target_weights must not be negative",
        ),
    ],
)
def test_slips_show_before_anything_is_written(recipe, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        flaxvid.run(dataclasses.replace(recipe, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_test_without_labels_of_a_target_shows_before_training(recipe, videos, tmp_path):
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "train.csv").write_text((videos / "train.csv").read_text())
    (lists / "test.csv").write_text("path,action,actor\n0.mp4,run,\n1.mp4,jump,\n")
    data = dataclasses.replace(recipe.data, lists=str(lists))
    message = r"list test: expected a labelled video of actor or more, got all 2 of no label"
    with pytest.raises(ValueError, match=message):
        flaxvid.run(dataclasses.replace(recipe, data=data), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_each_target_of_other_data_is_matched_by_its_name(run, videos, call_script, capsys, tmp_path):
    folder, _ = run
    own = (folder / "evaluation.json").read_bytes()

    def evaluate(*lines):
        (tmp_path / "test.csv").write_text("\n".join(lines))
        call_script("evaluate.py", folder, "--root", videos, "--lists", tmp_path, "--frames", 4)
        return capsys.readouterr().out

    out = evaluate("path,place,actor,action", "1.mp4,0,1,jump", "2.mp4,1,1,sit")  # columns in another order, one more
    assert "Classes of action: videos of 2 of the network's 3 (jump, sit)" in out
    assert "Classes of actor: videos of 1 of the network's 2 (1)" in out
    (other,) = read_run(folder).others
    confusions = {row["target"]: row["confusion"] for row in other.evaluation["frames"]}
    assert {label for label, _, _ in confusions["action"]} == {0, 2}
    assert {label for label, _, _ in confusions["actor"]} == {1}
    assert (folder / "evaluation.json").read_bytes() == own
    with pytest.raises(SystemExit, match=r"network for action \(jump, run, sit\), got also hop in list test"):
        evaluate("path,action,actor", "1.mp4,hop,0", "2.mp4,sit,1")
    with pytest.raises(SystemExit, match=r"the network's targets action, actor, got targets action, who"):
        evaluate("path,action,who", "1.mp4,jump,0", "2.mp4,sit,1")
    (tmp_path / "test.csv").unlink()
    (tmp_path / "test.txt").write_text("1.mp4 0\n2.mp4 1\n")
    with pytest.raises(SystemExit, match="got one target without a name in list test"):
        call_script("evaluate.py", folder, "--root", videos, "--lists", tmp_path, "--frames", 4)
