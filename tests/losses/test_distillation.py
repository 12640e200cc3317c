"""The losses of distillation against numbers that Python's own math and NumPy give."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxvid.losses.classification import cross_entropy
from flaxvid.losses.distillation import feature_loss, ffn_loss, label_loss, logit_loss, mean_probabilities

LOGITS = {
    4: [[1.0, 0.0, -1.0], [0.2, 0.1, 0.0]],
    8: [[0.5, 0.5, 0.0], [-1.0, 2.0, 0.3]],
    16: [[2.0, 0.0, -1.0], [0.0, 1.0, 0.5]],
}
LABELS = [0, 2]


def softmax(row):
    exponentials = [math.exp(z) for z in row]
    return [e / sum(exponentials) for e in exponentials]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def mean_kl(count, teacher=16):
    return sum(kl(softmax(p), softmax(q)) for p, q in zip(LOGITS[teacher], LOGITS[count], strict=True)) / 2


def mean_ce(count):
    return sum(-math.log(softmax(row)[label]) for row, label in zip(LOGITS[count], LABELS, strict=True)) / 2


def arrays(*counts):
    return {count: jnp.asarray(LOGITS[count]) for count in counts or LOGITS}


def test_written_out_for_one_clip():
    """Teacher (3/4, 1/4), student (1/2, 1/2), label 1."""
    logits = {4: jnp.zeros((1, 2)), 16: jnp.log(jnp.array([[3.0, 1.0]]))}
    loss, parts = ffn_loss(logits, jnp.array([1]))
    assert parts["ce"] == pytest.approx(-math.log(1 / 4))
    assert parts["kl_4"] == pytest.approx(3 / 4 * math.log((3 / 4) / (1 / 2)) + 1 / 4 * math.log((1 / 4) / (1 / 2)))
    assert loss == pytest.approx(1.3862944 + 0.1308120, rel=1e-5)


@pytest.mark.parametrize("weight", [1.0, 0.0, 2.5])
def test_hand_computed_numbers(weight):
    loss, parts = jax.jit(ffn_loss)(arrays(), jnp.asarray(LABELS), weight)
    expected = {"ce": mean_ce(16), "kl_4": mean_kl(4), "kl_8": mean_kl(8)}
    chex.assert_trees_all_close(parts, expected, rtol=1e-5)
    assert loss == pytest.approx(expected["ce"] + weight * (expected["kl_4"] + expected["kl_8"]), rel=1e-5)


def test_the_direction_is_teacher_to_student():
    _, parts = ffn_loss(arrays(4, 16), jnp.asarray(LABELS))
    backwards = sum(kl(softmax(q), softmax(p)) for p, q in zip(LOGITS[16], LOGITS[4], strict=True)) / 2
    assert parts["kl_4"] == pytest.approx(mean_kl(4), rel=1e-5)
    assert abs(mean_kl(4) - backwards) > 0.01


def test_no_kl_term_moves_the_teacher():
    labels = jnp.asarray(LABELS)
    gradients = jax.grad(lambda logits: ffn_loss(logits, labels, 3.0)[0])(arrays())
    of_ce = jax.grad(lambda logits: cross_entropy(logits, labels))(arrays()[16])
    chex.assert_trees_all_equal(gradients[16], of_ce)
    # A student's gradient is (q - p) / batch, and the label is not in it.
    for count in (4, 8):
        q, p = (np.array([softmax(row) for row in LOGITS[n]]) for n in (count, 16))
        chex.assert_trees_all_close(np.asarray(gradients[count]), 3 * (q - p) / 2, rtol=1e-4, atol=1e-6)


def test_students_do_not_see_the_label():
    gradient = jax.grad(lambda logits, labels: ffn_loss(logits, labels)[0])
    one, other = (gradient(arrays(), jnp.asarray(labels)) for labels in (LABELS, [1, 0]))
    chex.assert_trees_all_equal({4: one[4], 8: one[8]}, {4: other[4], 8: other[8]})
    assert not np.allclose(one[16], other[16])


def test_it_agrees_with_torch():
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    teacher = torch.tensor(LOGITS[16]).softmax(1)
    expected = functional.cross_entropy(torch.tensor(LOGITS[16]), torch.tensor(LABELS))
    for count in (4, 8):
        expected += functional.kl_div(torch.tensor(LOGITS[count]).log_softmax(1), teacher, reduction="batchmean")
    assert ffn_loss(arrays(), jnp.asarray(LABELS))[0] == pytest.approx(float(expected), rel=1e-5)


def test_the_largest_count_teaches_in_any_order_and_number():
    labels = jnp.asarray(LABELS)
    loss, parts = ffn_loss({16: arrays()[16], 4: arrays()[4]}, labels)
    assert set(parts) == {"ce", "kl_4"}
    assert loss == pytest.approx(mean_ce(16) + mean_kl(4), rel=1e-5)
    _, parts = ffn_loss(arrays(4, 8), labels)
    assert parts["kl_4"] == pytest.approx(mean_kl(4, teacher=8), rel=1e-5)


def test_label_smoothing_is_of_the_cross_entropy_only():
    labels = jnp.asarray(LABELS)
    _, plain = ffn_loss(arrays(), labels)
    _, smooth = ffn_loss(arrays(), labels, label_smoothing=0.1)
    assert smooth["ce"] == pytest.approx(float(cross_entropy(arrays()[16], labels, 0.1)))
    chex.assert_trees_all_equal({**plain, "ce": 0}, {**smooth, "ce": 0})


def test_extreme_logits_stay_finite():
    logits = {4: jnp.array([[1e4, -1e4]]), 16: jnp.array([[-1e4, 1e4]])}
    value, gradient = jax.value_and_grad(lambda z: ffn_loss(z, jnp.array([1]))[0])(logits)
    chex.assert_tree_all_finite((value, gradient))


@pytest.mark.parametrize(("given", "frames"), [((4, 16), (4, 8, 16)), ((16,), (4, 16)), ((4, 8, 16), (4, 16))])
def test_a_missing_count_is_one_clear_error(given, frames):
    with pytest.raises(ValueError) as error:
        ffn_loss(arrays(*given), jnp.asarray(LABELS), frames=frames)
    assert f"needs logits of frames={frames}, got {given}: sample every video at all of them" in str(error.value)
    assert "\n" not in str(error.value)


def test_one_count_has_nothing_to_distil_into():
    with pytest.raises(ValueError, match=r"at least two counts, got \(16,\)"):
        ffn_loss(arrays(16), jnp.asarray(LABELS))


def test_label_loss_adds_up_every_counts_cross_entropy():
    loss, parts = jax.jit(label_loss)(arrays(), jnp.asarray(LABELS))
    expected = {f"ce_{count}": mean_ce(count) for count in LOGITS}
    chex.assert_trees_all_close(parts, expected, rtol=1e-5)
    assert loss == pytest.approx(sum(expected.values()), rel=1e-5)
    smooth, _ = label_loss(arrays(16), jnp.asarray(LABELS), label_smoothing=0.1)
    assert smooth == pytest.approx(float(cross_entropy(arrays()[16], jnp.asarray(LABELS), 0.1)), rel=1e-5)


def softened(rows, temperature):
    z = np.asarray(rows, np.float64) / temperature
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("teachers", [(16,), (8, 16)])
def test_soft_targets_of_one_teacher_or_of_several(temperature, teachers):
    p = np.mean([softened(LOGITS[n], temperature) for n in teachers], axis=0)
    q = softened(LOGITS[4], temperature)
    wanted = temperature**2 * (p * np.log(p / q)).sum(axis=-1).mean()
    given = [jnp.asarray(LOGITS[n]) for n in teachers]
    assert jax.jit(logit_loss)(jnp.asarray(LOGITS[4]), given, temperature) == pytest.approx(wanted, rel=1e-5)
    chex.assert_trees_all_close(mean_probabilities(given, temperature), p.astype(np.float32), rtol=1e-5)


def test_a_hot_teacher_teaches_as_strongly():
    """At a high temperature the gradient of T ** 2 * KL is that of half the squared distance of centred logits, over k
    classes (arXiv 1503.02531, section 2.1)."""
    z, v = (jnp.asarray(LOGITS[n]) for n in (4, 16))
    gradient = jax.grad(logit_loss)(z, [v], 1000.0)
    centred = (z - z.mean(-1, keepdims=True)) - (v - v.mean(-1, keepdims=True))
    chex.assert_trees_all_close(gradient, centred / 3 / 2, rtol=1e-2, atol=1e-4)


def test_teachers_do_not_move():
    z, v = (jnp.asarray(LOGITS[n]) for n in (4, 16))
    chex.assert_trees_all_equal(jax.grad(lambda v: logit_loss(z, [v], 2.0))(v), jnp.zeros_like(v))
    chex.assert_trees_all_equal(jax.grad(lambda v: feature_loss(z, v))(v), jnp.zeros_like(v))
    assert jnp.abs(jax.grad(lambda z: feature_loss(z, v))(z)).max() > 0.01


def test_features_are_compared_by_direction():
    x, y = np.asarray(LOGITS[4]), np.asarray(LOGITS[16])
    cosines = (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
    assert feature_loss(jnp.asarray(x), jnp.asarray(y)) == pytest.approx((2 - 2 * cosines).mean(), rel=1e-5)
    assert feature_loss(jnp.asarray(7 * y), jnp.asarray(y)) == pytest.approx(0, abs=1e-6)


def test_a_feature_of_zeros_has_a_finite_gradient():
    gradient = jax.grad(feature_loss)(jnp.zeros((2, 3)), jnp.asarray(LOGITS[16]))
    chex.assert_tree_all_finite(gradient)
