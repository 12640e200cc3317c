import chex
import jax.numpy as jnp
import numpy as np
import pytest

from flaxvid.layers.position import fit_positions, resize_space, resize_time, sine_cosine, token_keys, token_mask


def random(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape).astype(np.float32))


def test_sines_and_cosines():
    table = sine_cosine(5, 6)
    assert (table.shape, table.dtype) == ((5, 6), np.float32)
    np.testing.assert_array_equal(table[0], [0, 1, 0, 1, 0, 1])
    rate = 10000 ** (-2 / 6)
    expected = [np.sin(3), np.cos(3), np.sin(3 * rate), np.cos(3 * rate), np.sin(3 * rate**2), np.cos(3 * rate**2)]
    np.testing.assert_allclose(table[3], expected, rtol=1e-6)


def test_a_table_of_its_own_size_is_itself():
    table = random(4, 3, 2, 5)
    np.testing.assert_array_equal(fit_positions(table, 4, 3, 2)[0], table)
    mask = np.array([[1, 1, 1, 1, 0, 0, 0], [0, 1, 0, 1, 1, 0, 1]], bool)
    fitted = fit_positions(table, 7, 3, 2, mask)
    for row in range(2):
        np.testing.assert_array_equal(fitted[row][mask[row]], table)


def test_times_are_interpolated_by_hand():
    table = jnp.array([0.0, 10, 20, 30])
    np.testing.assert_allclose(resize_time(table, 2)[0], [5, 25])
    np.testing.assert_allclose(resize_time(table, 1)[0], [15])
    np.testing.assert_allclose(resize_time(table, 8)[0], [0, 2.5, 7.5, 12.5, 17.5, 22.5, 27.5, 30])
    np.testing.assert_allclose(resize_time(table, 5, np.array([[True, True, False, False, False]]))[0, :2], [5, 25])


def test_a_clip_without_a_valid_frame_stays_finite():
    chex.assert_tree_all_finite(resize_time(random(4, 3), 2, np.zeros((1, 2), bool)))


def test_places_are_interpolated_smoothly():
    ramp = jnp.broadcast_to(jnp.arange(8.0)[:, None, None], (8, 4, 1))
    wider = resize_space(ramp, 16, 6)
    chex.assert_shape(wider, (16, 6, 1))
    np.testing.assert_allclose(wider[4:12, 0, 0], np.arange(4, 12) / 2 - 0.25, atol=1e-5)
    np.testing.assert_allclose(resize_space(jnp.ones((2, 5, 5, 3)), 3, 7), 1, rtol=1e-6)


def test_a_token_counts_if_any_frame_of_its_patch_does():
    mask = np.array([[1, 1, 1, 0, 0, 0], [0, 1, 0, 0, 1, 0]], bool)
    np.testing.assert_array_equal(token_mask(mask, 3), [[1, 1, 0], [1, 0, 1]])
    np.testing.assert_array_equal(token_mask(mask, 6), mask)
    np.testing.assert_array_equal(token_keys(token_mask(mask, 3), 2)[0], [1, 1, 1, 1, 0, 0])
    np.testing.assert_array_equal(token_keys(mask[1:, :2], 2, before=1), [[1, 0, 0, 1, 1]])
    assert token_mask(None, 3) is None
    assert token_keys(None, 2) is None
    with pytest.raises(ValueError, match="frame_mask has 6 frames, which 4 patches along time do not divide"):
        token_mask(mask, 4)
