"""Accuracy and calibration as sums over a batch.

A mean of batch means is wrong when two batches differ in size. Add the sums of all batches and hosts by
`jax.tree.map(jnp.add, a, b)`, then divide once.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num


def topk_correct(logits: Float[Array, "b k"], labels: Int[Array, " b"], k: int = 1) -> Bool[Array, " b"]:
    """Says for each clip whether its label is among the k highest logits.

    The lower class wins a tie, so constant logits score like chance and not 100 %. A NaN at the label is wrong.

    Args:
        logits: logits or probabilities.
        labels: class numbers; one outside [0, classes) is wrong.
        k: the number of guesses; with k >= classes every valid label is right.
    """
    classes = logits.shape[-1]
    _, guesses = jax.lax.top_k(logits, min(k, classes))
    at_label = jnp.take_along_axis(logits, jnp.clip(labels, 0, classes - 1)[:, None], axis=-1)[:, 0]
    return (guesses == labels[:, None]).any(axis=-1) & ~jnp.isnan(at_label)


def accuracy_sums(
    logits: Float[Array, "b k"], labels: Int[Array, " b"], mask: Bool[Array, " b"]
) -> dict[str, Int[Array, ""]]:
    """Counts right answers, {"top1": n, "top5": n, "count": n}, int32, of the clips that `mask` counts."""
    sums = {f"top{k}": jnp.sum(topk_correct(logits, labels, k) & mask, dtype=jnp.int32) for k in (1, 5)}
    return sums | {"count": jnp.sum(mask, dtype=jnp.int32)}


def accuracies(sums: Mapping[str, Int[Array, ""]]) -> dict[str, float]:
    """Divides the total of `accuracy_sums` by its count, which must not be 0: shares in [0, 1]."""
    return {name: int(value) / int(sums["count"]) for name, value in sums.items() if name != "count"}


def confusion_counts(
    logits: Float[Array, "b k"], labels: Int[Array, " b"], mask: Bool[Array, " b"]
) -> Int[Array, "k k"]:
    """Counts clips by (label, guess), int32; labels outside [0, classes) are left out."""
    classes = logits.shape[-1]
    keep = (labels >= 0) & (labels < classes) & mask
    guesses = jnp.argmax(logits, axis=-1)
    # `mode="drop"` alone does not do: a negative index would wrap to the last class.
    return jnp.zeros((classes, classes), jnp.int32).at[labels, guesses].add(keep.astype(jnp.int32), mode="drop")


def mean_class_accuracy(confusion: Int[Array, "k k"]) -> Float[Array, ""]:
    """Averages the accuracies of the classes that have a clip, all with the same weight; NaN if none has.

    Give it the counts of the whole split, not of a batch.
    """
    clips = confusion.sum(axis=1)
    recall = jnp.diagonal(confusion) / jnp.maximum(clips, 1)
    return jnp.sum(jnp.where(clips > 0, recall, 0.0)) / jnp.sum(clips > 0)


def calibration_sums(
    probabilities: Float[Array, "b k"], labels: Int[Array, " b"], mask: Bool[Array, " b"], bins: int = 15
) -> dict[str, Num[Array, " bins"]]:
    """Sums one batch by confidence, the highest probability: {"count", "right", "confidence"} of each bin.

    Bin i holds the confidences in (i / bins, (i + 1) / bins]; 15 bins as in arXiv 1706.04599.

    Args:
        probabilities: not logits, which would fall into the wrong bins.
        labels: class numbers.
        mask: which clips count.
        bins: the number of bins.
    """
    confidence = probabilities.max(axis=-1)
    place = jnp.clip(jnp.ceil(confidence * bins).astype(jnp.int32) - 1, 0, bins - 1)
    right = topk_correct(probabilities, labels) & mask
    return {
        "count": jnp.zeros(bins, jnp.int32).at[place].add(mask.astype(jnp.int32)),
        "right": jnp.zeros(bins, jnp.int32).at[place].add(right.astype(jnp.int32)),
        "confidence": jnp.zeros(bins, jnp.float32).at[place].add(jnp.where(mask, confidence, 0.0)),
    }


def reliability(sums: Mapping[str, Num[Array, " bins"]]) -> dict[str, Num[np.ndarray, " bins"]]:
    """Each bin's {"count", "confidence", "accuracy"} from the total of `calibration_sums`; an empty bin has NaN."""
    count = np.asarray(sums["count"])
    with np.errstate(invalid="ignore"):
        return {
            "count": count,
            "confidence": np.asarray(sums["confidence"]) / count,
            "accuracy": np.asarray(sums["right"]) / count,
        }


def calibration_error(sums: Mapping[str, Num[Array, " bins"]]) -> float:
    """The expected calibration error in [0, 1]: each bin's |accuracy - confidence|, weighted by its clips.

    Give it the total of `calibration_sums`. NaN if no clip was counted.
    """
    gap = jnp.abs(sums["right"] - sums["confidence"]).sum()
    return float(gap / sums["count"].sum())
