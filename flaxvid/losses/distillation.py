"""Distillation: from teachers to a student, and between the frame counts of one network."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from flaxvid.losses.classification import HardOrMixed, cross_entropy


def ffn_loss(
    logits: Mapping[int, Float[Array, "b k"]],
    labels: HardOrMixed,
    weight: float = 1.0,
    *,
    label_smoothing: float = 0.0,
    frames: Sequence[int] | None = None,
    label_weights: Float[Array, " b"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """FFN's temporal distillation (arXiv 2303.14817, eq. 4 and 5): the longest clip learns the label and teaches the
    others.

    ``loss = CE(z_longest, y) + weight * sum_n KL(p_longest || p_n)``, means over the batch at temperature 1. A KL term
    does not move the teacher (`stop_gradient`). The shorter counts see no label; the KL terms take all rows. What
    concerns labels is as in `cross_entropy`.

    Args:
        logits: by frame count; the largest count is the teacher.
        weight: factor of the KL terms.
        frames: the counts that must be there; None takes those that are.

    Returns:
        The loss, and its parts ``{"ce", "kl_4", "kl_8", ...}`` before weighting.

    Raises:
        ValueError: a frame count is missing, or there is only one.
    """
    expected = tuple(sorted(frames or logits))
    if tuple(sorted(logits)) != expected or len(expected) < 2:
        wanted = expected if len(expected) > 1 else "at least two counts"
        raise ValueError(
            f"ffn_loss needs logits of frames={wanted}, got {tuple(sorted(logits))}: sample every video at all of them"
        )
    *students, teacher = expected
    parts = {"ce": cross_entropy(logits[teacher], labels, label_smoothing, label_weights)}
    log_p = jax.lax.stop_gradient(jax.nn.log_softmax(logits[teacher]))
    for count in students:
        log_q = jax.nn.log_softmax(logits[count])
        parts[f"kl_{count}"] = optax.losses.kl_divergence_with_log_targets(log_q, log_p).mean()
    return parts["ce"] + weight * sum(parts[f"kl_{count}"] for count in students), parts


def label_loss(
    logits: Mapping[int, Float[Array, "b k"]],
    labels: HardOrMixed,
    *,
    label_smoothing: float = 0.0,
    label_weights: Float[Array, " b"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The sum of every frame count's cross-entropy: FFN without distillation, the paper's ablation.

    Args:
        logits: by frame count. All else is as in `cross_entropy`.

    Returns:
        The loss, and its parts ``{"ce_4", "ce_8", ...}``.
    """
    parts = {
        f"ce_{count}": cross_entropy(z, labels, label_smoothing, label_weights) for count, z in sorted(logits.items())
    }
    return sum(parts.values(), start=jnp.zeros(())), parts


def mean_probabilities(logits: Sequence[Float[Array, "b k"]], temperature: float = 1.0) -> Float[Array, "b k"]:
    """The mean of several networks' probabilities, ``softmax(z / temperature)`` of each."""
    return jnp.stack([jax.nn.softmax(own / temperature) for own in logits]).mean(axis=0)


def logit_loss(
    logits: Float[Array, "b k"], teachers: Sequence[Float[Array, "b k"]], temperature: float = 1.0
) -> Float[Array, ""]:
    """The student learns the teachers' probabilities (Hinton et al., arXiv 1503.02531).

    ``T ** 2 * KL(p || q)``, the mean over the batch, with p the `mean_probabilities` of the teachers and q those of the
    student, both at temperature T. The square keeps the gradient's size at any temperature. It does not move the
    teachers (`stop_gradient`).

    Args:
        logits: the student's.
        teachers: the logits of each teacher.
        temperature: a high one shows more of how a teacher ranks the wrong classes.
    """
    p = jax.lax.stop_gradient(mean_probabilities(teachers, temperature))
    log_q = jax.nn.log_softmax(logits / temperature)
    return temperature**2 * optax.losses.kl_divergence(log_q, p).mean()


def feature_loss(features: Float[Array, "b c"], teacher: Float[Array, "b c"]) -> Float[Array, ""]:
    """The squared distance of two features of unit length, ``2 - 2 cos``, the mean over the batch.

    FitNets (arXiv 1412.6550) teach features, through a projection where the widths differ. Here only directions count
    (arXiv 1612.03928, section 3.1), so that one weight suits features of any size. It does not move the teacher.

    Args:
        features: the student's, projected to the teacher's width.
        teacher: the teacher's.
    """
    ours, theirs = _unit(features), jax.lax.stop_gradient(_unit(teacher))
    return jnp.square(ours - theirs).sum(axis=-1).mean()


def _unit(x: Float[Array, "b c"]) -> Float[Array, "b c"]:
    return x * jax.lax.rsqrt(jnp.square(x).sum(axis=-1, keepdims=True) + 1e-12)
