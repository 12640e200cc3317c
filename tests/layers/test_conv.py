import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from flaxvid.layers import lowering
from flaxvid.layers.conv import Conv
from flaxvid.layers.lowering import convolve, direct_convolve, direct_form

# name: input shape, kernel size, strides, padding, groups, features
CASES = {
    "1x1": ((2, 7, 6, 4), (1, 1), 1, None, 1, 6),
    "1x1 strided, odd": ((2, 7, 5, 4), (1, 1), 2, None, 1, 6),
    "1x1 padded": ((2, 7, 6, 4), (1, 1), (2, 1), 1, 1, 6),
    "3x3": ((2, 7, 6, 4), (3, 3), 1, None, 1, 6),
    "3x3 strided": ((2, 8, 7, 4), (3, 3), 2, None, 1, 6),
    "3x3, map smaller than the kernel": ((2, 2, 2, 4), (3, 3), 1, None, 1, 6),
    "3x3 strided, map smaller than the kernel": ((2, 3, 4, 4), (3, 3), 2, None, 1, 6),
    "3x3x3, map smaller than the kernel": ((2, 4, 2, 2, 4), (3, 3, 3), (1, 2, 2), None, 1, 6),
    "7x7 stem": ((1, 12, 11, 3), (7, 7), 2, None, 1, 4),
    "2-D on clips": ((2, 3, 6, 5, 4), (3, 3), 2, None, 1, 6),
    "1x1 on clips": ((2, 3, 6, 5, 4), (1, 1), 2, None, 1, 6),
    "depthwise 2-D": ((2, 7, 6, 4), (3, 3), (2, 1), None, 4, 4),
    "depthwise 2-D, two outputs": ((2, 7, 6, 3), (3, 3), 1, None, 3, 6),
    "grouped 2-D": ((2, 7, 6, 8), (3, 3), 2, None, 4, 12),
    "grouped 1x1": ((2, 4, 4, 8), (1, 1), 2, None, 2, 6),
    "1x1x1": ((2, 3, 5, 4, 4), (1, 1, 1), (1, 2, 2), None, 1, 6),
    "3x3x3": ((2, 4, 5, 6, 4), (3, 3, 3), 1, None, 1, 6),
    "3x3x3 strided, odd": ((2, 5, 7, 6, 4), (3, 3, 3), 2, None, 1, 6),
    "3x3x3 unpadded": ((1, 5, 5, 6, 4), (3, 3, 3), (2, 1, 2), 0, 1, 6),
    "1x3x3": ((2, 3, 6, 5, 4), (1, 3, 3), (1, 2, 2), None, 1, 6),
    "1x3x3, frames strided": ((1, 5, 6, 5, 4), (1, 3, 3), (2, 1, 1), None, 1, 6),
    "1x7x7 stem": ((1, 3, 11, 10, 3), (1, 7, 7), (1, 2, 2), None, 1, 4),
    "5x7x7 stem": ((1, 6, 11, 10, 3), (5, 7, 7), (1, 2, 2), None, 1, 4),
    "3x5x5 stem, all strided": ((2, 5, 9, 8, 3), (3, 5, 5), 2, None, 1, 12),
    "3x1x1": ((2, 4, 4, 3, 4), (3, 1, 1), 1, None, 1, 6),
    "3x1x1 strided": ((2, 5, 4, 5, 4), (3, 1, 1), (2, 2, 1), None, 1, 6),
    "7x1x1 fusion": ((1, 8, 3, 3, 4), (7, 1, 1), (4, 1, 1), (3, 0, 0), 1, 6),
    "2x3x3 even, one-sided": ((1, 4, 5, 5, 4), (2, 3, 3), 1, ((1, 0), (1, 1), (0, 2)), 1, 6),
    "depthwise 3x3x3": ((2, 4, 5, 6, 4), (3, 3, 3), (1, 2, 2), None, 4, 4),
    "depthwise 5x1x1": ((1, 6, 3, 4, 4), (5, 1, 1), 1, None, 4, 4),
    "depthwise 3x3x3, many rows": ((1, 3, 37, 4, 2), (3, 3, 3), (1, 2, 1), None, 2, 2),
    "2x4x3 cells, cut short": ((2, 5, 8, 10, 3), (2, 4, 3), (2, 4, 3), 0, 1, 6),
    "4x4 cells on clips": ((2, 3, 8, 12, 3), (4, 4), 4, 0, 1, 6),
    "grouped 3x3x3": ((1, 3, 5, 4, 8), (3, 3, 3), (1, 2, 2), None, 2, 6),
    "3-D, no batch axis": ((4, 5, 6, 4), (3, 3, 3), 1, None, 1, 6),
    "3-D, two batch axes": ((2, 2, 3, 4, 5, 4), (3, 3, 3), 1, None, 1, 6),
}


