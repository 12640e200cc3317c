"""Channels that are dead are removed without a trace, which no wrong axis would survive."""

import dataclasses

import chex
import jax
import numpy as np
import pytest

import flaxvid
from flaxvid import trees
from flaxvid.compress.channels import count_kept, importance, inner_members, remove_channels
from flaxvid.evaluate.cost import model_cost
from flaxvid.frames import FrameFlexible
from flaxvid.models.registry import create_model, create_tiny

FAMILIES = {
    "tsm_resnet18": 1,
    "tsm_resnet50": 2,
    "slow_r50": 2,
    "r3d_18_se": 1,
    "r2plus1d_r18": 3,
    "r2plus1d_r50": 3,
    "slowfast_r50": 2,
}
"""Models and the rows of channels of each of their blocks."""


def kill(model, variables, share):
    """Norms of some channels of each row give zeros, also behind a ReLU; gives the survivors' numbers."""
    flat, alive = trees.flatten(variables), []
    for number, (_, members) in enumerate(inner_members(model, flat)):
        (path, *_) = members
        channels = flat[path].shape[members[path]]
        dead = np.random.default_rng(number).permutation(channels)[count_kept(channels, share) :]
        alive.append(np.setdiff1d(np.arange(channels), dead))
        for path, axis in members.items():
            if path.endswith(("/scale", "/bias")):
                assert axis == -1
                flat[path] = flat[path].copy()
                flat[path][dead] = 0
    return trees.unflatten(flat), alive


@pytest.mark.parametrize("name", FAMILIES)
def test_dead_channels_are_not_missed(name, random_variables, clip):
    model = create_tiny(name)
    variables, alive = kill(model, random_variables(model), 0.5)
    thin, left = remove_channels(model, variables, 0.5)
    blocks = {
        path.split("/")[2] for path in trees.flatten({"params": left["params"]}) if path.startswith("params/body/")
    }
    blocks = {block for block in blocks if "layer" in block}
    assert thin.overrides["inner"].keys() == blocks
    assert {len(counts) for counts in thin.overrides["inner"].values()} == {FAMILIES[name]}
    assert [count for counts in thin.overrides["inner"].values() for count in counts] == [len(own) for own in alive]

    side = model.clip.image_size
    video = clip(2, model.clip.num_frames, side, side)
    chex.assert_trees_all_equal_shapes(left, jax.eval_shape(thin.init, jax.random.key(0), video))
    wanted, got = jax.jit(model.apply)(variables, video), jax.jit(thin.apply)(left, video)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    before, after = (model_cost(one, video.shape) for one in (model, thin))
    assert after.macs < 0.8 * before.macs
    assert after.parameters < before.parameters


def test_all_frame_counts_lose_the_same_channels(random_variables, clip):
    flexible = FrameFlexible(create_tiny("tsm_resnet50"), (2, 4))
    variables = flexible.specialise(random_variables(flexible.model), jax.random.key(1))
    variables, _ = kill(flexible.model, jax.tree.map(np.asarray, variables), 0.3)
    thin, left = remove_channels(flexible.model, variables, 0.3)
    clips = {n: clip(1, n, 32, 32) for n in (2, 4)}
    wanted = flexible.apply(variables, clips)
    got = dataclasses.replace(flexible, model=thin).apply(left, clips)
    chex.assert_trees_all_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_the_least_important_go():
    model = create_tiny("tsm_resnet18", depths=(1,))
    flat = trees.flatten(jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 4, 32, 32, 3), np.uint8)))
    ((block, members),) = inner_members(model, flat)
    assert block == "layer1_0"
    assert {path.removeprefix("params/body/layer1_0/") for path in members if path.startswith("params")} == {
        "conv1/kernel",
        "norm1/scale",
        "norm1/bias",
        "conv2/kernel",
    }
    rng = np.random.default_rng(0)
    leaves = {path: rng.normal(0, 1, flat[path].shape) for path in members}
    scale, reader = (leaves[f"params/body/layer1_0/{name}"] for name in ("norm1/scale", "conv2/kernel"))
    wanted = np.abs(scale) * np.sqrt((reader**2).sum(axis=(0, 1, 3)))
    np.testing.assert_allclose(importance(leaves, members), wanted)


def test_a_thin_network_is_saved_and_loaded(random_variables, tmp_path, clip):
    model = create_tiny("slow_r50")
    thin, left = remove_channels(model, random_variables(model), 0.5)
    trained = flaxvid.Trained(thin, left)
    flaxvid.save(trained, tmp_path / "thin.safetensors")
    loaded = flaxvid.load(tmp_path / "thin.safetensors")
    assert {block: tuple(counts) for block, counts in loaded.model.overrides["inner"].items()} == thin.overrides[
        "inner"
    ]
    chex.assert_trees_all_equal(dict(loaded.variables), left)
    state_dict = flaxvid.to_torch("slow_r50", left, overrides=thin.overrides)
    assert state_dict["blocks.1.res_blocks.0.branch2.conv_a.weight"].shape[0] == 4
    thinner, less = remove_channels(loaded.model, loaded.variables, 0.5)
    assert thinner.overrides["inner"]["layer1_0"] == (2, 2)
    thinner.apply(less, clip(1, 4, 32, 32))


@pytest.mark.parametrize(
    ("channels", "share", "multiple", "kept"),
    [(64, 0.5, 1, 32), (64, 0.3, 8, 48), (64, 0.99, 8, 8), (10, 0.0, 8, 8), (6, 0.1, 8, 6), (3, 0.9, 1, 1)],
)
def test_how_many_stay(channels, share, multiple, kept):
    assert count_kept(channels, share, multiple) == kept


def test_what_cannot_be():
    with pytest.raises(ValueError, match="x3d_s does not say which of its channels can be removed"):
        remove_channels(create_tiny("x3d_s"), {}, 0.5)
    with pytest.raises(ValueError, match=r"expected a share of the channels in \[0, 1\)"):
        remove_channels(create_tiny("slow_r50"), {}, 1.0)
    with pytest.raises(ValueError, match="expected a multiple of at least 1, got 0"):
        remove_channels(create_tiny("slow_r50"), {}, 0.5, 0)
    with pytest.raises(ValueError, match=r"inner: this network has no layer9_0: its blocks are layer1_0"):
        create_model("tsm_resnet18", inner={"layer9_0": (4,)})
    with pytest.raises(ValueError, match="inner: expected 2 numbers of channels for layer1_0"):
        create_model("tsm_resnet50", inner={"layer1_0": (4,)})
    with pytest.raises(ValueError, match="inner must be a dict of channels by block"):
        create_model("tsm_resnet50", inner={"layer1_0": (0, 4)})
