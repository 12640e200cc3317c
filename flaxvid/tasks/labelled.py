"""What all tasks share that learn from labels: options, and parts of `Task`."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Array, Float

from flaxvid.data.clips.cut import ClipConfig
from flaxvid.data.sources.open import Source
from flaxvid.evaluate.evaluator import evaluate_videos, score_rows
from flaxvid.evaluate.record import any_frame_rows, finish_evaluation
from flaxvid.losses.classification import HardOrMixed, label_weights
from flaxvid.models.video_model import VideoModel
from flaxvid.tasks.mixing import mix
from flaxvid.tasks.task import Findings, LossOutput, Share, Task, count_rows
from flaxvid.types import Batch, Variables, by_target


@dataclasses.dataclass
class LabelledRecipe:
    """Options of every task that learns from labels.

    Attributes:
        frames: frame counts of the training clips; () is the network's own.
        label_smoothing: share of each label that is spread evenly over all classes.
        mixup: blends each clip with its neighbour in the batch (arXiv 1710.09412): the parameter of the Beta
            distribution of the share; 0 is off.
        cutmix: pastes a box of its neighbour into each clip (arXiv 1905.04899): the parameter as for mixup; 0 is off.
            With both on, chance chooses one for each clip.
        erasing: probability that noise replaces a box of a clip, the same box in all its frames (arXiv 1708.04896).
        target_weights: weight of each target's loss where labels have several, {"actor": 0.5}; 1 for the others.
    """

    frames: tuple[int, ...] = ()
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    erasing: float = 0.0
    target_weights: dict[str, float] = dataclasses.field(default_factory=dict)

    def problems(self) -> Iterator[str]:
        """Yields a line for each impossible value, which begins with the field's name."""
        if min(self.frames, default=1) < 1 or len(set(self.frames)) < len(self.frames):
            yield f"frames must be distinct positive frame counts such as (4, 8, 16), got {tuple(self.frames)}"
        if not 0 <= self.label_smoothing < 1:
            yield f"label_smoothing must lie in [0, 1), got {self.label_smoothing}"
        for name, value in (("mixup", self.mixup), ("cutmix", self.cutmix)):
            if value < 0:
                yield f"{name} must not be negative, got {value}: 0 is off"
        if not 0 <= self.erasing <= 1:
            yield f"erasing must lie in [0, 1], got {self.erasing}"
        if any(weight < 0 for weight in self.target_weights.values()):
            yield f"target_weights must not be negative, got {self.target_weights}"

    def check_targets(self, model: VideoModel) -> None:
        """Refuses weights of targets that the model does not have."""
        targets = by_target(model.head.num_classes)  # pyright: ignore[reportAttributeAccessIssue]
        if unknown := sorted(set(self.target_weights) - set(targets)):
            known = ", ".join(filter(None, targets)) or "one only, without a name"
            raise ValueError(
                f"task.target_weights has {', '.join(unknown)}, the data's targets are {known}: correct the names"
            )


def mix_batch(recipe: LabelledRecipe, model: VideoModel, batch: Batch, key: Array) -> Share:
    """Mixes the rows of a batch: "video" by frame count, and "label" with each target's ``(labels, weights)``.

    The weights are `label_weights` of the whole batch; rows that are cut out of it keep them.
    """
    key = jax.random.fold_in(key, 0)  # 0 is no frame count
    video, labels = mix(model, batch, key, mixup=recipe.mixup, cutmix=recipe.cutmix, erasing=recipe.erasing)
    return {"video": video, "label": {target: (own, label_weights(own)) for target, own in labels.items()}}


def accuracy(
    logits: Float[Array, "b k"], labels: HardOrMixed, weights: Float[Array, " b"] | None = None
) -> Float[Array, ""]:
    """Share of right answers among the rows with a label; arguments as in `cross_entropy`.

    The label of a mixed clip is the class with the largest share.
    """
    weights = label_weights(labels) if weights is None else weights
    labels = labels.argmax(-1) if labels.ndim == 2 else labels
    return ((logits.argmax(-1) == labels) * weights).mean()


class LabelledTask:
    """The parts of `Task` that are the same for all labels; `divide`, `share_loss` and `select` are each task's own."""

    @property
    def image_size(self: Task) -> int:
        """Height and width of the clips of a batch, pixels."""
        return self.model.clip.image_size

    def loss(self: Task, variables: Variables, batch: Batch, key: Array) -> LossOutput:
        """The loss of a whole batch, share by share; each share takes the statistics of the one before."""
        updated: dict[str, Any] = {}
        metrics: list[Any] = []
        shares = self.divide(batch, key)
        for share in shares:
            loss, (moved, judged) = self.share_loss({**variables, **updated}, share, key)
            updated |= moved
            weight = count_rows(share) / sum(map(count_rows, shares))
            metrics.append(optax.tree.scale(weight, {**judged, "loss": loss}))
        total = jax.tree.map(lambda *values: sum(values), *metrics)
        return total["loss"], (updated, total)

    def after(self, variables: dict[str, Any], step: Array) -> dict[str, Any]:
        """The same variables."""
        return variables

    def evaluate(
        self: Task,
        variables: Variables,
        batches: Iterable[Batch],
        frames: tuple[int, ...],
        put: Callable[[Batch], Batch] = lambda batch: batch,
    ) -> Findings:
        """Top-1 accuracy of each target at each frame count; the score is their mean, the details are `Evaluations`."""
        plain = {count: self.select(variables, count) for count in frames}
        evaluation = evaluate_videos(self.model, plain, batches, put=put)
        rows = score_rows(evaluation)
        metrics = {f"{row['target'] + '_' if 'target' in row else ''}top1_{row['frames']}": row["top1"] for row in rows}
        return Findings(metrics, float(np.mean([row["top1"] for row in rows])), evaluation, plain)

    def finish(
        self: Task,
        findings: Findings,
        source: Source,
        clips: ClipConfig,
        *,
        origin: Mapping[str, Any],
        checkpoint: Mapping[str, Any],
        folder: Path,
    ) -> list[dict[str, Any]]:
        """Writes the any-frame table and all that the page says of the test; gives the rows of any_frame.json."""
        record, _ = finish_evaluation(
            findings.details,
            source,
            self.model,
            clips,
            origin=origin,
            checkpoint=checkpoint,
            folder=folder,
            variables=findings.variables,
            final=True,
        )
        return any_frame_rows(record)
