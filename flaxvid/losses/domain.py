"""Losses of domain adaptation: they make features of two domains alike, or the answers of one domain sure.

A source domain has labels, a target domain has none. None of these losses sees a label.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Widths of the kernels of `mmd`, in units of the mean squared distance of two features."""


def coral(source: Float[Array, "b d"], target: Float[Array, "n d"]) -> Float[Array, ""]:
    """The squared distance of the two covariances, over 4 d^2 (deep CORAL, arXiv 1607.01719, equation 1).

    The means play no part. Each domain needs two rows or more.

    Args:
        source: features of the source domain.
        target: features of the target domain.
    """
    size = source.shape[-1]
    return jnp.square(_covariance(source) - _covariance(target)).sum() / (4 * size**2)


def _covariance(x: Float[Array, "n d"]) -> Float[Array, "d d"]:
    x = x - x.mean(axis=0)
    return x.T @ x / (x.shape[0] - 1)


def mmd(source: Float[Array, "b d"], target: Float[Array, "n d"]) -> Float[Array, ""]:
    """The squared maximum mean discrepancy of the two domains (arXiv 1502.02791): 0 if they have the same features.

    The kernel is the mean of Gaussians ``exp(-distance^2 / (width * scale))`` of several `BANDWIDTHS`. The scale is the
    mean squared distance of two different rows, of which no gradient is taken. The estimate is the biased one, which is
    never negative.

    Args:
        source: features of the source domain.
        target: features of the target domain.
    """
    rows, b = jnp.concatenate([source, target]), source.shape[0]
    n = rows.shape[0]
    squares = jnp.square(rows[:, None] - rows[None]).sum(axis=-1)
    scale = jax.lax.stop_gradient(squares.sum() / (n * (n - 1))) + 1e-12
    kernel = jnp.mean(jnp.exp(-squares / (scale * jnp.asarray(BANDWIDTHS)[:, None, None])), axis=0)
    return kernel[:b, :b].mean() + kernel[b:, b:].mean() - 2 * kernel[:b, b:].mean()


@jax.custom_vjp
def reverse_gradient(x: Float[Array, "*n"], weight: Float[Array, ""] | float) -> Float[Array, "*n"]:
    """Gives `x` itself, and the gradient that comes back times ``-weight`` (DANN, arXiv 1505.07818, section 4.1).

    A discriminator behind it learns to tell the domains apart, and the features before it learn that it cannot.
    """
    return x


def _keep(x, weight):
    return x, weight


def _turn(weight, gradient):
    return -weight * gradient, jnp.zeros_like(jnp.asarray(weight, jnp.float32))


reverse_gradient.defvjp(_keep, _turn)


def domain_cross_entropy(source: Float[Array, " b"], target: Float[Array, " n"]) -> Float[Array, ""]:
    """What a discriminator pays: the mean cross-entropy of both domains, each with half of the weight.

    Args:
        source: the discriminator's logits of source rows, which should be negative.
        target: those of target rows, which should be positive.
    """
    losses = optax.sigmoid_binary_cross_entropy
    zeros, ones = jnp.zeros_like(source), jnp.ones_like(target)
    return (losses(source, zeros).mean() + losses(target, ones).mean()) / 2


def entropy(logits: Float[Array, "b k"]) -> Float[Array, ""]:
    """The mean entropy of the answers in nats: 0 if they are sure, log k if they know nothing (TENT, 2006.10726)."""
    logs = jax.nn.log_softmax(logits)
    return -(jnp.exp(logs) * logs).sum(axis=-1).mean()
