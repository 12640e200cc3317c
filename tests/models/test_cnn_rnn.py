"""CNN-LSTM and CNN-GRU: what the contract cannot know."""

import chex
import jax
import numpy as np
import optax
import pytest
from safetensors.numpy import save_file

import flaxvid
from flaxvid import trees
from flaxvid.evaluate.cost import model_cost
from flaxvid.frames import FrameFlexible
from flaxvid.models.cnn_rnn import POOLS
from flaxvid.models.registry import create_model, create_tiny, get_spec
from flaxvid.tasks.supervised import SupervisedRecipe
from flaxvid.train.recipe import ModelRecipe, Recipe
from flaxvid.train.setup import make_model
from flaxvid.train.start import fit_start, load_start
from flaxvid.train.state import create_state
from flaxvid.train.step import train_step
from flaxvid.weights.native import WeightsInfo, save_variables

TRUNKS = {"resnet18": 11_176_512, "resnet50": 23_508_032}
RECURRENT = {
    ("cnn_lstm", "resnet18", 256): 3_153_920,
    ("cnn_lstm", "resnet50", 512): 16_793_600,
    ("cnn_gru", "resnet18", 256): 2_365_440,
    ("cnn_gru", "resnet50", 512): 12_595_200,
}
BACKBONE = {"width": 8, "depths": (1, 1)}
OPTIONS = {"backbone": "resnet18", "backbone_options": BACKBONE, "hidden_dim": 6}
FROZEN = ("stem", r"body/layer\d+_\d+")


def make(name="cnn_gru", **options):
    return create_model(name, **{**OPTIONS, "num_classes": 5, "num_frames": 4, "image_size": 32, **options})


def abstract(model):
    return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 2, 64, 64, 3), np.uint8))


@pytest.mark.parametrize(("name", "backbone", "hidden"), RECURRENT)
def test_parameters_are_those_of_torch(name, backbone, hidden):
    model = create_model(name, num_classes=9, backbone=backbone, hidden_dim=hidden, num_layers=2)
    assert model.feature_dim == 2 * hidden
    expected = TRUNKS[backbone] + RECURRENT[name, backbone, hidden] + 9 * (2 * hidden + 1)
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract(model)["params"])) == expected
    assert repr(model.stem) == repr(create_model(f"tsn_{backbone}").stem)


def test_multiply_adds_are_the_backbones_and_those_of_every_step():
    shape = (1, 16, 224, 224, 3)
    hidden, layers, directions = 256, 2, 2
    products = 16 * directions * 4 * hidden * ((512 + hidden) + (directions * hidden + hidden) * (layers - 1))
    backbone = model_cost(create_model("tsn_resnet18", num_classes=9), shape).macs - 16 * 9 * 512
    cost = model_cost(create_model("cnn_lstm", num_classes=9, backbone="resnet18", hidden_dim=256), shape)
    assert cost.macs == backbone + products + 9 * 2 * hidden


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("pool", POOLS)
def test_a_padded_clip_gives_what_it_gives_alone(pool, bidirectional, random_variables, clip):
    model = make(pool=pool, bidirectional=bidirectional, feature_dim=7)
    variables, video, lengths = random_variables(model), clip(3, 6, 32, 32), (6, 2, 4)
    mask = np.arange(6) < np.array(lengths)[:, None]
    features = jax.jit(lambda v, x, m: model.apply(v, x, frame_mask=m, method="features"))(variables, video, mask)
    chex.assert_shape(features, (3, model.feature_dim))
    for number, length in enumerate(lengths):
        alone = model.apply(variables, video[number : number + 1, :length], method="features")
        chex.assert_trees_all_close(features[number], alone[0], rtol=1e-4, atol=1e-5)


def test_last_is_what_each_direction_gives_after_the_whole_clip(random_variables, clip):
    """Backwards, a clip gives the same with the directions' weights and halves exchanged."""
    model = make("cnn_lstm", pool="last", num_layers=1)
    variables, video = random_variables(model), clip(1, 4, 32, 32)
    features = np.asarray(model.apply(variables, video, method="features"))
    parts = model.bind(variables)
    outputs = np.asarray(parts.body(parts.stem(model.normalise(video)))[0, :, 0, 0])
    np.testing.assert_array_equal(features[0], np.concatenate([outputs[-1, :6], outputs[0, 6:]]))
    flat = trees.flatten(variables)
    names = {"forward": "backward", "backward": "forward"}
    turned = {
        path: flat[path.replace(way := path.split("rnn/")[-1].split("_")[0], names.get(way, way))] for path in flat
    }
    backwards = model.apply(trees.unflatten(turned), video[:, ::-1], method="features")
    chex.assert_trees_all_close(backwards[0], np.roll(features[0], 6), rtol=1e-4, atol=1e-5)


