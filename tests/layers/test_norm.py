import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