def random(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape).astype(np.float32))


def build(name, **fields):
    """Our layer, that of flax, random parameters of the shapes that flax wants, and an input."""
    shape, size, strides, padding, groups, features = CASES[name]
    pairs = [(k - 1) // 2 for k in size] if padding is None else padding
    ours = Conv(features, size, strides, padding, groups, **fields)
    theirs = nn.Conv(features, size, strides, pairs, feature_group_count=groups, use_bias=fields.get("use_bias", False))
    x = random(*shape)
    variables, own = (jax.eval_shape(layer.init, jax.random.key(0), x) for layer in (theirs, ours))
    assert own == variables
    return ours, theirs, jax.tree.map(lambda leaf: random(*leaf.shape) / 4, variables), x


def value_and_gradients(layer, variables, x):
    """The output and the gradients of a curved function of it with respect to input and parameters."""

    def loss(variables, x):
        y = layer.apply(variables, x)
        return jnp.sin(y).sum(), y

    (_, y), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(variables, x)
    return y, gradients


def assert_close(actual, expected, tolerance=1e-5):
    def close(path, a, b):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max(), err_msg=str(path))

    jax.tree_util.tree_map_with_path(close, actual, expected)


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_flax(name):
    ours, theirs, variables, x = build(name)
    assert_close(value_and_gradients(ours, variables, x), value_and_gradients(theirs, variables, x))


@pytest.mark.parametrize("name", ["3x3", "3x1x1"])
def test_bias(name):
    ours, theirs, variables, x = build(name, use_bias=True)
    assert_close(value_and_gradients(ours, variables, x), value_and_gradients(theirs, variables, x))


@pytest.mark.parametrize(
    "name", ["1x1", "3x3", "3x3x3", "3x1x1", "depthwise 3x3x3", "grouped 2-D", "4x4 cells on clips"]
)
def test_bfloat16_computes_and_keeps_float32_parameters(name):
    ours, theirs, variables, x = build(name, dtype=jnp.bfloat16)
    y, gradients = value_and_gradients(ours, variables, x)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, gradients))} == {jnp.dtype("float32")}
    exact = value_and_gradients(theirs, variables, x.astype(jnp.bfloat16).astype(jnp.float32))
    for actual, expected in zip(jax.tree.leaves((y, gradients)), jax.tree.leaves(exact), strict=True):
        error = jnp.linalg.norm(actual.astype(jnp.float32) - expected) / jnp.linalg.norm(expected)
        assert error < 0.01


def test_default_init_is_that_of_torchvision():
    kernel = Conv(256, (3, 3)).init(jax.random.key(0), jnp.zeros((1, 4, 4, 64)))["params"]["kernel"]
    assert kernel.dtype == jnp.float32
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (256 * 9)), rtol=0.02)


@pytest.mark.parametrize("name", ["1x1", "3x1x1", "depthwise 3x3x3", "depthwise 5x1x1", "grouped 1x1"])
def test_transformations_agree(name):
    ours, _, variables, x = build(name)

    def loss(variables, x):
        return jnp.sin(ours.apply(variables, x)).sum()

    expected = jax.jit(jax.grad(loss))(variables, x)
    assert_close(jax.jit(jax.grad(jax.checkpoint(loss)))(variables, x), expected)
    each = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(variables, x[:, None])
    assert_close(jax.tree.map(lambda g: g.sum(0), each), expected)
    _, tangent = jax.jit(lambda *at: jax.jvp(loss, at, at))(variables, x)
    inner = jax.tree.map(lambda g, v: (g * v).sum(), jax.grad(loss, (0, 1))(variables, x), (variables, x))
    np.testing.assert_allclose(tangent, sum(jax.tree.leaves(inner)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("1x1") and "3" not in name])
