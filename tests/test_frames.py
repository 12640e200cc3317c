import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

from flaxvid import trees
from flaxvid.frames import FrameFlexible
from flaxvid.layers.conv import Conv
from flaxvid.models.registry import create_tiny

KEY = jax.random.key(3)


class Pixels(nn.Module):
    """A stem without variables."""

    def __call__(self, x, train, frame_mask):
        return x


class Tokens(nn.Module):
    """A body with norms of every kind, whatever they are called, and a learned temperature."""

    @nn.compact
    def __call__(self, x, train, frame_mask):
        x = nn.Dense(8, name="normaliser")(x)
        x = nn.GroupNorm(2)(nn.RMSNorm()(nn.LayerNorm()(x)))
        x = nn.BatchNorm(use_scale=False, use_bias=False, name="whitening")(x, use_running_average=not train)
        y = nn.MultiHeadDotProductAttention(2, normalize_qk=True, name="attention")(x)
        return x + nn.LayerNorm(name="query_ln")(y) * self.param("scale", nn.initializers.ones, ())


@pytest.fixture(scope="module")
def tokens(model):
    head = model.head.clone(num_classes={"normality": 5})
    altered = (("body/attention/query/kernel", 0),)
    return model.clone(stem=Pixels(), body=Tokens(), head=head, feature_dim=8, altered=altered)


@pytest.fixture(scope="module")
def model():
    return create_tiny("tsm_resnet18", depths=(1, 1))


@pytest.fixture(scope="module")
def plain(model, random_variables):
    return random_variables(model)


@pytest.fixture(scope="module")
def flexible(model):
    return FrameFlexible(model, (4, 8, 16))


@pytest.fixture(scope="module")
def variables(flexible, plain, randomise):
    """Every frame count's norms and gains differ."""
    return randomise(flexible.specialise(plain, KEY))


@pytest.fixture(scope="module")
def apply(model):
    return jax.jit(model.apply)


def test_collections_and_what_is_private(flexible, plain):
    variables = flexible.specialise(plain, KEY)
    names = {f"{name}_{count}f" for name in ("params", "batch_stats") for count in (4, 8, 16)}
    assert set(variables) == {"params", *names}
    shared = set(trees.flatten(variables["params"]))
    every = set(trees.flatten(plain["params"]))
    norms = {path for path in every if path.startswith(("stem", "body")) and path.endswith(("/scale", "/bias"))}
    assert {path.split("/")[-2] for path in norms} == {"norm1", "norm2", "downsample_norm"}
    assert shared == every - norms
    gains = {"body/layer1_0/conv1/gain", "body/layer2_0/conv1/gain"}
    for count in flexible.frames:
        private = trees.flatten(variables[f"params_{count}f"])
        assert set(private) == norms | gains
        chex.assert_trees_all_equal(
            {path: private[path] for path in norms}, {p: trees.flatten(plain["params"])[p] for p in norms}
        )
        assert [private[path].shape for path in sorted(gains)] == [(8,), (8,)]  # the input channels of each
        chex.assert_trees_all_equal(variables[f"batch_stats_{count}f"], plain["batch_stats"])


def test_norms_are_private_whatever_they_are_called(tokens, random_variables):
    """And the classifier of a label called "normality" is no norm, nor are a layer "normaliser" and a temperature."""
    plain = random_variables(tokens)
    flexible = FrameFlexible(tokens, (4, 8))
    variables = flexible.specialise(plain)
    of_norms = {"LayerNorm_0", "RMSNorm_0", "GroupNorm_0", "attention/query_ln", "attention/key_ln", "query_ln"}
    private = trees.flatten(variables["params_4f"]["body"])
    assert {path.rpartition("/")[0] for path in private} == {*of_norms, "attention/query"}  # of which the gain
    assert set(variables["params"]["body"]) == {"normaliser", "attention", "scale"}
    assert set(variables["params"]["head"]) == {"classifier_normality"}
    assert set(trees.flatten(variables["batch_stats_8f"])) == {"body/whitening/mean", "body/whitening/var"}
    assert "batch_stats" not in variables
    chex.assert_trees_all_equal(flexible.select(variables, 8), plain)


