"""VideoMAE, ViViT and TimeSformer: what the contract cannot know."""

import functools

import chex
import jax
import numpy as np
import pytest

import flaxvid
from flaxvid import trees
from flaxvid.evaluate.cost import model_cost
from flaxvid.models.registry import create_model, create_tiny, get_spec
from flaxvid.weights.keys import torch_key

COSTS = [
    ("videomae_small", {}, 22_033_936, 56.878),
    ("videomae_base", {}, 86_534_800, 180.345),
    ("videomae_large", {}, 304_270_736, 596.833),
    ("vivit_base", {}, 88_954_000, 451.525),
    ("vivit_base", {"attention": "factorised"}, 115_062_928, 284.4),
    ("timesformer_base", {}, 121_566_352, 195.830),
    ("timesformer_base", {"attention": "space"}, 86_106_256, 140.5),
    ("timesformer_base", {"attention": "joint"}, 86_112_400, 179.6),
    ("timesformer_base", {"num_frames": 16, "image_size": 448}, 122_024_080, 1702.7),
]


@pytest.mark.parametrize(("name", "options", "parameters", "gmacs"), COSTS)
def test_parameters_and_multiply_adds_are_the_references(name, options, parameters, gmacs):
    model = create_model(name, **options)
    size = model.clip.image_size
    cost = model_cost(model, (1, model.clip.num_frames, size, size, 3))
    assert cost.parameters == parameters
    assert cost.gflops == pytest.approx(gmacs, rel=0.01)


def test_twice_the_frames_cost_a_factorised_encoder_twice_and_a_joint_one_more():
    """Between all patches of a clip, attention costs four times as much."""

    def macs(frames, attention):
        model = create_model("vivit_base", num_frames=frames, attention=attention)
        return model_cost(model, (1, frames, 224, 224, 3)).macs

    assert macs(64, "factorised") / macs(32, "factorised") == pytest.approx(2, rel=0.005)
    assert macs(64, "joint") / macs(32, "joint") > 2.7


KINDS = {
    "videomae": ("videomae_base", {}),
    "vivit": ("vivit_base", {}),
    "vivit, factorised": ("vivit_base", {"attention": "factorised"}),
    "timesformer": ("timesformer_base", {}),
    "timesformer, joint": ("timesformer_base", {"attention": "joint"}),
    "timesformer, space": ("timesformer_base", {"attention": "space"}),
}


class Kind:
    """A tiny model of a name and its options, with random variables."""

    def __init__(self, name, options, random_variables):
        self.create = functools.partial(create_tiny, name, **options)
        self.model = self.create()
        self.variables = random_variables(self.model)
        self.apply = jax.jit(self.model.apply)


@pytest.fixture(scope="module", params=KINDS)
def kind(request, random_variables):
    return Kind(*KINDS[request.param], random_variables)


@pytest.fixture(scope="module")
def videomae(random_variables):
    return Kind("videomae_base", {}, random_variables)


def close(ours, others):
    chex.assert_trees_all_close(ours, others, rtol=1e-4, atol=1e-5)


def test_padding_before_between_and_behind_changes_nothing(kind, clip):
    video, junk = clip(2, 4, 32, 32), clip(2, 6, 32, 32, seed=1)
    mask = np.array([0, 0, 1, 1, 0, 0, 1, 1, 0, 0], bool)
    padded = np.concatenate([junk, junk[:, :4]], axis=1)
    padded[:, mask] = video
    logits = kind.apply(kind.variables, padded, frame_mask=np.broadcast_to(mask, (2, 10)))
    close(logits, kind.apply(kind.variables, video))
    close(
        kind.apply(kind.variables, padded, frame_mask=np.stack([mask, np.ones(10, bool)]))[1],
        kind.apply(kind.variables, padded)[1],
    )


def test_half_a_patch_is_valid_and_its_other_half_is_zeros(videomae, clip):
    video = np.array((clip(1, 4, 32, 32) / 128 - 1).astype(np.float32))
    logits = videomae.apply(videomae.variables, video, frame_mask=np.array([[1, 0, 1, 1]], bool))
    video[:, 1] = 0
    close(logits, videomae.apply(videomae.variables, video))


def test_the_same_weights_at_other_counts_and_sizes(kind, clip, random_variables):
    video = clip(1, 10, 48, 56)
    logits = kind.apply(kind.variables, video)
    chex.assert_tree_all_finite(logits)
    larger = kind.create(num_frames=10, image_size=48, positions=(4, 32))
    chex.assert_trees_all_equal_shapes(random_variables(larger), kind.variables)
    close(jax.jit(larger.apply)(kind.variables, (video / 255 - kind.model.clip.mean) / kind.model.clip.std), logits)


