"""Import and export by the tables, without torch; parity with torch is in tests/parity."""

import re
import warnings

import chex
import jax
import numpy as np
import pytest

import flaxvid
from flaxvid import trees
from flaxvid.models.registry import create_tiny, get_spec
from flaxvid.weights.keys import torch_key
from flaxvid.weights.torch import import_torch

TINY = {"width": 8, "depths": (1, 1, 1, 1), "image_size": 32, "num_frames": 2}
VIDEO = np.zeros((1, 2, 32, 32, 3), np.uint8)


def randomise(shapes):
    leaves, structure = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(structure, [rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32) for leaf in leaves])


@pytest.fixture(scope="module")
def plain():
    """Random variables of the tiny TSM, statistics too."""
    return randomise(jax.eval_shape(create_tiny("tsm_resnet50").init, jax.random.PRNGKey(0), VIDEO))


@pytest.fixture(scope="module")
def flexible_variables(plain):
    flexible = flaxvid.FrameFlexible(create_tiny("tsm_resnet50"), frames=(2, 12))
    return randomise(jax.eval_shape(flexible.specialise, plain))


def load(source, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return import_torch("tsm_resnet50", source, overrides=TINY, **options)


KEYS = {
    "tsm": "base_model.layer1.0.conv1.net.weight base_model.layer1.0.downsample.0.weight base_model.bn1.bias"
    " new_fc.bias",
    "torchvision": "layer1.0.conv1.weight layer1.0.downsample.1.running_mean bn1.weight fc.weight",
    "mmaction2": "backbone.layer1.0.conv1.conv.net.weight backbone.layer1.0.conv2.bn.running_var"
    " backbone.conv1.conv.weight"
    " backbone.layer1.0.downsample.bn.weight cls_head.fc_cls.weight",
}


@pytest.mark.parametrize("fmt", KEYS)
def test_round_trip_of_every_plain_format(plain, fmt):
    state_dict = flaxvid.to_torch("tsm_resnet50", plain, format=fmt)
    assert set(KEYS[fmt].split()) <= set(state_dict)
    counters = {key for key in state_dict if key.endswith("num_batches_tracked")}
    assert len(counters) == 1 + 4 * 4
    assert all(state_dict[key].dtype == np.int64 for key in counters)
    imported = load(state_dict)
    assert (imported.format, imported.frames, imported.num_classes, imported.fresh) == (fmt, None, 5, ())
    chex.assert_trees_all_equal(imported.variables, plain)
    assert {key for keys in imported.keys.values() for key in keys} == set(state_dict) - counters


BLOCKS = ("slow_r50", "res3dcnn", "r3d_18", "r3d_18_se", "r2plus1d_r18", "r2plus1d_r34", "r2plus1d_r50", "slowfast_r50")
BLOCKS += ("c2d_r50", "i3d_r50", "r3d_resnet18", "r3d_resnet50", "r2plus1d_resnet18", "r2plus1d_resnet50")
BLOCKS += ("slowfast_r101_50_50", "slow_nln_r50", "i3d_nln_r50", "tsm_nln_resnet50", "ipcsn_r152")
ASKED = {"c2d_r50", "i3d_nln_r50", "tsm_nln_resnet50", "ipcsn_r152"}
"""Keys and shapes of their files leave several formats."""


@pytest.mark.parametrize(
    ("name", "given"),
    [*((name, {}) for name in BLOCKS), *(("x3d_m", {"shortcut_norm": norm}) for norm in (False, True))],
)
def test_every_table_exports_and_imports_the_same_tensors(name, given, random_variables):
    small = {option: value for option, value in get_spec(name).tiny.items() if option != "num_classes"}
    for table, known in get_spec(name).formats.items():
        overrides = {**known.overrides, **given}
        variables = random_variables(create_tiny(name, **overrides))
        if (table, given) == ("mmaction2", {"shortcut_norm": False}):  # its X3D always has that norm
            with pytest.raises(ValueError, match="'mmaction2' has no place for params/body/layer1_0/downsample/kernel"):
                flaxvid.to_torch(name, variables, format=table, overrides=overrides)
            continue
        exported = flaxvid.to_torch(name, variables, format=table, overrides=overrides)
        counters = sum(key.endswith("num_batches_tracked") for key in exported)
        assert len(exported) - counters == len(jax.tree.leaves(variables))
        asked = table if name in ASKED else None
        imported = import_torch(name, {"model_state": exported}, format=asked, overrides={**small, **given})
        assert (imported.format, imported.num_classes) == (table, 5)
        chex.assert_trees_all_equal(imported.variables, variables)


CAFFE2 = (
    (r"(t_)?res_conv1_bn_", r"s1.pathway{}_stem.bn_"),
    (r"(t_)?conv1_w", r"s1.pathway{}_stem.conv_w"),
    (r"t_pool1_subsample_bn_", r"s1_fuse.bn_"),
    (r"t_pool1_subsample_w", r"s1_fuse.conv_f2s_w"),
    (r"t_res(\d)_\d+_branch2c_bn_subsample_bn_", r"s\1_fuse.bn_"),
    (r"t_res(\d)_\d+_branch2c_bn_subsample_w", r"s\1_fuse.conv_f2s_w"),
    (r"(?:t_)?res(\d)_(\d+)_branch2([abc])_bn_", r"s\1.pathway{}_res\2.branch2.\3_bn_"),
    (r"(?:t_)?res(\d)_(\d+)_branch2([abc])_w", r"s\1.pathway{}_res\2.branch2.\3_w"),
    (r"(?:t_)?res(\d)_(\d+)_branch1_", r"s\1.pathway{}_res\2.branch1_"),
    (r"nonlocal_conv(\d)_(\d+)_(theta|phi|g|out)_", r"s\1.pathway{}_nonlocal\2.conv_\3_"),
    (r"nonlocal_conv(\d)_(\d+)_bn_", r"s\1.pathway{}_nonlocal\2.bn_"),
    (r"pred_", "head.projection_"),
)
LEAVES = {"w": "weight", "b": "bias", "s": "weight", "rm": "running_mean", "riv": "running_var"}


def from_caffe2(name):
    """PySlowFast's key of a name of Caffe2, by what its converter says."""
    pathway = int(name.startswith("t_"))
    key = next(re.sub(old, new, name) for old, new in CAFFE2 if re.match(old, name)).format(pathway)
    module, _, leaf = key.rpartition("_")
    return f"{module}.{LEAVES[leaf]}"


@pytest.mark.parametrize("name", ["slow_r50", "c2d_r50", "i3d_r50", "i3d_nln_r50", "slowfast_r50", "slowfast_r101"])
def test_the_names_of_caffe2(name):
    """Of the whole depth: where a lateral convolution reads is part of its name."""
    model = flaxvid.create_model(name, width=16)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 64, 64, 3), np.uint8))
    blank = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes)
    ours = flaxvid.to_torch(name, blank, "caffe2")
    theirs = flaxvid.to_torch(name, blank, "pyslowfast")
    counters = {key for key in theirs if key.endswith("num_batches_tracked")}
    assert {from_caffe2(key): tensor.shape for key, tensor in ours.items()} == {
        key: tensor.shape for key, tensor in theirs.items() if key not in counters
    }
    asked = "caffe2" if name in ASKED else None
    assert import_torch(name, ours, format=asked, overrides={"width": 16}).format == "caffe2"


