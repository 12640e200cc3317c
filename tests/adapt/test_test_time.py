import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxvid import trees
from flaxvid.adapt.statistics import reestimate_statistics
from flaxvid.adapt.test_time import batch_statistics, minimise_entropy
from flaxvid.losses.domain import entropy
from flaxvid.models.registry import create_tiny


@pytest.fixture(scope="module")
def clips(clip):
    return [clip(6, 2, 16, 16, seed=seed) for seed in range(3)]


@pytest.fixture(scope="module")
def model():
    return create_tiny("tsm_resnet18", depths=(1,), num_classes=5)  # with dropout, which must not act


@pytest.fixture(scope="module")
def variables(model, random_variables):
    return random_variables(model)


def test_only_norms_move_and_the_answers_get_surer(model, variables, clips):
    adapted = minimise_entropy(model, variables, clips, learning_rate=3e-2)
    before, after = trees.flatten(variables), trees.flatten(adapted)
    norms = trees.norm_modules(variables)
    assert before.keys() == after.keys()
    for path, leaf in after.items():
        module = path.partition("/")[2].rpartition("/")[0]
        assert np.any(leaf != before[path]) == (module in norms), path

    def surety(variables):
        return np.mean([float(entropy(model.apply(variables, video))) for video in clips])

    assert surety(adapted) < surety(reestimate_statistics(model, variables, clips))


def test_one_step_is_adams_down_the_entropy(model, variables, clips):
    """Written out: every scale and bias moves by the rate against the sign of its gradient."""
    (video,) = clips[:1]
    adapted = trees.flatten(minimise_entropy(model, variables, [video], learning_rate=1e-2))

    @jax.jit
    def gradient(params):
        def loss(params):
            with batch_statistics():
                logits, _ = model.apply({**variables, "params": params}, video, mutable=["batch_stats"])
            logs = jax.nn.log_softmax(logits)
            return -(jnp.exp(logs) * logs).sum(-1).mean()

        return jax.grad(loss)(params)

    for path, slope in trees.flatten({"params": gradient(variables["params"])}).items():
        if path.partition("/")[2].rpartition("/")[0] in trees.norm_modules(variables):
            sure = np.abs(slope) > 1e-5
            expected = trees.flatten(variables)[path] - 1e-2 * np.sign(slope)
            np.testing.assert_allclose(np.asarray(adapted[path])[sure], expected[sure], atol=2e-5)


def test_statistics_are_those_of_the_clips(model, variables, clips):
    adapted = minimise_entropy(model, variables, clips)
    again = reestimate_statistics(model, {**variables, "params": adapted["params"]}, clips)
    chex.assert_trees_all_equal(adapted["batch_stats"], again["batch_stats"])


def test_a_transformer_has_no_statistics_and_adapts(random_variables, clip):
    model = create_tiny("videomae_base")
    variables = random_variables(model)
    video = clip(2, model.clip.num_frames, model.clip.image_size, model.clip.image_size)
    adapted = minimise_entropy(model, variables, [video], learning_rate=1e-2)
    assert set(adapted) == {"params"}
    moved = {path for path, leaf in trees.flatten(adapted).items() if np.any(leaf != trees.flatten(variables)[path])}
    assert moved
    assert all(path.partition("/")[2].rpartition("/")[0] in trees.norm_modules(variables) for path in moved)


def test_slips_are_told(model, variables, clips):
    with pytest.raises(ValueError, match="expected clips to re-estimate the statistics from, got none"):
        minimise_entropy(model, variables, iter(clips))
    with pytest.raises(ValueError, match="expected a network with norms"):
        minimise_entropy(model, {"params": {"head": variables["params"]["head"]}}, clips)
