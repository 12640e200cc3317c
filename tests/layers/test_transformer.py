import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxvid import trees
from flaxvid.layers.attention import Attention
from flaxvid.layers.transformer import Block, DropPath, Mlp, PatchEmbed, drop_rates


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def made(layer, randomise, *x):
    return randomise(jax.eval_shape(layer.init, jax.random.key(0), *x))


@pytest.mark.parametrize(
    ("bias", "own"),
    [("qkv", {"qkv/bias": (24,)}), ("qv", {"q_bias": (8,), "v_bias": (8,)}), ("none", {})],
)
def test_attention_by_hand(bias, own, randomise):
    layer, x = Attention(2, bias), random(3, 5, 8)
    variables = made(layer, randomise, x)
    params = trees.flatten(variables["params"])
    kernels = {"qkv/kernel": (8, 24), "project/kernel": (8, 8), "project/bias": (8,)}
    assert {path: leaf.shape for path, leaf in params.items()} == kernels | own
    biases = [params.get("q_bias", np.zeros(8)), np.zeros(8), params.get("v_bias", np.zeros(8))]
    packed = x @ params["qkv/kernel"] + params.get("qkv/bias", np.concatenate(biases))
    q, k, v = (part.reshape(3, 5, 2, 4) for part in np.split(np.asarray(packed), 3, -1))
    scores = np.exp(np.einsum("bqhd,bkhd->bhqk", q, k) / 2)
    y = np.einsum("bhqk,bkhd->bqhd", scores / scores.sum(-1, keepdims=True), v).reshape(3, 5, 8)
    expected = y @ params["project/kernel"] + params["project/bias"]
    np.testing.assert_allclose(layer.apply(variables, x), expected, rtol=1e-4, atol=1e-5)


def test_masked_tokens_are_no_keys(randomise):
    layer, x = Attention(2), random(2, 3, 5, 8)
    variables = made(layer, randomise, x)
    keys = np.arange(5) < np.array([[3], [5]])
    y = layer.apply(variables, x, keys[:, None])
    np.testing.assert_allclose(y[0, :, :3], layer.apply(variables, x[0, :, :3]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(y[1], layer.apply(variables, x[1]), rtol=1e-5, atol=1e-6)


def test_heads_must_divide_the_channels():
    with pytest.raises(ValueError, match="num_heads must divide the 8 channels of the tokens, got 3"):
        Attention(3).init(jax.random.key(0), random(1, 2, 8))


def test_the_softmax_of_bfloat16_is_float32(randomise):
    layer, x = Attention(2, dtype=jnp.bfloat16), random(1, 4, 8)
    variables = made(layer, randomise, x)
    assert layer.apply(variables, x).dtype == jnp.bfloat16
    exponentials = [line for line in str(jax.make_jaxpr(layer.apply)(variables, x)).split("\n") if " = exp " in line]
    assert exponentials
    assert all("f32" in line.split(" = ")[0] and "bf16" not in line.split(" = ")[0] for line in exponentials)


def test_patches_are_one_dense_layer(randomise):
    layer, video = PatchEmbed(6, (2, 4, 4)), random(2, 4, 8, 12, 3)
    variables = made(layer, randomise, video)
    kernel, bias = variables["params"]["patch"]["kernel"], variables["params"]["patch"]["bias"]
    y = layer.apply(variables, video)
    chex.assert_shape(y, (2, 2, 2, 3, 6))
    patch = video[1, 2:4, 4:8, 8:12].reshape(-1)
    np.testing.assert_allclose(y[1, 1, 1, 2], patch @ kernel.reshape(-1, 6) + bias, rtol=1e-4, atol=1e-5)
    # A frame that only pads is zeros to a patch that has another frame.
    mask = np.array([[1, 1, 1, 0]] * 2, bool)
    np.testing.assert_array_equal(
        layer.apply(variables, video, False, mask), layer.apply(variables, video.at[:, 3].set(0))
    )


def test_mlp_has_the_exact_gelu(randomise):
    layer, x = Mlp(16), random(3, 4)
    variables = made(layer, randomise, x)
    fc1, fc2 = variables["params"]["fc1"], variables["params"]["fc2"]
    hidden = x @ fc1["kernel"] + fc1["bias"]
    hidden = hidden * (1 + jax.lax.erf(hidden / np.sqrt(2))) / 2
    np.testing.assert_allclose(layer.apply(variables, x), hidden @ fc2["kernel"] + fc2["bias"], rtol=1e-4, atol=1e-5)


def test_drop_path_drops_whole_clips_and_keeps_the_mean():
    x = random(4000, 2, 3)
    y = DropPath(0.25).apply({}, x, True, rngs={"dropout": jax.random.key(0)})
    dropped = (np.asarray(y) == 0).all((1, 2))
    assert dropped.mean() == pytest.approx(0.25, abs=0.03)
    np.testing.assert_allclose(y[~dropped], x[~dropped] / 0.75, rtol=1e-6)
    np.testing.assert_array_equal(DropPath(0.25).apply({}, x), x)
    np.testing.assert_array_equal(DropPath(0.0).apply({}, x, True), x)


def test_the_rate_grows_with_depth():
    assert drop_rates(0.3, 4) == pytest.approx((0, 0.1, 0.2, 0.3))
    assert drop_rates(0.3, 1) == (0,)


def test_a_block_that_drops_everything_is_its_shortcut(randomise):
    block, x = Block(2, 16, drop_path=1 - 1e-7), random(2, 5, 8)
    variables = made(block, randomise, x)
    np.testing.assert_array_equal(block.apply(variables, x, True, rngs={"dropout": jax.random.key(0)}), x)
    assert not np.allclose(block.apply(variables, x), x)