def test_the_classifier_of_mmaction2s_slowfast_has_the_fast_pathway_first(random_variables):
    name, options = "slowfast_r50", dict(get_spec("slowfast_r50").formats["mmaction2"].overrides)
    variables = random_variables(create_tiny(name, **options))
    kernel = np.asarray(variables["params"]["head"]["classifier"]["kernel"])
    written = flaxvid.to_torch(name, variables, "mmaction2", overrides=options)["cls_head.fc_cls.weight"]
    fast = kernel.shape[0] // 9
    np.testing.assert_array_equal(written[:, :fast], kernel[-fast:].T)
    np.testing.assert_array_equal(written[:, fast:], kernel[:-fast].T)
    thick = {**options, "beta": 4}
    with pytest.raises(ValueError, match=r"classifier/kernel must split .* pass the overrides"):
        flaxvid.to_torch(name, random_variables(create_tiny(name, **thick)), "mmaction2", overrides=thick)


def test_kernels_are_transposed(plain):
    state_dict = flaxvid.to_torch("tsm_resnet50", plain, format="torchvision")
    kernel = np.asarray(plain["params"]["stem"]["conv1"]["kernel"])
    np.testing.assert_array_equal(state_dict["conv1.weight"][3, 2, 5, 6], kernel[5, 6, 2, 3])
    np.testing.assert_array_equal(
        state_dict["fc.weight"], np.asarray(plain["params"]["head"]["classifier"]["kernel"]).T
    )