def test_the_order_of_frames_counts(random_variables, clip):
    model, tsn = make(), create_model("tsn_resnet18", **BACKBONE)
    video = clip(1, 4, 32, 32)
    for one, alike in ((model, False), (tsn, True)):
        variables = random_variables(one)
        logits = [one.apply(variables, x) for x in (video, video[:, [1, 0, 2, 3]])]
        assert np.allclose(*logits, rtol=1e-3, atol=1e-4) == alike


def test_attention_weighs_valid_frames_alone(random_variables):
    head = make(pool="attention").head
    x = np.random.default_rng(0).normal(size=(2, 5, 1, 1, 12)).astype(np.float32)
    variables = jax.tree.map(lambda leaf: leaf * 20, head.init(jax.random.key(0), x))
    mask = np.arange(5) < np.array([[5], [2]])
    pooled = head.apply(variables, x, frame_mask=mask, method="pool")
    params = variables["params"]["attention"]
    hidden = np.tanh(x[:, :, 0, 0] @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    scores = np.where(mask, np.exp((hidden @ params["score"]["kernel"])[..., 0]), 0)
    weights = scores / scores.sum(axis=1, keepdims=True)
    assert weights.max() - weights[0].min() > 0.2
    chex.assert_trees_all_close(pooled, np.einsum("bt,btc->bc", weights, x[:, :, 0, 0]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["cnn_lstm", "cnn_gru"])
def test_torch_weights_come_back_as_they_went(name, random_variables):
    model = create_tiny(name)
    variables = random_variables(model)
    options = {"num_frames": 4, "image_size": 32, "hidden_dim": 8, "feature_dim": 12, "pool": "attention"}
    options |= {"backbone": "tsn_resnet18", "backbone_options": {"width": 8, "depths": (1, 1, 1, 1)}}
    state_dict = flaxvid.to_torch(name, variables, overrides=options)
    gates = {"cnn_lstm": 4, "cnn_gru": 3}[name]
    shapes = {key: tensor.shape for key, tensor in state_dict.items() if not key.startswith("backbone.")}
    assert shapes["rnn.weight_ih_l0"] == (gates * 8, 12)
    assert shapes["rnn.weight_hh_l1_reverse"] == (gates * 8, 8)
    assert shapes["rnn.bias_hh_l1"] == (gates * 8,)
    others = {"projection.0.weight": (12, 64), "attention.2.weight": (1, 16), "fc.weight": (5, 16)}
    assert others.items() <= shapes.items()
    kernel = trees.flatten(variables)["params/body/rnn/backward_1_input/kernel"]
    np.testing.assert_array_equal(state_dict["rnn.weight_ih_l1_reverse"], kernel.T)
    again, loaded = flaxvid.load_model(name, state_dict, **options)
    assert repr(again) == repr(model)
    chex.assert_trees_all_equal(loaded, variables)


def test_a_file_of_another_size_is_refused(random_variables):
    state_dict = flaxvid.to_torch("cnn_gru", random_variables(make()))
    with pytest.raises(ValueError, match=r"rnn.weight_hh_l0 \(expected \(24, 8\), got \(18, 6\)\)"):
        flaxvid.load_model("cnn_gru", state_dict, **{**OPTIONS, "hidden_dim": 8})
    with pytest.raises(ValueError, match=r"tensors have no place.*rnn.bias_hh_l0_reverse"):
        flaxvid.load_model("cnn_gru", state_dict, **OPTIONS, bidirectional=False)


def starting(weights, **options):
    recipe = Recipe(ModelRecipe("cnn_gru", str(weights), 4, 32, options={**OPTIONS, **options}))
    model = make_model(recipe, 5)
    return recipe, model, fit_start(recipe, model, load_start(recipe, model.head.num_classes))


@pytest.mark.parametrize("kind", ["torch", "ours"])
def test_a_backbones_weights_start_the_network(kind, random_variables, tmp_path, capsys):
    tsn = create_model("tsn_resnet18", **BACKBONE, num_classes=3)
    variables, file = random_variables(tsn), tmp_path / "tsn.safetensors"
    if kind == "torch":
        save_file(flaxvid.to_torch("tsn_resnet18", variables, "torchvision"), file)
    else:
        save_variables(file, variables, WeightsInfo("tsn_resnet18", {**BACKBONE, "num_classes": 3}))
    _, model, started = starting(file, feature_dim=7)
    assert f"{file}: for the backbone, tsn_resnet18; what it lacks starts anew" in capsys.readouterr().out
    flat, own = trees.flatten(started), trees.flatten(variables)
    assert {path: leaf.shape for path, leaf in flat.items()} == {
        path: leaf.shape for path, leaf in trees.flatten(abstract(model)).items()
    }
    taken = {path for path in flat if path in own and "/head/" not in path}
    assert taken == {path for path in own if "/head/" not in path}
    assert all(np.array_equal(flat[path], own[path]) for path in taken)
    assert np.std(flat["params/body/rnn/forward_0_hidden/kernel"]) > 0.1


def test_its_own_torch_weights_start_the_network(random_variables, tmp_path):
    variables, file = random_variables(make()), tmp_path / "cnn.safetensors"
    save_file(flaxvid.to_torch("cnn_gru", variables), file)
    _, _, started = starting(file)
    chex.assert_trees_all_equal(started, variables)
    with pytest.raises(ValueError, match=r"(?s)does not fit cnn_gru.*As the backbone's: .* does not fit tsn_resnet18"):
        starting(file, hidden_dim=8)


def test_a_frozen_backbone_stays_to_the_bit_and_the_rest_learns(random_variables, clip):
    model = make(feature_dim=7)
    before, task = random_variables(model), SupervisedRecipe((4,)).make(model)
    optimizer = optax.adam(0.01)
    batch = {"video": {4: clip(2, 4, 32, 32)}, "label": np.arange(2)}
    state = create_state(before, optimizer, freeze=FROZEN)
    state, _ = train_step(state, batch, jax.random.key(0), task=task, optimizer=optimizer, freeze=FROZEN)
    after = trees.flatten(state.variables)
    moved = {path for path, leaf in trees.flatten(before).items() if not np.array_equal(leaf, after[path])}
    assert moved == {path for path in after if "/stem/" not in path and "/layer" not in path}


def test_frame_flexible_alters_the_recurrent_kernels(random_variables, clip):
    model = make()
    flexible = FrameFlexible(model, (2, 4))
    variables = flexible.specialise(random_variables(model), jax.random.key(1))
    gains = {path: leaf.shape for path, leaf in trees.flatten(variables["params_2f"]).items() if path.endswith("gain")}
    assert gains["body/rnn/backward_1_hidden/gain"] == (6,)
    assert gains["body/rnn/forward_1_input/gain"] == (12,)
    assert gains["body/layer2_0/conv1/gain"] == (8,)
    clips = {count: clip(1, count, 32, 32) for count in (2, 4)}
    for count, logits in flexible.apply(variables, clips).items():
        chex.assert_trees_all_equal(logits, model.apply(flexible.select(variables, count), clips[count]))


@pytest.mark.parametrize("backbone", ["tsm_resnet18", "r3d_18", "x3d_xs"])
def test_other_backbones(backbone, clip):
    """A mask of the clip fits what a temporal stride leaves of it."""
    model = create_tiny("cnn_lstm", backbone=backbone, backbone_options=get_spec(backbone).tiny)
    shapes = jax.eval_shape(
        lambda v, x, m: model.apply(v, x, frame_mask=m), abstract(model), clip(2, 8, 32, 32), np.ones((2, 8), bool)
    )
    assert shapes.shape == (2, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"backbone": "slowfast_r50", "backbone_options": {}},
            "the backbone makes more of a clip than one grid.*tsn_resnet50",
        ),
        ({"backbone": "ts_cva", "backbone_options": {}}, "the backbone takes several cameras"),
        ({"backbone": "resnet19"}, "unknown model 'resnet19'"),
        ({"pool": "max"}, 'pool must be "mean", "last" or "attention", got .max'),
        ({"cell": "rnn"}, 'cell must be "lstm" or "gru", got .rnn'),
        ({"feature_dim": -1}, "feature_dim must be a positive whole number, or 0 for no projection, got -1"),
        ({"feature_dim": True}, "feature_dim must be"),
        ({"num_layers": 0}, "num_layers must be a positive whole number, got 0"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
