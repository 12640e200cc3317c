import functools

import chex
import jax
import numpy as np
import pytest

from flaxvid import trees
from flaxvid.adapt.statistics import _pool, reestimate_statistics
from flaxvid.frames import FrameFlexible
from flaxvid.models.registry import create_tiny


@pytest.fixture(scope="module")
def model():
    return create_tiny("tsm_resnet18", depths=(1,))


@pytest.fixture(scope="module")
def variables(model, random_variables):
    return random_variables(model)


def batch_statistics(model, variables, video):
    """Those that training takes of a batch: new = 0.9 old + 0.1 batch, so batch = 10 new - 9 old."""
    train = jax.jit(lambda v, x: model.apply(v, x, train=True, method="features", mutable=["batch_stats"])[1])
    new = trees.flatten(train(variables, video)["batch_stats"])
    return {path: 10 * new[path] - 9 * old for path, old in trees.flatten(variables["batch_stats"]).items()}


def test_statistics_are_those_of_all_clips_together(model, variables, clip):
    """fvcore's `update_bn_stats`: E[x] and E[x^2] - E[x]^2, batches weighted by their sizes, the last has one clip."""
    batches = [clip(size, 4, 32, 32, seed=size) // (3 - size) for size in (2, 1)]  # one is darker: means differ
    adapted = reestimate_statistics(model, variables, iter(batches))
    chex.assert_trees_all_equal(adapted["params"], variables["params"])
    first, second = (batch_statistics(model, variables, video) for video in batches)
    got = trees.flatten(adapted["batch_stats"])
    for norm in {path.rpartition("/")[0] for path in got}:
        means, variances = ([one[f"{norm}/{name}"] for one in (first, second)] for name in ("mean", "var"))
        mean = np.average(means, axis=0, weights=(2, 1))
        square = np.average([v + m**2 for v, m in zip(variances, means, strict=True)], axis=0, weights=(2, 1))
        np.testing.assert_allclose(got[f"{norm}/mean"], mean, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(got[f"{norm}/var"], square - mean**2, rtol=1e-3, atol=1e-4)
    # What the first norm sees depends on no other: its statistics are those of one batch of everything.
    whole = batch_statistics(model, variables, np.concatenate(batches))
    for name in ("mean", "var"):
        path = f"stem/norm1/{name}"
        np.testing.assert_allclose(got[path], whole[path], rtol=1e-3, atol=1e-4)
    assert np.mean((first["stem/norm1/var"] + second["stem/norm1/var"]) / 2 / whole["stem/norm1/var"]) < 0.9


def test_a_mean_far_from_zero_costs_no_digits():
    values = np.random.default_rng(0).normal(1e4, 1.0, (3, 500)).astype(np.float32)
    parts = [(np.float32(500), row.mean(dtype=np.float64), row.var(dtype=np.float64)) for row in values]
    count, mean, var = functools.reduce(_pool, parts)
    assert (count, mean) == (1500, pytest.approx(values.mean(dtype=np.float64), rel=1e-12))
    assert var == pytest.approx(values.var(dtype=np.float64), rel=1e-6)


def test_norms_that_training_leaves_as_they_are_stay(variables, clip, random_variables):
    """All but the stem's, by patterns of the norms or of the body; with activations recomputed, too."""
    video = clip(2, 4, 32, 32)
    model = create_tiny("tsm_resnet18", depths=(1,), remat=True)
    for freeze in ((r"body/.*norm\w*",), ("body",)):
        adapted = reestimate_statistics(model, variables, [video], freeze)
        chex.assert_trees_all_equal(adapted["batch_stats"]["body"], variables["batch_stats"]["body"])
        expected = batch_statistics(model, variables, video)["stem/norm1/var"]
        np.testing.assert_allclose(adapted["batch_stats"]["stem"]["norm1"]["var"], expected, rtol=1e-3, atol=1e-4)
        assert np.abs(jax.jit(model.apply)(adapted, video)).max() < 100
    slow = create_tiny("slow_r50", depths=(1,))
    start = random_variables(slow)
    chex.assert_trees_all_equal(reestimate_statistics(slow, start, [video], (r".*norm\w*",)), start)


def test_a_frame_flexible_network_is_told_to_select(model, variables, clip):
    flexible = FrameFlexible(model, (2, 4))
    private = flexible.specialise(variables, jax.random.key(0))
    with pytest.raises(ValueError, match=r"got batch_stats_2f, batch_stats_4f: give those of flexible.select"):
        reestimate_statistics(model, private, [clip(2, 4, 32, 32)])
    chosen = flexible.select(private, 2)
    adapted = reestimate_statistics(model, chosen, [clip(2, 2, 32, 32)])
    chex.assert_trees_all_equal(adapted["params"], chosen["params"])


def test_with_one_batch_evaluation_equals_training(model, variables, clip):
    """Evaluation then normalises by the very statistics that training takes; at another frame count, too."""
    video = clip(4, 6, 32, 32)
    adapted = reestimate_statistics(model, variables, [video])
    features = jax.jit(lambda v, x: model.apply(v, x, method="features"))(adapted, video)
    trained = jax.jit(lambda v, x: model.apply(v, x, train=True, method="features", mutable=["batch_stats"])[0])
    chex.assert_trees_all_close(features, trained(variables, video), rtol=1e-3, atol=1e-4)


def test_no_clips_and_no_statistics_say_so(model, variables):
    with pytest.raises(ValueError, match="expected clips to re-estimate"):
        reestimate_statistics(model, variables, [])
    with pytest.raises(ValueError, match="expected a model with batch statistics, got one without"):
        reestimate_statistics(model, {"params": variables["params"]}, [np.zeros((1, 4, 32, 32, 3), np.uint8)])
