import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxvid.layers.attention import CrossViewAttention

SHAPE = (2, 3, 4, 2, 2, 8)
LAYER = CrossViewAttention(heads=2, width=6)


@pytest.fixture(scope="module")
def variables(randomise):
    x, present = jax.ShapeDtypeStruct(SHAPE, np.float32), jax.ShapeDtypeStruct(SHAPE[:2], bool)
    return randomise(jax.eval_shape(LAYER.init, jax.random.key(0), x, present))


def cameras(seed=0, shape=SHAPE):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


apply = jax.jit(LAYER.apply)


def test_at_first_it_is_the_mean_of_the_cameras():
    present = np.array([[True, True, True], [True, False, True]])
    x, variables = LAYER.init_with_output(jax.random.key(0), cameras(), present)
    seen = cameras() + variables["params"]["which"][:, None, None, None]
    expected = seen.mean(axis=1, where=present[:, :, None, None, None, None])
    chex.assert_trees_all_close(x, expected, atol=1e-6)


def test_a_missing_camera_is_as_if_there_were_one_less(variables):
    present = np.tile([True, False, True], (2, 1))
    out = apply(variables, cameras(), present)
    other = cameras().copy()
    other[:, 1] = 7
    chex.assert_trees_all_equal(apply(variables, other, present), out)
    of_each = {name: variables["params"][name][np.array([0, 2])] for name in ("own", "which")}
    fewer = {"params": {**variables["params"], **of_each}}
    two = LAYER.apply(fewer, cameras()[:, [0, 2]], np.ones((2, 2), bool))
    chex.assert_trees_all_close(out, two, rtol=1e-5, atol=1e-5)
    assert not np.allclose(out, apply(variables, cameras(), np.ones((2, 3), bool)), atol=1e-2)


def test_every_sample_has_its_own_missing_cameras(variables):
    present = np.array([[True, True, True], [False, False, True]])
    out = apply(variables, cameras(), present)
    for row in range(2):
        alone = LAYER.apply(variables, cameras()[row : row + 1], present[row : row + 1])
        chex.assert_trees_all_close(out[row : row + 1], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_padded_frames_change_nothing(variables, stride):
    present, out = np.ones((2, 3), bool), apply(variables, cameras(), np.ones((2, 3), bool))
    longer = np.concatenate([cameras(), cameras(1)[:, :, :2]], axis=2)
    mask = np.broadcast_to(np.arange(6 * stride) < 4 * stride, (2, 6 * stride))  # of the clip, before a stride
    chex.assert_trees_all_close(apply(variables, longer, present, mask)[:, :4], out, rtol=1e-5, atol=1e-5)
    assert not np.allclose(apply(variables, longer, present)[:, :4], out, atol=1e-2)


def test_moments_and_cameras_are_told_apart(variables):
    present = np.ones((2, 3), bool)
    out = apply(variables, cameras(), present)
    swapped = apply(variables, cameras()[:, [1, 0, 2]], present)
    assert not np.allclose(swapped, out, atol=1e-2)
    shifted = cameras().copy()
    shifted[:, 1] = np.roll(shifted[:, 1], 1, axis=1)  # out of step with the others
    assert not np.allclose(apply(variables, shifted, present), out, atol=1e-2)


def test_half_precision_and_a_stable_type(variables):
    half = CrossViewAttention(heads=2, width=6, dtype=jnp.bfloat16)
    out = half.apply(variables, cameras(), np.ones((2, 3), bool))
    assert out.dtype == jnp.bfloat16
    full = apply(variables, cameras(), np.ones((2, 3), bool))
    assert np.abs(out - full).max() < 0.1 * np.abs(full).max()
