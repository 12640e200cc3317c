"""The contract between a task and the train loop, and plain supervised training with its sampling baselines."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from flaxvid.losses.classification import HardOrMixed, cross_entropy, label_weights
from flaxvid.losses.multitask import sum_over_targets
from flaxvid.models.video_model import Video, VideoModel, clip_length, init_variables
from flaxvid.tasks.mixing import UNMIXED, Mixing
from flaxvid.types import Batch, Variables

Metrics = dict[str, Float[Array, ""]]
LossOutput = tuple[Float[Array, ""], tuple[dict[str, Any], Metrics]]
Share = dict[str, Any]
"""Rows of a batch: "video" by frame count, and "target", each row's label and what it weighs in a mean over them, of
several targets by their names."""


class Task(Protocol):
    """What the train loop asks for.

    A step whose batch is computed at once takes `loss`. One that is computed in parts takes the other two: `divide` the
    whole batch, cut what comes into rows, and add up each part's `share_loss`.

    Attributes:
        model: the ordinary model, for evaluation.
        frames: the frame counts that each batch must hold.
    """

    @property
    def model(self) -> VideoModel:
        """The network."""
        ...

    @property
    def frames(self) -> tuple[int, ...]:
        """Ascending frame counts."""
        ...

    def init(self, key: Array, plain: Variables | None = None) -> dict[str, Any]:
        """All collections: random, or from the ordinary variables `plain`."""
        ...

    def loss(self, variables: Variables, batch: Batch, key: Array) -> LossOutput:
        """The loss of a whole batch, and ``(updated collections, metrics)``."""
        ...

    def divide(self, batch: Batch, key: Array, groups: int = 1) -> list[Share]:
        """A whole batch, mixed, as one share or several whose clips have different lengths.

        Every row of the batch is in one share; of each of `groups` equal blocks of rows each share has equally many,
        block after block.
        """
        ...

    def share_loss(self, variables: Variables, share: Share, key: Array) -> LossOutput:
        """The loss of a share or of some rows of it, weighted so that the mean over all rows is the batch's loss."""
        ...

    def select(self, variables: Variables, num_frames: int) -> Variables:
        """Ordinary variables of `model` for one frame count."""
        ...


def init_model(model: VideoModel, key: Array) -> dict[str, Any]:
    """Random variables of a model, at its own clip's size."""
    size = model.clip.image_size
    return init_variables(model, key, model.for_cameras(jnp.zeros((1, model.clip.num_frames, size, size, 3))))


def accuracy(
    logits: Float[Array, "b k"], labels: HardOrMixed, weights: Float[Array, " b"] | None = None
) -> Float[Array, ""]:
    """Share of right answers, of the rows that have a label; of a mixed clip the class with the largest share is right.

    Arguments as in `cross_entropy`.
    """
    weights = label_weights(labels) if weights is None else weights
    labels = labels.argmax(-1) if labels.ndim == 2 else labels
    return ((logits.argmax(-1) == labels) * weights).mean()


def mix_batch(mixing: Mixing, model: VideoModel, batch: Batch, key: Array) -> Share:
    """All rows of a batch, mixed; labels that are missing are weighed out over all of them."""
    video, labels = mixing.mix(model, batch, jax.random.fold_in(key, 0))  # 0: no count of frames
    return {"video": video, "target": jax.tree.map(lambda own: (own, label_weights(own)), labels)}


def count_rows(batch: Any) -> int:
    """Rows of a batch or of anything with the same first axis."""
    return jax.tree.leaves(batch)[0].shape[0]


def whole_loss(task: Task, variables: Variables, batch: Batch, key: Array) -> LossOutput:
    """`Task.loss` out of the other two methods: share by share; statistics are updated from one to the next."""
    updated: dict[str, Any] = {}
    metrics: list[Any] = []
    shares = task.divide(batch, key)
    for share in shares:
        _, (moved, judged) = task.share_loss({**variables, **updated}, share, key)
        updated |= moved
        metrics.append(optax.tree.scale(count_rows(share) / sum(map(count_rows, shares)), judged))
    total = jax.tree.map(lambda *values: sum(values), *metrics)
    return total["loss"], (updated, total)


