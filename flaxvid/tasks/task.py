"""The contract between a task and the train loop."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flaxvid.data.clips.cut import ClipConfig
from flaxvid.data.sources.open import Source
from flaxvid.models.video_model import VideoModel, init_variables
from flaxvid.types import Batch, Variables

Metrics = dict[str, Float[Array, ""]]
LossOutput = tuple[Float[Array, ""], tuple[dict[str, Any], Metrics]]
Share = dict[str, Any]
"""Some rows of a training batch. Its values have one row for each clip; its keys are the task's own."""


@dataclasses.dataclass(frozen=True)
class Findings:
    """What a task says of a network after a test.

    Attributes:
        metrics: numbers for the log, by name.
        score: one number; the checkpoint with the highest score is the best one.
        details: all results, of the task's own type.
        variables: the ordinary variables that were tested, by frame count; {} if a task's page has no use for them.
    """

    metrics: Mapping[str, float]
    score: float
    details: Any
    variables: Mapping[int, Variables] = dataclasses.field(default_factory=dict)


class Task(Protocol):
    """What the train loop needs. A recipe such as `SupervisedRecipe` makes one by `make(model)`.

    A step that computes its batch at once calls `loss`. A step that computes it in parts calls `divide`, cuts the
    shares into parts, and adds up their `share_loss`.
    """

    @property
    def model(self) -> VideoModel:
        """The ordinary model."""
        ...

    @property
    def frames(self) -> tuple[int, ...]:
        """The frame counts that each batch must hold, ascending."""
        ...

    @property
    def image_size(self) -> int:
        """Height and width of the clips of a batch, pixels."""
        ...

    def init(self, key: Array, plain: Variables | None = None) -> dict[str, Any]:
        """Makes all collections: random, or from the ordinary variables `plain`."""
        ...

    def loss(self, variables: Variables, batch: Batch, key: Array) -> LossOutput:
        """The loss of a whole batch, and ``(updated collections, metrics)``; one metric is the "loss"."""
        ...

    def divide(self, batch: Batch, key: Array, groups: int = 1) -> list[Share]:
        """Mixes a whole batch and divides it into shares; the clips of a share have one length.

        Every row is in one share. A share has equally many rows of each of `groups` equal blocks, block after block.
        """
        ...

    def share_loss(self, variables: Variables, share: Share, key: Array, groups: int = 1) -> LossOutput:
        """The loss of some rows of a share, weighted so that the mean over all rows is the batch's loss.

        Norms see each of `groups` equal blocks of the rows apart; see `in_groups`.
        """
        ...

    def after(self, variables: dict[str, Any], step: Array) -> dict[str, Any]:
        """Changes variables at the end of a compiled step; most tasks change nothing."""
        ...

    def evaluate(
        self,
        variables: Variables,
        batches: Iterable[Batch],
        frames: tuple[int, ...],
        put: Callable[[Batch], Batch] = lambda batch: batch,
    ) -> Findings:
        """Tests the variables on every video of `batches` at each of `frames`; `put` moves a batch to the devices."""
        ...

    def finish(
        self,
        findings: Findings,
        source: Source,
        clips: ClipConfig,
        *,
        origin: Mapping[str, Any],
        checkpoint: Mapping[str, Any],
        folder: Path,
    ) -> list[dict[str, Any]]:
        """Ends a training: writes what the test of `source` found, and the page, into the run's folder.

        All processes call it. `clips` says how the clips were cut, `origin` where the videos come from ("root",
        "split"), `checkpoint` whose weights they are ("name", "step"). It gives the rows of the final table.
        """
        ...

    def select(self, variables: Variables, num_frames: int) -> Variables:
        """The ordinary variables of `model` for one frame count."""
        ...


def in_groups(function: Callable[[Any, Array], Any], rows: Any, key: Array, groups: int) -> Any:
    """Calls ``function(rows, key)`` for each of `groups` equal blocks of rows; outputs get a first axis of blocks."""
    blocks = jax.tree.map(lambda x: x.reshape(groups, -1, *x.shape[1:]), rows)
    return jax.vmap(function)(blocks, jax.random.split(key, groups))


def mean_over_groups(share_loss: Callable[..., LossOutput]) -> Callable[..., LossOutput]:
    """Gives a `Task.share_loss` its `groups`: the loss, the statistics and the metrics are means over the groups."""

    @functools.wraps(share_loss)
    def grouped(self: Task, variables: Variables, share: Share, key: Array, groups: int = 1) -> LossOutput:
        if groups == 1:
            return share_loss(self, variables, share, key)
        outputs = in_groups(functools.partial(share_loss, self, variables), share, key, groups)
        return jax.tree.map(lambda x: x.mean(axis=0), outputs)

    return grouped


def init_model(model: VideoModel, key: Array) -> dict[str, Any]:
    """Random variables of a model."""
    size = model.clip.image_size
    return init_variables(model, key, model.for_cameras(jnp.zeros((1, model.clip.num_frames, size, size, 3))))


def count_rows(batch: Any) -> int:
    """Rows of a batch or of anything with the same first axis."""
    return jax.tree.leaves(batch)[0].shape[0]
