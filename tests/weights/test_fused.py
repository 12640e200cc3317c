"""Formats of the transformers: several tensors for one variable, axes of their own, flax's files, pre-training."""

import argparse
import warnings

import chex
import numpy as np
import pytest
from flax import linen as nn
from flax.serialization import msgpack_serialize

import flaxvid
from flaxvid import trees
from flaxvid.layers.attention import Attention
from flaxvid.models.registry import create_tiny, get_spec
from flaxvid.weights.keys import from_tensors, to_tensors
from flaxvid.weights.readings import find_implied
from flaxvid.weights.tensors import read_tensors
from flaxvid.weights.torch import import_torch, load_pretraining

NAMES = ("videomae_base", "vivit_base", "timesformer_base")
FORMATS = [
    (name, fmt) for name in NAMES for fmt, known in get_spec(name).formats.items() if not fmt.endswith("pretraining")
]
SMALL = {name: {key: value for key, value in get_spec(name).tiny.items() if key != "num_classes"} for name in NAMES}
KEYS = {
    ("videomae_base", "transformers"): "videomae.encoder.layer.1.attention.attention.key.weight (16, 16)"
    " videomae.encoder.layer.1.attention.attention.query.bias (16,) fc_norm.weight (16,) classifier.bias (5,)"
    " videomae.embeddings.patch_embeddings.projection.weight (16, 3, 2, 8, 8)",
    ("videomae_base", "transformers_4"): "videomae.encoder.layer.0.attention.attention.v_bias (16,)",
    ("videomae_base", "authors"): "blocks.1.attn.qkv.weight (48, 16) blocks.1.attn.q_bias (16,) head.weight (5, 16)"
    " blocks.0.mlp.fc1.weight (64, 16) patch_embed.proj.bias (16,) fc_norm.bias (16,)",
    ("videomae_base", "mmaction2"): "backbone.blocks.1.mlp.layers.0.0.weight (64, 16) cls_head.fc_cls.weight (5, 16)"
    " backbone.blocks.1.mlp.layers.1.bias (16,) backbone.blocks.0.attn.v_bias (16,)",
    ("vivit_base", "transformers"): "vivit.embeddings.cls_token (1, 1, 16) vivit.layers.1.attention.k_proj.bias (16,)",
    ("vivit_base", "transformers_4"): "vivit.encoder.layer.1.attention.attention.value.weight (16, 16)",
    ("vivit_base", "scenic"): "cls (1, 1, 16) Transformer/posembed_input/pos_embedding (1, 33, 16)"
    " Transformer/encoderblock_1/MultiHeadDotProductAttention_0/query/kernel (16, 2, 8)"
    " Transformer/encoderblock_1/MultiHeadDotProductAttention_0/out/kernel (2, 8, 16)"
    " Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel (16, 64) embedding/kernel (2, 8, 8, 3, 16)",
    ("vivit_base", "scenic_factorised"): "cls_TemporalTransformer (1, 1, 16) output_projection/kernel (16, 5)"
    " SpatialTransformer/encoderblock_1/MultiHeadDotProductAttention_0/key/bias (2, 8)",
    ("timesformer_base", "transformers"): "timesformer.encoder.layer.1.temporal_attention.attention.qkv.bias (48,)",
    ("timesformer_base", "authors"): "model.blocks.1.temporal_attn.qkv.weight (48, 16) model.time_embed (1, 4, 16)"
    " model.blocks.1.temporal_fc.bias (16,) model.blocks.0.temporal_norm1.weight (16,) model.head.bias (5,)",
    ("timesformer_base", "authors_joint"): "model.blocks.1.attn.proj.weight (16, 16) model.cls_token (1, 1, 16)",
    ("timesformer_base", "authors_space"): "model.blocks.1.norm1.weight (16,) model.pos_embed (1, 17, 16)",
    ("timesformer_base", "mmaction2"): "backbone.transformer_layers.layers.1.attentions.0.attn.in_proj_weight (48, 16)"
    " backbone.transformer_layers.layers.1.attentions.0.temporal_fc.weight (16, 16)"
    " backbone.transformer_layers.layers.1.ffns.0.norm.weight (16,) backbone.pos_embed (1, 17, 16)",
    ("timesformer_base", "mmaction2_joint"): "backbone.transformer_layers.layers.1.norms.1.bias (16,)",
    ("timesformer_base", "mmaction2_space"): "backbone.transformer_layers.layers.0.norms.0.weight (16,)",
}


