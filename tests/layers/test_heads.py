import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxvid.layers.heads import ConsensusHead, PoolHead, mean_over_time


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(size=(3, 4, 2, 2, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def variables():
    rng = np.random.default_rng(1)
    return {
        "params": {
            "classifier": {
                "kernel": rng.normal(size=(6, 5)).astype(np.float32),
                "bias": np.arange(5.0, dtype=np.float32),
            }
        }
    }


def test_mean_of_the_frames_logits(x, variables):
    logits = jax.jit(ConsensusHead(5).apply)(variables, x)
    classifier = variables["params"]["classifier"]
    frames = x.mean((2, 3)) @ classifier["kernel"] + classifier["bias"]
    chex.assert_trees_all_close(np.asarray(logits), frames.mean(1), rtol=1e-5, atol=1e-5)


def test_the_feature_is_the_mean_over_space_and_time(x, variables):
    head = ConsensusHead(5)
    chex.assert_trees_all_close(np.asarray(head.pool(x)), x.mean((1, 2, 3)), rtol=1e-5, atol=1e-6)
    half = head.pool(jnp.asarray(x, jnp.bfloat16))
    assert half.dtype == jnp.float32


def test_only_unmasked_frames_count(x, variables):
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 0, 1]], bool)
    head = jax.jit(ConsensusHead(5).apply)
    masked = jax.jit(lambda v, x, m: ConsensusHead(5).apply(v, x, frame_mask=m))(variables, x, mask)
    expected = [head(variables, x[i : i + 1, mask[i]])[0] for i in range(3)]
    chex.assert_trees_all_close(masked, np.stack(expected), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(mean_over_time(jnp.asarray([[[1.0], [3.0]]]), np.array([[True, False]])), [[1.0]])


def test_dropout_only_in_training_and_on_frames(x, variables):
    head = ConsensusHead(5, dropout=0.5)
    train = jax.jit(lambda key: head.apply(variables, x, True, rngs={"dropout": key}))
    evaluation = head.apply(variables, x)
    first, second = train(jax.random.key(0)), train(jax.random.key(1))
    assert not np.allclose(first, second)
    assert not np.allclose(first, evaluation)
    np.testing.assert_array_equal(train(jax.random.key(0)), first)
    without = ConsensusHead(5, dropout=0.0).apply(variables, x, True, rngs={"dropout": jax.random.key(0)})
    chex.assert_trees_all_close(without, evaluation, rtol=1e-5, atol=1e-6)


def test_a_dict_of_classes_is_a_classifier_each(x, variables):
    head = ConsensusHead({"action": 5, "actor": 2})
    shapes = jax.eval_shape(head.init, jax.random.key(0), x)["params"]
    assert {name: layer["kernel"].shape for name, layer in shapes.items()} == {
        "classifier_action": (6, 5),
        "classifier_actor": (6, 2),
    }
    two = {
        "classifier_action": variables["params"]["classifier"],
        "classifier_actor": {"kernel": np.ones((6, 2)), "bias": np.zeros(2)},
    }
    logits = head.apply({"params": two}, x)
    chex.assert_trees_all_close(logits["action"], ConsensusHead(5).apply(variables, x), rtol=1e-6, atol=1e-6)
    chex.assert_shape(logits["actor"], (3, 2))


def test_the_classifier_starts_as_the_authors_does():
    params = ConsensusHead(200).init(jax.random.key(0), jnp.ones((1, 1, 1, 1, 300)))["params"]["classifier"]
    assert params["kernel"].std() == pytest.approx(0.001, rel=0.02)
    assert (params["bias"] == 0).all()


def test_pool_head_classifies_the_mean(x, variables):
    head, classifier = PoolHead(5), variables["params"]["classifier"]
    feature = x.mean((1, 2, 3))
    chex.assert_trees_all_close(np.asarray(head.pool(x)), feature, rtol=1e-5, atol=1e-6)
    expected = feature @ classifier["kernel"] + classifier["bias"]
    chex.assert_trees_all_close(np.asarray(head.apply(variables, x)), expected, rtol=1e-5, atol=1e-5)
    bfloat16 = head.apply(variables, jnp.asarray(x, jnp.bfloat16))
    assert bfloat16.dtype == jnp.float32


def test_pool_head_takes_the_mask_of_the_clip(x, variables):
    """A grid of 4 frames of a clip of 13: strides of 4 in all, of which 6 real frames make the first two."""
    mask = np.arange(13)[None] < np.array([[6], [13], [1]])
    head = PoolHead(5)
    logits = head.apply(variables, x, frame_mask=mask)
    expected = [head.apply(variables, x[i : i + 1, :real])[0] for i, real in enumerate((2, 4, 1))]
    chex.assert_trees_all_close(logits, np.stack(expected), rtol=1e-5, atol=1e-5)


def test_pool_head_drops_features_in_training_and_gives_a_dict(x, variables):
    head = PoolHead(5, dropout=0.5)
    first, second = (head.apply(variables, x, True, rngs={"dropout": jax.random.key(i)}) for i in range(2))
    assert not np.allclose(first, second)
    several = jax.eval_shape(PoolHead({"action": 5, "actor": 2}).init_with_output, jax.random.key(0), x)
    assert {target: logits.shape for target, logits in several[0].items()} == {"action": (3, 5), "actor": (3, 2)}
    assert set(several[1]["params"]) == {"classifier_action", "classifier_actor"}
