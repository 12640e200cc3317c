"""X3D: what the contract cannot know."""

import functools

import chex
import jax
import numpy as np
import pytest

import flaxvid
from flaxvid import trees
from flaxvid.evaluate.cost import model_cost
from flaxvid.models.registry import create_model, create_tiny
from flaxvid.models.x3d import near_eighth


@pytest.mark.parametrize(
    ("parameters", "gmacs"),
    [
        (3_794_274, {"x3d_xs": 0.605257, "x3d_s": 1.962892, "x3d_m": 4.732469}),
        (6_153_384, {"x3d_l": 18.36771}),
    ],
)
def test_parameters_and_multiply_adds_are_the_references(parameters, gmacs):
    variables = None
    for name, expected in gmacs.items():
        model = create_model(name)
        frames, size = model.clip.num_frames, model.clip.image_size
        if variables is None:  # of one shape for all of them
            video = jax.ShapeDtypeStruct((1, frames, size, size, 3), np.float32)
            variables = jax.eval_shape(model.init, jax.random.key(0), video)
        cost = model_cost(model, (1, frames, size, size, 3), variables)
        assert cost.parameters == parameters
        assert cost.gflops == pytest.approx(expected, rel=1e-3)


def test_channels_inside_squeeze_and_excitation():
    assert [near_eighth(int(2.25 * width) / 16) for width in (24, 48, 96, 192)] == [8, 8, 16, 32]


def variables_of(**overrides):
    model = create_tiny("x3d_m", **overrides)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 2, 32, 32, 3), np.uint8))
    return trees.flatten(shapes["params"])


def test_squeeze_and_excitation_in_every_second_block():
    paths = variables_of(depths=(3, 2))
    assert {path.split("/")[1] for path in paths if "/se/" in path} == {"layer1_0", "layer1_2", "layer2_0"}


def test_a_shortcut_of_as_many_channels_has_a_norm_in_pyslowfast_only():
    shortcuts = {path for path in variables_of() if "downsample" in path}
    widened = {f"body/{block}/downsample/{leaf}" for block in ("layer2_0", "layer3_0") for leaf in LEAVES}
    assert shortcuts == {"body/layer1_0/downsample/kernel"} | widened
    shortcuts = {path for path in variables_of(shortcut_norm=True) if "downsample" in path}
    assert shortcuts == {f"body/layer1_0/downsample/{leaf}" for leaf in LEAVES} | widened


LEAVES = ("conv/kernel", "norm/scale", "norm/bias")


def test_the_keys(random_variables):
    variables = random_variables(create_tiny("x3d_m", shortcut_norm=True))
    ptv = flaxvid.to_torch("x3d_m", variables)
    # Spatial under conv_t, temporal under conv_xy.
    assert ptv["blocks.0.conv.conv_t.weight"].shape == (8, 3, 1, 3, 3)
    assert ptv["blocks.0.conv.conv_xy.weight"].shape == (8, 1, 5, 1, 1)
    assert ptv["blocks.1.res_blocks.0.branch2.conv_b.weight"].shape == (18, 1, 3, 3, 3)
    assert ptv["blocks.1.res_blocks.0.branch2.norm_b.1.block.0.weight"].shape == (8, 18, 1, 1, 1)
    assert ptv["blocks.5.pool.post_conv.weight"].shape == (32, 72, 1, 1, 1)
    assert {"blocks.1.res_blocks.1.branch2.norm_b.0.running_var", "blocks.5.pool.pre_norm.weight"} <= set(ptv)
    assert {
        "s1.pathway0_stem.conv_xy.weight",
        "s1.pathway0_stem.conv.weight",
        "s1.pathway0_stem.bn.running_mean",
        "s2.pathway0_res0.branch1.weight",
        "s2.pathway0_res0.branch1_bn.weight",
        "s2.pathway0_res0.branch2.b_bn.bias",
        "s2.pathway0_res0.branch2.se.fc1.bias",
        "s2.pathway0_res0.branch2.se.fc2.weight",
        "s4.pathway0_res0.branch2.c_bn.weight",
        "head.conv_5.weight",
        "head.conv_5_bn.running_var",
        "head.lin_5.weight",
        "head.projection.bias",
    } <= set(flaxvid.to_torch("x3d_m", variables, overrides={"shortcut_norm": True}, format="pyslowfast"))


def test_the_feature_is_what_the_classifier_sees(random_variables, clip):
    model = create_tiny("x3d_m", depths=(1,))
    variables, video = random_variables(model), clip(2, 4, 32, 32)
    features = jax.jit(functools.partial(model.apply, method="features"))(variables, video)
    classifier = variables["params"]["head"]["classifier"]
    logits = features @ classifier["kernel"] + classifier["bias"]
    chex.assert_trees_all_close(logits, jax.jit(model.apply)(variables, video), rtol=1e-4, atol=1e-5)
    assert (features >= 0).all()  # behind the second ReLU


def test_features_in_training_keep_the_statistics_of_a_call(random_variables, clip):
    model = create_tiny("x3d_s")
    variables, video = random_variables(model), clip(2, 4, 32, 32)

    @functools.partial(jax.jit, static_argnames="method")
    def statistics(method=None):
        options = {"mutable": ["batch_stats"], "rngs": {"dropout": jax.random.key(0)}}
        return model.apply(variables, video, train=True, method=method, **options)[1]

    chex.assert_trees_all_close(statistics("features"), statistics(), rtol=1e-5)
    before, after = (v["batch_stats"]["head"]["pre"]["norm"]["mean"] for v in (variables, statistics("features")))
    assert (before != after).all()
