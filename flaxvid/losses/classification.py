"""Losses of classification."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

HardOrMixed = Int[Array, " b"] | Float[Array, "b k"]


def label_weights(labels: HardOrMixed) -> Float[Array, " b"]:
    """Weights of rows that turn a mean over the batch into one over the rows with a label.

    A row without a label (class -1, or no share of any class) has weight 0; all weights add up to b. If no row has a
    label all weights are 0, and so is the mean.
    """
    labelled = (labels >= 0 if labels.ndim == 1 else labels.any(axis=-1)).astype(jnp.float32)
    return labelled * (labelled.size / jnp.maximum(labelled.sum(), 1))


def cross_entropy(
    logits: Float[Array, "b k"],
    labels: HardOrMixed,
    label_smoothing: float = 0.0,
    weights: Float[Array, " b"] | None = None,
) -> Float[Array, ""]:
    """Mean cross-entropy over the rows with a label.

    Args:
        logits: unnormalised scores.
        labels: class numbers, or each class's share of a mixed clip; -1, or no shares, is a missing label.
        label_smoothing: share of a label that is spread evenly over all classes (arXiv 1512.00567, section 7).
        weights: `label_weights` of the whole batch, if these rows are a part of it; None if they are all of it.
    """
    shares = labels if labels.ndim == 2 else jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    targets = optax.smooth_labels(shares, label_smoothing)
    weights = label_weights(labels) if weights is None else weights
    return (optax.softmax_cross_entropy(logits, targets) * weights).mean()