def named(text):
    """ "a (1, 2) b (3,)" as keys and shapes."""
    return {
        part.rpartition(" (")[0].strip(): tuple(int(size) for size in part.rpartition(" (")[2].split(",") if size)
        for part in text.split(")")
        if part
    }


@pytest.fixture
def exported(random_variables):
    """Random variables of a small model, and its state_dict in a format."""

    def make(name, fmt):
        overrides = {**SMALL[name], **get_spec(name).formats[fmt].overrides}
        variables = random_variables(create_tiny(name, **get_spec(name).formats[fmt].overrides))
        return variables, flaxvid.to_torch(name, variables, fmt, overrides=overrides)

    return make


@pytest.mark.parametrize(("name", "fmt"), FORMATS)
def test_there_and_back(name, fmt, exported):
    variables, state_dict = exported(name, fmt)
    shapes = {key: tensor.shape for key, tensor in state_dict.items()}
    assert named(KEYS.get((name, fmt), "")).items() <= shapes.items()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        imported = import_torch(name, {"module": state_dict, "epoch": 3}, overrides=SMALL[name])
    assert (imported.format, imported.num_classes) == (fmt, 5)
    assert imported.implied == find_implied(name, get_spec(name).formats[fmt], {})
    assert sorted(key for keys in imported.keys.values() for key in keys) == sorted(state_dict)
    chex.assert_trees_all_equal(imported.variables, variables)


@pytest.mark.parametrize(
    ("name", "fmt", "said"),
    [
        ("videomae_base", "authors", "norm_epsilon=1e-06, head_epsilon=1e-06"),
        ("videomae_base", "mmaction2", "norm_epsilon=1e-06, head_epsilon=1e-06"),
        ("vivit_base", "scenic_factorised", "attention='factorised'"),
        ("timesformer_base", "transformers_space", "attention='space', mean_first=False"),
        ("timesformer_base", "mmaction2", r"mean=\(0.5, 0.5, 0.5\), std=\(0.5, 0.5, 0.5\)"),
    ],
)
def test_variables_alone_are_refused_where_the_origin_computes_something_else(name, fmt, said, exported):
    variables, state_dict = exported(name, fmt)
    with pytest.raises(ValueError, match=rf"is of '{fmt}', whose {name} has {said}"):
        flaxvid.load_torch(name, state_dict, overrides=SMALL[name])
    overrides = {**SMALL[name], **get_spec(name).formats[fmt].overrides}
    chex.assert_trees_all_equal(flaxvid.load_torch(name, state_dict, overrides=overrides), variables)
    model, _ = flaxvid.load_model(name, state_dict, **SMALL[name])
    wanted = create_tiny(name, **get_spec(name).formats[fmt].overrides)
    assert repr((model.body, model.head, model.clip)) == repr((wanted.body, wanted.head, wanted.clip))


def test_several_tensors_stand_one_after_another(exported):
    variables, state_dict = exported("vivit_base", "transformers")
    attention = variables["params"]["body"]["block_1"]["attention"]["qkv"]
    for place, part in enumerate("qkv"):
        columns = slice(16 * place, 16 * place + 16)
        kernel = state_dict[f"vivit.layers.1.attention.{part}_proj.weight"]
        np.testing.assert_array_equal(kernel, np.asarray(attention["kernel"])[:, columns].T)
        np.testing.assert_array_equal(
            state_dict[f"vivit.layers.1.attention.{part}_proj.bias"], np.asarray(attention["bias"])[columns]
        )


def test_heads_are_axes_in_scenic(exported):
    variables, state_dict = exported("vivit_base", "scenic")
    kernel = np.asarray(variables["params"]["body"]["block_0"]["attention"]["qkv"]["kernel"])
    theirs = state_dict["Transformer/encoderblock_0/MultiHeadDotProductAttention_0/value/kernel"]
    assert theirs[3, 1, 5] == kernel[3, 32 + 8 + 5]
    kernel = np.asarray(variables["params"]["body"]["block_0"]["attention"]["project"]["kernel"])
    assert state_dict["Transformer/encoderblock_0/MultiHeadDotProductAttention_0/out/kernel"][1, 5, 3] == kernel[13, 3]
    with pytest.raises(ValueError, match=r"axes '\(num_heads d\) c' with num_heads=12, got \(16, 16\): pass"):
        flaxvid.to_torch("vivit_base", variables, "scenic")