def test_positions_are_seen(kind, clip):
    video = clip(1, 4, 32, 32)
    backward = kind.apply(kind.variables, video[:, ::-1])
    moved = kind.apply(kind.variables, np.roll(video, 8, axis=2))
    logits = kind.apply(kind.variables, video)
    blind = getattr(kind.model.body, "attention", None) == "space"  # each frame by itself
    assert np.allclose(backward, logits, rtol=1e-3, atol=1e-4) == blind
    assert not np.allclose(moved, logits, rtol=1e-3, atol=1e-4)


def test_remat_and_bfloat16(kind, clip):
    video = clip(2, 4, 32, 32)

    def gradients(model):
        def loss(params):
            return (model.apply({"params": params}, video) ** 2).sum()

        return jax.jit(jax.grad(loss))(kind.variables["params"])

    exact = gradients(kind.model)
    chex.assert_tree_all_finite(exact)
    assert [path for path, leaf in trees.flatten(exact).items() if not np.any(leaf)] == []
    chex.assert_trees_all_close(gradients(kind.create(remat=True)), exact, rtol=1e-4, atol=1e-4)
    half = jax.jit(kind.create(dtype="bfloat16").apply)(kind.variables, video)
    logits = kind.apply(kind.variables, video)
    assert 0 < np.abs(half - logits).max() < 0.1 * np.abs(logits).max()


def test_drop_path_grows_with_depth_and_acts_in_training_alone(kind, clip):
    video, model = clip(2, 4, 32, 32), kind.create(drop_path=0.5)
    train = jax.jit(lambda key: model.apply(kind.variables, video, train=True, rngs={"dropout": key}))
    assert not np.allclose(train(jax.random.key(0)), train(jax.random.key(1)))
    np.testing.assert_array_equal(jax.jit(model.apply)(kind.variables, video), kind.apply(kind.variables, video))


def test_layers_go_from_the_stem_to_the_last_block(kind):
    paths = [path.partition("/block_") for path in trees.flatten(kind.variables["params"]) if "/block_" in path]
    encoders = {encoder for encoder, _, _ in paths}
    blocks = {(encoder, rest.partition("/")[0]) for encoder, _, rest in paths}
    # In front of each encoder's blocks stands what they start from: the stem, a class token, positions.
    assert len(kind.model.layers) == len(encoders) + len(blocks)
    assert "block_0" in kind.model.layers[1]


def test_the_body_sees_the_kept_tokens_alone(videomae, clip):
    bound = videomae.model.bind(videomae.variables)
    x = bound.stem(bound.normalise(clip(2, 4, 32, 32)))
    body = functools.partial(videomae.model.body.apply, {"params": videomae.variables["params"]["body"]})
    tokens = body(x).reshape(2, 32, 16)
    order = np.stack([np.random.default_rng(row).permutation(32) for row in range(2)])
    close(body(x, keep=order), np.take_along_axis(tokens, order[..., None], 1))
    # What is not kept is as good as masked: tokens of the second moment.
    mask, keep = np.array([[1, 1, 0, 0]] * 2, bool), np.broadcast_to(np.arange(16), (2, 16))
    kept = body(x, frame_mask=mask, keep=keep)
    chex.assert_shape(kept, (2, 16, 16))
    close(kept, body(x, frame_mask=mask)[:, 0].reshape(2, 16, 16))
    assert not np.allclose(body(x, keep=keep), tokens[:, :16], rtol=1e-2)
    both = np.stack([np.arange(0, 32, 2)] * 2)  # of both moments, half of them padding
    close(body(x, frame_mask=mask, keep=both)[:, :8], body(x, frame_mask=mask, keep=both[:, :8]))


def test_the_head_normalises_the_mean_and_its_epsilon_is_its_own(videomae, clip):
    video = clip(2, 4, 32, 32)
    features = videomae.model.apply(videomae.variables, video, method="features")
    norm = videomae.variables["params"]["head"]["norm"]
    standard = (features - norm["bias"]) / norm["scale"]
    np.testing.assert_allclose(standard.mean(1), 0, atol=1e-5)
    assert "norm" not in videomae.variables["params"]["body"]
    other = videomae.create(head_epsilon=1.0)
    assert not np.allclose(other.apply(videomae.variables, video), videomae.apply(videomae.variables, video), rtol=1e-2)
    assert create_model("videomae_base").body.block.keywords["norm_epsilon"] == 1e-12


