"""Against the papers' formulas, written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxvid.losses.domain import BANDWIDTHS, coral, domain_cross_entropy, entropy, mmd, reverse_gradient

RNG = np.random.default_rng(0)
SOURCE = RNG.normal(size=(7, 4)).astype(np.float32)
TARGET = (RNG.normal(size=(5, 4)) * [1, 2, 0.5, 1] + [0, 0, 3, 0]).astype(np.float32)


def test_coral_is_the_papers():
    """Equations 1 to 3: C = (D^T D - (1^T D)^T (1^T D) / n) / (n - 1)."""

    def covariance(rows):
        rows = rows.astype(np.float64)
        n, ones = len(rows), np.ones((1, len(rows)))
        return (rows.T @ rows - (ones @ rows).T @ (ones @ rows) / n) / (n - 1)

    expected = np.linalg.norm(covariance(SOURCE) - covariance(TARGET), "fro") ** 2 / (4 * 4**2)
    assert coral(SOURCE, TARGET) == pytest.approx(expected, rel=1e-5)
    assert coral(SOURCE, SOURCE + 10) == pytest.approx(0, abs=1e-6)


def test_mmd_is_the_distance_of_the_mean_embeddings():
    rows = np.concatenate([SOURCE, TARGET]).astype(np.float64)
    scale = np.mean([((x - y) ** 2).sum() for i, x in enumerate(rows) for j, y in enumerate(rows) if i != j])

    def mean_kernel(xs, ys):
        squares = ((xs[:, None].astype(np.float64) - ys[None]) ** 2).sum(-1)
        return np.mean([np.exp(-squares / (scale * width)) for width in BANDWIDTHS])

    expected = mean_kernel(SOURCE, SOURCE) + mean_kernel(TARGET, TARGET) - 2 * mean_kernel(SOURCE, TARGET)
    assert mmd(SOURCE, TARGET) == pytest.approx(expected, rel=1e-5)
    assert expected > 0.1
    assert mmd(SOURCE, SOURCE) == pytest.approx(0, abs=1e-6)
    assert np.isfinite(jax.grad(mmd)(SOURCE, SOURCE)).all()
    assert np.isfinite(jax.grad(mmd)(np.zeros_like(SOURCE), np.zeros_like(TARGET))).all()


@pytest.mark.parametrize("loss", [coral, mmd])
def test_the_gradient_brings_the_domains_together(loss):
    moved, start = jnp.asarray(TARGET), loss(SOURCE, TARGET)
    for _ in range(50):
        moved -= 0.5 * jax.grad(loss, argnums=1)(SOURCE, moved)
    assert loss(SOURCE, moved) < 0.5 * start


def test_a_reversed_gradient_is_reversed_and_weighed():
    x, way = jnp.asarray(SOURCE), RNG.normal(size=SOURCE.shape)
    np.testing.assert_array_equal(reverse_gradient(x, 0.3), x)
    for run in (lambda f: f, jax.jit):
        reversed_, plain = (
            run(jax.grad(lambda x, f=f: (f(x) ** 2 * way).sum()))(x)
            for f in (lambda x: reverse_gradient(x, 0.3), jnp.array)
        )
        np.testing.assert_allclose(reversed_, -0.3 * plain, rtol=1e-6)


def test_what_a_discriminator_pays():
    source, target = np.float32([-2.0, 0.5]), np.float32([1.0, -1.0, 3.0])
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    expected = (-np.log(1 - sigmoid(source)).mean() - np.log(sigmoid(target)).mean()) / 2
    assert domain_cross_entropy(source, target) == pytest.approx(expected, rel=1e-5)
    assert domain_cross_entropy(jnp.full(3, -50.0), jnp.full(3, 50.0)) == pytest.approx(0, abs=1e-6)


def test_entropy_is_that_of_the_answers():
    probabilities = np.array([[0.7, 0.2, 0.1], [1 / 3, 1 / 3, 1 / 3]])
    expected = -(probabilities * np.log(probabilities)).sum(1).mean()
    assert entropy(np.log(probabilities) + np.array([[5.0], [-2.0]])) == pytest.approx(expected, rel=1e-5)
    assert entropy(np.array([[100.0, 0.0]])) == pytest.approx(0, abs=1e-6)
