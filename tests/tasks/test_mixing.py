import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxvid.losses.classification import cross_entropy
from flaxvid.models.registry import create_tiny
from flaxvid.tasks.frame_flexible import FfnRecipe
from flaxvid.tasks.labelled import accuracy
from flaxvid.tasks.mixing import ERASED_AREA, erased_boxes, inside, mix, own_parts
from flaxvid.tasks.supervised import SupervisedRecipe

KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def model():
    return create_tiny("tsm_resnet18", depths=(1,), dropout=0.0)


@pytest.fixture(scope="module")
def batch(clip):
    return {"video": {n: clip(5, n, 8, 10, seed=n) for n in (2, 4)}, "label": np.array([0, 1, 2, 3, 4])}


def test_nothing_by_default(model, batch):
    video, labels = mix(model, batch, KEY)
    assert video == batch["video"]
    assert labels[""] is batch["label"]


def test_mixup_by_hand(model, batch):
    video, labels = mix(model, batch, KEY, mixup=0.4)
    for n, clips in video.items():
        x = model.normalise(jnp.asarray(batch["video"][n]))
        for row, other in enumerate((1, 0, 3, 2, 4)):
            share = labels[""][row, row]
            np.testing.assert_allclose(labels[""][row].sum(), 1, rtol=1e-6)
            if row != other:
                np.testing.assert_allclose(labels[""][row, other], 1 - share, rtol=1e-5, atol=1e-6)
                np.testing.assert_allclose(clips[row], share * x[row] + (1 - share) * x[other], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(video[2][4], model.normalise(jnp.asarray(batch["video"][2]))[4], atol=1e-6)


@pytest.mark.parametrize("mixing", [{"mixup": 1.0}, {"cutmix": 1.0}, {"mixup": 1.0, "cutmix": 1.0}])
def test_a_mixture_with_an_unknown_part_is_unknown(model, batch, mixing):
    """Its neighbour keeps nothing of a label either; the last row of an odd number is mixed with none."""
    _, labels = mix(model, {**batch, "label": np.array([0, -1, 2, 3, 4])}, KEY, **mixing)
    np.testing.assert_array_equal(labels[""][:2], np.zeros((2, 5)))
    np.testing.assert_allclose(labels[""][2:].sum(1), 1, rtol=1e-6)
    _, labels = mix(model, {**batch, "label": np.array([0, 1, 2, 3, -1])}, KEY, **mixing)
    np.testing.assert_allclose(labels[""].sum(1), [1, 1, 1, 1, 0], rtol=1e-6)


def test_cutmix_by_hand(model, batch):
    """Every pixel is one video's or the other's, the same ones in all frames and counts; the label says how many."""
    video, labels = mix(model, batch, KEY, cutmix=1.0)
    for row, other in enumerate((1, 0, 3, 2)):
        taken = []
        for n in (2, 4):
            x = model.normalise(jnp.asarray(batch["video"][n]))
            own, foreign = (np.isclose(video[n][row], x[i], atol=1e-5).all(-1) for i in (row, other))
            assert (own | foreign).all()
            taken += [~own[t] for t in range(n)]
        box = np.any(taken, axis=0)
        for picture in taken:
            assert (picture | ~box).mean() > 0.95  # here and there both videos have the same colour
        np.testing.assert_allclose(labels[""][row, other], box.mean(), atol=1e-6)
        np.testing.assert_allclose(labels[""][row, row], 1 - box.mean(), atol=1e-6)


def test_shares_follow_the_beta_distribution():
    for mixing in ({"mixup": 0.5}, {"cutmix": 0.5}):
        own = np.asarray(own_parts(KEY, 4000, 16, 16, **mixing).mean((1, 2)))
        assert ((own >= 0) & (own <= 1)).all()
        if "mixup" in mixing:
            assert (own.mean(), own.var()) == (pytest.approx(0.5, abs=0.02), pytest.approx(1 / 8, abs=0.01))
        else:
            assert own.mean() > 0.5  # of boxes at the edge a part lies outside
    own = own_parts(KEY, 1000, 8, 8, mixup=1.0, cutmix=1.0)
    cut = ((own == 0) | (own == 1)).all((1, 2)).mean()
    assert cut == pytest.approx(0.5, abs=0.05)


def test_boxes_by_hand():
    top, left, height, width = (jnp.array([v]) for v in (1.0, -1.0, 2.0, 3.0))
    expected = np.zeros((1, 4, 5), bool)
    expected[0, 1:3, :2] = True
    np.testing.assert_array_equal(inside(top, left, height, width, 4, 5), expected)


def test_erasing(model, batch):
    boxes = np.asarray(erased_boxes(KEY, 0.25, 4000, 32, 32))
    hit = boxes.any((1, 2))
    assert hit.mean() == pytest.approx(0.25, abs=0.03)
    area = boxes[hit].mean((1, 2))
    assert ERASED_AREA[0] * 0.6 < area.min() < 0.04
    assert 0.28 < area.max() < ERASED_AREA[1] * 1.15
    video, labels = mix(model, batch, KEY, erasing=1.0)
    assert labels[""] is batch["label"]
    for row in range(5):
        changed = []
        for n in (2, 4):
            different = ~np.isclose(video[n][row], model.normalise(jnp.asarray(batch["video"][n]))[row], atol=1e-5)
            changed += list(different.all(-1))
            pixels = np.asarray(video[n][row])[:, changed[0]]
            np.testing.assert_array_equal(pixels, pixels[[0] * n])  # noise stands still
        chex.assert_trees_all_equal(*changed)


def test_soft_labels_in_the_loss_by_hand():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]]))
    shares = jnp.array([[0.75, 0.25, 0.0], [0.0, 0.0, 1.0]])
    expected = -(0.75 * np.log(0.5) + 0.25 * np.log(0.25) + np.log(0.6)) / 2
    np.testing.assert_allclose(cross_entropy(logits, shares), expected, rtol=1e-6)
    np.testing.assert_allclose(
        cross_entropy(logits, jnp.eye(3)[jnp.array([0, 2])], 0.1),
        cross_entropy(logits, jnp.array([0, 2]), 0.1),
        rtol=1e-6,
    )
    assert accuracy(logits, shares) == 1


def test_tasks_mix_in_training(model, random_variables, clip):
    variables = random_variables(model)
    batch = {"video": {n: clip(4, n, 32, 32, seed=n) for n in (2, 4)}, "label": np.arange(4)}
    mixing = {"mixup": 0.8, "cutmix": 1.0, "erasing": 0.5}
    supervised, ffn = (recipe.make(model) for recipe in (SupervisedRecipe((4,), **mixing), FfnRecipe((2, 4), **mixing)))
    cases = ((supervised, variables, {"loss", "accuracy"}), (ffn, ffn.init(KEY, variables), {"ce", "kl_2"}))
    for task, start, parts in cases:
        run = jax.jit(task.loss)
        (first, (_, metrics)), (again, _), (other, _) = (
            run(start, batch, key) for key in (KEY, KEY, jax.random.key(4))
        )
        assert first == again != other
        assert parts <= set(metrics)
        chex.assert_tree_all_finite(metrics)
    mixed, labels = mix(model, batch, jax.random.fold_in(KEY, 0), **mixing)
    logits, _ = model.apply(variables, mixed[4], train=True, rngs={"dropout": KEY}, mutable=["batch_stats"])
    loss, _ = jax.jit(supervised.loss)(variables, batch, KEY)
    assert loss == pytest.approx(float(cross_entropy(logits, labels[""])), rel=1e-4)
