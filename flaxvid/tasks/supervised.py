"""Supervised training, at one frame count or at several by the FFN paper's two sampling baselines."""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flaxvid.losses.classification import HardOrMixed, cross_entropy
from flaxvid.losses.multitask import sum_over_targets
from flaxvid.models.video_model import Video, VideoModel, clip_length
from flaxvid.tasks.labelled import LabelledRecipe, LabelledTask, accuracy, mix_batch
from flaxvid.tasks.task import LossOutput, Metrics, Share, count_rows, init_model, mean_over_groups
from flaxvid.types import Batch, Variables, by_target


@dataclasses.dataclass
class SupervisedRecipe(LabelledRecipe):
    """Cross-entropy with the labels.

    Attributes:
        sampling: how a batch mixes several frame counts. "proportional": each part of the batch runs at its own count.
            "mixed": every clip has the longest count's length and repeats the frames of its own count. The paper
            (arXiv 2303.14817, table 1) names both without details; this is our reading. "bucketed": each batch has one
            count, the most that its videos have frames for, and the more clips the fewer frames; see `data.buckets`.
        share: part of the clips that are sampled at the longest of several frame counts. In buckets the videos decide.
    """

    name: ClassVar[str] = "supervised"
    sampling: str = "proportional"
    share: float = 0.5

    def problems(self) -> Iterator[str]:
        """Yields a line for each impossible value, which begins with the field's name."""
        yield from super().problems()
        if self.sampling not in ("proportional", "mixed", "bucketed"):
            yield f'sampling must be "proportional", "mixed" or "bucketed", got {self.sampling!r}'
        if self.sampling == "bucketed" and (len(self.frames) < 2 or self.share != SupervisedRecipe.share):
            yield (
                f'sampling="bucketed" needs several frames and no share, got frames={tuple(self.frames)}, '
                f"share={self.share}"
            )
        if not 0 < self.share <= 1:
            yield f"share must lie in (0, 1], got {self.share}"

    def make(self, model: VideoModel) -> "Supervised":
        """The task for a model. It does not look for `problems`; a run does that once, before all work.

        Raises:
            ValueError: `target_weights` names a target that the model does not have.
        """
        self.check_targets(model)
        return Supervised(model, dataclasses.replace(self, frames=tuple(self.frames) or (model.clip.num_frames,)))


def rows_by_count(frames: tuple[int, ...], share: float, rows: int) -> dict[int, slice]:
    """Which of `rows` rows `Supervised` runs at each frame count; a count may get none."""
    *others, longest = frames
    main = min(rows, max(1, round(share * rows))) if others else rows
    edges = [main + (rows - main) * i // max(1, len(others)) for i in range(len(others) + 1)]
    return {longest: slice(0, main), **{n: slice(*edges[i : i + 2]) for i, n in enumerate(others)}}


@dataclasses.dataclass(frozen=True)
class Supervised(LabelledTask):
    """One set of variables for every frame count."""

    model: VideoModel
    recipe: SupervisedRecipe

    @property
    def frames(self) -> tuple[int, ...]:
        """The frame counts that each batch must hold, ascending; in buckets one of them."""
        return tuple(sorted(self.recipe.frames))

    def init(self, key: Array, plain: Variables | None = None) -> dict[str, Any]:
        """Random variables, or `plain` itself."""
        return init_model(self.model, key) if plain is None else dict(plain)

    def divide(self, batch: Batch, key: Array, groups: int = 1) -> list[Share]:
        """One share for each frame count; in mixed sampling one of all clips."""
        whole = mix_batch(self.recipe, self.model, batch, key)
        return [
            {
                "video": {clip_length(clip): clip},
                "label": jax.tree.map(lambda x, rows=rows: _take(x, rows, groups), whole["label"]),
            }
            for rows, clip in self.parts(whole["video"], groups)
        ]

    def parts(self, video: dict[int, Video], groups: int = 1) -> list[tuple[slice, Video]]:
        """The rows of each group that run together, and their clips."""
        if self.recipe.sampling == "bucketed":
            return [(slice(0, count_rows(clip) // groups), clip) for clip in video.values()]
        longest = self.frames[-1]
        mixed = self.recipe.sampling == "mixed" and len(self.frames) > 1
        parts = []
        for count, rows in rows_by_count(self.frames, self.recipe.share, count_rows(video) // groups).items():
            clip = jax.tree.map(lambda x, rows=rows: _take(x, rows, groups), video[count])
            if mixed:
                frames = jnp.arange(longest) * count // longest
                clip = jax.tree.map(lambda x, frames=frames: jnp.take(x, frames, axis=1), clip)
            if rows.stop > rows.start:
                parts.append((rows, clip))
        if mixed:
            clips = [jax.tree.map(lambda x: x.reshape(groups, -1, *x.shape[1:]), clip) for _, clip in parts]
            joined = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1).reshape(-1, *x[0].shape[2:]), *clips)
            return [(slice(0, parts[-1][0].stop), joined)]
        return parts

    @mean_over_groups
    def share_loss(self, variables: Variables, share: Share, key: Array) -> LossOutput:
        """Cross-entropy of some rows, summed over the targets."""
        ((count, clip),) = share["video"].items()
        logits, updated = self.model.apply(
            self.select(variables, count),
            clip,
            train=True,
            rngs={"dropout": jax.random.fold_in(key, count)},
            mutable=["batch_stats"],
        )
        loss, metrics = sum_over_targets(
            lambda z, label: self.judge(z, *label), by_target(logits), share["label"], self.recipe.target_weights
        )
        return loss, (dict(updated), {**metrics, "loss": loss})

    def judge(
        self, logits: Float[Array, "b k"], labels: HardOrMixed, weights: Float[Array, " b"] | None = None
    ) -> tuple[Float[Array, ""], Metrics]:
        """One target's loss and accuracy."""
        loss = cross_entropy(logits, labels, self.recipe.label_smoothing, weights)
        return loss, {"accuracy": accuracy(logits, labels, weights)}

    def select(self, variables: Variables, num_frames: int) -> Variables:
        """The same variables for every frame count."""
        return {name: variables[name] for name in ("params", "batch_stats") if name in variables}


def _take(x: Array, rows: slice, groups: int) -> Array:
    """These rows of each group, group after group; on a mesh with whole groups on each device they stay there."""
    return x.reshape(groups, -1, *x.shape[1:])[:, rows].reshape(-1, *x.shape[1:])
