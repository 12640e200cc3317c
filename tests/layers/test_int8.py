"""Rounding to int8 against NumPy and against qwix's integer arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flaxvid.layers.blocks import Sum
from flaxvid.layers.conv import Conv
from flaxvid.layers.int8 import at_operands, int8_form, is_kept, pack_kernel, round_input, round_kernel

qwix = pytest.importorskip("qwix")
RNG = np.random.default_rng(0)
X = RNG.normal(0, 1, (2, 3, 8, 8, 4)).astype(np.float32)
KERNEL = RNG.normal(0, 1, (3, 3, 4, 6)).astype(np.float32)


def test_kernels_have_a_step_for_each_channel():
    step = np.abs(KERNEL).max(axis=(0, 1, 2)) / 127
    wanted = np.round(KERNEL / step) * step
    rounded = jax.jit(round_kernel)(KERNEL)
    np.testing.assert_allclose(rounded, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(round_kernel(rounded), rounded, rtol=1e-6, atol=1e-7)
    whole, steps = pack_kernel(KERNEL)
    assert whole.dtype == np.int8
    assert np.abs(whole.astype(int)).max() == 127
    np.testing.assert_allclose(whole * steps, wanted, rtol=1e-5, atol=1e-6)
    again, _ = pack_kernel(whole * steps)
    np.testing.assert_array_equal(again, whole)


@pytest.mark.parametrize("limits", [(-2.0, 2.5), (0.0, 1.5), (-9.0, 9.0)])
def test_inputs_have_256_steps_between_their_limits(limits):
    low, high = limits
    step = (high - low) / 255
    zero = np.round(-128 - low / step)
    wanted = (np.clip(np.round(X / step + zero), -128, 127) - zero) * step
    np.testing.assert_allclose(jax.jit(lambda x: round_input(x, limits))(X), wanted, rtol=1e-4, atol=step * 1e-3)
    assert round_input(np.zeros((1, 4), np.float32), limits).any() == False  # noqa: E712  padding stays zero


def test_each_clip_has_its_own_limits_in_training():
    both, alone = round_input(X), round_input(X[:1])
    np.testing.assert_allclose(both[:1], alone, rtol=1e-6)
    np.testing.assert_allclose(both, X, atol=(X.max() - min(X.min(), 0)) / 255)
    assert len(np.unique(both[0])) <= 256


def test_the_gradient_passes_through():
    gradient = jax.grad(lambda x: (round_input(x, (-0.5, 0.5)) * X).sum())(X)
    np.testing.assert_array_equal(gradient, X)
    np.testing.assert_array_equal(jax.grad(lambda k: (round_kernel(k) * KERNEL).sum())(KERNEL), KERNEL)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = Conv(6, (3, 3), name="first")(x)
        x = Conv(5, (3, 3), use_bias=True, name="second")(nn.relu(x))
        return nn.Dense(7, name="last")(x.mean(axis=(1, 2, 3)))


def test_layers_round_what_they_multiply():
    net = Net()
    variables = net.init(jax.random.key(0), X)
    seen = {}

    def look(path, x, kernel):
        seen[path] = x, kernel
        return x, kernel

    with at_operands(look):
        plain = net.apply(variables, X)
    assert list(seen) == ["first", "second", "last"]
    np.testing.assert_allclose(plain, net.apply(variables, X), rtol=1e-5, atol=1e-6)

    limits = {"second": (0.0, 3.0), "last": (-1.0, 1.0)}
    with int8_form(limits):
        got = net.apply(variables, X)
    params = variables["params"]
    x = nn.relu(Conv(6, (3, 3)).apply({"params": params["first"]}, X))
    second = {**params["second"], "kernel": round_kernel(params["second"]["kernel"])}
    x = Conv(5, (3, 3), use_bias=True).apply({"params": second}, round_input(x, limits["second"]))
    x = round_input(x.mean(axis=(1, 2, 3)), limits["last"])
    wanted = x @ round_kernel(params["last"]["kernel"]) + params["last"]["bias"]
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    assert np.abs(np.asarray(got - plain)).max() > 1e-4
    np.testing.assert_array_equal(net.apply(variables, X), net.apply(variables, X))


def test_sums_round_their_shortcut():
    layer, limits = Sum(), {"": (-2.0, 2.0)}
    y = 2 * X[::-1]
    with int8_form(limits):
        np.testing.assert_array_equal(layer.apply({}, X, y), round_input(X, limits[""]) + y)
    with int8_form("dynamic"):
        np.testing.assert_array_equal(layer.apply({}, X, y), round_input(X) + y)
    np.testing.assert_array_equal(layer.apply({}, X, y), X + y)


def test_it_is_what_integers_give():
    limits = (0.0, 2.0)
    x = np.abs(X[:, 0])
    whole, steps = pack_kernel(KERNEL)
    scale = np.float32(2.0 / 255)
    q = qwix.QArray(
        jnp.clip(jnp.round(x / scale - 128), -128, 127).astype(jnp.int8),
        jnp.full((1, 1, 1, 1), scale),
        jnp.full((1, 1, 1, 1), -128, jnp.int8),
        jnp.int8,
    )
    np.testing.assert_allclose(qwix.dequantize(q), round_input(x, limits), rtol=1e-4, atol=1e-5)
    integers = np.asarray(q.qvalue, np.int64) + 128
    inner = integers[:, 1:4, 2:5].reshape(2, -1) @ whole.astype(np.int64).reshape(-1, 6)  # one place of the output
    conv = Conv(6, (3, 3)).apply({"params": {"kernel": round_kernel(KERNEL)}}, round_input(x, limits)[:, None])
    np.testing.assert_allclose(conv[:, 0, 2, 3], inner * scale * steps, rtol=1e-4, atol=1e-4)


def test_what_is_kept():
    assert not is_kept("stem/conv1")
    assert is_kept("head/classifier")
    assert is_kept("body/layer1_0/se/reduce")
    assert not is_kept("body/layer1_0/conv_a/conv")
    assert is_kept("body/layer1_0/conv1", ("body/layer1_.*",))
