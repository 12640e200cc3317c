"""The contract between a task and the train loop, and plain supervised training with its sampling baselines."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from flaxvid.losses.classification import cross_entropy
from flaxvid.losses.multitask import sum_over_tasks
from flaxvid.models.video_model import Video, VideoModel, clip_length, init_variables
from flaxvid.tasks.mixing import UNMIXED, Mixing
from flaxvid.types import Batch, Variables

Metrics = dict[str, Float[Array, ""]]
LossOutput = tuple[Float[Array, ""], tuple[dict[str, Any], Metrics]]


class Task(Protocol):
    """What the train loop asks for.

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
        """The loss, and ``(updated collections, metrics)``."""
        ...

    def select(self, variables: Variables, num_frames: int) -> Variables:
        """Ordinary variables of `model` for one frame count."""
        ...


def init_model(model: VideoModel, key: Array) -> dict[str, Any]:
    """Random variables of a model, at its own clip's size."""
    size = model.clip.image_size
    return init_variables(model, key, model.for_views(jnp.zeros((1, model.clip.num_frames, size, size, 3))))


def accuracy(logits: Float[Array, "b k"], labels: Array) -> Float[Array, ""]:
    """Share of right answers in a batch; of a mixed clip the class with the largest share is right."""
    labels = labels.argmax(-1) if labels.ndim == 2 else labels
    return (logits.argmax(-1) == labels).mean()


@dataclasses.dataclass(frozen=True)
class Supervised:
    """One network, cross-entropy, one frame count; or several by one of the paper's two sampling baselines.

    With several counts the longest is the main one, and `share` of the training clips are sampled at it:

    * "proportional": the batch is divided; each part runs at its own count.
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
        task_weights: of the losses of several tasks, 1 for those not in it.
    """

    model: VideoModel
    frames: tuple[int, ...]
    label_smoothing: float = 0.0
    sampling: str = "proportional"
    share: float = 0.5
    mixing: Mixing = UNMIXED
    task_weights: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.sampling not in ("proportional", "mixed"):
            raise ValueError(f'sampling must be "proportional" or "mixed", got {self.sampling!r}')
        if not 0 < self.share <= 1:
            raise ValueError(f"share must lie in (0, 1], got {self.share}")
        object.__setattr__(self, "frames", tuple(sorted(self.frames)))

    def init(self, key: Array, plain: Variables | None = None) -> dict[str, Any]:
        """Random variables, or `plain` itself."""
        return init_model(self.model, key) if plain is None else dict(plain)

    def parts(self, video: dict[int, Video]) -> list[tuple[slice, Video]]:
        """Which rows of the batch run as which clips."""
        batch_size = jax.tree.leaves(video)[0].shape[0]
        longest = self.frames[-1]
        if len(self.frames) == 1:
            return [(slice(0, batch_size), video[longest])]
        main = min(batch_size, max(1, round(self.share * batch_size)))
        rest = batch_size - main
        edges = [main + rest * i // (len(self.frames) - 1) for i in range(len(self.frames))]
        parts = [(slice(0, main), jax.tree.map(lambda x: x[:main], video[longest]))]
        for count, start, stop in zip(self.frames[:-1], edges, edges[1:], strict=False):
            clip = jax.tree.map(lambda x, rows=slice(start, stop): x[rows], video[count])
            if self.sampling == "mixed":
                frames = jnp.arange(longest) * count // longest
                clip = jax.tree.map(lambda x, frames=frames: jnp.take(x, frames, axis=1), clip)
            if stop > start:
                parts.append((slice(start, stop), clip))
        if self.sampling == "mixed":
            return [(slice(0, batch_size), jax.tree.map(lambda *x: jnp.concatenate(x), *(clip for _, clip in parts)))]
        return parts

    def loss(self, variables: Variables, batch: Batch, key: Array) -> LossOutput:
        """Cross-entropy over the batch, of several tasks their sum; statistics are updated part by part."""
        state = {"batch_stats": variables["batch_stats"]} if "batch_stats" in variables else {}
        metrics: list[Any] = []
        video, labels = self.mixing.mix(self.model, batch, jax.random.fold_in(key, 0))  # 0: no count of frames
        parts = self.parts(video)
        for rows, clip in parts:
            logits, state = self.model.apply(
                {"params": variables["params"], **state},
                clip,
                train=True,
                rngs={"dropout": jax.random.fold_in(key, clip_length(clip))},
                mutable=["batch_stats"],
            )
            own = jax.tree.map(lambda values, rows=rows: values[rows], labels)
            loss, judged = sum_over_tasks(self.judge, logits, own, self.task_weights)
            share = (rows.stop - rows.start) / sum(other.stop - other.start for other, _ in parts)
            metrics.append(optax.tree.scale(share, {"loss": loss, **judged}))
        total = jax.tree.map(lambda *values: sum(values), *metrics)
        return total["loss"], (dict(state), total)

    def judge(
        self, logits: Float[Array, "b k"], labels: Int[Array, " b"] | Float[Array, "b k"]
    ) -> tuple[Float[Array, ""], Metrics]:
        """One task's loss and accuracy."""
        return cross_entropy(logits, labels, self.label_smoothing), {"accuracy": accuracy(logits, labels)}

    def select(self, variables: Variables, num_frames: int) -> Variables:
        """The same variables for every frame count."""
        return {name: variables[name] for name in ("params", "batch_stats") if name in variables}
