import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxvid
from flaxvid.layers.shift import TemporalShift, causal_shift, temporal_shift


def by_time(rows):
    """(t, c) numbers as (1, t, 1, 1, c) activations."""
    return np.asarray(rows, np.float32)[None, :, None, None, :]


# Row t, channel c is 10 t + c.
X = by_time([[0, 1, 2, 3], [10, 11, 12, 13], [20, 21, 22, 23]])


def test_hand_computed_numbers():
    """Of four channels and shift_div 4, channel 0 comes from the next frame, 1 from the one before, 2 and 3 stay."""
    expected = by_time([[10, 0, 2, 3], [20, 1, 12, 13], [0, 11, 22, 23]])
    np.testing.assert_array_equal(temporal_shift(X, 4), expected)


def test_four_frames_of_eight_channels():
    """With the usual eighth, one channel shows each frame what is next, one what was before, and six stay."""
    frames = np.arange(1, 5, dtype=np.float32)
    out = np.asarray(temporal_shift(by_time(np.stack([frames] * 8, axis=1))))[0, :, 0, 0]
    np.testing.assert_array_equal(out[:, 0], [2, 3, 4, 0])
    np.testing.assert_array_equal(out[:, 1], [0, 1, 2, 3])
    np.testing.assert_array_equal(out[:, 2:], np.stack([frames] * 6, axis=1))


def test_shift_div_is_the_share_of_channels():
    np.testing.assert_array_equal(
        temporal_shift(X, shift_div=2), by_time([[10, 11, 0, 0], [20, 21, 2, 3], [0, 0, 12, 13]])
    )
    x = np.random.default_rng(0).normal(size=(2, 5, 3, 4, 19)).astype(np.float32)
    out = np.asarray(temporal_shift(x))  # the default: 19 // 8 = 2 channels each way
    np.testing.assert_array_equal(out[:, :-1, ..., :2], x[:, 1:, ..., :2])
    np.testing.assert_array_equal(out[:, 1:, ..., 2:4], x[:, :-1, ..., 2:4])
    np.testing.assert_array_equal(out[..., 4:], x[..., 4:])


def test_ends_are_zero_and_never_the_other_end():
    x = np.ones((1, 3, 2, 2, 8), np.float32)
    out = np.asarray(temporal_shift(x))
    assert (out[:, -1, ..., 0] == 0).all()
    assert (out[:, 0, ..., 1] == 0).all()
    assert out.sum() == x.sum() - 2 * 2 * 2


def test_fewer_channels_than_shift_div_stay_where_they_are():
    np.testing.assert_array_equal(temporal_shift(X, 8), X)
    out, cache = causal_shift(X, shift_div=8)
    np.testing.assert_array_equal(out, X)
    assert cache.shape == (1, 1, 1, 1, 0)


def test_one_frame_and_other_ranks():
    np.testing.assert_array_equal(temporal_shift(X[:, :1], 4), by_time([[0, 0, 2, 3]]))
    tokens = np.random.default_rng(0).normal(size=(2, 4, 7, 16)).astype(np.float32)
    np.testing.assert_array_equal(temporal_shift(tokens), temporal_shift(tokens[:, :, :, None])[:, :, :, 0])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.uint8])
def test_shape_and_dtype_are_kept(dtype):
    x = jnp.ones((2, 3, 4, 5, 16), dtype)
    chex.assert_trees_all_equal_shapes_and_dtypes(temporal_shift(x), x)
    shifted, cache = causal_shift(x)
    chex.assert_trees_all_equal_shapes_and_dtypes(shifted, x)
    chex.assert_shape(cache, (2, 1, 4, 5, 2))


def test_it_is_compiled_once_a_shape():
    chex.clear_trace_counter()
    traced = jax.jit(chex.assert_max_traces(lambda x: temporal_shift(x), n=1))
    for value in range(3):
        traced(jnp.full((1, 2, 2, 2, 8), value, jnp.float32))
    before = temporal_shift._cache_size()
    for value in range(3):
        flaxvid.layers.temporal_shift(jnp.full((1, 2, 3, 3, 8), value, jnp.float32))
    assert temporal_shift._cache_size() == before + 1


def test_a_shift_div_of_zero_says_so():
    with pytest.raises(ValueError, match="shift_div must be at least 1, got 0"):
        temporal_shift(X, 0)


def test_causal_hand_computed_numbers():
    shifted, cache = causal_shift(X, shift_div=4)
    np.testing.assert_array_equal(shifted, by_time([[0, 1, 2, 3], [0, 11, 12, 13], [10, 21, 22, 23]]))
    np.testing.assert_array_equal(cache, by_time([[20]]))


@pytest.mark.parametrize("parts", [(1, 1, 1, 1, 1, 1), (2, 3, 1), (6,)])
def test_a_stream_equals_the_whole_clip(parts):
    x = np.random.default_rng(0).normal(size=(2, 6, 3, 3, 16)).astype(np.float32)
    whole, last = causal_shift(x)
    layer = TemporalShift(causal=True)
    outputs, previous, cache, start = [], None, {}, 0
    for length in parts:
        part = x[:, start : start + length]
        by_function, previous = causal_shift(part, previous)
        by_layer, cache = layer.apply(cache, part, mutable=["cache"])
        np.testing.assert_array_equal(by_layer, by_function)
        outputs.append(by_function)
        start += length
    np.testing.assert_array_equal(np.concatenate(outputs, 1), whole)
    np.testing.assert_array_equal(previous, last)
    np.testing.assert_array_equal(layer.apply({}, x), whole)  # without a cache: the start of a stream


def test_the_layer_keeps_nothing_outside_a_stream():
    for causal in (False, True):
        assert TemporalShift(causal=causal).init(jax.random.key(0), X) == {}


@pytest.mark.parametrize("causal", [False, True])
def test_masked_frames_count_as_outside_the_clip(causal):
    layer = TemporalShift(4, causal)
    padded = np.concatenate([X, np.full_like(X[:, :2], 99)], axis=1)
    mask = np.array([[True, True, True, False, False]])
    np.testing.assert_array_equal(layer.apply({}, padded, mask)[:, :3], layer.apply({}, X))
    # Padding in front, too: the first real frame sees zeros before it.
    padded = np.concatenate([np.full_like(X[:, :1], 99), X], axis=1)
    mask = np.array([[False, True, True, True]])
    np.testing.assert_array_equal(layer.apply({}, padded, mask)[:, 1:], layer.apply({}, X))
