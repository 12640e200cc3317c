"""Training on batches of videos of like length."""

import dataclasses

import chex
import jax
import numpy as np
import pytest

import flaxvid
from flaxvid.models.registry import create_tiny
from flaxvid.report.run import read_metrics
from flaxvid.tasks.supervised import SupervisedRecipe
from flaxvid.train.checkpoint import restore_variables
from flaxvid.train.limits import check


def test_a_batch_of_one_count_is_one_share(random_variables, clip):
    model = create_tiny("tsm_resnet18", depths=(1,), image_size=16)
    variables = random_variables(model)
    bucketed = SupervisedRecipe((2, 4), sampling="bucketed").make(model)
    for count, rows in ((2, 8), (4, 4)):
        batch = {"video": {count: clip(rows, count, 16, 16)}, "label": np.arange(rows) % 5}
        alone = SupervisedRecipe((count,)).make(model)
        loss, (moved, metrics) = jax.jit(bucketed.loss)(variables, batch, jax.random.key(0))
        wanted, (expected, _) = jax.jit(alone.loss)(variables, batch, jax.random.key(0))
        assert loss == pytest.approx(float(wanted), rel=1e-6)
        chex.assert_trees_all_close(moved, expected, rtol=1e-6)
        assert set(metrics) == {"loss", "accuracy"}
        (share,) = bucketed.divide(batch, jax.random.key(0), groups=2)
        assert share["video"][count].shape[0] == rows


@pytest.fixture(scope="module")
def recipe(colour_recipe, encode_video, tmp_path_factory):
    """Two classes of videos of 3 and of 6 frames; batches have eight clips of 2 frames, or four of 4."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("lengths")
    for name, colour in (("red", (220, 20, 20)), ("blue", (20, 20, 220))):
        for number in range(10):
            noisy = np.array(colour) + rng.normal(0, 12, (3 + 3 * (number % 2), 32, 32, 3))
            split = "train" if number < 8 else "test"
            encode_video(root / split / name / f"{number}.mp4", np.clip(noisy, 0, 255).astype(np.uint8))
    return dataclasses.replace(
        colour_recipe,
        data=dataclasses.replace(colour_recipe.data, root=str(root)),
        task=SupervisedRecipe((2, 4), sampling="bucketed"),
        batch_size=4,
        epochs=2,
        eval_frames=(2, 4),
        log_every=1,
    )


def test_a_run_compiles_a_step_for_each_length_and_goes_on_exactly(recipe, tmp_path, capsys):
    flaxvid.run(recipe, tmp_path / "whole")
    said = capsys.readouterr().out
    assert "by length: 8 videos at 2 frames, 8 a batch; 8 videos at 4 frames, 4 a batch" in said
    assert said.count("compiled the training step") == 2
    flaxvid.run(dataclasses.replace(recipe, epochs=1), tmp_path / "parts")
    rows = flaxvid.run(recipe, tmp_path / "parts")
    assert [row["frames"] for row in rows] == [2, 4]
    whole, parts = (restore_variables(tmp_path / name) for name in ("whole", "parts"))
    chex.assert_trees_all_equal(whole, parts)
    steps = [row for row in read_metrics(tmp_path / "whole" / "metrics.jsonl") if "train/loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6]  # in an epoch one batch of 2 frames, two of 4
    assert all(np.isfinite(row["train/loss"]) for row in steps)


def test_what_cannot_be_bucketed(recipe):
    with pytest.raises(ValueError, match=r'sampling="bucketed" needs several frames and no share, got frames=\(2,\)'):
        check(dataclasses.replace(recipe, task=SupervisedRecipe((2,), sampling="bucketed")))
    with pytest.raises(ValueError, match=r"frames=\(2, 4\), share=0\.7"):
        check(dataclasses.replace(recipe, task=SupervisedRecipe((2, 4), sampling="bucketed", share=0.7)))
