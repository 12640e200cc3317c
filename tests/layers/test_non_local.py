"""Non-local blocks: what parity with the references cannot show."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxvid.layers.non_local import KINDS, NonLocal
from flaxvid.models.registry import create_model, create_tiny
from flaxvid.models.stages import every_second, in_turn


def variables_of(layer, x, seed=0):
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.uniform(0.2, 1, leaf.shape).astype(np.float32), shapes)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_block_is_its_shortcut(kind):
    x = jax.random.normal(jax.random.key(0), (2, 3, 5, 4, 6))
    layer = NonLocal(kind)
    chex.assert_trees_all_equal(layer.apply(layer.init(jax.random.key(1), x), x), x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(5, 4), (1, 1), (1, 6)])
def test_padded_frames_have_no_keys(kind, size):
    """Of any size: an axis of one pixel is not pooled."""
    x = jax.random.normal(jax.random.key(0), (1, 4, *size, 6))
    layer = NonLocal(kind)
    variables = variables_of(layer, x)
    mask = jnp.arange(4)[None] < 3
    masked, short = layer.apply(variables, x, False, mask), layer.apply(variables, x[:, :3])
    np.testing.assert_allclose(masked[:, :3], short, rtol=1e-5, atol=1e-5)
    assert np.isfinite(masked).all()
    assert not np.allclose(layer.apply(variables, x)[:, :3], short, rtol=1e-3)


def test_the_weights_of_a_place_by_hand():
    """One frame of 2x2 places, of which pooling leaves one: each place gets that one's value, times the product."""
    x = jnp.arange(8.0).reshape(1, 1, 2, 2, 2)
    for kind, weight in (("gaussian", 1.0), ("dot_product", None)):
        layer = NonLocal(kind)
        variables = jax.tree.map(jnp.ones_like, layer.init(jax.random.key(0), x))
        value = 6.0 + 7.0 + 1.0  # kernels and biases are one; the last place is the maximum
        weights = (x.sum(-1) + 1) * value if weight is None else jnp.ones((1, 1, 2, 2))
        norm = (weights[..., None] * value - 1) / jnp.sqrt(1 + 1e-5) + 1
        np.testing.assert_allclose(layer.apply(variables, x), x + norm, rtol=1e-5)


def test_blocks_of_a_stage_in_turn():
    assert in_turn(3, ("", "a")) == ((3, ""), (3, "a"))
    assert in_turn((1, 3), ("a", "b", "c")) == ((1, "a"), (3, "b"), (1, "c"), (3, "a"), (1, "b"), (3, "c"))
    assert every_second("a", 1) == ("", ("", "a"), ("", "a"), "")


@pytest.mark.parametrize("name", ["slow_r50", "tsn_resnet50"])
def test_networks_have_them_where_they_are_asked_for(name):
    model = create_tiny(name, depths=(1, 3), non_local=["", ["gaussian", ""]])
    body = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 2, 32, 32, 3), np.uint8))["params"]["body"]
    assert {block for block, layers in body.items() if "non_local" in layers} == {"layer2_0", "layer2_2"}
    with pytest.raises(ValueError, match=r"non_local must have one for each of the 2 stages, got \('gaussian',\)"):
        create_model(name, depths=(1, 1), non_local=("gaussian",))
    with pytest.raises(ValueError, match=r'non_local must be a tuple of "", "gaussian", .* for each stage, got \(\'g'):
        create_model(name, non_local=("gauss",) * 4)