def test_defaults_by_name_and_by_variables(plain, flexible_variables):
    assert "base_model.layer1.0.conv1.net.weight" in flaxvid.to_torch("tsm_resnet50", plain)
    assert "layer1.0.conv1.weight" in flaxvid.to_torch("tsn_resnet50", plain)
    assert "backbone.layer1.0.conv1.conv.weight" in flaxvid.to_torch("tsn_resnet50", plain, format="mmaction2")
    assert "base_model.layer1.0.adaconv_12.weight" in flaxvid.to_torch("tsm_resnet50", flexible_variables)


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "model.", "module.model."])
def test_wrappers_and_containers(plain, prefix):
    state_dict = flaxvid.to_torch("tsm_resnet50", plain, format="torchvision")
    wrapped = {key if key.startswith("fc.") else prefix + key: tensor for key, tensor in state_dict.items()}
    chex.assert_trees_all_equal(load({"model_state_dict": wrapped, "epoch": 2}).variables, plain)


def test_net_is_optional(plain):
    state_dict = flaxvid.to_torch("tsm_resnet50", plain)
    without = {key.replace(".net.", "."): tensor for key, tensor in state_dict.items()}
    imported = load(without)
    assert imported.format == "tsm"
    chex.assert_trees_all_equal(imported.variables, plain)


def test_frame_flexible_round_trip(flexible_variables):
    state_dict = flaxvid.to_torch("tsm_resnet50", flexible_variables)
    assert state_dict["base_model.layer2.0.adaconv_2.weight"].shape == (32, 1, 1, 1)
    assert {"base_model.bn1_12.running_var", "base_model.layer1.0.downsample_bn_2.weight"} <= set(state_dict)
    for frames in (None, (2, 12), [12, 2]):
        imported = load({"state_dict": {"module." + key: tensor for key, tensor in state_dict.items()}}, frames=frames)
        assert (imported.format, imported.frames) == ("ffn", (2, 12))
        chex.assert_trees_all_equal(imported.variables, flexible_variables)
    with pytest.raises(ValueError, match=r"has variables for frames=\(2, 12\), got frames=\(4, 8\): leave frames out"):
        load(state_dict, frames=(4, 8))


def test_frame_flexible_without_alteration(plain):
    flexible = flaxvid.FrameFlexible(create_tiny("tsm_resnet50"), frames=(2, 4), alteration="none")
    variables = flexible.specialise(plain)
    chex.assert_trees_all_equal(load(flaxvid.to_torch("tsm_resnet50", variables)).variables, variables)


def test_plain_file_is_specialised(plain):
    flexible = flaxvid.FrameFlexible(create_tiny("tsm_resnet50"), frames=(2, 4))
    state_dict = flaxvid.to_torch("tsm_resnet50", plain)
    chex.assert_trees_all_equal(load(state_dict, frames=(2, 4)).variables, flexible.specialise(plain))
    key = jax.random.PRNGKey(3)
    chex.assert_trees_all_equal(load(state_dict, frames=(4, 2), key=key).variables, flexible.specialise(plain, key))


def test_another_class_count_makes_a_fresh_head_and_says_so(plain):
    state_dict = flaxvid.to_torch("tsm_resnet50", plain)
    with pytest.warns(UserWarning, match="a classifier of 5 classes, tsm_resnet50 needs 300: its head is freshly"):
        variables = flaxvid.load_torch("tsm_resnet50", state_dict, num_classes=300, overrides=TINY)
    head = variables["params"]["head"]["classifier"]
    chex.assert_shape([head["kernel"], head["bias"]], [(256, 300), (300,)])
    assert float(head["kernel"].std()) == pytest.approx(1e-3, rel=0.02)
    assert not head["bias"].any()
    chex.assert_trees_all_equal(variables["params"]["body"], plain["params"]["body"])
    assert load(state_dict, num_classes=5).fresh == ()


