import json

import jax
import numpy as np
import pytest

from flaxvid.data.clips.cut import ClipConfig
from flaxvid.data.sources.open import FileSource
from flaxvid.evaluate.evaluator import evaluate_videos, join, score_rows
from flaxvid.evaluate.record import evaluation_record, write_record
from flaxvid.models.registry import create_tiny
from flaxvid.report.run import read_run

CLASSES = {"action": ("a", "b", "c", "d", "e"), "actor": ("x", "y", "z")}


@pytest.fixture(scope="module")
def network(random_variables):
    model = create_tiny(
        "tsm_resnet18", depths=(1,), num_classes={target: len(names) for target, names in CLASSES.items()}
    )
    return model, random_variables(model)


@pytest.fixture
def batches(batches):
    def with_actors(batch):
        return {**batch, "label": {"action": batch["label"], "actor": (batch["index"] % 3).astype(np.int32)}}

    return [with_actors(batch) for batch in batches]


@pytest.fixture
def evaluations(network, batches):
    model, variables = network
    return evaluate_videos(model, {4: variables, 2: variables}, batches)


def test_each_target_is_evaluated_by_its_own_logits(network, batches, evaluations):
    model, variables = network
    assert set(evaluations) == {"action", "actor"}
    for target, evaluation in evaluations.items():
        assert evaluation.index.tolist() == [0, 1, 3, 4, 5, 6]
        assert evaluation.broken == (2,)
        labels = np.concatenate([batch["label"][target] for batch in batches])[evaluation.index]
        np.testing.assert_array_equal(evaluation.label, labels)
        video = np.concatenate([batch["video"][2] for batch in batches])[evaluation.index]
        views = [jax.nn.softmax(jax.jit(model.apply)(variables, video[:, view])[target]) for view in (0, 1)]
        guess = np.asarray(views[0] + views[1]).argmax(-1)
        np.testing.assert_array_equal(evaluation.frames[2].guess, guess)
        assert evaluation.frames[2].scores["top1"] == (guess == labels).mean()


def test_rows_name_their_target(evaluations):
    rows = score_rows(evaluations)
    assert [(row["target"], row["frames"]) for row in rows] == [
        ("action", 2),
        ("action", 4),
        ("actor", 2),
        ("actor", 4),
    ]
    assert "target" not in score_rows({"": evaluations["actor"]})[0]


def test_passes_join_target_by_target(network, batches, evaluations):
    model, variables = network
    apart = [evaluate_videos(model, {n: variables}, batches) for n in (4, 2)]
    assert score_rows(join(apart)) == score_rows(evaluations)


def test_labels_of_other_targets_are_told(network, batches):
    model, variables = network
    (wrong,) = [{**batch, "label": {"actor": batch["label"]["actor"]}} for batch in batches[:1]]
    with pytest.raises(ValueError, match="expected labels of the network's target 'action', got those of 'actor'"):
        evaluate_videos(model, {2: variables}, [wrong])


def test_the_record_comes_back_as_a_run_for_each_target(evaluations, tmp_path):
    from matplotlib.image import imsave

    paths = tuple(f"v{number}" for number in range(7))
    for path in paths:
        (tmp_path / path).mkdir()
        imsave(tmp_path / path / "0.png", np.zeros((8, 8, 3), np.uint8))
    labels = {"action": (0,) * 7, "actor": (0,) * 7}
    source = FileSource("seven", str(tmp_path), paths, labels, CLASSES)
    facts = {"name": "efficient", "views": "1 clip x 1 crop", "size": 32}
    costs = {n: {"gflops": float(n)} for n in (2, 4)}
    record = evaluation_record(evaluations, source, clips=ClipConfig((1,), 32), protocol=facts, costs=costs)
    path = write_record(tmp_path / "run", record, evaluations, source)
    assert len(json.loads(path.read_text())["examples"]) == len(list((tmp_path / "run" / "strips").iterdir()))
    parts = read_run(tmp_path / "run").by_target()
    assert set(parts) == {"action", "actor"}
    for target, run in parts.items():
        assert [row["frames"] for row in run.any_frame] == [2, 4]
        assert tuple(run.evaluation["classes"]) == CLASSES[target]
        assert [row["top1"] for row in run.evaluation["frames"]] == [
            evaluations[target].frames[n].scores["top1"] for n in (2, 4)
        ]
        assert all(clip["strip"] and "target" not in clip for clip in run.evaluation["examples"])


def test_a_missing_label_counts_nowhere(network, batches):
    """Of the actor every third video has no label; what the others score is as if these were not there."""
    model, variables = network

    def without(batch):
        actor = np.where(batch["index"] % 3 == 1, -1, batch["label"]["actor"]).astype(np.int32)
        return {**batch, "label": {**batch["label"], "actor": actor}}

    def masked(batch):
        return {**batch, "mask": batch["mask"] & (batch["index"] % 3 != 1)}

    some, whole = (evaluate_videos(model, {2: variables}, [change(b) for b in batches]) for change in (without, masked))
    every = evaluate_videos(model, {2: variables}, batches)
    assert some["actor"].index.tolist() == [0, 3, 5, 6]
    assert some["actor"].frames[2].scores == whole["actor"].frames[2].scores
    assert some["actor"].frames[2].confusion.sum() == some["actor"].frames[2].scores["clips"] == 4
    np.testing.assert_array_equal(some["actor"].frames[2].guess, whole["actor"].frames[2].guess)
    np.testing.assert_array_equal(some["actor"].frames[2].confusion, whole["actor"].frames[2].confusion)
    assert some["action"].frames[2].scores == every["action"].frames[2].scores
    none = [{**b, "label": {**b["label"], "actor": np.full_like(b["label"]["actor"], -1)}} for b in batches]
    with pytest.raises(ValueError, match="expected videos with a label of actor, got 6 without one: label some"):
        evaluate_videos(model, {2: variables}, none)