def test_flax_attention_computes_the_same_from_scenics_arrays(exported):
    variables, state_dict = exported("vivit_base", "scenic")
    prefix = "Transformer/encoderblock_1/MultiHeadDotProductAttention_0/"
    theirs = {key.removeprefix(prefix): tensor for key, tensor in state_dict.items() if key.startswith(prefix)}
    x = np.random.default_rng(0).standard_normal((2, 7, 16)).astype(np.float32)
    ours = Attention(2).apply({"params": variables["params"]["body"]["block_1"]["attention"]}, x)
    reference = nn.MultiHeadDotProductAttention(2).apply({"params": trees.unflatten(theirs)}, x, x)
    np.testing.assert_allclose(np.asarray(ours), np.asarray(reference), rtol=1e-5, atol=1e-6)


def test_an_entry_says_how_axes_differ():
    table = ((r"body/token", "token", "c -> 1 1 c"), (r"4f/body/(q|k)", r"a.{x,y}.\1"))
    tensors = to_tensors("params/body/token", np.arange(3), table, {})
    assert {key: tensor.shape for key, tensor in tensors.items()} == {"token": (1, 1, 3)}
    np.testing.assert_array_equal(from_tensors("params/body/token", [tensors["token"]], table), np.arange(3))
    tensors = to_tensors("params_4f/body/k/kernel", np.arange(8).reshape(2, 4), table, {})
    np.testing.assert_array_equal(tensors["a.y.k.weight"], [[2, 6], [3, 7]])
    with pytest.raises(ValueError, match=r"params_4f/body/k/bias must split into 2 tensors of axes '...', got \(3,\)"):
        to_tensors("params_4f/body/k/bias", np.arange(3), table, {})


def test_a_missing_part_of_a_variable_is_named(exported):
    _, state_dict = exported("videomae_base", "transformers_4")
    del state_dict["videomae.encoder.layer.1.attention.attention.key.weight"]
    fault = r"1 variables of the model have no tensor: params/body/block_1/attention/qkv/kernel \(videomae\..*\.key\.w"
    with pytest.raises(ValueError, match=fault):
        flaxvid.load_model("videomae_base", state_dict, **SMALL["videomae_base"])


def test_stored_sines_are_no_parameter_but_learnt_positions_are_one(exported):
    _, state_dict = exported("videomae_base", "mmaction2")
    positions = {"backbone.pos_embed": np.zeros((1, 32, 16), np.float32)}
    imported = import_torch("videomae_base", {**state_dict, **positions}, overrides=SMALL["videomae_base"])
    assert imported.left_out == ("backbone.pos_embed",)
    _, state_dict = exported("videomae_base", "authors")
    with pytest.raises(ValueError, match="1 tensors have no place in the model: pos_embed"):
        flaxvid.load_model(
            "videomae_base",
            {**state_dict, "pos_embed": np.zeros((1, 32, 16), np.float32)},
            **SMALL["videomae_base"],
        )


def test_indices_are_no_tensors():
    mapping = {"a.weight": np.ones(2, np.float32), "a.relative_position_index": np.arange(3)}
    assert set(read_tensors(mapping)) == {"a.weight"}


PRETRAINING = [fmt for fmt in get_spec("videomae_base").formats if fmt.endswith("pretraining")]


@pytest.fixture
def pretrained(random_variables):
    """The variables that pre-training has: no head, and a decoder half as wide."""
    params = random_variables(create_tiny("videomae_base"))["params"]
    blocks = random_variables(create_tiny("videomae_base", width=8, num_heads=1), seed=1)["params"]["body"]
    rng = np.random.default_rng(2)

    def draw(*shape):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)

    decoder = {
        **blocks,
        "encoder_norm": {"scale": draw(16), "bias": draw(16)},
        "encoder_to_decoder": {"kernel": draw(16, 8)},
        "mask_token": draw(8),
        "norm": {"scale": draw(8), "bias": draw(8)},
        "head": {"kernel": draw(8, 384), "bias": draw(384)},
    }
    return {"params": {"stem": params["stem"], "body": params["body"]}, "params_decoder": decoder}


