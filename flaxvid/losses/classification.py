"""Losses of classification."""

import jax
import optax
from jaxtyping import Array, Float, Int


def cross_entropy(
    logits: Float[Array, "b k"], labels: Int[Array, " b"] | Float[Array, "b k"], label_smoothing: float = 0.0
) -> Float[Array, ""]:
    """Mean cross-entropy over a batch.

    Args:
        logits: unnormalised scores.
        labels: class numbers, or each class's share of a clip that is mixed of several.
        label_smoothing: share of the target that is spread evenly over all classes (arXiv 1512.00567, section 7).
    """
    shares = labels if labels.ndim == 2 else jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    targets = optax.smooth_labels(shares, label_smoothing)
    return optax.softmax_cross_entropy(logits, targets).mean()
