"""SlowFast: what the contract cannot know."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxvid
from flaxvid.evaluate.cost import model_cost
from flaxvid.models.registry import create_model, create_tiny
from flaxvid.models.slowfast import slow_frames

FRAMES = (16, 32, 64)  # the paper's for SlowFast


@pytest.mark.parametrize(
    ("name", "options", "parameters", "gmacs"),
    [
        ("slowfast_r50", {}, 34_566_488, 50.308583),
        ("slowfast_r50", {"alpha": 8, "fusion_kernel": 5}, 34_480_216, None),
        ("slowfast_r101", {}, 62_826_968, 96.396644),
        ("slowfast_r101_50_50", {}, 53_774_808, None),
    ],
)
def test_parameters_and_multiply_adds_are_the_references(name, options, parameters, gmacs):
    cost = model_cost(create_model(name, **options), (1, 32, 224, 224, 3))
    assert cost.parameters == parameters
    assert gmacs is None or cost.gflops == pytest.approx(gmacs, rel=1e-3)


def chosen(frames, alpha, mask=None):
    """The frames that the slow pathway sees of one clip."""
    clip = jnp.arange(frames).reshape(1, frames, 1, 1, 1)
    return slow_frames(clip, alpha, mask)[0, :, 0, 0, 0].tolist()


def test_the_slow_frames():
    assert chosen(32, 4) == [0, 4, 8, 13, 17, 22, 26, 31]
    assert chosen(32, 8) == [0, 10, 20, 31]
    for frames in FRAMES:
        positions = [i * (frames - 1) / (frames // 4 - 1) for i in range(frames // 4)]
        assert chosen(frames, 4) == np.floor(np.round(positions, 9)).astype(int).tolist()
    # One more where alpha does not divide; of less than alpha frames the first.
    assert chosen(13, 4) == [0, 4, 8, 12]
    assert chosen(5, 4) == [0, 4]
    assert [chosen(frames, 4) for frames in (1, 3, 4)] == [[0], [0], [0]]


def test_strided_slow_frames_and_bare_laterals_see_no_padding(random_variables, clip):
    """As in mmaction2's files."""
    assert slow_frames(jnp.arange(13).reshape(1, 13, 1, 1, 1), 4, None, "stride")[0, :, 0, 0, 0].tolist() == [
        0,
        4,
        8,
        12,
    ]
    model = create_tiny("slowfast_r50", depths=(1, 1), slow_sampling="stride", lateral_norm=False)
    variables, video = random_variables(model), clip(1, 13, 32, 32)
    assert set(variables["params"]["body"]["fusion0"]) == {"kernel"}
    apply = jax.jit(model.apply)
    mask = np.arange(13)[None] < 7
    np.testing.assert_allclose(
        apply(variables, video, frame_mask=mask), apply(variables, video[:, :7]), rtol=1e-4, atol=1e-5
    )


def test_pathways_of_other_depths(random_variables, clip):
    model = create_tiny("slowfast_r50", depths=(1, 2), fast_depths=(2, 1))
    variables = random_variables(model)
    assert {name for name in variables["params"]["body"] if "layer" in name} == {
        *("slow_layer1_0", "slow_layer2_0", "slow_layer2_1"),
        *("fast_layer1_0", "fast_layer1_1", "fast_layer2_0"),
    }
    with pytest.raises(ValueError, match=r"fast_depths must have one for each of the 2 stages, got \(1,\)"):
        create_tiny("slowfast_r50", depths=(1, 2), fast_depths=(1,))


@pytest.mark.parametrize("real", range(10))
def test_the_slow_frames_of_a_padded_clip_are_those_of_its_real_part(real):
    mask = jnp.arange(9)[None] < real
    unpadded = chosen(real, 4) if real else []
    assert chosen(9, 4, mask)[: len(unpadded)] == unpadded


def test_every_clip_of_a_batch_has_slow_frames_of_its_own(random_variables, clip):
    model = create_tiny("slowfast_r50", depths=(1, 1))
    variables, video, lengths = random_variables(model), clip(3, 11, 32, 32), (11, 6, 3)
    mask = np.arange(11)[None] < np.array(lengths)[:, None]
    together = jax.jit(lambda v, x, m: model.apply(v, x, frame_mask=m))(variables, video, mask)
    for row, length in enumerate(lengths):
        alone = jax.jit(model.apply)(variables, video[row : row + 1, :length])
        chex.assert_trees_all_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-5)


def test_stem_and_body_give_both_pathways(random_variables, clip):
    model = create_tiny("slowfast_r50")

    def parts(variables, video):
        m = model.bind(variables)
        x = m.stem(m.normalise(video))
        return x, m.body(x)

    stem, body = jax.eval_shape(parts, random_variables(model), clip(2, 10, 32, 32))
    assert [grid.shape for grid in stem] == [(2, 3, 8, 8, 16), (2, 10, 8, 8, 2)]
    assert [grid.shape for grid in body] == [(2, 3, 2, 2, 256), (2, 10, 2, 2, 32)]
    assert model.feature_dim == 256 + 32


def test_the_slow_pathway_feels_the_fast_one_and_not_the_other_way(random_variables, clip):
    """A frame that the slow pathway does not choose reaches it by the fusions only."""
    model = create_tiny("slowfast_r50", depths=(1,))
    variables, video = random_variables(model), clip(1, 16, 32, 32)
    unseen, seen = video.copy(), video.copy()
    unseen[:, 3], seen[:, 5] = 255 - video[:, 3], 255 - video[:, 5]  # 0, 5, 10 and 15 are chosen
    cut = jax.tree.map(np.copy, variables)
    cut["params"]["body"]["fusion0"]["norm"] = jax.tree.map(np.zeros_like, cut["params"]["body"]["fusion0"]["norm"])

    @jax.jit
    def bodies(variables, video):
        m = model.bind(variables)
        return m.body(m.stem(m.normalise(video)))

    slow, fast = bodies(variables, video)
    assert not np.allclose(bodies(variables, unseen)[0], slow, rtol=1e-3)
    np.testing.assert_array_equal(bodies(cut, unseen)[0], bodies(cut, video)[0])
    assert not np.allclose(bodies(cut, seen)[0], bodies(cut, video)[0], rtol=1e-3)
    np.testing.assert_array_equal(bodies(cut, video)[1], fast)


def test_the_keys(random_variables):
    variables = random_variables(create_tiny("slowfast_r50"))
    assert {
        "blocks.0.multipathway_blocks.1.conv.weight",
        "blocks.0.multipathway_fusion.conv_fast_to_slow.weight",
        "blocks.2.multipathway_fusion.norm.running_var",
        "blocks.1.multipathway_blocks.0.res_blocks.0.branch1_norm.weight",
        "blocks.3.multipathway_blocks.1.res_blocks.0.branch2.conv_b.weight",
        "blocks.6.proj.weight",
    } <= set(flaxvid.to_torch("slowfast_r50", variables))
    assert {
        "s1.pathway1_stem.conv.weight",
        "s1_fuse.conv_f2s.weight",
        "s3_fuse.bn.running_mean",
        "s2.pathway0_res0.branch1_bn.weight",
        "s4.pathway1_res0.branch2.b.weight",
        "head.projection.bias",
    } <= set(flaxvid.to_torch("slowfast_r50", variables, format="pyslowfast"))
