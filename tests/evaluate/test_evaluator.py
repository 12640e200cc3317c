import numpy as np
import pytest

from flaxvid.evaluate.evaluator import evaluate_videos
from flaxvid.train.mesh import make_mesh, put_batch


@pytest.fixture
def evaluation(network, batches):
    model, variables = network
    return evaluate_videos(model, {2: variables, 4: variables}, batches)[""]


def test_results_are_those_of_a_loop_over_videos(evaluation, batches, answer):
    assert evaluation.index.tolist() == [0, 1, 3, 4, 5, 6]
    assert evaluation.label.tolist() == [0, 1, 3, 4, 0, 1]
    assert evaluation.broken == (2,)
    for count, result in evaluation.frames.items():
        video = np.concatenate([batch["video"][count] for batch in batches])[evaluation.index]
        probabilities = (answer(video[:, 0]) + answer(video[:, 1])) / 2
        guess = probabilities.argmax(-1)
        np.testing.assert_array_equal(result.guess, guess)
        np.testing.assert_allclose(result.confidence, probabilities.max(-1), rtol=1e-5)
        right = guess == evaluation.label
        assert result.scores["clips"] == 6
        assert result.scores["top1"] == right.mean()
        assert result.scores["top5"] == 1
        by_class = [right[evaluation.label == k].mean() for k in (0, 1, 3, 4)]
        assert result.scores["mean_class"] == pytest.approx(np.mean(by_class))
        confusion = np.zeros((5, 5), int)
        np.add.at(confusion, (evaluation.label, guess), 1)
        np.testing.assert_array_equal(result.confusion, confusion)
        assert result.reliability["count"].sum() == 6


def test_it_takes_what_a_mesh_holds(evaluation, network, batches):
    model, variables = network
    mesh = make_mesh()
    evaluated = evaluate_videos(model, {4: variables}, batches, put=lambda batch: put_batch(batch, mesh))
    assert evaluated[""].frames[4].scores == pytest.approx(evaluation.frames[4].scores)


def test_what_cannot_be_evaluated_says_why(network, batches):
    model, variables = network
    with pytest.raises(ValueError, match="expected videos to evaluate, got none: choose another split"):
        evaluate_videos(model, {4: variables}, [])
    floats = {**batches[0], "video": {4: batches[0]["video"][4] / np.float32(255)}}
    with pytest.raises(ValueError, match="takes uint8 video, got float32"):
        evaluate_videos(model, {4: variables}, [floats])
    viewless = {**batches[0], "video": {4: batches[0]["video"][4][:, 0]}}
    with pytest.raises(ValueError, match=r"single view is video\[:, None\]"):
        evaluate_videos(model, {4: variables}, [viewless])
    broken = {**batches[0], "mask": np.zeros(4, bool), "broken": np.arange(4, dtype=np.int32)}
    with pytest.raises(ValueError, match="none of 4 videos could be read"):
        evaluate_videos(model, {4: variables}, [broken])
