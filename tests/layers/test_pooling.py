import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from flaxvid.layers.pooling import max_pool

# input shape, window, strides, padding
CASES = [
    ((2, 8, 7, 3), (3, 3), 2, 1),
    ((2, 7, 7, 3), (2, 2), None, 0),
    ((2, 3, 8, 7, 3), (3, 3), (2, 1), (1, 0)),
    ((2, 5, 8, 7, 3), (1, 3, 3), (1, 2, 2), (0, 1, 1)),
    ((2, 5, 8, 7, 3), (3, 3, 3), 2, ((1, 1), (0, 1), (1, 0))),
    ((6, 5, 4, 3), (2, 3, 2), (2, 1, 2), 1),
]


def reference(pool, x, window, strides, padding, **options):
    """Pool every window by numpy."""
    rank = len(window)
    strides = window if strides is None else (strides,) * rank if isinstance(strides, int) else strides
    padding = (padding,) * rank if isinstance(padding, int) else padding
    pairs = [(p, p) if isinstance(p, int) else p for p in padding]
    fill = -np.inf if pool is np.max else options.get("fill", 0.0)
    lead = x.ndim - rank - 1
    x = np.pad(x, [(0, 0)] * lead + pairs + [(0, 0)], constant_values=fill)
    axes = tuple(range(lead, lead + rank))
    windows = np.lib.stride_tricks.sliding_window_view(x, window, axes)
    windows = windows[(slice(None),) * lead + tuple(slice(None, None, s) for s in strides)]
    return pool(windows, axis=tuple(range(-rank, 0)))


@pytest.mark.parametrize(("shape", "window", "strides", "padding"), CASES)
def test_values(shape, window, strides, padding):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32) - 3  # a maximum over zero padding would be 0
    actual = max_pool(jnp.asarray(x), window, strides, padding)
    np.testing.assert_array_equal(actual, reference(np.max, x, window, strides, padding))


@pytest.mark.parametrize("values", ["distinct", "tied"])
@pytest.mark.parametrize(("shape", "window", "strides", "padding"), CASES)
def test_max_gradient_goes_to_the_first_maximum(shape, window, strides, padding, values):
    """Where two windows share their maximum, it gets both cotangents; of equal values the first one gets it all."""
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    x = np.round(x) if values == "tied" else x
    cotangent = np.random.default_rng(1).normal(size=max_pool(jnp.asarray(x), window, strides, padding).shape)
    actual = jax.jit(jax.grad(lambda x: (max_pool(x, window, strides, padding) * cotangent).sum()))(x)

    rank = len(window)
    places = np.arange(x.size, dtype=np.float64).reshape(x.shape)
    fields = {"window": window, "strides": strides, "padding": padding}
    windows = reference(lambda w, axis: w.reshape(*w.shape[:-rank], -1), x, fill=-np.inf, **fields)
    where = reference(lambda w, axis: w.reshape(*w.shape[:-rank], -1), places, **fields)
    first = np.take_along_axis(where, windows.argmax(-1)[..., None], -1)[..., 0].astype(int)
    expected = np.zeros(x.size)
    np.add.at(expected, first.ravel(), cotangent.ravel())
    np.testing.assert_allclose(actual, expected.reshape(x.shape), rtol=1e-5, atol=1e-5)


def test_max_under_vmap_remat_and_export():
    x = np.random.default_rng(0).normal(size=(2, 3, 8, 8, 4)).astype(np.float32)
    grad = jax.grad(lambda x: jnp.sin(max_pool(x, (3, 3), 2, 1)).sum())
    expected = jax.jit(grad)(x)
    np.testing.assert_allclose(jax.vmap(grad)(x), expected, rtol=1e-5, atol=1e-6)
    remat = jax.grad(jax.checkpoint(lambda x: jnp.sin(max_pool(x, (3, 3), 2, 1)).sum()))
    np.testing.assert_allclose(jax.jit(remat)(x), expected, rtol=1e-5, atol=1e-6)
    exported = export.export(jax.jit(grad), platforms=("cpu", "cuda", "tpu"))(x)
    np.testing.assert_allclose(exported.call(x), expected, rtol=1e-5, atol=1e-6)


def test_bfloat16():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 4)), jnp.bfloat16)
    y, gradient = jax.value_and_grad(lambda x: max_pool(x, (3, 3), 2, 1).sum())(x)
    assert y.dtype == gradient.dtype == jnp.bfloat16


def test_wrong_lengths_say_what_fits():
    with pytest.raises(ValueError, match="strides: expected one integer or 2"):
        max_pool(jnp.ones((1, 4, 4, 1)), (2, 2), (1, 2, 2))
    with pytest.raises(ValueError, match="padding: expected one integer or 3"):
        max_pool(jnp.ones((1, 4, 4, 4, 1)), (2, 2, 2), 1, (1, 1))