def test_a_gain_is_on_the_axis_that_the_model_names(tokens, random_variables, clip):
    """Flax's attention has its query's input on axis 0 of (channels, heads, size); scaling the input is the same."""
    flexible = FrameFlexible(tokens, (4,))
    variables = flexible.specialise(random_variables(tokens))
    gain = np.linspace(-0.5, 0.5, 8, dtype=np.float32)
    variables["params_4f"]["body"]["attention"]["query"]["gain"] = gain
    kernel = variables["params"]["body"]["attention"]["query"]["kernel"]
    selected = flexible.select(variables, 4)["params"]["body"]["attention"]["query"]["kernel"]
    x = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    expected = np.einsum("nc,chd->nhd", x * (1 + gain), kernel)
    np.testing.assert_allclose(np.einsum("nc,chd->nhd", x, selected), expected, rtol=1e-5, atol=1e-6)


def test_private_copies_are_copies(flexible, plain):
    """A donated step may not free the same buffer twice."""
    variables = flexible.specialise(jax.tree.map(jnp.asarray, plain))
    leaves = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(variables)]
    assert len(set(leaves)) == len(leaves)


def test_init_gives_the_same_collections(flexible, plain, clip):
    made = flexible.init(KEY, jnp.zeros((1, 8, 32, 32, 3)))
    chex.assert_trees_all_equal_shapes(made, flexible.specialise(plain, KEY))
    assert all(np.any(made[f"params_{count}f"]["body"]["layer1_0"]["conv1"]["gain"]) for count in (4, 8, 16))


@pytest.mark.parametrize(("name", "deviation"), [("normal", 1e-3), ("kaiming", (2 / 2000) ** 0.5), ("zeros", 0)])
def test_the_inits_of_the_gains(name, deviation):
    wide = create_tiny("tsm_resnet18", depths=(1,), width=2000)
    kernel = {"body": {"layer1_0": {"conv1": {"kernel": np.ones((1, 1, 2000, 1), np.float32)}}}}
    variables = FrameFlexible(wide, (4, 16), alteration=name).specialise({"params": kernel}, KEY)
    gains = [np.asarray(variables[f"params_{count}f"]["body"]["layer1_0"]["conv1"]["gain"]) for count in (4, 16)]
    for gain in gains:
        assert gain.std() == pytest.approx(deviation, rel=0.06)
        assert abs(gain.mean()) <= 0.1 * deviation
    assert deviation == 0 or not np.allclose(*gains)


def test_no_alteration_has_no_gains(model, plain):
    flexible = FrameFlexible(model, (4, 16), alteration="none")
    variables = flexible.specialise(plain, KEY)
    assert not any(path.endswith("gain") for path in trees.flatten(variables))
    chex.assert_trees_all_equal(flexible.select(variables, 4), plain)


def test_a_gain_scales_the_input_channels(flexible, variables, model, clip, apply):
    """The kernel W * (1 + gain) equals FFN's adapter: x + gain * x in front of conv1 of every block."""
    video = clip(2, 8, 32, 32)
    private = variables["params_8f"]
    without = {**variables, "params_8f": traverse_util.path_aware_map(lambda p, x: x * (p[-1] != "gain"), private)}

    def adapted(call, args, kwargs, context):
        if isinstance(context.module, Conv) and context.method_name == "__call__" and context.module.name == "conv1":
            node = private
            for part in context.module.path:
                node = node.get(part, {})
            args = (args[0] * (1 + node.get("gain", 0)), *args[1:])
        return call(*args, **kwargs)

    with nn.intercept_methods(adapted):
        expected = jax.jit(lambda v, x: model.apply(v, x))(flexible.select(without, 8), video)
    logits = apply(flexible.select(variables, 8), video)
    chex.assert_trees_all_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(logits, apply(flexible.select(without, 8), video), rtol=1e-2)


