import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxvid.layers.conv import convolve
from flaxvid.layers.pooling import max_pool

torch = pytest.importorskip("torch")

# input shape, window, strides, padding
POOLS = [
    ((2, 9, 8, 3), (3, 3), (2, 2), (1, 1)),
    ((2, 8, 7, 3), (2, 3), (1, 2), (0, 1)),
    ((2, 5, 9, 8, 3), (1, 3, 3), (1, 2, 2), (0, 1, 1)),
    ((2, 5, 8, 7, 3), (3, 3, 3), (2, 2, 2), (1, 1, 1)),
]


def channels_first(array):
    return torch.from_numpy(np.moveaxis(np.asarray(array), -1, 1).copy())


def channels_last(tensor):
    return np.moveaxis(tensor.detach().numpy(), 1, -1)


def assert_same(ours, theirs, x):
    """Equal values, and equal gradients of a weighted sum of them."""
    tensor = channels_first(x).requires_grad_()
    y, expected = ours(x), theirs(tensor)
    np.testing.assert_allclose(y, channels_last(expected), rtol=1e-5, atol=1e-5)
    weights = np.random.default_rng(1).normal(size=y.shape).astype(np.float32)
    expected.backward(channels_first(weights))
    gradient = jax.jit(jax.grad(lambda x: (ours(x) * weights).sum()))(x)
    np.testing.assert_allclose(gradient, channels_last(tensor.grad), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("shape", "window", "strides", "padding"), POOLS)
def test_max_pooling(shape, window, strides, padding, ties):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32) - 2
    x = np.round(x) if ties else x
    theirs = getattr(torch.nn.functional, f"max_pool{len(window)}d")
    assert_same(lambda x: max_pool(x, window, strides, padding), lambda x: theirs(x, window, strides, padding), x)


@pytest.mark.parametrize(
    ("size", "strides", "groups"),
    [((3, 3), 2, 1), ((1, 1), 2, 1), ((7, 7), 2, 1), ((3, 3, 3), (1, 2, 2), 1), ((3, 1, 1), 2, 1), ((3, 3, 3), 2, 4)],
)
def test_default_padding_is_torchs(size, strides, groups):
    """Even inputs under stride 2 are where 'SAME' would shift by a pixel."""
    rank = len(size)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *(6, 8, 10)[:rank], 4)).astype(np.float32)
    kernel = rng.normal(size=(*size, 4 // groups, 8)).astype(np.float32)
    weight = torch.from_numpy(np.moveaxis(kernel, (-1, -2), (0, 1)).copy())
    theirs = getattr(torch.nn.functional, f"conv{rank}d")
    pads = tuple((k - 1) // 2 for k in size)
    assert_same(
        lambda x: convolve(x, jnp.asarray(kernel), strides=strides, groups=groups),
        lambda x: theirs(x, weight, None, strides, pads, 1, groups),
        x,
    )
