"""What a run does between its steps: it logs, saves, evaluates and stops."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from flaxvid.data.broken import Tally
from flaxvid.data.pipeline import eval_batches
from flaxvid.data.sources.open import Source
from flaxvid.data.workers import WorkerKilled
from flaxvid.tasks.task import Findings, Metrics, Task
from flaxvid.train.checkpoint import Checkpoints
from flaxvid.train.interrupt import StopRequest
from flaxvid.train.logging import RunLogger
from flaxvid.train.mesh import put_batch
from flaxvid.train.prefetch import Prefetch
from flaxvid.train.recipe import Recipe
from flaxvid.train.setup import clip_config
from flaxvid.train.sharding import make_whole
from flaxvid.train.splits import Splits
from flaxvid.train.state import TrainState, averaged
from flaxvid.train.waiting import WaitingShare
from flaxvid.types import Batch

Recent = list[tuple[int, Metrics, np.ndarray]]
"""Steps that are not logged yet: their numbers, their metrics, and the positions of their clips in the source."""


@dataclasses.dataclass
class Session:
    """A run at work.

    Attributes:
        recipe, task, splits, mesh: the run's.
        batches: of training.
        checkpoints, log, stop: open; whoever opened them closes them.
        tally: counts the broken training videos.
        target_tally: counts those of the target domain; None for a run without one.
        check_there: raises if the run's folder is gone.
        epoch_steps: steps in one pass over the training videos.
        start: the last step before this process.
    """

    recipe: Recipe
    task: Task
    splits: Splits
    mesh: Mesh
    batches: Prefetch
    checkpoints: Checkpoints
    log: RunLogger
    stop: StopRequest
    tally: Tally
    target_tally: Tally | None
    check_there: Callable[[], None]
    epoch_steps: int
    start: int
    recent: Recent = dataclasses.field(default_factory=list)
    waiting: WaitingShare = dataclasses.field(default_factory=WaitingShare)

    def next_batch(self, step: int, state: TrainState) -> tuple[Batch, np.ndarray]:
        """The batch of a step, and the positions of its clips in the source.

        Raises:
            WorkerKilled: a worker process was killed; the state before the step is saved.
        """
        try:
            batch, account = self.batches.take()
        except WorkerKilled as error:
            if step - 1 == self.start or jax.process_count() > 1:  # one of several processes cannot save alone
                raise
            self._save(step - 1, state)
            self._settle(step - 1)
            raise WorkerKilled(f"{error} (step {step - 1} of {self.log.total_steps} is saved)") from error
        for tally, own in ((self.tally, account), (self.target_tally, account.get("target"))):
            for reason in tally.add(own) if tally and own else ():
                self.log.print(f"replaced by another video: {reason}")
        self.waiting.arrived()
        return batch, account["index"]

    def log_if_due(self, step: int, metrics: Metrics, clips: np.ndarray) -> None:
        """Notes a step; writes the mean of the steps if it is due.

        Raises:
            FloatingPointError: a loss or gradient is not finite.
        """
        self.waiting.sent(metrics)
        self.recent.append((step, metrics, clips))
        self.log.update(step, len(clips) * jax.process_count())
        if step % self.recipe.log_every == 0:
            self._write_means(step)

    def save_if_due(self, step: int, state: TrainState) -> None:
        """Saves if it is due: by `checkpoint_every`, before an evaluation, at the end, and on SIGTERM or Ctrl-C.

        A state is on disk before it is evaluated: a resume then knows by the missing score that the evaluation was cut
        short.

        Raises:
            Interrupted: the run was told to stop, and the state is saved.
            OSError: the checkpoint cannot be written, or the run's folder is gone.
        """
        settled = self.stop.reached(step) or step == self.log.total_steps or self._is_evaluated(step)
        if settled or self._is_due(step, self.recipe.checkpoint_every):
            self._save(step, state)
        if settled:
            self._settle(step)

    @jax.transfer_guard("allow")
    def evaluate_if_due(self, step: int, state: TrainState) -> None:
        """Evaluates a saved state on one view of each validation video if it is due and the state has no score yet.

        The score decides which checkpoint is the best.
        """
        if self._is_evaluated(step) and not self.checkpoints.has_score(step):
            frames = tuple(sorted(self.recipe.task.frames))
            findings = self._evaluate(self.splits.validation, state, frames, clips=1, crops=1)
            self._write(step, "eval", findings)
            self.check_there()
            self.checkpoints.set_score(step, findings.score)
            self.waiting.take()  # the devices did not wait for data meanwhile

    @jax.transfer_guard("allow")
    def test(self, state: TrainState) -> Findings:
        """Evaluates the last state on the test videos; ends the worker processes of training first."""
        self.batches.close()
        for tally in filter(None, (self.tally, self.target_tally)):
            if tally.broken:
                self.log.print(f"{len(tally.broken)} broken videos were replaced, of {len(tally.seen)} in training")
        frames = ", ".join(map(str, self.recipe.eval_frames))
        self.log.print(f"testing on {len(self.splits.test)} videos at {frames} frames")
        findings = self._evaluate(self.splits.test, state, self.recipe.eval_frames)
        self._write(self.log.total_steps, "test", findings)
        return findings

    def _evaluate(self, source: Any, state: TrainState, frames: tuple[int, ...], **views: int) -> Findings:
        hosts = jax.process_count()
        batches = eval_batches(
            source,
            dataclasses.replace(clip_config(self.recipe, frames), **views),
            self.recipe.eval_batch_size // hosts,
            shard_index=jax.process_index(),
            shard_count=hosts,
            num_threads=self.recipe.data.num_threads,
        )
        variables = make_whole(averaged(state.variables), self.mesh)
        return self.task.evaluate(variables, batches, frames, lambda batch: put_batch(batch, self.mesh))

    def _is_due(self, step: int, epochs: int) -> bool:
        return epochs > 0 and step > 0 and step % (epochs * self.epoch_steps) == 0

    def _is_evaluated(self, step: int) -> bool:
        return self.splits.validation is not None and self._is_due(step, self.recipe.eval_every)

    def _write(self, step: int, room: str, findings: Findings) -> None:
        metrics = {f"{room}/{name}": value for name, value in findings.metrics.items()}
        self.log.write(step, metrics, step / self.epoch_steps)

    def _write_means(self, step: int) -> None:
        folder, saved = self.checkpoints.directory, self.checkpoints.latest_step()
        means = mean_metrics(self.recent, self.splits.train, folder, saved)
        self.log.write(step, {**means, "train/waiting_for_data": self.waiting.take()}, step / self.epoch_steps)
        self.recent.clear()

    @jax.transfer_guard("allow")
    def _save(self, step: int, state: TrainState) -> None:
        if self.recent:
            self._write_means(step)
        self.check_there()
        self.checkpoints.save(step, state, self.batches)

    def _settle(self, step: int) -> None:
        """Waits until a step is on disk. After that the run may end at any time."""
        self.checkpoints.wait()
        saved = f"after step {step} of {self.log.total_steps}, which is saved in {self.checkpoints.directory}"
        self.stop.release(saved)


def mean_metrics(recent: Recent, source: Source, folder: Path, saved: int | None) -> dict[str, np.floating]:
    """Means over steps.

    Raises:
        FloatingPointError: a loss or gradient is not finite; the message names step and clips.
    """
    steps = jax.device_get([metrics for _, metrics, _ in recent])
    for (step, _, clips), values in zip(recent, steps, strict=True):
        wrong = [name for name in ("loss", "gradient_norm") if not np.isfinite(values[name])]
        if wrong:
            where = f"the last checkpoint is of step {saved}" if saved else "nothing was saved yet"
            raise FloatingPointError(
                f"the {wrong[0].replace('_', ' ')} is {values[wrong[0]]} at step {step}, of the clips "
                f"{', '.join(str(source[i]['id']) for i in np.asarray(clips))}: lower the learning rate or clip the "
                f"gradient; {where} ({folder})"
            )
    return {f"train/{name}": np.mean([values[name] for values in steps]) for name in steps[0]}
