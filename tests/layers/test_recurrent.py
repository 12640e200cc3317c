"""LSTM and GRU against their equations, written out for one clip in numpy; masks, gradients, dropout, types."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxvid.layers import recurrent
from flaxvid.layers.recurrent import Recurrent

CHANNELS, HIDDEN = 5, 3
LENGTHS = (6, 2, 4)
MASK = np.arange(6) < np.array(LENGTHS)[:, None]


def features(seed=0, frames=6):
    return np.random.default_rng(seed).normal(size=(3, frames, CHANNELS)).astype(np.float32)


def random_weights(layer, seed=0):
    shapes = jax.eval_shape(layer.init, jax.random.key(0), features())
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.uniform(-1, 1, leaf.shape).astype(np.float32), shapes)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm(inputs, hidden, weights):
    """Outputs of the steps of one clip (t, c); gates are input, forget, cell, output."""
    h, c, outputs = np.zeros(HIDDEN), np.zeros(HIDDEN), []
    for x in inputs:
        i, f, g, o = np.split(x @ weights["kernel"] + weights["bias"] + h @ hidden["kernel"] + hidden["bias"], 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        outputs.append(h)
    return np.array(outputs)


def gru(inputs, hidden, weights):
    """Gates are reset, update, new; the reset gate multiplies what the state's product and its bias give."""
    h, outputs = np.zeros(HIDDEN), []
    for x in inputs:
        xr, xz, xn = np.split(x @ weights["kernel"] + weights["bias"], 3)
        hr, hz, hn = np.split(h @ hidden["kernel"] + hidden["bias"], 3)
        r, z = sigmoid(xr + hr), sigmoid(xz + hz)
        h = (1 - z) * np.tanh(xn + r * hn) + z * h
        outputs.append(h)
    return np.array(outputs)


def expected(cell, clip, params, num_layers):
    """Both directions of all layers for one clip without padding."""
    for layer in range(num_layers):
        forward, backward = (
            [params[f"{direction}_{layer}_{product}"] for product in ("hidden", "input")]
            for direction in ("forward", "backward")
        )
        clip = np.concatenate([cell(clip, *forward), cell(clip[::-1], *backward)[::-1]], axis=-1)
    return clip


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("cell", [lstm, gru])
def test_equations_of_clips_of_several_lengths(cell, num_layers):
    """Each clip gives what it gives alone: its backward direction starts at its own last frame."""
    layer = Recurrent(cell.__name__, HIDDEN, num_layers)
    variables = random_weights(layer)
    outputs = jax.jit(layer.apply)(variables, features(), frame_mask=MASK)
    chex.assert_shape(outputs, (3, 6, 2 * HIDDEN))
    for clip, length, output in zip(features(), LENGTHS, outputs, strict=True):
        alone = expected(cell, clip[:length].astype(np.float64), variables["params"], num_layers)
        chex.assert_trees_all_close(output[:length], alone.astype(np.float32), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_padding_changes_no_bit_and_leaves_the_state_as_it_is(cell):
    layer = Recurrent(cell, HIDDEN, 2)
    variables, apply = random_weights(layer), jax.jit(layer.apply)
    outputs = apply(variables, features(), frame_mask=MASK)
    padded = np.where(MASK[..., None], features(), np.float32(1e6))
    chex.assert_trees_all_equal(apply(variables, padded, frame_mask=MASK), outputs)
    forward, backward = np.split(np.asarray(outputs), 2, axis=-1)
    for number, length in enumerate(LENGTHS):
        assert (forward[number, length:] == forward[number, length - 1]).all()
        assert (backward[number, length:] == 0).all()
    assert not np.allclose(apply(variables, features()), outputs, atol=1e-2)


@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_gradients_are_those_that_jax_derives(cell, mask, monkeypatch):
    layer = Recurrent(cell, HIDDEN, 2)

    def loss(variables, x):
        return (layer.apply(variables, x, frame_mask=mask) ** 2).sum()

    own = jax.grad(loss, argnums=(0, 1))(random_weights(layer), features())
    monkeypatch.setattr(recurrent, "_run", lambda *arguments: recurrent._forward(*arguments)[0])
    derived = jax.grad(loss, argnums=(0, 1))(random_weights(layer), features())
    chex.assert_trees_all_close(own, derived, rtol=1e-5, atol=1e-5)
    assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(own))


def test_one_direction_does_not_see_the_future():
    layer = Recurrent("gru", HIDDEN, 2, bidirectional=False)
    variables = random_weights(layer)
    changed = features()
    changed[:, 4] += 1
    before, after = (np.asarray(layer.apply(variables, x)) for x in (features(), changed))
    chex.assert_shape(before, (3, 6, HIDDEN))
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert (before[:, 4:] != after[:, 4:]).any(axis=-1).all()


@pytest.mark.parametrize(("cell", "small", "large"), [("lstm", 2_101_248, 5_246_976), ("gru", 1_575_936, 3_935_232)])
def test_parameters_are_those_of_torch(cell, small, large):
    for channels, parameters in ((512, small), (2048, large)):
        x = jax.ShapeDtypeStruct((1, 4, channels), np.float32)
        for bidirectional in (False, True):
            layer = Recurrent(cell, 512, bidirectional=bidirectional)
            shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
            assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters * (1 + bidirectional)


def test_weights_start_as_those_of_torch():
    params = Recurrent("lstm", 64, 1).init(jax.random.key(0), np.zeros((1, 2, 100), np.float32))["params"]
    for leaf in jax.tree.leaves(params):
        assert 0.12 < np.abs(leaf).max() <= 0.125
        assert abs(float(leaf.mean())) < 0.02


def test_dropout_is_between_layers_and_in_training_only():
    def train(layer, key):
        return layer.apply(random_weights(layer), features(), True, rngs={"dropout": jax.random.key(key)})

    one, two = (Recurrent("gru", HIDDEN, count, dropout=0.5) for count in (1, 2))
    chex.assert_trees_all_equal(train(one, 0), one.apply(random_weights(one), features()))
    assert not np.allclose(train(two, 0), train(two, 1))
    plain = Recurrent("gru", HIDDEN, 2)
    chex.assert_trees_all_equal(two.apply(random_weights(two), features()), train(plain, 0))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_bfloat16_is_for_products_alone(cell):
    full, half = (Recurrent(cell, HIDDEN, 2, dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16))
    variables = random_weights(full)

    def both(layer):
        return layer.apply(variables, features()), jax.grad(lambda v: (layer.apply(v, features()) ** 2).sum())(
            variables
        )

    (outputs, gradients), (expected, derived) = both(half), both(full)
    assert outputs.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}
    assert 0 < np.abs(outputs - expected).max() < 0.03
    scale = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(derived))
    chex.assert_trees_all_close(gradients, derived, atol=0.03 * scale)


def test_a_mask_of_a_clip_fits_fewer_steps():
    """A backbone with a temporal stride gives fewer steps than the clip has frames."""
    layer = Recurrent("lstm", HIDDEN)
    variables = random_weights(layer)
    of_clip = np.repeat(MASK, 2, axis=1)
    masked = functools.partial(layer.apply, variables, features())
    chex.assert_trees_all_equal(masked(frame_mask=of_clip), masked(frame_mask=MASK))
