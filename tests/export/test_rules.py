"""Functions of JAX as ONNX programs: layouts, products, cuts and joins, and what has no rule."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from flaxvid.export.onnx import onnx_function  # noqa: E402

SHAPE = ("batch", 4, 6, 5, 8)
WEIGHTS = np.random.default_rng(1).normal(size=(3, 3, 8, 8)).astype(np.float32)
TABLE = np.random.default_rng(2).normal(size=(4, 6, 5, 8)).astype(np.float32)


def conv(x, kernel=WEIGHTS, **options):
    """On every frame, so that what follows has its channels in front of its places."""
    x = x.reshape(-1, *x.shape[2:]) if x.ndim == 5 else x
    settings = {"window_strides": (1, 1), "padding": ((1, 1), (1, 1)), **options}
    return lax.conv_general_dilated(x, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **settings)


def framed(x):
    """The output of `conv` with its time again; in memory batch and time are one axis."""
    return conv(x).reshape(-1, 4, 6, 5, 8)


def loop(x, reverse):
    def step(state, now):
        state = jnp.tanh(state + now @ WEIGHTS[0, 0])
        return state, 2 * state

    return lax.scan(step, jnp.zeros((x.shape[0], 8)), x.mean((2, 3)).swapaxes(0, 1), reverse=reverse)[1]


FUNCTIONS = {
    # layouts
    "transposed": lambda x: x.transpose(3, 0, 4, 1, 2) + 1,
    "no common factor": lambda x: (framed(x).reshape(-1, 6, 4, 40) * 2).reshape(-1, 48, 20),
    "split and merged": lambda x: framed(x).reshape(-1, 2, 2, 30, 2, 4).transpose(0, 2, 1, 3, 5, 4) + 1,
    "a table of frames": lambda x: framed(x) + TABLE[:, :1, :1],
    "a table of other factors": lambda x: framed(x).reshape(-1, 24, 40) + TABLE.reshape(24, 40),
    "two layouts meet": lambda x: framed(x) + x,
    "axes that clash": lambda x: x.reshape(-1, 4, 240)[:, :, :12].reshape(-1, 6, 8) + jnp.ones((6, 8)).reshape(6, 8),
    "a tensor meets itself": lambda x: x[:, :, None] - x[:, None],
    "rows times columns": lambda x: x[:, :, 0, 0, :1] * x[:, :1, 0, 0],
    "tiled": lambda x: jnp.tile(x[:, :1], (1, 3, 1, 1, 2)),
    "repeated": lambda x: jnp.repeat(x, 2, axis=1),
    "broadcast and summed": lambda x: jnp.broadcast_to(x[:, :, :, :, None], (*x.shape[:4], 3, 8)).sum((1, 4)),
    # element by element
    "functions": lambda x: jnp.exp(-jnp.abs(x)) + jnp.sqrt(x**2 + 1) + lax.rsqrt(x**4 + 2) + jnp.sign(x),
    "more functions": lambda x: jnp.log(x * x + 1) + jax.nn.silu(x) - nn.sigmoid(x) * jnp.cos(x) + jnp.sin(x),
    "errors": lambda x: lax.erf(x) + lax.erfc(x) * nn.gelu(x) + nn.gelu(x, approximate=False),
    "chosen": lambda x: jnp.where((x > 0) & ~(x >= 1) | (x < -1), x, jnp.clip(x, -0.5, 0.5)),
    "compared": lambda x: ((x != 0) == (x <= 0.3)).astype(jnp.float32) + jnp.floor(x) + jnp.ceil(x),
    "softmax": lambda x: nn.softmax(framed(x), axis=-1) + nn.softmax(x, axis=2),
    "softmax of some": lambda x: nn.softmax(x, axis=1, where=jnp.array([1, 1, 0, 1], bool)[:, None, None, None]),
    "no softmax": lambda x: jnp.exp(x) / jnp.exp(x).sum((1, 2), keepdims=True),
    "means": lambda x: framed(x).mean((1, 3)) - x.sum((2, 3)).max(1, keepdims=True) / 7 + x.min((1, 2, 3))[:, None],
    # products
    "dense": lambda x: framed(x) @ WEIGHTS[0, 0],
    "weights first": lambda x: jnp.einsum("tcd,bthwc->thbwd", WEIGHTS.reshape(9, 8, 8)[:4], x),
    "two axes summed": lambda x: jnp.einsum("bthwc,wcd->bthd", framed(x), TABLE.reshape(5, 8, 24)),
    "attention": lambda x: jnp.einsum("bthwc,bshwc->bhts", x, framed(x)) @ x[:, :, 0, 0][:, None],
    "an axis in one factor": lambda x: jnp.einsum("bnc,bmc->bnm", x.reshape(-1, 120, 8), framed(x).reshape(-1, 120, 8)),
    "outer": lambda x: jnp.einsum("bt,bc->bct", x[..., 0, 0, 0], x[:, 0, 0, 0]),
    "a vector": lambda x: x[:, :, 0, 0] @ TABLE[0, 0, 0],
    "same for all clips": lambda x: jnp.einsum(
        "btc,bcd->btd",
        jnp.broadcast_to(TABLE[:, 0, 0], (x.shape[0], 4, 8)),
        x[:, 0, 0, 0][..., None] * np.ones((1, 1, 3), "f") * 1,
    ),
    # convolutions and pools
    "dilated": lambda x: conv(x, rhs_dilation=(2, 1), padding=((2, 1), (0, 3)), window_strides=(2, 1)),
    "grouped": lambda x: conv(x, WEIGHTS[:, :, :4], feature_group_count=2),
    "norm behind": lambda x: (3 - conv(x) * TABLE[0, 0, 0]) / TABLE[1, 0, 0] - TABLE[2, 0, 0] + 0.5,
    "used twice": lambda x: conv(x) * 2 + conv(x),
    "shifted by places": lambda x: conv(x) + TABLE[0],
    "with a bias twice": lambda x: conv(conv(x) + TABLE[0, 0, 0]) * 2 + 1,
    "pooled": lambda x: nn.max_pool(framed(x), (2, 3, 3), (1, 2, 2), ((0, 1), (1, 1), (0, 2))),
    # cuts and joins
    "cut": lambda x: framed(x)[:, 1:, ::2, 1:4, 3:7],
    "backwards": lambda x: framed(x)[:, ::-1, 2::-1],
    "rows": lambda x: framed(x)[:, np.array([[3, 0, 0], [1, 2, 3]])],
    "rows in front": lambda x: x[:, :, 1, np.array([4, 0]), 2:5],
    "padded": lambda x: lax.pad(framed(x), 2.0, [(0, 0, 0), (1, -2, 0), (-1, 0, 0), (0, 0, 0), (0, 3, 0)]),
    "joined": lambda x: jnp.concatenate([framed(x), x[:, :1], jnp.zeros_like(x[:, 1:]) + TABLE[1:]], 1),
    "shifted in time": lambda x: jnp.concatenate([jnp.zeros_like(x[:, :1]), framed(x)[:, 1:], jnp.zeros_like(x)], 1),
    "all zeros": lambda x: x + jnp.concatenate([jnp.zeros((3, 8)), jnp.zeros((2, 8))]),
    "stacked": lambda x: jnp.stack([framed(x), x, x * 2], 3),
    "a token in front": lambda x: jnp.concatenate(
        [jnp.broadcast_to(TABLE[0, 0, :1], (x.shape[0], 1, 8)), x[:, 0, 0]], 1
    ),
    "split": lambda x: jnp.split(framed(x), (1, 5), axis=-1)[1],
    # loops
    "loop": lambda x: loop(x, False),
    "loop backwards": lambda x: loop(x, True),
    # outputs
    "the input": lambda x: x,
    "a constant": lambda x: jnp.ones((2, 3)),
}


def both(function, batch):
    """The outputs of the ONNX program and of JAX."""
    x = np.random.default_rng(batch).normal(size=(batch, *SHAPE[1:])).astype(np.float32)
    program = onnx_function(lambda x: {"y": function(x)}, {"x": (SHAPE, np.float32)})
    session = onnxruntime.InferenceSession(program.SerializeToString())
    return session.run(None, {"x": x})[0], np.asarray(function(jnp.asarray(x)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_computes_the_same(name):
    for batch in (1, 3):
        given, wanted = both(FUNCTIONS[name], batch)
        assert given.shape == wanted.shape
        assert np.abs(given - wanted).max() < 2e-6 * np.abs(wanted).max()


@pytest.mark.parametrize(
    "norm",
    [nn.LayerNorm(), nn.LayerNorm(use_scale=False), nn.LayerNorm(use_bias=False), nn.LayerNorm(reduction_axes=(1, -1))],
)
def test_layer_norms(norm):
    variables = norm.init(jax.random.key(0), jnp.ones((1, *SHAPE[1:])))
    variables = jax.tree.map(lambda leaf: leaf + TABLE[0, 0, 0], variables)
    for batch in (1, 3):
        given, wanted = both(functools.partial(norm.apply, variables), batch)
        assert np.abs(given - wanted).max() < 2e-6 * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: jnp.sort(x, axis=1), "rule for ONNX, got sort in the model"),
        (lambda x: lax.conv_transpose(x[:, 0], WEIGHTS, (2, 2), "SAME"), "expected a plain convolution"),
        (lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), "expected a network in float32, got bfloat16"),
        (lambda x: lax.pad(x, 0.0, [(0, 0, 1)] * 5), "expected a constant around a tensor"),
    ],
)
def test_what_has_no_rule_is_named(function, said):
    with pytest.raises(ValueError, match=said):
        both(function, 1)


def test_outputs_may_be_the_same_and_inputs_have_other_names():
    def twice(x):
        y = x + 1
        return {"a": y, "b": y, "c": x}

    session = onnxruntime.InferenceSession(onnx_function(twice, {"x": ((2,), np.float32)}).SerializeToString())
    a, b, c = session.run(["a", "b", "c"], {"x": np.ones(2, np.float32)})
    assert (a.tolist(), b.tolist(), c.tolist()) == ([2, 2], [2, 2], [1, 1])
    with pytest.raises(ValueError, match="inputs and outputs of different names, got x for both"):
        onnx_function(lambda x: {"x": x + 1}, {"x": ((2,), np.float32)})
