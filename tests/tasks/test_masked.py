import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxvid.losses.masked import reconstruction_errors
from flaxvid.models.masked import Tubes, reconstruct
from flaxvid.models.registry import create_model, create_tiny
from flaxvid.tasks.masked import MaskedRecipe
from flaxvid.train.state import create_state
from flaxvid.train.step import train_step

KEY = jax.random.key(5)


@pytest.fixture(scope="module")
def task():
    return MaskedRecipe(mask_ratio=0.75, decoder_depth=1).make(create_tiny("videomae_base"))


@pytest.fixture(scope="module")
def variables(task, randomise):
    return randomise(jax.eval_shape(task.init, KEY))


@pytest.fixture(scope="module")
def batch(clip):
    return {"video": {4: clip(8, 4, 32, 32)}, "label": np.full(8, -1)}


def test_variables_are_stem_body_and_decoder(task):
    variables = task.init(KEY)
    assert {name: set(tree) for name, tree in variables.items()} == {
        "params": {"stem", "body"},
        "params_decoder": {"encoder_norm", "encoder_to_decoder", "mask_token", "block_0", "norm", "head"},
    }
    plain = jax.tree.map(lambda leaf: leaf + 1, task.select(variables, 4))
    started = task.init(KEY, {"params": {**plain["params"], "head": {}}})
    chex.assert_trees_all_equal(started["params"], plain["params"])
    chex.assert_trees_all_equal(started["params_decoder"], variables["params_decoder"])


def test_the_loss_is_the_error_of_the_masked_cubes(task, variables, batch):
    loss, (updated, metrics) = jax.jit(task.loss)(variables, batch, KEY)
    (share,) = task.divide(batch, KEY)
    tubes = Tubes(*share["tubes"])
    assert tubes.visible.shape == (8, 2 * 4)
    x = task.model.normalise(batch["video"][4])
    predictions = reconstruct(task.model, task.decoder, variables, x, tubes)
    wanted = reconstruction_errors(predictions, batch["video"][4] / np.float32(255), tubes.hidden, (2, 8, 8)).mean()
    assert loss == pytest.approx(float(wanted), rel=1e-4)
    assert updated == {}
    assert metrics == {"loss": loss}


def test_colours_as_the_network_sees_them(task, variables, clip):
    """The loss, the test and the pictures speak of the same errors."""
    task = dataclasses.replace(task, recipe=dataclasses.replace(task.recipe, by_cube=False))
    batch = {"video": {4: clip(8, 4, 32, 32)}, "label": np.full(8, -1)}
    loss, _ = jax.jit(task.loss)(variables, batch, KEY)
    tubes = Tubes(*task.divide(batch, KEY)[0]["tubes"])
    x = task.model.normalise(batch["video"][4])
    predictions = reconstruct(task.model, task.decoder, variables, x, tubes)
    assert loss == pytest.approx(float(reconstruction_errors(predictions, x, tubes.hidden, (2, 8, 8), False).mean()))
    tested = views(clip, count=4)
    tested["video"][4] = tested["video"][4][:, :1]
    found = task.evaluate(variables, [tested], (4,)).details[4]
    video, seen, made = np.moveaxis(found.pictures, 1, 0)
    errors = ((made - video) / np.asarray(task.model.clip.std))[(seen == 0.5).all(-1)]
    assert np.square(errors).mean() == pytest.approx(found.error, rel=1e-4)


def test_masks_are_drawn_from_the_steps_key(task, batch):
    first, again, other = (task.divide(batch, key)[0]["tubes"].hidden for key in (KEY, KEY, jax.random.key(6)))
    np.testing.assert_array_equal(first, again)
    assert (np.asarray(first) != np.asarray(other)).any(axis=1).sum() >= 6


def test_video_normalised_by_hand_has_the_same_loss(task, variables, batch):
    floats = {**batch, "video": {4: task.model.normalise(batch["video"][4])}}
    wanted, _ = task.loss(variables, batch, KEY)
    assert task.loss(variables, floats, KEY)[0] == pytest.approx(float(wanted), rel=1e-5)


