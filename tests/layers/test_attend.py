"""The forms of `attend`: equal in values and gradients, each taken where it should be."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxvid.layers import attention
from flaxvid.layers.attention import attend, attend_fused
from flaxvid.layers.lowering import direct_form

LONG = attention._LONG + 2
PLATFORMS = "platform_index"


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def rows(masked, scored):
    """Queries, keys, values, the mask and the scores; the keys are so many that a CPU takes one head at a time."""
    q, k, v = random(2, 5, 3, 8), random(2, LONG, 3, 8, seed=1), random(2, LONG, 3, 8, seed=2)
    keys = jnp.arange(LONG) < jnp.array([[7], [LONG]]) if masked else None
    return q, k, v, keys, random(2, 3, 5, LONG, seed=3) if scored else None


def traced(*arguments):
    return str(jax.make_jaxpr(lambda *arguments: attend(*arguments))(*arguments))


@pytest.mark.parametrize(("masked", "scored"), [(False, False), (True, False), (False, True), (True, True)])
def test_one_head_at_a_time_is_the_plain_form(masked, scored):
    q, k, v, keys, scores = rows(masked, scored)

    def outputs(q, k, v, scores):
        return attend(q, k, v, keys, scores)

    def gradients(*learnt):
        return jax.grad(lambda learnt: jnp.square(outputs(*learnt)).sum())(learnt)

    assert PLATFORMS in traced(q, k, v, keys, scores)
    with direct_form():
        assert PLATFORMS not in traced(q, k, v, keys, scores)
        expected = [run(q, k, v, scores) for run in (outputs, gradients)]
    found = [jax.jit(run)(q, k, v, scores) for run in (outputs, gradients)]
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-5)


def test_its_products_are_those_of_bfloat16():
    q, k, v, *_ = (x.astype(jnp.bfloat16) for x in rows(False, False)[:3])
    y = jax.jit(attend)(q, k, v)
    assert y.dtype == jnp.bfloat16
    with direct_form():
        chex.assert_trees_all_close(y, attend(q, k, v), rtol=2e-2, atol=1e-3)


def test_a_row_without_any_key_is_finite():
    """As in the plain form: a clip of which every frame is padding must not spoil the others' gradients."""
    q, k, v, *_ = rows(False, False)
    keys = jnp.array([[False], [True]]) & jnp.ones((2, LONG), bool)
    gradient = jax.jit(jax.grad(lambda q: attend(q, k, v, keys).sum()))(q)
    assert jnp.isfinite(gradient).all()


def test_the_backward_pass_keeps_no_scores():
    q, k, v, *_ = rows(False, False)
    _, vjp = jax.vjp(attend, q, k, v)
    assert not [leaf.shape for leaf in jax.tree.leaves(vjp) if leaf.shape[-1:] == (LONG,)]


def test_short_rows_and_several_cpus_take_the_plain_form(monkeypatch):
    short = random(3, 2, LONG - 2, 3, 8)
    assert PLATFORMS not in traced(*short)
    q, k, v, *_ = rows(False, False)
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert PLATFORMS not in traced(q, k, v)


class Gpu:
    """A device as far as the choice of a kernel asks."""

    def __init__(self, compute_capability):
        self.compute_capability = compute_capability


@pytest.mark.parametrize(
    ("capability", "dtype", "length", "masked", "fused"),
    [
        ("9.0", "bfloat16", 130, False, True),
        ("8.0", "bfloat16", 130, False, True),
        ("7.0", "bfloat16", 130, False, False),
        ("gfx942", "bfloat16", 130, False, False),
        ("9.0", "float32", 130, False, False),
        ("9.0", "bfloat16", 8, False, False),
        ("9.0", "bfloat16", 130, True, False),
        ("9.0", "bfloat16", 131, False, True),
    ],
)
def test_the_fused_kernel_is_taken_where_there_is_one(monkeypatch, capability, dtype, length, masked, fused):
    computed, taken = jax.nn.dot_product_attention, set()

    def record(*arguments, implementation, **options):
        taken.add(implementation)
        return computed(*arguments, implementation="xla", **options)

    jax.clear_caches()  # what was traced before answers without a call
    monkeypatch.setattr(jax.nn, "dot_product_attention", record)
    q, k, v = random(3, 1, length, 2, 8).astype(dtype)
    keys = jnp.ones((1, length), bool) if masked else None
    expected = jax.jit(lambda *rows: attend(*rows))(q, k, v, keys)
    assert taken == {"xla"}
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [Gpu(capability)])
    jax.clear_caches()
    # Lowered for this CPU, it is the plain one all the same.
    again = jax.jit(lambda *rows: attend(*rows))(q, k, v, keys)  # traced afresh
    chex.assert_trees_all_close(again, expected, rtol=1e-2)
    assert ("cudnn" in taken) == fused


def test_odd_lengths_are_filled_for_the_fused_kernel(monkeypatch):
    computed = jax.nn.dot_product_attention

    def as_cudnn(*arguments, implementation, **options):
        assert all(x.shape[1] % 2 == 0 for x in arguments)
        return computed(*arguments, implementation="xla", **options)

    q, (k, v) = random(2, 5, 2, 8), random(2, 2, 7, 2, 8)

    def weigh(attention):
        return jax.value_and_grad(lambda *rows: (attention(*rows) ** 2).sum(), (0, 1, 2))(q, k, v)

    expected = weigh(computed)
    monkeypatch.setattr(jax.nn, "dot_product_attention", as_cudnn)
    chex.assert_trees_all_close(weigh(attend_fused), expected, rtol=1e-4, atol=1e-6)
