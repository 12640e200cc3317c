import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxvid.evaluate import metrics

LOGITS = jnp.array([[3.0, 2.0, 1.0], [0.0, 5.0, 1.0], [1.0, 0.0, 2.0], [9.0, 1.0, 2.0]])
LABELS = jnp.array([0, 2, 1, 2])
ALL = jnp.ones(4, bool)


def test_topk_by_hand():
    assert metrics.topk_correct(LOGITS, LABELS).tolist() == [True, False, False, False]
    assert metrics.topk_correct(LOGITS, LABELS, k=2).tolist() == [True, True, False, True]


def test_topk_with_at_least_as_many_guesses_as_classes_is_always_right():
    for k in (3, 5):
        assert metrics.topk_correct(LOGITS, LABELS, k=k).all()


def test_constant_and_nan_logits_do_not_score():
    labels = jnp.arange(4)
    assert metrics.topk_correct(jnp.zeros((4, 4)), labels).sum() == 1
    assert not metrics.topk_correct(jnp.full((4, 4), jnp.nan), labels, k=4).any()


def test_labels_out_of_range_are_wrong_and_uncounted():
    labels = jnp.array([-1, 3, 0, 0])
    assert metrics.topk_correct(LOGITS, labels, k=3).tolist() == [False, False, True, True]
    assert metrics.confusion_counts(LOGITS, labels, ALL).sum() == 2


def test_uneven_masked_batches_add_up_to_the_whole():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(11, 7)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 7, 11))
    whole = metrics.accuracy_sums(logits, labels, jnp.ones(11, bool))
    padded = jnp.concatenate([logits, jnp.eye(7)[:1]]), jnp.concatenate([labels, jnp.zeros(1, labels.dtype)])
    mask = jnp.arange(12) < 11
    batched = jax.jit(metrics.accuracy_sums)
    parts = [batched(padded[0][i : i + 4], padded[1][i : i + 4], mask[i : i + 4]) for i in (0, 4, 8)]
    added = jax.tree.map(lambda *leaves: sum(leaves), *parts)
    assert jax.tree.map(int, added) == jax.tree.map(int, whole)
    order = np.argsort(-np.asarray(logits), axis=1)
    assert metrics.accuracies(added) == {
        "top1": np.mean(order[:, 0] == labels),
        "top5": np.mean((order[:, :5] == np.asarray(labels)[:, None]).any(1)),
    }


def test_confusion_and_mean_class_accuracy_by_hand():
    confusion = metrics.confusion_counts(LOGITS, LABELS, ALL)
    assert confusion.tolist() == [[1, 0, 0], [0, 0, 1], [1, 1, 0]]
    assert metrics.mean_class_accuracy(confusion) == pytest.approx(1 / 3)
    masked = metrics.confusion_counts(LOGITS, LABELS, jnp.array([True, False, False, True]))
    assert metrics.mean_class_accuracy(masked) == pytest.approx(1 / 2)  # class 1 has no clip and does not count


def test_calibration_by_hand():
    probabilities = jnp.array([[0.55, 0.45], [0.3, 0.7], [0.25, 0.75], [1.0, 0.0], [0.9, 0.1]])
    labels, mask = jnp.array([0, 1, 0, 0, 1]), jnp.array([True, True, True, True, False])
    sums = metrics.calibration_sums(probabilities, labels, mask, bins=4)
    assert sums["count"].tolist() == [0, 0, 3, 1]  # a confidence of 0.75 is the last of its bin
    assert sums["right"].tolist() == [0, 0, 2, 1]
    expected = abs(2 - (0.55 + 0.7 + 0.75)) / 4
    assert metrics.calibration_error(sums) == pytest.approx(expected, abs=1e-6)
    bins = metrics.reliability(sums)
    np.testing.assert_allclose(bins["accuracy"], [np.nan, np.nan, 2 / 3, 1])
    np.testing.assert_allclose(bins["confidence"], [np.nan, np.nan, 2 / 3, 1])


def test_calibration_of_parts_adds_up():
    rng = np.random.default_rng(0)
    probabilities = jax.nn.softmax(jnp.asarray(3 * rng.normal(size=(60, 4)), jnp.float32))
    labels = jnp.asarray(rng.integers(0, 4, 60))
    mask = jnp.ones(60, bool)
    whole = metrics.calibration_sums(probabilities, labels, mask)
    cuts = [slice(i, i + 20) for i in (0, 20, 40)]
    parts = [metrics.calibration_sums(probabilities[cut], labels[cut], mask[cut]) for cut in cuts]
    added = jax.tree.map(lambda *leaves: sum(leaves), *parts)
    for name, total in whole.items():
        np.testing.assert_allclose(added[name], total, rtol=1e-6)
    confidence, right = np.asarray(probabilities.max(-1)), np.asarray(probabilities.argmax(-1) == labels)
    bins = np.minimum(np.ceil(confidence * 15).astype(int) - 1, 14)
    gaps = [abs(np.sum(right[bins == i]) - np.sum(confidence[bins == i])) for i in range(15)]
    assert metrics.calibration_error(added) == pytest.approx(sum(gaps) / 60, rel=1e-5)
