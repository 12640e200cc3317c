"""Masked pre-training's masks and decoder; parity with transformers is in tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxvid.models.masked import Tubes, draw_tubes, make_decoder, reconstruct
from flaxvid.models.registry import create_model, get_spec

GRID = (2, 4, 4)


def make_tiny(**options):
    model = create_model("videomae_base", **{**get_spec("videomae_base").tiny, **options})
    return model, make_decoder(model, depth=2)


def init(model, decoder):
    size, frames = model.clip.image_size, model.clip.num_frames
    params = model.init(jax.random.key(0), jnp.zeros((1, frames, size, size, 3)))["params"]
    grid = tuple(n // m for n, m in zip((frames, size, size), model.multiple_of, strict=True))
    tubes = draw_tubes(jax.random.key(0), 1, grid, 0.75)
    tokens = jnp.zeros((1, tubes.visible.shape[1], model.feature_dim))
    decoder_params = decoder.init(jax.random.key(1), tokens, tubes, grid)["params"]
    return {"params": {"stem": params["stem"], "body": params["body"]}, "params_decoder": decoder_params}


@pytest.mark.parametrize(
    ("size", "depth", "count"), [("small", 4, 24_029_376), ("base", 4, 94_210_944), ("large", 12, 342_996_992)]
)
def test_parameters(size, depth, count):
    model = create_model(f"videomae_{size}")
    shapes = jax.eval_shape(lambda: init(model, make_decoder(model, depth=depth)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


@pytest.mark.parametrize(("ratio", "masked"), [(0.75, 12), (0.9, 14), (0.95, 15)])
def test_masks_are_tubes_of_the_exact_count(ratio, masked):
    tubes = draw_tubes(jax.random.key(0), 5, GRID, ratio)
    assert tubes.hidden.shape == (5, 2 * masked)
    both = np.sort(np.concatenate([tubes.visible, tubes.hidden], axis=1))
    np.testing.assert_array_equal(both, np.tile(np.arange(32), (5, 1)))
    first, second = np.split(np.asarray(tubes.hidden), 2, axis=1)
    np.testing.assert_array_equal(first + 16, second)
    assert len({tuple(row) for row in first.tolist()}) > 1
    assert not np.array_equal(tubes.hidden, draw_tubes(jax.random.key(1), 5, GRID, ratio).hidden)


def test_every_place_is_masked_equally_often():
    hidden = draw_tubes(jax.random.key(0), 4000, (1, 4, 4), 0.75).hidden
    shares = np.bincount(np.asarray(hidden).ravel(), minlength=16) / 4000
    np.testing.assert_allclose(shares, 0.75, atol=0.04)  # six deviations


@pytest.fixture(scope="module")
def tiny(randomise):
    """A tiny encoder, its decoder, and their variables with every leaf random."""
    model, decoder = make_tiny()
    return model, decoder, randomise(init(model, decoder))


def test_all_tokens_visible_are_the_whole_encoder(tiny, clip):
    model, _, variables = tiny
    x = model.stem.apply({"params": variables["params"]["stem"]}, model.normalise(clip(2, 4, 32, 32)))
    body = {"params": variables["params"]["body"]}
    tokens = model.body.apply(body, x, keep=jnp.tile(jnp.arange(32), (2, 1)))
    np.testing.assert_allclose(tokens.reshape(x.shape), model.body.apply(body, x), atol=1e-5)


def test_masked_pixels_are_not_seen_and_visible_ones_are(tiny, clip):
    model, decoder, variables = tiny
    tubes = draw_tubes(jax.random.key(0), 1, GRID, 0.75)
    video = np.array(model.normalise(clip(1, 4, 32, 32)))
    predict = jax.jit(lambda x: reconstruct(model, decoder, variables, x, tubes))
    before = predict(video)
    for tokens, seen in ((tubes.hidden, False), (tubes.visible, True)):
        t, y, x = np.unravel_index(int(tokens[0, 0]), GRID)
        changed = video.copy()
        changed[:, 2 * t : 2 * t + 2, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8] += 1
        assert bool((predict(changed) != before).any()) == seen


def test_predictions_follow_the_order_of_the_masked_tokens(tiny, clip):
    model, decoder, variables = tiny
    tubes = draw_tubes(jax.random.key(0), 2, GRID, 0.75)
    x = model.normalise(clip(2, 4, 32, 32))
    straight = reconstruct(model, decoder, variables, x, tubes)
    turned = reconstruct(model, decoder, variables, x, Tubes(tubes.visible, tubes.hidden[:, ::-1]))
    np.testing.assert_allclose(turned[:, ::-1], straight, atol=1e-5)
    assert not np.allclose(turned, straight, atol=1e-3)


def test_other_frame_counts_and_sizes(tiny, clip):
    model, decoder, variables = tiny
    tubes = draw_tubes(jax.random.key(0), 1, (3, 5, 5), 0.75)
    predictions = reconstruct(model, decoder, variables, model.normalise(clip(1, 6, 40, 40)), tubes)
    assert predictions.shape == (1, 3 * 18, 2 * 8 * 8 * 3)


@pytest.mark.parametrize("options", [{"remat": True}, {"dtype": "bfloat16"}])
def test_the_decoder_has_the_options_of_the_encoder(tiny, clip, options):
    _, _, variables = tiny
    tubes = draw_tubes(jax.random.key(0), 1, GRID, 0.75)
    model, decoder = make_tiny(**options)
    predictions = reconstruct(model, decoder, variables, model.normalise(clip(1, 4, 32, 32)), tubes)
    wanted = reconstruct(tiny[0], tiny[1], variables, model.normalise(clip(1, 4, 32, 32)), tubes)
    assert predictions.dtype == jnp.float32
    exact = "remat" in options
    np.testing.assert_allclose(predictions, wanted, atol=1e-5 if exact else 0.1)
    assert exact or not np.allclose(predictions, wanted, atol=1e-5)


def test_what_cannot_be():
    with pytest.raises(ValueError, match="whose body can leave tokens out, got"):
        make_decoder(create_model("slow_r50"))
    with pytest.raises(ValueError, match="decoder_width must be a multiple of 8, the size of the encoder's heads"):
        make_decoder(make_tiny()[0], width=12)
