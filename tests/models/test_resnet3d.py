"""The 3-D ResNets and R(2+1)D: what the contract cannot know."""

import doctest
import functools
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxvid
from flaxvid import trees
from flaxvid.evaluate.cost import model_cost
from flaxvid.models import resnet3d
from flaxvid.models.registry import create_model, create_tiny


def abstract(model):
    return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 2, 64, 64, 3), np.uint8))


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("name", "options", "parameters", "clip", "gmacs"),
    [
        ("slow_r50", {}, 32_454_096, (8, 256), 54.5208),
        ("c2d_r50", {}, 24_327_632, (8, 256), 25.46),
        ("i3d_r50", {}, 28_043_472, (8, 256), 37.11),
        ("csn_r101", {}, 22_213_776, (32, 256), 73.76),
        ("mc3_18", {}, 11_695_440, (16, 112), 43.343),
        ("r3d_18", {}, 33_371_472, (16, 112), 40.6966),
        ("r2plus1d_r18", {}, 31_505_325, (16, 112), 40.5191),
        ("r2plus1d_r34", {}, 63_697_175, (16, 112), 76.18),
        ("r2plus1d_r34", {"shared_midplanes": True}, 61_831_661, (16, 112), 75.20),
        ("r2plus1d_r50", {}, 28_107_600, (16, 256), 75.1484),
    ],
)
def test_parameters_and_multiply_adds_are_the_references(name, options, parameters, clip, gmacs):
    frames, size = clip
    cost = model_cost(create_model(name, **options), (1, frames, size, size, 3))
    assert cost.parameters == parameters
    assert cost.gflops == pytest.approx(gmacs, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [
        ("res3dcnn", {}, 31_709_385),
        ("r3d_18_se", {}, 33_455_024),
        ("r3d_18_se", {"se": "residual"}, 33_455_024),
        ("r3d_18_se", {"se_stages": (1, 2, 3, 4)}, 33_460_552),
        ("r3d_18_se", {"se_stages": (1, 2, 3, 4), "se_reduction": 4}, 33_722_032),
    ],
)
def test_parameters_of_what_has_no_reference(name, options, parameters):
    assert count(abstract(create_model(name, **options))["params"]) == parameters


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("i3d_nln_r50", 35_401_936), ("tsm_nln_resnet50", 31_682_000)],  # of PySlowFast, of mmaction2
)
def test_parameters_of_networks_with_non_local_blocks(name, parameters):
    assert count(abstract(create_model(name))["params"]) == parameters


def test_examples_of_the_docstring():
    """At the size that they name, traced: nothing is computed. One block a stage keeps the shapes."""
    flaxvid_with_short_models = types.SimpleNamespace(
        create_model=functools.partial(create_model, depths=(1, 1, 1, 1)), layers=flaxvid.layers, losses=flaxvid.losses
    )
    names = {"flaxvid": flaxvid_with_short_models, "jax": jax, "jnp": jnp}
    examples = doctest.DocTestParser().get_doctest(resnet3d.__doc__, names, "resnet3d", None, None)
    names = examples.globs
    assert len(examples.examples) > 30
    said = []
    jax.eval_shape(lambda: doctest.DocTestRunner().run(examples, out=said.append, clear_globs=False)[0])
    assert not said, "".join(said)
    assert names["fused"].shape == (2, 16, 7, 7, 2048)
    chex.assert_trees_all_equal_shapes(names["head_params"], names["variables"]["params"]["head"])


def test_the_keys_of_pyslowfast(random_variables):
    keys = set(flaxvid.to_torch("slow_r50", random_variables(create_tiny("slow_r50")), format="pyslowfast"))
    assert {
        "s1.pathway0_stem.conv.weight",
        "s1.pathway0_stem.bn.running_var",
        "s2.pathway0_res0.branch1.weight",
        "s2.pathway0_res0.branch1_bn.bias",
        "s3.pathway0_res0.branch2.a.weight",
        "s4.pathway0_res0.branch2.b_bn.running_mean",
        "s5.pathway0_res0.branch2.c_bn.weight",
        "head.projection.weight",
    } <= keys


