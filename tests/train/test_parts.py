"""Batches that are computed in parts: the whole is mixed, divided and weighed, and then cut."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxvid.models.registry import create_tiny
from flaxvid.tasks.frame_flexible import FfnRecipe
from flaxvid.tasks.supervised import SupervisedRecipe
from flaxvid.tasks.task import count_rows, mean_over_groups
from flaxvid.train.state import create_state
from flaxvid.train.step import cut, train_step

KEY = jax.random.key(7)
FRAMES = (2, 3, 4)
PLAIN = optax.sgd(1.0)
"""Its step is the gradient."""


@pytest.fixture(scope="module")
def model():
    return create_tiny("tsm_resnet18", depths=(1,), dropout=0.0, num_classes={"action": 5, "actor": 3})


@pytest.fixture(scope="module")
def batch(clip):
    """Eight clips; the labels of two targets, some of them missing, and not as many in each part."""
    label = {"action": np.array([0, -1, 2, 3, 4, 0, 1, -1]), "actor": np.array([-1, -1, 2, 1, -1, 0, -1, -1])}
    return {"video": {n: clip(8, n, 32, 32, seed=n) for n in FRAMES}, "label": label}


@pytest.fixture(scope="module")
def variables(model, random_variables):
    return random_variables(model)


def make_task(model, kind, **options):
    if kind == "ffn":
        return FfnRecipe(FRAMES, **options).make(model)
    return SupervisedRecipe(FRAMES, sampling=kind, **options).make(model)


def compiled(task, **arguments):
    """From variables and a batch to the variables after a step down the whole gradient, and the metrics."""
    run = jax.jit(lambda s, b: train_step(s, b, KEY, task=task, optimizer=PLAIN, **arguments))

    def step(variables, batch):
        new, metrics = run(create_state(jax.tree.map(jnp.array, task.init(KEY, variables)), PLAIN), batch)
        return new.variables, metrics

    return step


def step(task, variables, batch, **arguments):
    return compiled(task, **arguments)(variables, batch)


@pytest.mark.parametrize("kind", ["proportional", "mixed", "ffn"])
def test_the_gradient_of_the_parts_is_that_of_the_whole(model, variables, batch, kind, no_batch_statistics):
    """Mixed, divided, smoothed, with labels missing: every number is the same, but for rounding."""
    mixing = {"mixup": 0.8, "cutmix": 1.0, "erasing": 0.5}
    task = make_task(model, kind, **mixing, label_smoothing=0.1, target_weights={"actor": 0.5})
    whole, metrics = step(task, variables, batch)
    for accumulate in (2, 8):
        parts, part_metrics = step(task, variables, batch, accumulate=accumulate)
        chex.assert_trees_all_close(parts, whole, rtol=1e-4, atol=2e-5)
        chex.assert_trees_all_close(part_metrics, metrics, rtol=1e-4, atol=2e-5)
    chex.assert_tree_all_finite((whole, metrics))


def test_shares_that_do_not_divide_are_cut_as_evenly_as_can_be(model, variables, batch, no_batch_statistics):
    """Five clips of the longest count in parts of four at most: three and two, and not one and one and one ..."""
    task = make_task(model, "proportional", share=0.625)
    whole, metrics = step(task, variables, batch)
    parts, part_metrics = step(task, variables, batch, accumulate=2)
    chex.assert_trees_all_close((parts, part_metrics), (whole, metrics), rtol=1e-4, atol=2e-5)
    for rows, limit, groups, sizes in (
        (5, 4, 1, [3, 2]),
        (29, 8, 1, [8, 7, 7, 7]),
        (10, 4, 2, [4, 4, 2]),
        (6, 2, 2, [2] * 3),
    ):
        cuts = [np.asarray(part) for part in cut(np.arange(rows), limit, groups)]
        assert [part.shape[1] for part in cuts for _ in part] == sizes
        assert sorted(np.concatenate([part.ravel() for part in cuts])) == list(range(rows))


@pytest.mark.parametrize("kind", ["proportional", "mixed"])
@pytest.mark.parametrize("arguments", [{"accumulate": 4}, {"accumulate": 8}, {"norm_groups": 2}])
def test_no_frame_count_is_starved(model, variables, batch, kind, arguments):
    """Of eight clips, of 4 per group, each count has its own; black clips in their place change the loss."""
    step = compiled(make_task(model, kind), **arguments)
    _, metrics = step(variables, batch)
    for count in FRAMES:
        dark = {**batch, "video": {**batch["video"], count: np.zeros_like(batch["video"][count])}}
        _, darkened = step(variables, dark)
        assert abs(darkened["loss"] - metrics["loss"]) > 1e-4, count


@pytest.mark.parametrize("groups", [1, 2])
def test_shares_have_every_row_once(model, batch, groups):
    """Of each group of rows as many; here every clip and label tells its row."""
    rows = np.arange(8, dtype=np.uint8)
    video = {n: np.broadcast_to(rows[:, None, None, None, None], (8, n, 2, 2, 3)) for n in FRAMES}
    for kind, expected in (("proportional", [4, 2, 2]), ("mixed", [8])):
        shares = make_task(model, kind).divide({"video": video, "label": np.arange(8)}, KEY, groups)
        assert [count_rows(share) for share in shares] == expected
        labels = [np.asarray(share["label"][""][0]) for share in shares]
        assert sorted(np.concatenate(labels)) == list(range(8))
        for share, own in zip(shares, labels, strict=True):
            ((count, clip),) = share["video"].items()
            assert clip.shape[1] == count
            np.testing.assert_array_equal(clip[:, 0, 0, 0, 0], own)
            per_group = own.reshape(groups, -1) // (8 // groups)
            np.testing.assert_array_equal(per_group, np.repeat(np.arange(groups)[:, None], per_group.shape[1], 1))


def test_repeats_are_not_mixed_with_themselves(model, clip):
    """The pipeline's order of four videos with two clips each, which four parts used to pair with their own."""
    index = np.array([0, 1, 2, 3] * 2)
    batch = {"video": {4: clip(8, 4, 8, 8)}, "label": {"action": index, "actor": index % 3}}
    task = SupervisedRecipe((4,), mixup=1.0).make(model)
    (share,) = task.divide(batch, KEY)
    labels, _ = share["label"]["action"]
    np.testing.assert_array_equal((np.asarray(labels) > 0).sum(1), 2)


