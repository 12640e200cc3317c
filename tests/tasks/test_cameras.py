"""Tasks take scenes of several cameras as they take single videos."""

import chex
import jax
import numpy as np
import pytest

from flaxvid.losses.classification import cross_entropy
from flaxvid.models.registry import create_tiny
from flaxvid.tasks.frame_flexible import FfnRecipe
from flaxvid.tasks.mixing import mix
from flaxvid.tasks.supervised import SupervisedRecipe

CAMERAS = ("front", "left", "right")
OPTIONS = {"backbone_options": {"width": 8, "depths": (1,)}, "dropout": 0.0}
MIXING = {"mixup": 0.5, "cutmix": 0.5, "erasing": 0.5}
KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def model():
    return create_tiny("ts_cva", **OPTIONS)


@pytest.fixture(scope="module")
def batch(clip):
    video = {n: {camera: clip(4, n, 32, 32, seed=n + i) for i, camera in enumerate(CAMERAS)} for n in (2, 4)}
    return {"video": video, "label": np.arange(4) % 5}


def test_the_loss_is_that_of_the_model(model, batch, random_variables):
    variables = random_variables(model)
    loss, (updated, metrics) = jax.jit(SupervisedRecipe((4,)).make(model).loss)(variables, batch, KEY)
    logits, state = model.apply(variables, batch["video"][4], train=True, mutable=["batch_stats"])
    assert loss == pytest.approx(float(cross_entropy(logits, batch["label"])), rel=1e-4)
    chex.assert_trees_all_close(updated, state, rtol=1e-4, atol=1e-5)
    assert set(metrics) == {"loss", "accuracy"}


@pytest.mark.parametrize("sampling", ["proportional", "mixed"])
def test_several_counts(model, batch, sampling):
    task = SupervisedRecipe((2, 4), sampling=sampling, **MIXING).make(model)
    parts = task.parts(batch["video"])
    expected = [(2, 4), (2, 2)] if sampling == "proportional" else [(4, 4)]
    assert [part["left"].shape[:2] for _, part in parts] == expected
    if sampling == "mixed":
        np.testing.assert_array_equal(parts[0][1]["left"][2:, 0], batch["video"][2]["left"][2:, 0])
    check(task, batch)


def test_frame_flexible(model, batch):
    check(FfnRecipe((2, 4), **MIXING).make(model), batch)


def check(task, batch):
    variables = jax.eval_shape(task.init, KEY)
    loss, (_, metrics) = jax.eval_shape(task.loss, variables, batch, KEY)
    assert (loss.shape, metrics["accuracy"].shape) == ((), ())


def test_all_cameras_of_a_scene_are_mixed_alike(model, batch):
    alike = {n: dict.fromkeys(CAMERAS, clips["front"]) for n, clips in batch["video"].items()}
    video, labels = mix(model, {**batch, "video": alike}, KEY, **MIXING)
    assert labels[""].shape == (4, 5)
    for clips in video.values():
        chex.assert_trees_all_equal(clips["front"], clips["left"], clips["right"])