@pytest.mark.parametrize("name", ["videomae_base", "vivit_base", "timesformer_base"])
def test_a_clip_that_patches_do_not_divide_is_an_error(name, clip):
    model = create_tiny(name)
    with pytest.raises(ValueError, match=r"got \(4, 36, 32\): cut or pad it to \(4, 40, 32\)"):
        model.init(jax.random.key(0), clip(1, 4, 36, 32))
    with pytest.raises(ValueError, match=r"num_frames and image_size must be multiples of [12] and 8.* got 4 and 36"):
        create_tiny(name, image_size=36)


def test_an_odd_number_of_frames_is_an_error(videomae, clip):
    with pytest.raises(
        ValueError, match=r"must be multiples of \(2, 8, 8\), got \(5, 32, 32\): cut or pad it to \(6, "
    ):
        videomae.model.init(jax.random.key(0), clip(1, 5, 32, 32))


def test_keys_of_a_block():
    def keys(name, table):
        return [torch_key(f"params/body/block_3/{path}", get_spec(name).formats[table].keys) for path in PATHS[name]]

    assert keys("videomae_base", "transformers") == [
        "videomae.encoder.layer.3.attention.attention.{query,key,value}.weight",
        "videomae.encoder.layer.3.attention.attention.query.bias",
        "videomae.encoder.layer.3.attention.attention.value.bias",
        "videomae.encoder.layer.3.attention.output.dense.weight",
        "videomae.encoder.layer.3.intermediate.dense.bias",
        "videomae.encoder.layer.3.layernorm_before.weight",
    ]
    assert keys("videomae_base", "transformers_4")[1] == "videomae.encoder.layer.3.attention.attention.q_bias"
    assert keys("vivit_base", "transformers") == [
        "vivit.layers.3.attention.{q_proj,k_proj,v_proj}.bias",
        "vivit.layers.3.mlp.fc2.weight",
    ]
    assert keys("vivit_base", "transformers_4") == [
        "vivit.encoder.layer.3.attention.attention.{query,key,value}.bias",
        "vivit.encoder.layer.3.output.dense.weight",
    ]


PATHS = {
    "videomae_base": (
        "attention/qkv/kernel",
        "attention/q_bias",
        "attention/v_bias",
        "attention/project/kernel",
        "mlp/fc1/bias",
        "norm1/scale",
    ),
    "vivit_base": ("attention/qkv/bias", "mlp/fc2/kernel"),
}


@pytest.mark.parametrize(
    ("options", "fmt"),
    [
        ({"attention": "divided"}, "transformers"),
        ({"attention": "joint"}, "transformers_joint"),
        ({"attention": "space", "mean_first": False}, "transformers_space"),
        ({"attention": "space"}, "authors_space"),
    ],
)
def test_a_timesformer_file_says_which_attention_it_is_for(options, fmt, random_variables):
    """Export takes the first format whose readers make the same model."""
    sizes = {name: value for name, value in get_spec("timesformer_base").tiny.items() if name != "num_classes"}
    variables = random_variables(create_tiny("timesformer_base", **options))
    state_dict = flaxvid.to_torch("timesformer_base", variables, overrides=options)
    assert (min(state_dict).startswith("model.")) == (fmt == "authors_space")
    model, loaded = flaxvid.load_model("timesformer_base", state_dict, **sizes)
    wanted = create_tiny("timesformer_base", **options)
    assert (repr(model.body), model.clip) == (repr(wanted.body), wanted.clip)
    chex.assert_trees_all_equal(loaded, variables)
    again, _ = flaxvid.load_model("timesformer_base", state_dict, **sizes, attention=options["attention"])
    assert repr(again.body) == repr(wanted.body)


def test_space_alone_takes_the_mean_before_or_behind_the_last_norm(clip, random_variables):
    video = clip(2, 4, 32, 32)
    first = create_tiny("timesformer_base", attention="space")
    behind = create_tiny("timesformer_base", attention="space", mean_first=False)
    variables = random_variables(first)
    _, seen = first.apply(variables, video, capture_intermediates=lambda module, _: module.name == "block_1")
    (tokens,) = seen["intermediates"]["body"]["block_1"]["__call__"]
    tokens = np.asarray(tokens[:, 0], np.float64).reshape(2, 4, 16)  # the class token of each frame
    norm, classifier = variables["params"]["body"]["norm"], variables["params"]["head"]["classifier"]

    def normalised(x):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * norm["scale"] + norm["bias"]

    for model, feature in ((first, normalised(tokens.mean(1))), (behind, normalised(tokens).mean(1))):
        logits = jax.jit(model.apply)(variables, video)
        close(np.asarray(logits), feature @ np.asarray(classifier["kernel"]) + np.asarray(classifier["bias"]))
    assert not np.allclose(normalised(tokens.mean(1)), normalised(tokens).mean(1), rtol=1e-2)
