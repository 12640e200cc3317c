"""Accuracy as sums and counts, so that batches, hosts and padded last batches add up exactly.

A mean of batch means is wrong as soon as two batches differ in size. Here every function returns integers for one
batch; add them with `jax.tree.map(jnp.add, a, b)` and divide once at the end.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num


def topk_correct(logits: Float[Array, "b k"], labels: Int[Array, " b"], k: int = 1) -> Bool[Array, " b"]:
    """Says for each clip whether its label is among the k highest logits.

    Ties go to the lower class, so constant logits score like chance and not 100 %; a NaN at the label is never right.

    Args:
        logits: (b, classes); probabilities rank the same.
        labels: (b,) class numbers; one outside [0, classes) is never right.
        k: how many guesses; with k >= classes every valid label is right, as top-5 of 3 classes is.

    Raises:
        ValueError: k is less than one.
    """
    if k < 1:
        raise ValueError(f"expected k >= 1 guesses, got k={k}: use k=1 for plain accuracy")
    classes = logits.shape[-1]
    _, guesses = jax.lax.top_k(logits, min(k, classes))
    at_label = jnp.take_along_axis(logits, jnp.clip(labels, 0, classes - 1)[:, None], axis=-1)[:, 0]
    return (guesses == labels[:, None]).any(axis=-1) & ~jnp.isnan(at_label)


def accuracy_sums(
    logits: Float[Array, "b k"],
    labels: Int[Array, " b"],
    mask: Bool[Array, " b"] | None = None,
    topk: Sequence[int] = (1, 5),
) -> dict[str, Int[Array, ""]]:
    """Counts the right answers of one batch: {"top1": n, "top5": n, "count": n}, all int32.

    Args:
        logits: (b, classes).
        labels: (b,) class numbers.
        mask: (b,), False for the clips that only pad the last batch; None counts all.
        topk: the numbers of guesses, each giving one entry `top<k>`.
    """
    mask = jnp.ones(labels.shape, bool) if mask is None else mask.astype(bool)
    sums = {f"top{k}": jnp.sum(topk_correct(logits, labels, k) & mask, dtype=jnp.int32) for k in topk}
    return sums | {"count": jnp.sum(mask, dtype=jnp.int32)}


def accuracies(sums: Mapping[str, Int[Array, ""]]) -> dict[str, float]:
    """Divides added-up `accuracy_sums` by their count: fractions in [0, 1], outside of jit.

    Raises:
        ValueError: nothing was counted, and an accuracy of no clips is no number.
    """
    count = int(sums["count"])
    if count == 0:
        raise ValueError("expected sums over at least one clip, got count=0: is the split empty, or every clip masked?")
    return {name: int(value) / count for name, value in sums.items() if name != "count"}


def confusion_counts(
    logits: Float[Array, "b k"], labels: Int[Array, " b"], mask: Bool[Array, " b"] | None = None
) -> Int[Array, "k k"]:
    """Counts clips by (label, guess), int32; rows are the truth. Labels outside [0, classes) are not counted."""
    classes = logits.shape[-1]
    keep = (labels >= 0) & (labels < classes)
    keep = keep if mask is None else keep & mask.astype(bool)
    guesses = jnp.argmax(logits, axis=-1)
    # A negative index would wrap to the last class, hence the mask on the value and not only `mode="drop"`.
    return jnp.zeros((classes, classes), jnp.int32).at[labels, guesses].add(keep.astype(jnp.int32), mode="drop")


def mean_class_accuracy(confusion: Int[Array, "k k"]) -> Float[Array, ""]:
    """Averages the classes' own accuracies, each class weighing the same; classes without a clip are left out.

    Take it of the confusion counts of the whole split, never of a batch. NaN when nothing was counted.
    """
    clips = confusion.sum(axis=1)
    recall = jnp.diagonal(confusion) / jnp.maximum(clips, 1)
    return jnp.sum(jnp.where(clips > 0, recall, 0.0)) / jnp.sum(clips > 0)


def calibration_sums(
    probabilities: Float[Array, "b k"], labels: Int[Array, " b"], mask: Bool[Array, " b"] | None = None, bins: int = 15
) -> dict[str, Num[Array, " bins"]]:
    """Sums one batch by how sure the network was: {"count", "right", "confidence"}, one entry a bin.

    Bin i of `bins` holds the confidences in (i / bins, (i + 1) / bins], confidence being the highest probability. Add
    the batches up and give the sums to `calibration_error` and `reliability`. On Calibration of Modern Neural Networks,
    arXiv 1706.04599, which takes 15 bins.

    Args:
        probabilities: (b, classes), which add up to one; logits would be counted in the wrong bins.
        labels: (b,) class numbers.
        mask: (b,), False for what does not count.
        bins: how many.
    """
    keep = jnp.ones(labels.shape, bool) if mask is None else mask.astype(bool)
    confidence = probabilities.max(axis=-1)
    place = jnp.clip(jnp.ceil(confidence * bins).astype(jnp.int32) - 1, 0, bins - 1)
    right = topk_correct(probabilities, labels) & keep
    return {
        "count": jnp.zeros(bins, jnp.int32).at[place].add(keep.astype(jnp.int32)),
        "right": jnp.zeros(bins, jnp.int32).at[place].add(right.astype(jnp.int32)),
        "confidence": jnp.zeros(bins, jnp.float32).at[place].add(jnp.where(keep, confidence, 0.0)),
    }


def reliability(sums: Mapping[str, Num[Array, " bins"]]) -> dict[str, Num[np.ndarray, " bins"]]:
    """Each bin's {"count", "confidence", "accuracy"} from added-up `calibration_sums`; means are NaN in empty bins."""
    count = np.asarray(sums["count"])
    with np.errstate(invalid="ignore"):
        return {
            "count": count,
            "confidence": np.asarray(sums["confidence"]) / count,
            "accuracy": np.asarray(sums["right"]) / count,
        }


def calibration_error(sums: Mapping[str, Num[Array, " bins"]]) -> float:
    """The expected calibration error of added-up `calibration_sums`, in [0, 1]: how far confidence is from accuracy.

    The bins' |accuracy - confidence|, weighted by their clips. NaN when nothing was counted.
    """
    gap = jnp.abs(sums["right"] - sums["confidence"]).sum()
    return float(gap / sums["count"].sum())
