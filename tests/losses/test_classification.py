import math

import jax
import numpy as np
import pytest

from flaxvid.losses.classification import cross_entropy, label_weights

LOGITS = np.array([[2.0, 0.0, -1.0], [0.0, 1.0, 0.5]], np.float32)
LABELS = np.array([0, 2])


def log_softmax(row):
    total = math.log(sum(math.exp(z) for z in row))
    return [z - total for z in row]


def by_hand(smoothing=0.0):
    """mean over the batch of -sum_k t_k log p_k, t_k = (1 - s) [k = y] + s / 3"""
    losses = []
    for row, label in zip(LOGITS.tolist(), LABELS, strict=True):
        targets = [(1 - smoothing) * (k == label) + smoothing / 3 for k in range(3)]
        losses.append(-sum(t * log_p for t, log_p in zip(targets, log_softmax(row), strict=True)))
    return sum(losses) / 2


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_hand_computed_numbers(smoothing):
    assert jax.jit(cross_entropy, static_argnums=2)(LOGITS, LABELS, smoothing) == pytest.approx(
        by_hand(smoothing), rel=1e-5
    )


def test_a_sure_right_answer_costs_nothing_and_a_batch_of_one_works():
    assert cross_entropy(np.array([[50.0, 0.0]], np.float32), np.array([0])) == pytest.approx(0, abs=1e-6)
    assert cross_entropy(np.array([[0.0, 0.0]], np.float32), np.array([1])) == pytest.approx(math.log(2))


def test_it_agrees_with_torch():
    functional = pytest.importorskip("torch.nn.functional")
    torch = pytest.importorskip("torch")
    logits = np.random.default_rng(0).normal(0, 3, (8, 11)).astype(np.float32)
    labels = np.arange(8)
    expected = functional.cross_entropy(torch.tensor(logits), torch.tensor(labels), label_smoothing=0.2)
    assert cross_entropy(logits, labels, 0.2) == pytest.approx(float(expected), rel=1e-5)


def test_rows_without_a_label_have_no_say():
    logits = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
    labels = np.array([2, -1, 0, -1])
    for smoothing in (0.0, 0.1):
        expected = cross_entropy(logits[[0, 2]], labels[[0, 2]], smoothing)
        assert cross_entropy(logits, labels, smoothing) == pytest.approx(float(expected), rel=1e-6)
        shares = np.where(labels[:, None] >= 0, np.eye(3)[labels], 0)
        assert cross_entropy(logits, shares, smoothing) == pytest.approx(float(expected), rel=1e-6)
    np.testing.assert_allclose(label_weights(labels), [2, 0, 2, 0])


def test_no_label_at_all_is_no_loss_and_no_gradient():
    value, gradient = jax.value_and_grad(cross_entropy)(LOGITS, np.array([-1, -1]), 0.1)
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros_like(LOGITS))


def test_parts_weighed_as_the_whole_add_up_to_it():
    logits = np.random.default_rng(2).normal(size=(6, 3)).astype(np.float32)
    labels = np.array([0, -1, -1, -1, 1, 2])
    weights = label_weights(labels)
    parts = [cross_entropy(logits[i : i + 2], labels[i : i + 2], 0.1, weights[i : i + 2]) for i in (0, 2, 4)]
    assert np.mean(parts) == pytest.approx(float(cross_entropy(logits, labels, 0.1)), rel=1e-6)
