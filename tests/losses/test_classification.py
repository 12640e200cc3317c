import math

import jax
import numpy as np
import pytest

from flaxvid.losses.classification import cross_entropy

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
