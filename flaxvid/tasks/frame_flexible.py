"""Training one network for every frame count (FFN, arXiv 2303.14817)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Array, Float

from flaxvid.frames import FrameFlexible
from flaxvid.losses.classification import HardOrMixed
from flaxvid.losses.distillation import ffn_loss, label_loss
from flaxvid.losses.multitask import sum_over_targets
from flaxvid.models.video_model import VideoModel
from flaxvid.tasks.mixing import UNMIXED, Mixing
from flaxvid.tasks.task import LossOutput, Metrics, Share, accuracy, init_model, mix_batch, whole_loss
from flaxvid.types import Batch, Variables


@dataclasses.dataclass(frozen=True)
class FrameFlexibleTask:
    """FFN: all frame counts of a video in one step, the longest teaching the others.

    The counts are applied one by one; on CPU that is faster than one pass over all frames packed together.

    Attributes:
        flexible: model and frame counts.
        weight: of the distillation terms.
        distil: False gives every count the label instead, the paper's ablation.
        label_smoothing: of the cross-entropy.
        mixing: of the clips in training, the same at all counts.
        target_weights: of the losses of several targets, 1 for those not in it; each task is distilled by itself.
    """

    flexible: FrameFlexible
    weight: float = 1.0
    distil: bool = True
    label_smoothing: float = 0.0
    mixing: Mixing = UNMIXED
    target_weights: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def model(self) -> VideoModel:
        """The ordinary model."""
        return self.flexible.model

    @property
    def frames(self) -> tuple[int, ...]:
        """The frame counts that each batch must hold."""
        return self.flexible.frames

    def init(self, key: Array, plain: Variables | None = None) -> dict[str, Any]:
        """Random variables, or `plain` specialised: each count's norms start as its copies."""
        model_key, gain_key = jax.random.split(key)
        return self.flexible.specialise(init_model(self.model, model_key) if plain is None else plain, gain_key)

    def loss(self, variables: Variables, batch: Batch, key: Array) -> LossOutput:
        """`ffn_loss` of the batch, or `label_loss`; of several targets their sum."""
        return whole_loss(self, variables, batch, key)

    def divide(self, batch: Batch, key: Array, groups: int = 1) -> list[Share]:
        """The whole batch, for every video has all counts."""
        return [mix_batch(self.mixing, self.model, batch, key)]

    def share_loss(self, variables: Variables, share: Share, key: Array) -> LossOutput:
        """The loss of some rows."""
        logits, updated = self.flexible.apply(
            variables, share["video"], train=True, rngs={"dropout": key}, mutable=True
        )
        # Each task's logits by count, where they came as each count's by task.
        by_count: Any = jax.tree.map(lambda *counts: dict(zip(logits, counts, strict=True)), *logits.values())
        loss, metrics = sum_over_targets(
            lambda z, target: self.judge(z, *target), by_count, share["target"], self.target_weights
        )
        return loss, (updated, {"loss": loss, **metrics})

    def judge(
        self,
        logits: Mapping[int, Float[Array, "b k"]],
        labels: HardOrMixed,
        weights: Float[Array, " b"] | None = None,
    ) -> tuple[Float[Array, ""], Metrics]:
        """One task's loss at all counts, its parts, and the accuracies."""
        if self.distil:
            loss, parts = ffn_loss(
                logits,
                labels,
                self.weight,
                label_smoothing=self.label_smoothing,
                frames=self.frames,
                label_weights=weights,
            )
        else:
            loss, parts = label_loss(logits, labels, label_smoothing=self.label_smoothing, label_weights=weights)
        accuracies = {f"accuracy_{count}": accuracy(z, labels, weights) for count, z in logits.items()}
        return loss, {"accuracy": accuracies[f"accuracy_{self.frames[-1]}"], **parts, **accuracies}

    def select(self, variables: Variables, num_frames: int) -> dict[str, Any]:
        """Ordinary variables for one frame count."""
        return self.flexible.select(variables, num_frames)
