"""MViT: what the contract cannot know."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxvid
from flaxvid import trees
from flaxvid.evaluate.cost import model_cost
from flaxvid.layers.relative import relative_places, relative_times
from flaxvid.models.registry import create_model, create_tiny, get_spec
from flaxvid.weights.keys import torch_key

COSTS = [
    ("mvit_base", {}, 36_610_672, 70.60),
    ("mvit_base_32x3", {}, 36_611_440, 169.96),
    ("mvit_base_32x3", {"depth": 24, "stages": (2, 5, 21), "pool_kernel": None}, 53_115_280, None),
    ("mvit_v2_s", {}, 34_537_744, 64.224),
    ("mvit_v2_b", {}, 51_230_128, None),
]


@pytest.mark.parametrize(("name", "options", "parameters", "gmacs"), COSTS)
def test_parameters_and_multiply_adds_are_the_references(name, options, parameters, gmacs):
    model = create_model(name, **options)
    cost = model_cost(model, (1, model.clip.num_frames, 224, 224, 3))
    assert cost.parameters == parameters
    if gmacs:
        assert cost.gflops == pytest.approx(gmacs, rel=1e-3)


@pytest.fixture(scope="module", params=["mvit_base", "mvit_v2_s"])
def pair(request, random_variables):
    model = create_tiny(request.param)
    return request.param, model, random_variables(model)


def test_the_same_weights_at_another_count_and_size(pair, clip, random_variables):
    name, model, variables = pair
    video = ((clip(1, 7, 48, 56) / 255 - 0.45) / 0.225).astype(np.float32)
    logits = jax.jit(model.apply)(variables, video)
    chex.assert_tree_all_finite(logits)
    larger = create_tiny(name, num_frames=7, image_size=48, positions=(4, 32))
    chex.assert_trees_all_equal_shapes(random_variables(larger), variables)
    chex.assert_trees_all_close(jax.jit(larger.apply)(variables, video), logits, rtol=1e-5)


def test_each_clip_is_as_long_as_its_own_mask_says(pair, clip):
    _, model, variables = pair
    video, apply = clip(2, 7, 32, 32), jax.jit(model.apply)
    mask = np.arange(7) < np.array([[3], [7]])
    logits = apply(variables, video, frame_mask=mask)
    chex.assert_trees_all_close(logits[:1], apply(variables, video[:1, :3]), rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(logits[1:], apply(variables, video[1:]), rtol=1e-4, atol=1e-5)


def test_drop_path_acts_in_training_alone(pair, clip):
    name, model, variables = pair
    video, dropped = clip(2, 4, 32, 32), create_tiny(name, drop_path=0.5, dropout=0.0)
    train = jax.jit(lambda key: dropped.apply(variables, video, train=True, rngs={"dropout": key}))
    assert not np.allclose(train(jax.random.key(0)), train(jax.random.key(1)))
    np.testing.assert_array_equal(jax.jit(dropped.apply)(variables, video), jax.jit(model.apply)(variables, video))


def test_the_epsilon_of_pooling_norms_is_the_others_or_their_own():
    block = create_tiny("mvit_base", norm_epsilon=1e-3).body.block.keywords
    assert block["norm_epsilon"] == block["pool_epsilon"] == 1e-3
    block = create_tiny("mvit_base", pool_epsilon=1e-5).body.block.keywords
    assert (block["norm_epsilon"], block["pool_epsilon"]) == (1e-6, 1e-5)


def test_relative_places_are_entries_where_sizes_are_the_tables():
    table = jnp.arange(15.0)[:, None]  # of 8 places; 7 is no distance
    distance = np.arange(8)[:, None] - np.arange(8)
    np.testing.assert_array_equal(relative_places(table, 8, 8)[..., 0], 7 + distance)
    np.testing.assert_array_equal(relative_times(table, 8)[..., 0], 7 + distance)
    few_keys = np.arange(8)[:, None] + 4 * (1 - np.arange(2))
    np.testing.assert_array_equal(relative_places(table, 8, 2)[..., 0], few_keys)
    few_queries = 4 * np.arange(2)[:, None] + 7 - np.arange(8)
    np.testing.assert_array_equal(relative_places(table, 2, 8)[..., 0], few_queries)


def test_relative_times_follow_each_clips_own_length():
    table = jnp.arange(15.0)[:, None]
    mask = jnp.arange(10) < jnp.array([[8], [4], [10]])
    times = relative_times(table, 10, mask)[..., 0]
    np.testing.assert_array_equal(times[0, :8, :8], relative_times(table, 8)[..., 0])
    np.testing.assert_allclose(times[1, :4, :4], relative_times(table, 4)[..., 0], rtol=1e-6)
    np.testing.assert_allclose(times[1, 1, 0], 7 + 15 / 7, rtol=1e-6)
    np.testing.assert_allclose(times[2], relative_times(table, 10)[..., 0], rtol=1e-6)


@pytest.mark.parametrize("name", ["mvit_base", "mvit_v2_s"])
def test_every_variable_has_one_key_in_every_table(name, random_variables):
    paths = list(trees.flatten(random_variables(create_tiny(name))))
    for known in get_spec(name).formats.values():
        keys = [torch_key(path, known.keys) for path in paths]
        assert None not in keys
        assert len(set(keys)) == len(keys)


KEYS = {
    ("mvit_base", "torchvision"): [
        ("pos_encoding.temporal_pos", (2, 8)),
        ("blocks.1.attn.pool_q.norm_act.0.weight", (8,)),
        ("blocks.3.attn.pool_v.pool.weight", (8, 1, 3, 3, 3)),
        ("blocks.1.project.weight", (32, 16)),
        ("head.1.weight", (5, 32)),
    ],
    ("mvit_base", "pytorchvideo"): [
        ("cls_positional_encoding.pos_embed_spatial", (1, 64, 8)),
        ("cls_positional_encoding.pos_embed_class", (1, 1, 8)),
        ("blocks.2.attn.k.weight", (32, 32)),
        ("blocks.0.mlp.fc2.bias", (16,)),
        ("norm_embed.weight", (32,)),
    ],
    ("mvit_base", "pytorchvideo_fused"): [("blocks.2.attn.qkv.weight", (96, 32))],
    ("mvit_base", "pyslowfast"): [("pos_embed_temporal", (1, 2, 8)), ("head.projection.bias", (5,))],
    ("mvit_v2_s", "torchvision"): [("blocks.1.attn.rel_pos_h", (7, 8)), ("pos_encoding.class_token", (8,))],
    ("mvit_v2_s", "pyslowfast"): [("blocks.0.attn.rel_pos_t", (3, 8)), ("cls_token", (1, 1, 8))],
    ("mvit_v2_s", "mmaction2"): [
        ("backbone.cls_token", (1, 1, 8)),
        ("backbone.patch_embed.projection.weight", (8, 3, 3, 7, 7)),
        ("backbone.blocks.2.proj.weight", (32, 16)),
        ("backbone.norm3.weight", (32,)),
        ("cls_head.fc_cls.weight", (5, 32)),
    ],
}


@pytest.mark.parametrize(("name", "fmt"), KEYS)
def test_tensors_have_the_references_names_and_shapes(name, fmt, random_variables):
    implied = get_spec(name).formats[fmt].overrides
    variables = random_variables(create_tiny(name))
    tensors = flaxvid.to_torch(name, variables, fmt, overrides=implied)
    assert [(key, np.shape(tensors[key])) for key, _ in KEYS[name, fmt]] == KEYS[name, fmt]


def test_options_that_do_not_fit_are_errors():
    with pytest.raises(ValueError, match=r"stages must grow and be below the depth 4, got \(1, 4\)"):
        create_tiny("mvit_base", stages=(1, 4))
    with pytest.raises(ValueError, match=r"num_heads must divide the width 8, got 3"):
        create_tiny("mvit_base", num_heads=3)
    with pytest.raises(ValueError, match="version must be 1 or 2, got 3"):
        create_tiny("mvit_base", version=3)