def test_where_squeeze_and_excitation_stands(random_variables, clip):
    """On the block's output it scales what the addition gives; before the addition only the branch."""
    spec = {"depths": (1,), "se_stages": (1,)}
    output, residual = (create_tiny("r3d_18_se", se=se, **spec) for se in ("output", "residual"))
    plain = create_tiny("r3d_18", depths=(1,))
    variables, x = random_variables(output), clip(1, 4, 32, 32)

    @jax.jit
    def bodies(variables):
        return [m.body(m.stem(m.normalise(x))) for m in (m.bind(variables) for m in (plain, output, residual))]

    by_none, by_output, by_residual = bodies(variables)
    alive = np.asarray(by_none) > 1e-3
    scales = np.where(alive, by_output / np.where(alive, by_none, 1), np.nan)
    chex.assert_trees_all_close(np.nanmin(scales, (1, 2, 3)), np.nanmax(scales, (1, 2, 3)), rtol=1e-3)
    scales = np.where(alive, by_residual / np.where(alive, by_none, 1), np.nan)
    assert not np.allclose(np.nanmin(scales, (1, 2, 3)), np.nanmax(scales, (1, 2, 3)), rtol=0.1, equal_nan=True)


def test_wrong_options_say_so():
    with pytest.raises(ValueError, match=r'se must be "output" or "residual", got \'input\''):
        create_model("r3d_18_se", se="input")
    with pytest.raises(ValueError, match=r"se_stages must be .* some of the stages 1, 2, 3, 4, got \(5,\)"):
        create_model("r3d_18_se", se_stages=(5,))
    with pytest.raises(ValueError, match=r"depths must be .* at most 4 stages, got \(1, 1, 1, 1, 1\)"):
        create_tiny("r3d_18", depths=(1, 1, 1, 1, 1))
    with pytest.raises(ValueError, match=r"temporal_kernels must have one for each of the 4 stages, got \(1, 3\)"):
        create_model("slow_r50", temporal_kernels=(1, 3))


def test_weights_without_squeeze_and_excitation_make_a_start(random_variables):
    trained = random_variables(create_tiny("r3d_18"))
    fresh = random_variables(create_tiny("r3d_18_se"), seed=1)
    start = trees.flatten(trees.merge(fresh, trained))
    assert start.keys() == trees.flatten(fresh).keys()
    assert {path.split("/")[-3] for path in start.keys() - trees.flatten(trained).keys()} == {"se"}


@pytest.mark.parametrize(
    ("name", "options"),
    [("c2d_r50", {}), ("i3d_r50", {"stem_stride": 2}), ("r3d_resnet18", {}), ("r2plus1d_resnet18", {})],
)
def test_pools_over_time_see_no_padding(random_variables, clip, name, options):
    """Of an odd number of frames, whose last one stands alone in the pool."""
    model = create_tiny(name, depths=(1, 1), **options)
    variables, video = random_variables(model), clip(1, 8, 32, 32)
    apply = jax.jit(model.apply)
    mask = np.arange(8)[None] < 5
    short = apply(variables, video[:, :5])
    np.testing.assert_allclose(apply(variables, video, frame_mask=mask), short, rtol=1e-4, atol=1e-5)
    assert not np.allclose(apply(variables, video), short, rtol=1e-2)


def test_bottlenecks_of_r2plus1d_refuse_options_of_basic_blocks():
    for option in ("shared_midplanes", "paired_shortcut"):
        with pytest.raises(ValueError, match="bottlenecks have neither shared_midplanes nor paired_shortcut"):
            create_model("r2plus1d_resnet50", **{option: True})


def test_slow_sees_neighbouring_frames_in_the_last_two_stages_only(random_variables, clip):
    model = create_tiny("slow_r50")
    variables, video = random_variables(model), clip(1, 7, 32, 32)
    changed = video.copy()
    changed[:, 3] = clip(1, 1, 32, 32, seed=1)[:, 0]

    def stages(variables, video):
        _, state = model.apply(
            variables,
            video,
            capture_intermediates=lambda module, _: (module.name or "").startswith("layer"),
            mutable=["intermediates"],
        )
        return {name: found["__call__"][0] for name, found in state["intermediates"]["body"].items()}

    first, second = (jax.jit(stages)(variables, x) for x in (video, changed))
    seen = {name: [t for t in range(7) if not np.array_equal(first[name][:, t], second[name][:, t])] for name in first}
    assert seen == {"layer1_0": [3], "layer2_0": [3], "layer3_0": [2, 3, 4], "layer4_0": [1, 2, 3, 4, 5]}
