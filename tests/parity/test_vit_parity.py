"""VideoMAE, ViViT and TimeSformer against transformers, with the imported weights; and back without a change."""

import warnings

import jax
import numpy as np
import pytest

import flaxvid

torch = pytest.importorskip("torch")

SIZES = {
    "num_labels": 13,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 192,
    "image_size": 48,
    "num_frames": 6,
    "qkv_bias": True,
}
OURS = {"width": 48, "depth": 3, "num_heads": 4, "image_size": 48, "num_frames": 6}
CASES = {
    "videomae_base": ("VideoMAE", {}, {}),
    "vivit_base": ("Vivit", {}, {}),
    "timesformer_base": ("Timesformer", {"attention_type": "divided_space_time"}, {"attention": "divided"}),
    "timesformer_base, joint": ("Timesformer", {"attention_type": "joint_space_time"}, {"attention": "joint"}),
    "timesformer_base, space": (
        "Timesformer",
        {"attention_type": "space_only"},
        {"attention": "space", "mean_first": False},
    ),
}


@pytest.fixture(scope="module", params=CASES)
def pair(request, torchvision_models, randomised):
    """Our model with the reference's random weights, and the reference."""
    transformers = pytest.importorskip("transformers")
    family, theirs, ours = CASES[request.param]
    name = request.param.partition(",")[0]
    config = getattr(transformers, f"{family}Config")(**SIZES, **theirs)
    net = randomised(getattr(transformers, f"{family}ForVideoClassification")(config))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, variables = flaxvid.load_model(name, net.state_dict(), **OURS, **ours)
    return model, variables, net, name, ours


def test_logits(pair, relative_error):
    model, variables, net, *_ = pair
    video = np.random.default_rng(0).standard_normal((2, 6, 48, 48, 3)).astype(np.float32)
    with torch.no_grad():
        reference = net(torch.from_numpy(video).permute(0, 1, 4, 2, 3)).logits
    if len(reference) == 12:  # space-only gives logits of each frame
        reference = reference.reshape(2, 6, 13).mean(1)
    error = relative_error(jax.jit(model.apply)(variables, video), reference)
    print(f"{type(net).__name__}: relative error {error:.1e}")
    assert error < 1e-4


def test_export_is_what_came_in(pair):
    _, variables, net, name, ours = pair
    reference = net.state_dict()
    exported = flaxvid.to_torch(name, variables, overrides={**OURS, **ours})
    assert exported.keys() == reference.keys()
    for key, tensor in reference.items():
        np.testing.assert_array_equal(exported[key], tensor.numpy())


def test_the_hubs_older_names_give_the_same_variables(pair):
    """A reader that does not know `q_bias` leaves the biases at zero."""
    _, variables, net, name, ours = pair
    older = {"query.bias": "q_bias", "value.bias": "v_bias"} if name.startswith("videomae") else {}
    if name.startswith("vivit"):
        attention = {f"{part[0]}_proj": f"attention.{part}" for part in ("query", "key", "value")}
        older = {"layers": "encoder.layer", **attention, "o_proj": "output.dense"}
        older |= {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
    state_dict = {}
    for key, tensor in net.state_dict().items():
        for new, old in older.items():
            key = key.replace(f".{new}", f".{old}")
        state_dict[key] = tensor
    _, loaded = flaxvid.load_model(name, state_dict, **OURS, **ours)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)


AUTHORS = {
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "encoder.layer": "blocks",
    "attention.attention.qkv": "attn.qkv",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "layernorm": "norm",
    "classifier": "head",
}


def test_space_alone_of_its_authors_has_the_mean_before_the_last_norm(torchvision_models, randomised, relative_error):
    """The modules are transformers', put together in the other order; the keys are the authors'."""
    transformers = pytest.importorskip("transformers")
    config = transformers.TimesformerConfig(**SIZES, attention_type="space_only")
    net = randomised(transformers.TimesformerForVideoClassification(config))
    state_dict = {}
    for key, tensor in net.state_dict().items():
        for theirs, ours in AUTHORS.items():
            key = key.replace(theirs, ours)
        state_dict["model." + key.removeprefix("timesformer.")] = tensor
    video = np.random.default_rng(0).standard_normal((2, 6, 48, 48, 3)).astype(np.float32)
    body = net.timesformer
    with torch.no_grad():
        x = body.encoder(body.embeddings(torch.from_numpy(video).permute(0, 1, 4, 2, 3))).last_hidden_state
        reference = net.classifier(body.layernorm(x.reshape(2, 6, -1, 48).mean(1))[:, 0])
    model, variables = flaxvid.load_model("timesformer_base", {"model_state": state_dict}, **OURS)
    error = relative_error(jax.jit(model.apply)(variables, video), reference)
    print(f"TimeSformer of its authors, space alone: relative error {error:.1e}")
    assert error < 1e-4
    exported = flaxvid.to_torch("timesformer_base", variables, overrides={**OURS, "attention": "space"})
    assert exported.keys() == state_dict.keys()
