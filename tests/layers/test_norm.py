import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flaxvid.layers.norm import BatchNorm

EPSILON = 1e-5


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(2, 3, (2, 5, 3, 4, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def variables():
    rng = np.random.default_rng(1)
    draw = lambda low, high: rng.uniform(low, high, 6).astype(np.float32)  # noqa: E731
    return {
        "params": {"scale": draw(0.5, 1.5), "bias": draw(-1, 1)},
        "batch_stats": {"mean": draw(-1, 1), "var": draw(0.5, 2)},
    }


train = jax.jit(lambda v, x, mask=None: BatchNorm().apply(v, x, True, mask, mutable=["batch_stats"]))


def affine(variables, x, mean, var):
    return (x - mean) / np.sqrt(var + EPSILON) * variables["params"]["scale"] + variables["params"]["bias"]


def test_evaluation_uses_the_running_statistics(x, variables):
    out = jax.jit(BatchNorm().apply)(variables, x)
    chex.assert_trees_all_close(out, affine(variables, x, **variables["batch_stats"]), rtol=1e-5, atol=1e-5)


def test_training_uses_and_moves_towards_the_batchs(x, variables):
    out, state = train(variables, x)
    mean, var = x.mean((0, 1, 2, 3)), x.var((0, 1, 2, 3))
    chex.assert_trees_all_close(out, affine(variables, x, mean, var), rtol=1e-4, atol=1e-4)
    before = variables["batch_stats"]
    expected = {"mean": 0.9 * before["mean"] + 0.1 * mean, "var": 0.9 * before["var"] + 0.1 * var}
    chex.assert_trees_all_close(state["batch_stats"], expected, rtol=1e-5, atol=1e-5)


def test_numbers_of_torch(x, variables):
    torch = pytest.importorskip("torch")
    layer = torch.nn.BatchNorm3d(6)
    names = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    flat = {**variables["params"], **variables["batch_stats"]}
    layer.load_state_dict({key: torch.tensor(flat[name]) for key, name in names.items()}, strict=False)
    reference = layer(torch.tensor(x).movedim(-1, 1)).movedim(1, -1).detach().numpy()
    out, state = train(variables, x)
    chex.assert_trees_all_close(np.asarray(out), reference, rtol=1e-4, atol=1e-4)
    stats, n = state["batch_stats"], x[..., 0].size
    chex.assert_trees_all_close(np.asarray(stats["mean"]), layer.running_mean.numpy(), rtol=1e-5, atol=1e-5)
    # torch keeps the unbiased variance of the batch: n / (n - 1) times ours.
    biased = 0.9 * flat["var"] + (layer.running_var.numpy() - 0.9 * flat["var"]) * (n - 1) / n
    chex.assert_trees_all_close(np.asarray(stats["var"]), biased, rtol=1e-4, atol=1e-4)


def test_masked_frames_do_not_enter_the_statistics(x, variables):
    mask = np.ones((2, 5), bool)
    mask[1, 3:] = False
    disturbed = x.copy()
    disturbed[1, 3:] = 1e3
    out, state = train(variables, disturbed, mask)
    real = x[mask]  # (frames, h, w, c)
    mean, var = real.mean((0, 1, 2)), real.var((0, 1, 2))
    chex.assert_trees_all_close(np.asarray(out)[mask], affine(variables, real, mean, var), rtol=1e-4, atol=1e-4)
    before = variables["batch_stats"]
    expected = {"mean": 0.9 * before["mean"] + 0.1 * mean, "var": 0.9 * before["var"] + 0.1 * var}
    chex.assert_trees_all_close(state["batch_stats"], expected, rtol=1e-4, atol=1e-4)


def test_bfloat16_activations_float32_statistics(x, variables):
    half = jnp.asarray(x, jnp.bfloat16)
    out, state = jax.jit(lambda v, x: BatchNorm(dtype=jnp.bfloat16).apply(v, x, True, mutable=["batch_stats"]))(
        variables, half
    )
    assert out.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32")}
    _, exact = train(variables, np.asarray(half, np.float32))
    chex.assert_trees_all_close(state, exact, rtol=1e-4, atol=1e-4)  # summed in float32, not in bfloat16


def test_a_relu_in_evaluation(x, variables):
    plain = jax.jit(BatchNorm().apply)(variables, x)
    np.testing.assert_array_equal(jax.jit(BatchNorm(relu=True).apply)(variables, x), np.maximum(plain, 0))


def normalise(x, mask, scale, bias, relu):
    """As `BatchNorm` in training, and its running statistics; JAX alone derives the gradients."""
    exact = x.astype(jnp.float32)
    where = None if mask is None else jnp.broadcast_to(mask[:, :, None, None, None], x.shape)
    mean, square = exact.mean((0, 1, 2, 3), where=where), (exact**2).mean((0, 1, 2, 3), where=where)
    var = jnp.maximum(0, square - mean**2)
    y = (exact - mean) * (scale / jnp.sqrt(var + EPSILON)) + bias
    y = nn.relu(y) if relu else y
    return y.astype(x.dtype), {"mean": 0.1 * mean, "var": 0.9 + 0.1 * var}


def by_the_layer(x, mask, scale, bias, relu):
    variables = {"params": {"scale": scale, "bias": bias}}
    y, state = BatchNorm(dtype=x.dtype, relu=relu).apply(variables, x, True, mask, mutable=["batch_stats"])
    return y, state["batch_stats"]


def loss_of(function, mask, weight, relu):
    def loss(x, scale, bias):
        y, running = function(x, mask, scale, bias, relu)
        return (weight * jnp.sin(y.astype(jnp.float32))).sum() + (running["mean"] * running["var"]).sum()

    return loss


@pytest.fixture(scope="module")
def inputs(x, variables):
    weight = np.random.default_rng(2).normal(size=x.shape).astype(np.float32)
    return (jnp.asarray(x), *variables["params"].values()), weight


MASK = np.arange(10).reshape(2, 5) < 8


@pytest.mark.parametrize("relu", [False, True], ids=["linear", "relu"])
@pytest.mark.parametrize("around", [lambda f: f, jax.checkpoint], ids=["plain", "remat"])
@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_its_own_backward_pass_gives_the_gradients_of_jax(inputs, dtype, mask, around, relu):
    (x, scale, bias), weight = inputs
    arguments = x.astype(dtype), scale, bias
    plain = jax.jit(jax.grad(loss_of(normalise, mask, weight, relu), (0, 1, 2)))(*arguments)
    own = jax.jit(jax.grad(around(loss_of(by_the_layer, mask, weight, relu)), (0, 1, 2)))(*arguments)
    chex.assert_trees_all_equal_shapes_and_dtypes(own, plain)
    rounded = 1e-5 if dtype == jnp.float32 else 1e-2  # bfloat16 has 8 bits
    chex.assert_trees_all_close(own, plain, rtol=rounded, atol=rounded)


@pytest.mark.parametrize("relu", [False, True], ids=["linear", "relu"])
def test_gradients_of_groups(inputs, relu):
    (x, scale, bias), weight = inputs

    def summed(function):
        def loss(x, scale, bias):
            losses = jax.vmap(lambda x, w: loss_of(function, None, w, relu)(x, scale, bias))
            return losses(x[:, None], weight[:, None]).sum()

        return jax.jit(jax.grad(loss, (0, 1, 2)))

    own, plain = (summed(function)(x, scale, bias) for function in (by_the_layer, normalise))
    chex.assert_trees_all_close(own, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("relu", [False, True], ids=["linear", "relu"])
def test_second_derivatives(inputs, relu):
    (x, scale, bias), weight = inputs

    def twice(function):
        first = jax.grad(loss_of(function, MASK, weight, relu))
        return jax.jit(jax.grad(lambda *arguments: (first(*arguments) ** 2).sum(), (0, 1, 2)))(x, scale, bias)

    own, plain = twice(by_the_layer), twice(normalise)
    chex.assert_trees_all_close(own, plain, rtol=1e-3, atol=1e-4)


def test_forward_mode_gets_an_error(inputs):
    (x, scale, bias), _ = inputs
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: by_the_layer(x, None, scale, bias, False)[0], (x,), (x,))