def test_fresh_heads_of_a_dict_of_classes_and_back(plain):
    state_dict = flaxvid.to_torch("tsm_resnet50", plain)
    classes = {"action": 9, "actor": 4}
    with pytest.warns(UserWarning, match="freshly initialised"):
        imported = import_torch("tsm_resnet50", state_dict, num_classes=classes, overrides=TINY)
    assert len(imported.fresh) == 4
    exported = flaxvid.to_torch("tsm_resnet50", imported.variables)
    assert exported["new_fc_actor.weight"].shape == (4, 256)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = import_torch("tsm_resnet50", exported, num_classes=classes, overrides=TINY)
    chex.assert_trees_all_equal(again.variables, imported.variables)


def test_a_trunk_without_classifier(plain):
    state_dict = flaxvid.to_torch("tsm_resnet50", plain, format="torchvision")
    trunk = {key: tensor for key, tensor in state_dict.items() if not key.startswith("fc.")}
    with pytest.warns(UserWarning, match="a classifier of no classes"):
        assert len(import_torch("tsm_resnet50", trunk, num_classes=7, overrides=TINY).fresh) == 2
    with pytest.raises(ValueError, match=r"2 variables of the model have no tensor: params/head/classifier/bias"):
        load(trunk)


def test_one_error_lists_every_fault(plain):
    state_dict = flaxvid.to_torch("tsm_resnet50", plain)
    state_dict["base_model.extra.weight"] = np.ones(1)
    state_dict["base_model.bn1.weight"] = np.ones(3)
    del state_dict["base_model.conv1.weight"]
    with pytest.raises(ValueError) as error:
        load(state_dict)
    message = str(error.value)
    assert "the state_dict does not fit tsm_resnet50 (read as 'tsm')" in message
    assert "1 tensors have no place in the model: base_model.extra.weight" in message
    assert "1 variables of the model have no tensor: params/stem/conv1/kernel (conv1.weight)" in message
    assert "1 tensors have the wrong shape: base_model.bn1.weight (expected (8,), got (3,))" in message


def test_long_lists_are_cut(plain):
    with pytest.raises(ValueError, match=r"\d+ variables of the model have no tensor: .* and \d+ more"):
        load({"conv1.weight": np.ones((8, 3, 7, 7))})


def test_other_errors(plain, flexible_variables):
    state_dict = flaxvid.to_torch("tsm_resnet50", plain)
    with pytest.raises(ValueError, match=r"holds two models, 'base_model.conv1.weight' and 'module.conv1.weight'"):
        load({**state_dict, "module.conv1.weight": np.ones(1)})
    with pytest.raises(ValueError, match="torch formats tsm, torchvision, mmaction2, ffn, got format='onnx'"):
        load(state_dict, format="onnx")
    with pytest.raises(ValueError, match=r"'tsm' has no place for batch_stats_12f/.*select\(variables, n\)"):
        flaxvid.to_torch("tsm_resnet50", flexible_variables, format="tsm")
    with pytest.raises(ValueError, match="has no place for ema_params/body"):
        flaxvid.to_torch("tsm_resnet50", {"ema_params": plain["params"]})


def test_every_table_names_each_variable_once():
    for name in ("tsn_resnet18", "tsm_resnet18", "tsn_resnet50", "tsm_resnet50"):
        model = create_tiny(name)
        shapes = jax.eval_shape(model.init, jax.random.PRNGKey(0), VIDEO)
        flexible = jax.eval_shape(flaxvid.FrameFlexible(model, (4, 8)).specialise, shapes)
        for fmt, known in get_spec(name).formats.items():
            paths = trees.flatten(flexible if fmt == "ffn" else shapes)
            keys = [torch_key(path, known.keys) for path in paths]
            assert None not in keys
            assert len(set(keys)) == len(keys)