@pytest.mark.parametrize("fmt", PRETRAINING)
def test_pretraining_there_and_back_and_a_classifier_of_it(fmt, pretrained):
    overrides = {**SMALL["videomae_base"], **get_spec("videomae_base").formats[fmt].overrides}
    state_dict = flaxvid.to_torch("videomae_base", pretrained, fmt, overrides=overrides)
    assert state_dict["mask_token"].shape == (1, 1, 8)
    assert state_dict["encoder_to_decoder.weight"].shape == (8, 16)
    assert ("encoder.norm.weight" if fmt.startswith("authors") else "videomae.layernorm.weight") in state_dict
    again = load_pretraining("videomae_base", {"model": state_dict}, pretrained, overrides=overrides)
    chex.assert_trees_all_equal(again, pretrained)

    with pytest.warns(UserWarning, match="no classes, .* needs training; 3. tensors are left out: .* more"):
        imported = import_torch("videomae_base", state_dict, num_classes=7, overrides=SMALL["videomae_base"])
    assert imported.format == fmt
    assert imported.implied == find_implied("videomae_base", get_spec("videomae_base").formats[fmt], {})
    assert {path.rpartition("/")[0] for path in imported.fresh} == {"params/head/norm", "params/head/classifier"}
    assert len(imported.left_out) == len(state_dict) - sum(map(len, imported.keys.values()))
    chex.assert_trees_all_equal(imported.variables["params"]["body"], pretrained["params"]["body"])
    with pytest.raises(ValueError, match=r"params/head/classifier/bias \(the format has none: num_classes makes a"):
        flaxvid.load_model("videomae_base", state_dict, **SMALL["videomae_base"])


def test_pretraining_is_strict(pretrained):
    overrides = {**SMALL["videomae_base"], "norm_epsilon": 1e-6, "head_epsilon": 1e-6}
    state_dict = flaxvid.to_torch("videomae_base", pretrained, "authors_pretraining", overrides=overrides)
    with pytest.raises(ValueError, match="'authors_pretraining', whose videomae_base has norm_epsilon=1e-06"):
        load_pretraining("videomae_base", state_dict, pretrained, overrides=SMALL["videomae_base"])
    state_dict["decoder.more.weight"] = np.ones(1, np.float32)
    with pytest.raises(ValueError, match=r"1 tensors have no place in the model: decoder\.more\.weight"):
        load_pretraining("videomae_base", state_dict, pretrained, overrides=overrides)


def test_scenics_checkpoint_is_read_as_data(exported, tmp_path):
    variables, state_dict = exported("vivit_base", "scenic_factorised")
    target = trees.unflatten(state_dict)
    content = {
        "optimizer": {"target": target, "state": {"step": 3, "param_states": {"cls": {"momentum": np.ones(2)}}}},
        "global_step": 3,
        "model_state": {},
    }
    path = tmp_path / "checkpoint"
    path.write_bytes(msgpack_serialize(content))
    model, loaded = flaxvid.load_model("vivit_base", path, **SMALL["vivit_base"])
    chex.assert_trees_all_equal(loaded, variables)
    assert repr(model) == repr(create_tiny("vivit_base", attention="factorised"))
    path.write_bytes(msgpack_serialize({"params": target}))
    assert set(read_tensors(path)) == set(state_dict)


EMPTY_MAPS = b"\xdd\x00\x00\x27\x10" + 10_000 * b"\x80"
HOSTILE = {
    "cut off": b"\x81\xa1a\xc7\xff\x01",
    "a huge array of nothing": b"\x81\xa1a\xdd\x7f\xff\xff\xff",
    "many empty maps": b"\x81\xa1a\xdd\x00\x00\x01\x00" + 256 * EMPTY_MAPS,
    "many empty maps in an array's place": b"\x81\xa1a\xc9\x00\x27\x14\x56\x01\xdd\x00\x00\x01\x01" + 257 * EMPTY_MAPS,
    "deep": b"\x81\xa1a" + 5000 * b"\x91",
    "an array of objects": b"\x81\xa1a\xc7\x0f\x01\x93\x91\x01\xa6object\xc4\x01\x00\x00",
    "a number": b"\x81\xa1a\x01",
    "a list": b"\x81\xa1a\x91\x01",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_msgpack_is_one_error_soon(kind, refused, tmp_path):
    path = tmp_path / "checkpoint"
    path.write_bytes(HOSTILE[kind])
    refused(path, "more than 2000000 things" if "empty maps" in kind else "damaged|must hold arrays by name")


def test_a_checkpoint_with_the_arguments_of_its_run(exported, torch, tmp_path):
    variables, state_dict = exported("videomae_base", "authors")
    tensors = {key: torch.from_numpy(tensor) for key, tensor in state_dict.items()}
    path = tmp_path / "checkpoint.pth"
    torch.save({"module": tensors, "args": argparse.Namespace(lr=1e-3, opt_betas=[0.9, 0.999]), "epoch": 9}, path)
    _, loaded = flaxvid.load_model("videomae_base", path, **SMALL["videomae_base"])
    chex.assert_trees_all_equal(loaded, variables)
