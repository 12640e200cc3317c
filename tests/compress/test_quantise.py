import dataclasses
import sys

import chex
import jax
import numpy as np
import pytest

import flaxvid
from flaxvid.compress.quantise import calibrate, quantise
from flaxvid.frames import FrameFlexible
from flaxvid.layers.int8 import find_qwix
from flaxvid.models.registry import create_model, create_tiny
from flaxvid.weights.native import WeightsInfo, save_variables

pytest.importorskip("qwix")
MODELS = ["tsm_resnet18", "r3d_18_se", "x3d_s", "videomae_base", "mvit_v2_s", "cnn_gru"]


def clips_of(model, clip, count=6):
    side = model.clip.image_size
    return [clip(count // 2, model.clip.num_frames, side, side, seed=seed) for seed in range(2)]


@pytest.mark.parametrize("name", MODELS)
def test_a_network_is_nearly_the_same_in_int8(name, random_variables, clip):
    model = create_tiny(name)
    variables, clips = random_variables(model), clips_of(model, clip)
    ranges = calibrate(model, variables, clips)
    assert ranges
    assert not any(path.startswith("head") or "/se/" in path for path in ranges)
    assert ("body/block_0/attention/qkv" in ranges) == (name in ("videomae_base", "mvit_v2_s"))
    rounded = quantise(model, ranges)
    assert rounded != model
    wanted, got = (np.concatenate([jax.jit(one.apply)(variables, c) for c in clips]) for one in (model, rounded))
    assert 0 < np.linalg.norm(got - wanted) < 0.2 * np.linalg.norm(wanted - wanted.mean(axis=0))
    features = rounded.apply(variables, clips[0], method="features")
    assert np.abs(features - model.apply(variables, clips[0], method="features")).max() > 0


def test_ranges_are_the_mean_of_the_clips_but_for_shortcuts(random_variables, clip):
    model = create_tiny("tsm_resnet18", depths=(1,))
    variables, clips = random_variables(model), clips_of(model, clip)
    ranges = calibrate(model, variables, clips)
    bound = model.bind(variables)
    video = np.asarray(bound.normalise(np.concatenate(clips))).reshape(6, -1)
    np.testing.assert_allclose(ranges["stem/conv1"], [video.min(axis=1).mean(), video.max(axis=1).mean()], rtol=1e-5)
    low, high = ranges["body/layer1_0/sum"]
    assert low == 0
    x = np.asarray(bound.stem(bound.normalise(np.concatenate(clips))))
    np.testing.assert_allclose(high, x.max(), rtol=1e-5)  # nothing of a shortcut is cut off
    assert ranges["body/layer1_0/conv1"] == (low, high)  # the same tensor, though the convolution sees it shifted
    assert set(ranges) == {"stem/conv1", *(f"body/layer1_0/{part}" for part in ("conv1", "conv2", "sum"))}
    ones = calibrate(model, variables, [one[None] for batch in clips for one in batch])
    chex.assert_trees_all_close(ones, ranges, rtol=1e-5)
    kept = calibrate(model, variables, clips, ("stem", "head", "body/.*/conv2"))
    assert set(kept) == {"body/layer1_0/conv1", "body/layer1_0/sum"}


def test_a_file_has_a_quarter_of_the_size_and_answers_the_same(random_variables, clip, tmp_path):
    model = create_tiny("tsm_resnet18", width=32)
    variables, clips = random_variables(model), clips_of(model, clip)
    rounded = quantise(model, calibrate(model, variables, clips))
    flaxvid.save(flaxvid.Trained(model, variables), tmp_path / "float.safetensors")
    flaxvid.save(flaxvid.Trained(rounded, variables), tmp_path / "int8.safetensors")
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("int8", "float")]
    assert sizes[0] < 0.3 * sizes[1]
    loaded = flaxvid.load(tmp_path / "int8.safetensors")
    assert loaded.model.int8 == rounded.int8
    wanted = rounded.apply(variables, clips[0])
    np.testing.assert_allclose(loaded.model.apply(loaded.variables, clips[0]), wanted, rtol=1e-4, atol=1e-5)
    # Equal to the last bit by the same program; another one may take a value between two steps to the other side.
    said, before = (one.predict(clips[0][0])["probabilities"] for one in (loaded, flaxvid.Trained(rounded, variables)))
    assert said == before


def test_without_qwix_no_clip_is_read(random_variables, clip, monkeypatch):
    model = create_tiny("tsm_resnet18")
    read = []
    monkeypatch.setitem(sys.modules, "qwix", None)
    find_qwix.cache_clear()
    with pytest.raises(ImportError, match=r"needs qwix, which is not installed: pip install 'flaxvid\[int8\]'"):
        calibrate(model, random_variables(model), map(read.append, clips_of(model, clip)))
    assert not read


def test_frame_flexible_variables_in_training(random_variables, clip):
    """Dynamic ranges are those of each clip, so that no clip sees its neighbours; the gradient reaches everything."""
    model = create_tiny("tsm_resnet18", depths=(1,), int8="dynamic")
    flexible = FrameFlexible(model, (2, 4))
    variables = flexible.specialise(random_variables(model), jax.random.key(1))
    clips = {n: clip(3, n, 32, 32) for n in (2, 4)}
    logits = flexible.apply(variables, clips)
    plain = dataclasses.replace(flexible, model=create_tiny("tsm_resnet18", depths=(1,))).apply(variables, clips)
    for n in (2, 4):
        alone = flexible.apply(variables, {n: clips[n][1:2]})[n]
        np.testing.assert_allclose(logits[n][1:2], alone, rtol=1e-4, atol=1e-5)
        assert 0 < np.abs(logits[n] - plain[n]).max() < 0.5 * np.abs(plain[n]).max()
    gradients = jax.grad(lambda v: sum((z**2).sum() for z in flexible.apply(v, clips).values()))(variables)
    chex.assert_tree_all_finite(gradients)
    trained = {name: tree for name, tree in gradients.items() if name.startswith("params")}
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(trained))


def test_what_cannot_be(random_variables, clip, tmp_path):
    model = create_tiny("tsm_resnet18", depths=(1,))
    variables = random_variables(model)
    with pytest.raises(ValueError, match="expected clips to calibrate with"):
        calibrate(model, variables, [])
    with pytest.raises(ValueError, match="nothing is left to round"):
        calibrate(model, variables, clips_of(model, clip), ("stem", "body", "head"))
    with pytest.raises(ValueError, match="this network has no layers body/layer9_0/conv1"):
        quantise(model, {"body/layer9_0/conv1": (0.0, 1.0)})
    for wrong in ("int4", {"body/layer1_0/conv1": (1.0, 2.0)}, {}):
        with pytest.raises(ValueError, match='int8 must be None, "dynamic", or'):
            create_model("tsm_resnet18", int8=wrong)
    overrides = {**model.overrides, "int8": {"body/layer1_0/conv1": [0.0, 1.0]}}
    save_variables(tmp_path / "whole.safetensors", variables, WeightsInfo("tsm_resnet18", overrides))
    content = (tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "broken.safetensors").write_bytes(content.replace(b"kernel_step", b"kernel_stop"))
    with pytest.raises(ValueError, match="must have params/body/layer1_0/conv1/kernel in int8"):
        flaxvid.load(tmp_path / "broken.safetensors")
