import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxvid.layers.blocks import ConvNorm, SqueezeExcitation, fit_mask, global_mean, mask_frames
from flaxvid.layers.lowering import direct_convolve

MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(size=(2, 5, 4, 4, 6)).astype(np.float32)


def test_the_mask_of_a_grid_follows_from_the_lengths():
    rng = np.random.default_rng(0)
    for frames in range(1, 70):
        mask = rng.random((2, frames)) < 0.5
        for stride in (1, 2, 4, 8, 16):
            strided = mask[:, ::stride]
            np.testing.assert_array_equal(fit_mask(mask, strided.shape[1]), strided)
    assert fit_mask(None, 3) is None


def test_a_mask_that_cannot_be_the_clips_says_so():
    with pytest.raises(ValueError, match=r"frame_mask has 8 frames, and no temporal stride .* makes 3"):
        fit_mask(np.ones((1, 8), bool), 3)
    with pytest.raises(ValueError, match="frame_mask has 4 frames"):
        fit_mask(np.ones((1, 4), bool), 8)


def test_padded_frames_become_zeros(x):
    masked = np.asarray(mask_frames(x, MASK))
    np.testing.assert_array_equal(masked[MASK], x[MASK])
    assert (masked[~MASK] == 0).all()
    assert mask_frames(x, None) is x
    np.testing.assert_array_equal(mask_frames(x[:, :3], MASK), mask_frames(x[:, :3], MASK[:, ::2]))


def test_the_mean_counts_real_frames_only(x):
    expected = [x[0, :3].mean((0, 1, 2)), x[1].mean((0, 1, 2))]
    np.testing.assert_allclose(global_mean(x, MASK), expected, rtol=1e-5, atol=1e-6)
    assert global_mean(x.astype(jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parametrize(("relu", "groups"), [(False, 1), (True, 3)])
def test_convolution_norm_and_relu(x, randomise, relu, groups):
    layer = ConvNorm(9, (3, 1, 3), (2, 1, 2), groups, relu)
    variables = randomise(jax.eval_shape(layer.init, jax.random.key(0), x))
    assert set(variables["params"]) == {"conv", "norm"}
    kernel, norm, stats = variables["params"]["conv"]["kernel"], variables["params"]["norm"], variables["batch_stats"]
    y = direct_convolve(x, kernel, strides=(2, 1, 2), groups=groups)
    chex.assert_shape(y, (2, 3, 4, 2, 9))
    y = (y - stats["norm"]["mean"]) / np.sqrt(stats["norm"]["var"] + 1e-5) * norm["scale"] + norm["bias"]
    expected = np.maximum(y, 0) if relu else y
    chex.assert_trees_all_close(jax.jit(layer.apply)(variables, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_padded_frames_change_neither_output_nor_statistics(x, randomise, kernel, stride):
    layer = ConvNorm(7, (kernel, 3, 3), (stride, 1, 1), relu=True)
    variables = randomise(jax.eval_shape(layer.init, jax.random.key(0), x))
    mask = np.arange(5)[None] < np.full((2, 1), 3)
    train = jax.jit(lambda x, mask: layer.apply(variables, x, True, mask, mutable=["batch_stats"]))
    for evaluate in (train, jax.jit(lambda x, mask: (layer.apply(variables, x, False, mask), {}))):
        short, statistics = evaluate(x[:, :3], None)
        long, padded_statistics = evaluate(x, mask)
        chex.assert_trees_all_close(long[:, : short.shape[1]], short, rtol=1e-4, atol=1e-5)
        chex.assert_trees_all_close(padded_statistics, statistics, rtol=1e-5, atol=1e-6)


def test_squeeze_and_excitation_by_hand(x, randomise):
    layer = SqueezeExcitation(3)
    variables = randomise(jax.eval_shape(layer.init, jax.random.key(0), x))
    assert {name: leaf["kernel"].shape for name, leaf in variables["params"].items()} == {
        "reduce": (1, 1, 1, 6, 3),
        "expand": (1, 1, 1, 3, 6),
    }
    reduce, expand = (variables["params"][name] for name in ("reduce", "expand"))
    hidden = x.mean((1, 2, 3)) @ reduce["kernel"][0, 0, 0] + reduce["bias"]
    hidden = np.maximum(hidden, 0)
    weights = 1 / (1 + np.exp(-(hidden @ expand["kernel"][0, 0, 0] + expand["bias"])))
    out = jax.jit(layer.apply)(variables, x)
    chex.assert_trees_all_close(np.asarray(out), x * weights[:, None, None, None], rtol=1e-5, atol=1e-6)
    masked = jax.jit(layer.apply)(variables, x, MASK)
    alone = jax.jit(layer.apply)(variables, x[:1, :3])
    chex.assert_trees_all_close(masked[:1, :3], alone, rtol=1e-5, atol=1e-6)
    assert layer.clone(dtype=jnp.bfloat16).apply(variables, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
