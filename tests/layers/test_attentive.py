import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxvid.layers.attentive import AttentiveHead, AttentivePool
from flaxvid.layers.heads import ClassToken
from flaxvid.layers.position import token_mask
from flaxvid.models.registry import create_model, create_tiny


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).normal(size=(2, 6, 128)).astype(np.float32)


@pytest.fixture(scope="module")
def pool(tokens, randomise):
    """A pool of two heads, with random parameters."""
    return randomise(jax.eval_shape(AttentivePool().init, jax.random.key(0), tokens), 0)


def normed(x, params):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * params["scale"] + params["bias"]


def test_the_pool_written_out(tokens, pool):
    p = pool["params"]
    x, token = normed(tokens, p["norm1"]), p["token"][0, 0]
    q = token @ p["query"]["kernel"] + p["query"]["bias"]
    k, v = x @ p["key"]["kernel"], x @ p["value"]["kernel"] + p["value"]["bias"]
    attended = []
    for head in (slice(0, 64), slice(64, 128)):
        scores = k[..., head] @ q[head] / 8
        weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        attended.append(np.einsum("bn,bnc->bc", weights, v[..., head]))
    y = token + np.concatenate(attended, axis=-1)
    hidden = jax.nn.gelu(normed(y, p["norm2"]) @ p["mlp"]["fc1"]["kernel"] + p["mlp"]["fc1"]["bias"], approximate=False)
    y = y + hidden @ p["mlp"]["fc2"]["kernel"] + p["mlp"]["fc2"]["bias"]
    chex.assert_trees_all_close(np.asarray(AttentivePool().apply(pool, tokens)), np.asarray(y), rtol=1e-4, atol=1e-4)


def test_the_order_of_tokens_does_not_count_and_masked_ones_have_no_part(tokens, pool):
    whole = AttentivePool().apply(pool, tokens)
    chex.assert_trees_all_close(AttentivePool().apply(pool, tokens[:, ::-1]), whole, rtol=1e-4, atol=1e-5)
    keys = np.arange(6) < np.array([[6], [4]])
    masked = AttentivePool().apply(pool, tokens, keys)
    chex.assert_trees_all_close(masked[0], whole[0], rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(masked[1], AttentivePool().apply(pool, tokens[1:, :4])[0], rtol=1e-4, atol=1e-5)
    assert not np.allclose(masked[1], whole[1], rtol=1e-2)


def test_several_grids_have_a_pool_each_and_a_class_token_is_a_token(randomise):
    rng = np.random.default_rng(1)
    slow, fast = rng.normal(size=(2, 2, 3, 3, 16)), rng.normal(size=(2, 8, 3, 3, 4))
    head = AttentiveHead(5, grids=2)
    variables = randomise(jax.eval_shape(head.init, jax.random.key(0), (slow, fast)), 0)
    assert set(variables["params"]) == {"attention_0", "attention_1", "classifier"}
    feature = head.apply(variables, (slow, fast), method="pool")
    chex.assert_shape(feature, (2, 20))
    for part, grid, number in ((feature[:, :16], slow, 0), (feature[:, 16:], fast, 1)):
        own = {"params": variables["params"][f"attention_{number}"]}
        alone = AttentivePool().apply(own, grid.reshape(2, -1, grid.shape[-1]))
        chex.assert_trees_all_close(part, alone, rtol=1e-5, atol=1e-6)

    one = {"params": {name: leaf for name, leaf in variables["params"].items() if name != "attention_1"}}
    token, mask = rng.normal(size=(2, 16)), np.array([[1, 0, 0, 0], [1, 1, 1, 1]], bool)
    head = AttentiveHead(5, fit=token_mask)
    feature = head.apply(one, ClassToken(token, slow), frame_mask=mask, method="pool")
    row = np.concatenate([token[:, None], slow.reshape(2, 18, 16)], axis=1)
    pool = {"params": one["params"]["attention_0"]}
    chex.assert_trees_all_close(feature[0], AttentivePool().apply(pool, row[:1, :10])[0], rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(feature[1], AttentivePool().apply(pool, row[1:])[0], rtol=1e-4, atol=1e-5)


def test_the_softmax_and_the_feature_are_float32(tokens, pool):
    x = jnp.asarray(tokens, jnp.bfloat16)
    half = AttentivePool(jnp.bfloat16)
    text = jax.jit(half.apply).lower(pool, x).as_text()
    exponentials = [line for line in text.splitlines() if "stablehlo.exponential" in line]
    assert exponentials
    assert all("xf32>" in line for line in exponentials)
    assert half.apply(pool, x).dtype == jnp.float32


@pytest.mark.parametrize(
    ("name", "expected"), [("x3d_m", 192), ("slowfast_r50", 2304), ("cnn_gru", 1024), ("vivit_base", 768)]
)
def test_the_feature_is_as_wide_as_the_bodys_grids(name, expected):
    model = create_model(name, head="attention")
    assert isinstance(model.head, AttentiveHead)
    assert model.feature_dim == expected


@pytest.mark.parametrize("fusion", ["attention", "late"])
def test_several_cameras_have_the_attentive_head_of_their_backbone(fusion):
    model = create_tiny("ts_cva", fusion=fusion, head="attention", cameras=("front", "left"))
    video = model.for_cameras(jnp.zeros((2, 4, 32, 32, 3), jnp.uint8))
    variables = jax.eval_shape(model.init, jax.random.key(0), video)
    assert set(variables["params"]["head"]) == {"attention_0", "classifier"}
    chex.assert_shape(jax.eval_shape(model.apply, variables, video), (2, 5))


def test_another_word_is_one_error():
    with pytest.raises(ValueError, match=r'^head must be "own" or "attention", got \'attentive\'$'):
        create_model("tsm_resnet18", head="attentive")
