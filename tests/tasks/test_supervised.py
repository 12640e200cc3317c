import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxvid.losses.classification import cross_entropy
from flaxvid.models.registry import create_tiny
from flaxvid.tasks.labelled import accuracy
from flaxvid.tasks.supervised import SupervisedRecipe

KEY = jax.random.key(5)


@pytest.fixture(scope="module")
def model():
    return create_tiny("tsm_resnet18", depths=(1,), dropout=0.3)


@pytest.fixture(scope="module")
def variables(model, random_variables):
    return random_variables(model)


@pytest.fixture(scope="module")
def batch(clip):
    return {"video": {n: clip(8, n, 32, 32, seed=n) for n in (4, 8, 16)}, "label": np.arange(8) % 5}


@pytest.fixture(scope="module")
def train(model):
    @jax.jit
    def apply(variables, video, key):
        return model.apply(variables, video, train=True, rngs={"dropout": key}, mutable=["batch_stats"])

    return apply


def only(batch, *counts):
    return {**batch, "video": {n: batch["video"][n] for n in counts}}


def test_one_count_is_cross_entropy(model, variables, batch, train):
    task = SupervisedRecipe((8,), label_smoothing=0.1).make(model)
    loss, (updated, metrics) = jax.jit(task.loss)(variables, only(batch, 8), KEY)
    logits, state = train(variables, batch["video"][8], jax.random.fold_in(KEY, 8))
    assert loss == pytest.approx(float(cross_entropy(logits, batch["label"], 0.1)), rel=1e-5)
    chex.assert_trees_all_close(updated, state, rtol=1e-5, atol=1e-6)
    assert set(metrics) == {"loss", "accuracy"}
    assert metrics["accuracy"] == pytest.approx(float(accuracy(logits, batch["label"])))


def parts(task, batch):
    return [(rows.start, rows.stop, clip) for rows, clip in task.parts(batch["video"])]


@pytest.mark.parametrize(
    ("share", "frames", "expected"),
    [
        (0.5, (4, 8, 16), [(0, 4, 16), (4, 6, 4), (6, 8, 8)]),
        (0.75, (4, 8, 16), [(0, 6, 16), (6, 7, 4), (7, 8, 8)]),
        (0.5, (4, 16), [(0, 4, 16), (4, 8, 4)]),
        (0.9, (4, 8, 16), [(0, 7, 16), (7, 8, 8)]),
        (1.0, (4, 8, 16), [(0, 8, 16)]),
    ],
)
def test_proportional_sampling_divides_the_batch(model, batch, share, frames, expected):
    task = SupervisedRecipe(frames, sampling="proportional", share=share).make(model)
    got = parts(task, only(batch, *frames))
    assert [(start, stop, clip.shape[1]) for start, stop, clip in got] == expected
    for start, stop, clip in got:
        np.testing.assert_array_equal(clip, batch["video"][clip.shape[1]][start:stop])


def test_mixed_sampling_repeats_the_frames_of_the_shorter_counts(model, batch):
    task = SupervisedRecipe((4, 8, 16), sampling="mixed").make(model)
    [(start, stop, clip)] = parts(task, batch)
    assert (start, stop, clip.shape) == (0, 8, (8, 16, 32, 32, 3))
    np.testing.assert_array_equal(clip[:4], batch["video"][16][:4])
    np.testing.assert_array_equal(clip[4:6], np.repeat(batch["video"][4][4:6], 4, axis=1))
    np.testing.assert_array_equal(clip[6:], np.repeat(batch["video"][8][6:], 2, axis=1))


def test_mixed_sampling_of_counts_that_do_not_divide(model, batch):
    task = SupervisedRecipe((3, 8), sampling="mixed").make(model)
    video = {3: batch["video"][4][:, :3], 8: batch["video"][8]}
    [(_, _, clip)] = parts(task, {"video": video})
    np.testing.assert_array_equal(clip[4:], video[3][4:][:, [0, 0, 0, 1, 1, 1, 2, 2]])


def test_proportional_loss_is_the_mean_over_all_clips(model, variables, batch, train):
    task = SupervisedRecipe((4, 16), sampling="proportional", share=0.75).make(model)
    loss, (updated, metrics) = jax.jit(task.loss)(variables, only(batch, 4, 16), KEY)
    video, labels = batch["video"], batch["label"]
    first, state = train(variables, video[16][:6], jax.random.fold_in(KEY, 16))
    second, state = train({**variables, **state}, video[4][6:], jax.random.fold_in(KEY, 4))
    expected = 6 / 8 * cross_entropy(first, labels[:6]) + 2 / 8 * cross_entropy(second, labels[6:])
    assert loss == pytest.approx(float(expected), rel=1e-5)
    chex.assert_trees_all_close(updated, state, rtol=1e-4, atol=1e-5)
    logits = jnp.concatenate([first, second])
    assert metrics["accuracy"] == pytest.approx(float(accuracy(logits, labels)))


def test_features_of_one_video_never_reach_another_in_training(model, variables, batch, no_batch_statistics):
    task = SupervisedRecipe((4, 16)).make(model)
    video = {n: (batch["video"][n] / 255).astype(np.float32) for n in (4, 16)}

    @jax.jit
    def gradient(video, label):
        return jax.grad(lambda video: task.loss(variables, {"video": video, "label": label}, KEY)[0])(video)

    # A label outside the classes has an empty one-hot row: that clip has no loss of its own.
    moved = gradient(video, np.array([-1, 2, -1, -1, -1, 1, -1, -1]))
    touched = {n: np.flatnonzero(np.abs(leaf).sum((1, 2, 3, 4))).tolist() for n, leaf in moved.items()}
    assert touched == {16: [1], 4: [5]}


def test_init_and_select(model, variables):
    task = SupervisedRecipe((16, 4)).make(model)
    assert task.frames == (4, 16)
    chex.assert_trees_all_equal(task.init(KEY, variables), variables)
    chex.assert_trees_all_equal_shapes(jax.eval_shape(task.init, KEY), variables)
    assert task.select({**variables, "ema_params": 0}, 4) == variables


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (
            SupervisedRecipe((4, 8), sampling="mix"),
            'sampling must be "proportional", "mixed" or "bucketed", got \'mix\'',
        ),
        (SupervisedRecipe((4, 8), share=0), r"share must lie in \(0, 1\], got 0"),
        (SupervisedRecipe((4, 0)), r"frames must be distinct positive frame counts such as \(4, 8, 16\), got \(4, 0\)"),
        (SupervisedRecipe((4, 4)), r"frames must be distinct positive frame counts .*, got \(4, 4\)"),
        (SupervisedRecipe(label_smoothing=1.0), r"label_smoothing must lie in \[0, 1\), got 1.0"),
        (SupervisedRecipe(mixup=-0.1), "mixup must not be negative, got -0.1: 0 is off"),
        (SupervisedRecipe(erasing=2.0), r"erasing must lie in \[0, 1\], got 2.0"),
        (SupervisedRecipe(target_weights={"a": -1}), "target_weights must not be negative, got {'a': -1}"),
    ],
)
def test_wrong_options_say_so(recipe, message):
    (problem,) = recipe.problems()
    assert re.match(message, problem)


def test_weights_of_unknown_targets_are_refused(model):
    with pytest.raises(ValueError, match="target_weights has a, the data's targets are one only, without"):
        SupervisedRecipe(target_weights={"a": 1}).make(model)