def rows_by_count(frames: tuple[int, ...], share: float, rows: int) -> dict[int, slice]:
    """Which of so many rows `Supervised` runs at each frame count; a count may get none."""
    *others, longest = frames
    main = min(rows, max(1, round(share * rows))) if others else rows
    edges = [main + (rows - main) * i // max(1, len(others)) for i in range(len(others) + 1)]
    return {longest: slice(0, main), **{n: slice(*edges[i : i + 2]) for i, n in enumerate(others)}}


@dataclasses.dataclass(frozen=True)
class Supervised:
    """One network, cross-entropy, one frame count; or several by one of the paper's two sampling baselines.

    With several counts the longest is the main one, and `share` of the training clips are sampled at it:

    * "proportional": the batch is divided; each part runs at its own count. A count of which no whole clip is left
      gets none; `train.recipe.check` refuses that.
    * "mixed": every clip runs at the longest count's length, but the others are sampled at a shorter count, each frame
      repeated.

    The paper (arXiv 2303.14817, table 1) names both without details; this is our reading of them.

    Attributes:
        model: the network.
        frames: ascending frame counts.
        label_smoothing: of the cross-entropy.
        sampling: "proportional" or "mixed"; of no effect with one frame count.
        share: of the clips at the longest count.
        mixing: of the clips in training.
        target_weights: of the losses of several targets, 1 for those not in it.
    """

    model: VideoModel
    frames: tuple[int, ...]
    label_smoothing: float = 0.0
    sampling: str = "proportional"
    share: float = 0.5
    mixing: Mixing = UNMIXED
    target_weights: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.sampling not in ("proportional", "mixed"):
            raise ValueError(f'sampling must be "proportional" or "mixed", got {self.sampling!r}')
        if not 0 < self.share <= 1:
            raise ValueError(f"share must lie in (0, 1], got {self.share}")
        object.__setattr__(self, "frames", tuple(sorted(self.frames)))

    def init(self, key: Array, plain: Variables | None = None) -> dict[str, Any]:
        """Random variables, or `plain` itself."""
        return init_model(self.model, key) if plain is None else dict(plain)

    def parts(self, video: dict[int, Video], groups: int = 1) -> list[tuple[slice, Video]]:
        """Which rows of the batch, or of each of its `groups`, run as which clips."""
        longest = self.frames[-1]
        parts = []
        for count, rows in rows_by_count(self.frames, self.share, count_rows(video) // groups).items():
            clip = jax.tree.map(lambda x, rows=rows: _take(x, rows, groups), video[count])
            if self.sampling == "mixed" and len(self.frames) > 1:
                frames = jnp.arange(longest) * count // longest
                clip = jax.tree.map(lambda x, frames=frames: jnp.take(x, frames, axis=1), clip)
            if rows.stop > rows.start:
                parts.append((rows, clip))
        if self.sampling == "mixed":
            clips = [jax.tree.map(lambda x: x.reshape(groups, -1, *x.shape[1:]), clip) for _, clip in parts]
            joined = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1).reshape(-1, *x[0].shape[2:]), *clips)
            return [(slice(0, parts[-1][0].stop), joined)]
        return parts

    def divide(self, batch: Batch, key: Array, groups: int = 1) -> list[Share]:
        """A share for each frame count, or one of all clips at the longest."""
        whole = mix_batch(self.mixing, self.model, batch, key)
        return [
            {
                "video": {clip_length(clip): clip},
                "target": jax.tree.map(lambda x, rows=rows: _take(x, rows, groups), whole["target"]),
            }
            for rows, clip in self.parts(whole["video"], groups)
        ]

    def share_loss(self, variables: Variables, share: Share, key: Array) -> LossOutput:
        """Cross-entropy, of several targets their sum."""
        ((count, clip),) = share["video"].items()
        logits, updated = self.model.apply(
            {name: variables[name] for name in ("params", "batch_stats") if name in variables},
            clip,
            train=True,
            rngs={"dropout": jax.random.fold_in(key, count)},
            mutable=["batch_stats"],
        )
        loss, metrics = sum_over_targets(
            lambda z, target: self.judge(z, *target), logits, share["target"], self.target_weights
        )
        return loss, (dict(updated), {"loss": loss, **metrics})

    def loss(self, variables: Variables, batch: Batch, key: Array) -> LossOutput:
        """Cross-entropy over the batch, of several targets their sum; statistics are updated share by share."""
        return whole_loss(self, variables, batch, key)

    def judge(
        self, logits: Float[Array, "b k"], labels: HardOrMixed, weights: Float[Array, " b"] | None = None
    ) -> tuple[Float[Array, ""], Metrics]:
        """One task's loss and accuracy."""
        loss = cross_entropy(logits, labels, self.label_smoothing, weights)
        return loss, {"accuracy": accuracy(logits, labels, weights)}

    def select(self, variables: Variables, num_frames: int) -> Variables:
        """The same variables for every frame count."""
        return {name: variables[name] for name in ("params", "batch_stats") if name in variables}


def _take(x: Array, rows: slice, groups: int) -> Array:
    """These rows of each group, group after group; on a mesh with a group or more for each device they stay there."""
    return x.reshape(groups, -1, *x.shape[1:])[:, rows].reshape(-1, *x.shape[1:])