def test_select_computes_in_float32_before_the_cast(random_variables):
    """In bfloat16 1 + 1e-3 is 1, so a gain of the paper's size would be lost."""
    half = create_tiny("tsm_resnet18", depths=(1,), dtype="bfloat16")
    flexible = FrameFlexible(half, (4, 16))
    variables = flexible.specialise(random_variables(half))
    path = "body/layer1_0/conv1/"
    variables["params_4f"] = trees.merge(
        variables["params_4f"], trees.unflatten({path + "gain": np.full(8, 1e-3, np.float32)})
    )
    assert jnp.bfloat16(1) + jnp.bfloat16(1e-3) == 1
    kernel = trees.flatten(flexible.select(variables, 4)["params"])[path + "kernel"]
    original = trees.flatten(variables["params"])[path + "kernel"]
    assert kernel.dtype == jnp.float32
    chex.assert_trees_all_close(kernel / original, np.full_like(original, 1.001), rtol=1e-6)
    assert (kernel.astype(jnp.bfloat16) != original.astype(jnp.bfloat16)).any()


def test_nearest_takes_the_larger_of_a_tie(model):
    flexible = FrameFlexible(model, (4, 8, 16))
    expected = {1: 4, 4: 4, 5: 4, 6: 8, 7: 8, 8: 8, 10: 8, 11: 8, 12: 16, 14: 16, 16: 16, 64: 16}
    assert {n: flexible.nearest(n) for n in expected} == expected
    assert FrameFlexible(model, (2, 32)).nearest(17) == 32
    assert FrameFlexible(model, (2, 32)).nearest(16) == 2


@pytest.mark.parametrize("frames", [(2, 32), (4, 8, 12, 16), (5,)])
def test_any_tuple_of_counts(model, plain, frames):
    flexible = FrameFlexible(model, tuple(reversed(frames)))
    assert flexible.frames == frames
    clips = {n: jax.ShapeDtypeStruct((2, n, 32, 32, 3), jnp.uint8) for n in frames}
    variables = flexible.specialise(plain)
    assert {name for name in variables if name.startswith("params_")} == {f"params_{n}f" for n in frames}
    logits, updated = jax.eval_shape(
        lambda v, c: flexible.apply(v, c, train=True, rngs={"dropout": KEY}, mutable=True), variables, clips
    )
    assert {n: z.shape for n, z in logits.items()} == dict.fromkeys(frames, (2, 5))
    assert set(updated) == {f"batch_stats_{n}f" for n in frames}


@pytest.mark.parametrize("frames", [(), (0, 4), (-4,)])
def test_wrong_counts_say_so(model, frames):
    with pytest.raises(ValueError, match=r"frames must be positive frame counts such as \(4, 8, 16\), got"):
        FrameFlexible(model, frames)


def test_apply_is_a_plain_apply_for_each_count(flexible, variables, clip, apply):
    clips = {n: clip(2, n, 32, 32, seed=n) for n in (16, 4, 6)}  # 6 frames: those of 8
    logits = jax.jit(flexible.apply)(variables, clips)
    assert set(logits) == {16, 4, 6}
    for n, video in clips.items():
        chex.assert_trees_all_close(logits[n], apply(flexible.select(variables, n), video), rtol=1e-5, atol=1e-6)
    other = apply(flexible.select(variables, 4), clips[6])
    assert not np.allclose(logits[6], other, rtol=1e-2)


def test_training_is_a_plain_apply_for_each_count_with_keys_of_its_own(flexible, variables, model, clip):
    clips = {n: clip(2, n, 32, 32, seed=n) for n in (4, 8)}
    logits, updated = jax.jit(lambda v, c, key: flexible.apply(v, c, train=True, rngs={"dropout": key}, mutable=True))(
        variables, clips, KEY
    )
    assert set(updated) == {"batch_stats_4f", "batch_stats_8f"}

    @jax.jit
    def train(plain, video, key):
        return model.apply(plain, video, train=True, rngs={"dropout": key}, mutable=["batch_stats"])

    for n, video in clips.items():
        expected, state = train(flexible.select(variables, n), video, jax.random.fold_in(KEY, n))
        chex.assert_trees_all_close(logits[n], expected, rtol=1e-4, atol=1e-5)
        chex.assert_trees_all_close(updated[f"batch_stats_{n}f"], state["batch_stats"], rtol=1e-4, atol=1e-5)
        same_key, _ = train(flexible.select(variables, n), video, KEY)
        assert not np.allclose(same_key, expected)


