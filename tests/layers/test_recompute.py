import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flaxvid.layers.norm import BatchNorm
from flaxvid.layers.recompute import recomputed
from flaxvid.layers.transformer import gelu, gelu_tanh


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def test_values_and_gradients_are_the_same():
    def f(x, w, mask):
        return jnp.where(mask, jnp.sin(x) @ jnp.exp(w), 0), x.sum()

    x, w, mask = random(3, 4), random(4, 5, seed=1), np.arange(5) < 3
    (y, total), pull = jax.vjp(functools.partial(f, mask=mask), x, w)
    (again, total_again), pull_again = jax.vjp(lambda x, w: recomputed(f)(x, w, mask), x, w)
    chex.assert_trees_all_equal((again, total_again), (y, total))
    gradient = random(3, 5, seed=2), jnp.float32(0.3)
    chex.assert_trees_all_close(pull_again(gradient), pull(gradient), rtol=1e-6)


@pytest.mark.parametrize(
    ("function", "plain"), [(gelu, functools.partial(nn.gelu, approximate=False)), (gelu_tanh, nn.gelu)]
)
def test_gelu_keeps_its_input_alone(function, plain):
    x, plain = random(3, 4).astype(jnp.bfloat16), jax.jit(plain)  # one by one, its operations round to bfloat16
    y, pull = jax.vjp(function, x)
    np.testing.assert_array_equal(y, plain(x))
    (kept,) = jax.tree.leaves(pull)
    np.testing.assert_array_equal(kept, x)
    np.testing.assert_array_equal(pull(y), jax.vjp(plain, x)[1](y))


def test_xla_computes_again():
    """Without the barrier it would find that it has the values already, and keep them."""
    program = jax.jit(jax.grad(lambda x: gelu(x).sum())).lower(random(3, 4)).as_text()
    assert "optimization_barrier" in program


def test_a_batch_norm_keeps_no_float32_copy_of_its_input():
    norm, x = BatchNorm(dtype=jnp.bfloat16), random(2, 3, 4, 4, 8).astype(jnp.bfloat16)
    variables = norm.init(jax.random.key(0), x)
    pull = jax.vjp(lambda x: norm.apply(variables, x, True, mutable=["batch_stats"])[0], x)[1]
    large = [leaf for leaf in jax.tree.leaves(pull) if leaf.size >= x.size]
    assert large
    for leaf in large:
        np.testing.assert_array_equal(leaf, x)