def test_the_form_of_other_platforms_for_1x1(name, monkeypatch):
    """As a CPU runs it: the one convolution of a slice, in values and gradients that of flax."""
    monkeypatch.setattr(lowering, "_dot", lowering._pointwise)
    ours, theirs, variables, x = build(name)
    assert_close(value_and_gradients(ours, variables, x), value_and_gradients(theirs, variables, x))
    assert "dot_general" not in str(jax.make_jaxpr(ours.apply)(variables, x))


@pytest.mark.parametrize("name", ["1x1", "3x3x3", "3x1x1", "depthwise 2-D", "grouped 1x1"])
def test_one_export_for_all_platforms(name):
    ours, theirs, variables, x = build(name)
    gradients = jax.jit(jax.grad(lambda v, x: jnp.sin(ours.apply(v, x)).sum()))

    everywhere = export.export(gradients, platforms=("cpu", "cuda", "tpu"))(variables, x)
    expected = jax.jit(jax.grad(lambda v, x: jnp.sin(theirs.apply(v, x)).sum()))(variables, x)
    assert_close(jax.jit(everywhere.call)(variables, x), expected)

    for platform in ("cuda", "tpu"):
        text = export.export(gradients, platforms=(platform,))(variables, x).mlir_module()
        assert text.count("stablehlo.convolution") == 2
        assert "stablehlo.dot_general" not in text
        assert "stablehlo.pad" not in text


def test_symbolic_batch():
    ours, _, variables, x = build("3x3x3")
    shape = export.symbolic_shape("b, 4, 5, 6, 4")
    exported = export.export(jax.jit(ours.apply))(variables, jax.ShapeDtypeStruct(shape, jnp.float32))
    assert_close(exported.call(variables, x), ours.apply(variables, x))


@pytest.mark.parametrize(("size", "strides"), [(3, 1), (1, 2)])
def test_backward_keeps_input_and_kernel_only(size, strides):
    """What both platforms' branches save would else be saved on each of them: zeros on a GPU, copies on a CPU."""
    x, kernel = jnp.ones((1, 4, 5, 5, 3)), jnp.ones((size, 1, 1, 3, 3))
    _, vjp = jax.vjp(functools.partial(convolve, strides=strides), x, kernel)
    assert {leaf.shape for leaf in jax.tree.leaves(vjp) if leaf.ndim} == {x.shape, kernel.shape}


def test_direct_form_traces_one_convolution():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            for size, groups in (((3, 3, 3), 1), ((1, 1, 1), 1), ((3, 1, 1), 4)):
                x = Conv(4, size, groups=groups)(x)
            return x

    x = random(1, 3, 4, 4, 4)
    shapes = jax.eval_shape(Net().init, jax.random.key(0), x)
    variables = jax.tree.map(lambda leaf: random(*leaf.shape), shapes)

    def primitives():
        return str(jax.make_jaxpr(lambda x: Net().apply(variables, x))(x))

    with direct_form():
        inside = primitives()
        y = Net().apply(variables, x)
    assert inside.count("conv_general_dilated[") == 3
    assert "platform_index" not in inside
    assert "platform_index" in primitives()
    assert_close(y, Net().apply(variables, x))


def test_direct_where_direct_is_best():
    x, kernel = jnp.ones((2, 3, 5, 5, 4)), jnp.ones((3, 3, 4, 6))
    assert "platform_index" not in str(jax.make_jaxpr(convolve)(x, kernel))
    assert convolve(x, kernel).shape == direct_convolve(x, kernel).shape == (2, 3, 5, 5, 6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"strides": (1, 1)}, "strides: expected one integer or 3"),
        ({"padding": (1, 1)}, "padding: expected one integer or 3"),
        ({"padding": "SAME"}, "padding: expected one integer or 3"),
        ({"groups": 3}, "groups: expected a divisor of channels 4 and 6, got 3"),
    ],
)
def test_errors_say_what_fits(fields, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(Conv(6, (3, 3, 3), **fields).init, jax.random.key(0), jnp.ones((1, 3, 4, 4, 4)))