def test_parts_draw_for_themselves(model, variables, batch):
    """Two parts of the same clips: their dropout differs, and so do their losses."""

    task = SupervisedRecipe((4,)).make(model)

    class Draws:
        frames, divide, init, after = (4,), task.divide, task.init, task.after

        @mean_over_groups
        def share_loss(self, variables, share, key):
            drawn = jax.random.uniform(key)
            return 0.0 * variables["params"]["stem"]["conv1"]["kernel"].sum(), ({}, {"loss": drawn, "square": drawn**2})

    for arguments in ({"accumulate": 2}, {"norm_groups": 2}, {"accumulate": 2, "norm_groups": 2}):
        _, metrics = step(Draws(), variables, batch, **arguments)
        assert metrics["square"] - metrics["loss"] ** 2 > 1e-3


def test_a_target_without_any_label_gives_nothing(model, variables, batch, no_batch_statistics):
    label = {**batch["label"], "actor": np.full(8, -1)}
    for kind in ("proportional", "ffn"):
        new, metrics = step(make_task(model, kind), variables, {**batch, "label": label}, accumulate=4)
        chex.assert_tree_all_finite((new, metrics))
        assert metrics["actor_accuracy"] == 0
        if kind == "proportional":
            assert metrics["actor_loss"] == 0
            chex.assert_trees_all_equal(
                new["params"]["head"]["classifier_actor"], variables["params"]["head"]["classifier_actor"]
            )