def test_everything_learns(task, variables, batch):
    grads = jax.jit(jax.grad(lambda v: task.loss(v, batch, KEY)[0]))(variables)
    chex.assert_tree_all_finite(grads)
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("parts", [{"accumulate": 2}, {"norm_groups": 2}])
def test_parts_of_a_batch_are_the_whole(task, variables, batch, parts):
    state, optimizer = create_state(variables, optax.sgd(0.1)), optax.sgd(0.1)
    step = functools.partial(train_step, task=task, optimizer=optimizer)
    whole, metrics = jax.jit(step)(state, batch, KEY)
    divided, others = jax.jit(functools.partial(step, **parts))(state, batch, KEY)
    chex.assert_trees_all_close(whole.variables, divided.variables, rtol=1e-4, atol=1e-6)
    assert metrics["loss"] == pytest.approx(float(others["loss"]), rel=1e-5)


def views(clip, count=5, seed=0):
    return {
        "video": {4: clip(count, 2, 4, 32, 32, seed=seed)},
        "label": np.full(count, -1),
        "index": np.arange(count),
        "mask": np.ones(count, bool),
        "broken": np.full(count, -1),
    }


def test_a_test_has_fixed_masks_and_the_mean_over_views(task, variables, clip):
    batch = views(clip)
    findings = task.evaluate(variables, [batch], (4,))
    found = findings.details[4]
    assert findings.score == -found.error
    assert findings.metrics == {"reconstruction_error_4": found.error}
    assert found.clips == 5
    turned = jax.tree.map(lambda x: x[::-1], batch)
    singles = [jax.tree.map(lambda x, i=i: x[i : i + 1], turned) for i in range(5)]
    assert task.evaluate(variables, singles, (4,)).score == pytest.approx(findings.score, rel=1e-5)
    one, other = ({**batch, "video": {4: batch["video"][4][:, view : view + 1]}} for view in (0, 1))
    errors = [task.evaluate(variables, [part], (4,)).details[4].error for part in (one, other)]
    assert found.error == pytest.approx(np.mean(errors), rel=1e-5)
    assert errors[0] != pytest.approx(errors[1], rel=1e-4)


def test_videos_that_cannot_be_read_do_not_count(task, variables, clip):
    batch = views(clip)
    batch["video"][4][3:] = 255
    batch["mask"][3:] = False
    found = task.evaluate(variables, [batch], (4,)).details[4]
    assert found.clips == 3
    assert found.index.tolist() == [0, 1, 2]
    readable = jax.tree.map(lambda x: x[:3], batch)
    assert found.error == pytest.approx(task.evaluate(variables, [readable], (4,)).details[4].error, rel=1e-5)
    batch["mask"][:] = False
    with pytest.raises(ValueError, match="none of the videos could be read"):
        task.evaluate(variables, [batch], (4,))


def test_pictures(task, variables, clip):
    batch = views(clip)
    found = task.evaluate(variables, [batch], (4,)).details[4]
    video, seen, made = np.moveaxis(found.pictures, 1, 0)
    np.testing.assert_allclose(video, batch["video"][4][:4, 0] / 255, atol=1e-6)
    masked = (seen == 0.5).all(-1)
    assert masked.mean() == 0.75
    np.testing.assert_array_equal(seen[~masked], video[~masked])
    np.testing.assert_array_equal(made[~masked], video[~masked])
    assert np.abs(made[masked] - video[masked]).mean() > 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": (4, 8)}, "frames must be one positive frame count"),
        ({"mask_ratio": 1.0}, r"mask_ratio must lie in \(0, 1\), got 1.0"),
        ({"mask_ratio": 0.05}, "masks 0 of the 4 x 4 places of a frame"),
        ({"decoder_width": -1}, "decoder_width must not be negative"),
        ({"decoder_depth": 0}, "decoder_depth must be positive"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        MaskedRecipe(**options).make(create_tiny("videomae_base"))


def test_another_network_is_refused():
    with pytest.raises(ValueError, match="whose body can leave tokens out, got Encoder of"):
        MaskedRecipe().make(create_model("vivit_base"))
