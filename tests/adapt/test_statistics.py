import chex
import jax
import numpy as np
import pytest

from flaxvid.adapt.statistics import reestimate_statistics
from flaxvid.models.registry import create_tiny


@pytest.fixture(scope="module")
def model():
    return create_tiny("tsm_resnet18", depths=(1,))


@pytest.fixture(scope="module")
def variables(model, random_variables):
    return random_variables(model)


def test_statistics_are_the_means_over_the_batches(model, variables, clip):
    """Those of a training pass with a momentum of one, whatever the statistics were before."""
    batches = [clip(2, 4, 32, 32, seed=seed) for seed in range(3)]
    adapted = reestimate_statistics(model, variables, iter(batches))
    chex.assert_trees_all_equal(adapted["params"], variables["params"])
    train = jax.jit(lambda v, x: model.apply(v, x, train=True, method="features", mutable=["batch_stats"])[1])
    # new = 0.9 old + 0.1 batch, so batch = 10 new - 9 old
    of_batches = [
        jax.tree.map(
            lambda new, old: 10 * new - 9 * old, train(variables, video), {"batch_stats": variables["batch_stats"]}
        )
        for video in batches
    ]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / 3, *of_batches)
    chex.assert_trees_all_close(adapted["batch_stats"], mean["batch_stats"], rtol=1e-3, atol=1e-4)


def test_with_one_batch_evaluation_equals_training(model, variables, clip):
    """Evaluation then normalises by the very statistics that training takes; at another frame count, too."""
    video = clip(4, 6, 32, 32)
    adapted = reestimate_statistics(model, variables, [video])
    features = jax.jit(lambda v, x: model.apply(v, x, method="features"))(adapted, video)
    trained = jax.jit(lambda v, x: model.apply(v, x, train=True, method="features", mutable=["batch_stats"])[0])
    chex.assert_trees_all_close(features, trained(variables, video), rtol=1e-3, atol=1e-4)


def test_no_clips_and_no_statistics_say_so(model, variables):
    with pytest.raises(ValueError, match="no clips to re-estimate"):
        reestimate_statistics(model, variables, [])
    with pytest.raises(ValueError, match="no batch statistics to re-estimate"):
        reestimate_statistics(model, {"params": variables["params"]}, [np.zeros((1, 4, 32, 32, 3), np.uint8)])