def test_one_count_moves_no_other(flexible, variables, clip):
    """The gradient of the 4-frame logits is zero for the other counts' variables."""
    video = {n: clip(2, n, 32, 32) for n in (4, 8)}
    params = {name: tree for name, tree in variables.items() if name.startswith("params")}
    gradients = jax.jit(jax.grad(lambda p: flexible.apply({**variables, **p}, video)[4].sum()))(params)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves((gradients["params_8f"], gradients["params_16f"])))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradients["params_4f"]))


def test_without_private_norms_the_counts_move_one_set_of_statistics(model, plain, clip):
    flexible = FrameFlexible(model, (4, 8), alteration="none", private_norms=False)
    variables = flexible.specialise(plain)
    assert set(variables) == {"params", "batch_stats"}
    clips = {n: clip(2, n, 32, 32, seed=n) for n in (4, 8)}
    _, updated = jax.jit(lambda v, c: flexible.apply(v, c, train=True, rngs={"dropout": KEY}, mutable=True))(
        variables, clips
    )
    assert set(updated) == {"batch_stats"}
    state = variables
    for video in clips.values():  # one after the other
        _, moved = jax.jit(lambda v, x: model.apply(v, x, train=True, rngs={"dropout": KEY}, mutable=["batch_stats"]))(
            state, video
        )
        state = {**state, **moved}
    chex.assert_trees_all_close(updated["batch_stats"], state["batch_stats"], rtol=1e-4, atol=1e-5)


def test_without_private_norms_gains_stay_private(model, plain):
    flexible = FrameFlexible(model, (4, 8), private_norms=False)
    variables = flexible.specialise(plain, KEY)
    assert set(variables) == {"params", "batch_stats", "params_4f", "params_8f"}
    assert all(path.endswith("gain") for path in trees.flatten(variables["params_4f"]))
    four, eight = (flexible.select(variables, n)["params"] for n in (4, 8))
    differing = {path for path, leaf in trees.flatten(four).items() if np.any(leaf != trees.flatten(eight)[path])}
    assert differing == {"body/layer1_0/conv1/kernel", "body/layer2_0/conv1/kernel"}


def test_a_clip_of_another_length_is_one_clear_error(flexible, variables, clip):
    with pytest.raises(ValueError) as error:
        flexible.apply(variables, {4: clip(1, 4, 32, 32), 8: clip(1, 6, 32, 32)})
    assert str(error.value) == "frames=(4, 8) need clips of 4 and 8 frames, got 4 and 6: sample with frames=(4, 6)"


def test_training_at_an_untrained_count_is_one_clear_error(flexible, variables, clip):
    with pytest.raises(ValueError, match=re.escape("drop [6] or make FrameFlexible(model, frames=(4, 6, 8, 16))")):
        flexible.apply(variables, {4: clip(1, 4, 32, 32), 6: clip(1, 6, 32, 32)}, train=True, mutable=True)


def test_ordinary_variables_are_one_clear_error(flexible, plain):
    with pytest.raises(ValueError, match=r"no params_8f but batch_stats, params: specialise\(variables\) makes"):
        flexible.select(plain, 8)


def test_an_alteration_of_a_wrong_name_or_kernel_is_one_clear_error(model, plain):
    with pytest.raises(ValueError, match="alteration must be one of normal, kaiming, zeros or none, got 'big'"):
        FrameFlexible(model, alteration="big")
    for pattern, found in (("body/.*/bias", "no parameter"), ("head/classifier/bias", "head/classifier/bias")):
        wrong = FrameFlexible(model.clone(altered=((pattern, -2),)))
        with pytest.raises(ValueError, match=f"must match ungrouped kernels .* got {found}"):
            wrong.specialise(plain)


def test_a_dense_kernels_gain_is_on_its_input_axis(model, plain):
    flexible = FrameFlexible(model.clone(altered=(("head/classifier/kernel", -2),)), (4, 8))
    variables = flexible.specialise(plain)
    gain = np.linspace(0, 1, 16, dtype=np.float32)
    variables["params_4f"]["head"]["classifier"]["gain"] = gain
    kernel = flexible.select(variables, 4)["params"]["head"]["classifier"]["kernel"]
    chex.assert_trees_all_close(
        np.asarray(kernel), plain["params"]["head"]["classifier"]["kernel"] * (1 + gain)[:, None]
    )
