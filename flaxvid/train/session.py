"""What a run does beside its steps: it logs, saves, evaluates and stops, each when it is due."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from flaxvid.data.broken import Tally
from flaxvid.data.pipeline import eval_batches, next_batch
from flaxvid.data.sources.open import Source
from flaxvid.data.workers import WorkerKilled
from flaxvid.evaluate.evaluator import Evaluations, evaluate_videos, score_rows
from flaxvid.tasks.task import Metrics, Task
from flaxvid.train.checkpoint import Checkpoints
from flaxvid.train.interrupt import StopRequest
from flaxvid.train.logging import RunLogger
from flaxvid.train.mesh import put_batch
from flaxvid.train.recipe import Recipe
from flaxvid.train.setup import clip_config
from flaxvid.train.state import TrainState, averaged
from flaxvid.train.waiting import WaitingShare
from flaxvid.types import Batch

Recent = list[tuple[int, Metrics, np.ndarray]]
"""Steps that are not logged yet: each one's number, metrics, and positions of its clips in the source."""


@dataclasses.dataclass
class Session:
    """A run at work, from the step that it began or resumed at.

    A state is on disk before it is evaluated; a checkpoint without a score is how a resume knows that an evaluation was
    cut short.

    Attributes:
        recipe, task, source, eval_source, mesh: of the run.
        data: the iterator of its training batches.
        checkpoints, log, stop, tally: open.
        check_there: raises where the run's folder is gone.
        epoch_steps: steps of one pass over the training videos.
        start: the step that this process goes on after.
    """

    recipe: Recipe
    task: Task
    source: Source
    eval_source: Source
    mesh: Mesh
    data: grain.DatasetIterator
    checkpoints: Checkpoints
    log: RunLogger
    stop: StopRequest
    tally: Tally
    check_there: Callable[[], None]
    epoch_steps: int
    start: int
    recent: Recent = dataclasses.field(default_factory=list)
    waiting: WaitingShare = dataclasses.field(default_factory=WaitingShare)

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return self.recipe.epochs * self.epoch_steps

    def next_clips(self, step: int, state: TrainState) -> Batch:
        """The clips of a step; where a worker was killed, `state` is saved first.

        Raises:
            WorkerKilled: a worker was killed.
        """
        try:
            clips = next_batch(self.data)
        except WorkerKilled as error:
            if step - 1 == self.start or jax.process_count() > 1:  # alone, a process can save nothing
                raise
            self._save(step - 1, state)
            self._settle(step - 1)
            raise WorkerKilled(f"{error} (step {step - 1} of {self.total} is saved)") from error
        for reason in self.tally.add(clips):
            self.log.print(f"replaced by another video: {reason}")
        return clips

    def finish(self, step: int, state: TrainState, metrics: Metrics, clips: Batch) -> None:
        """Notes that a step was sent; logs, saves, stops and evaluates after it, each if it is due.

        Raises:
            Interrupted: the run was told to stop, and saved.
            FloatingPointError: a loss or gradient is not finite.
            OSError: the checkpoint cannot be written, or the run's folder is gone.
        """
        self.waiting.sent(metrics)
        self.recent.append((step, metrics, clips["index"]))
        self.log.update(step, self.recipe.batch_size)
        stopping, testing = self.stop.reached(step), self._is_due(step, self.recipe.eval_every)
        if stopping or testing or step == self.total or self._is_due(step, self.recipe.checkpoint_every):
            self._save(step, state)
        elif step % self.recipe.log_every == 0:
            self._write_means(step)
        if stopping or testing or step == self.total:
            self._settle(step)
        if self._needs_test(step):
            self.test(step, state, self.task.frames)

    def make_up(self, state: TrainState, tested: bool) -> None:
        """Does the evaluation that was due at the first step, if it was cut short."""
        if self._needs_test(self.start) and not tested:
            self.test(self.start, state, self.task.frames)

    def test(self, step: int, state: TrainState, frames: tuple[int, ...]) -> Evaluations:
        """Evaluates a saved state at each of `frames`, with the moving averages where there are any, and logs that."""
        variables, hosts = averaged(state.variables), jax.process_count()
        batches = eval_batches(
            self.eval_source,
            clip_config(self.recipe, frames),
            self.recipe.eval_batch_size // hosts,
            shard_index=jax.process_index(),
            shard_count=hosts,
            num_threads=self.recipe.data.num_threads,
        )
        plain = {count: self.task.select(variables, count) for count in frames}
        evaluation = evaluate_videos(self.task.model, plain, batches, put=lambda batch: put_batch(batch, self.mesh))
        self.log.write(step, top1_metrics(evaluation), step / self.epoch_steps)
        if self._is_due(step, self.recipe.eval_every) and set(self.task.frames) <= set(frames):
            self.check_there()
            scores = [row["top1"] for row in score_rows(evaluation) if row["frames"] in self.task.frames]
            self.checkpoints.set_score(step, float(np.mean(scores)))
        return evaluation

    def _is_due(self, step: int, epochs: int) -> bool:
        return epochs > 0 and step > 0 and step % (epochs * self.epoch_steps) == 0

    def _needs_test(self, step: int) -> bool:
        """Whether to evaluate in training; the end's own evaluation will do if it has the task's frame counts."""
        covered = step == self.total and set(self.task.frames) <= set(self.recipe.eval_frames)
        return self._is_due(step, self.recipe.eval_every) and not covered

    def _write_means(self, step: int) -> None:
        means = mean_metrics(self.recent, self.source, self.checkpoints.directory, self.checkpoints.latest_step())
        self.log.write(step, {**means, "train/waiting_for_data": self.waiting.take()}, step / self.epoch_steps)
        self.recent.clear()

    def _save(self, step: int, state: TrainState) -> None:
        if self.recent:
            self._write_means(step)
        self.check_there()
        self.checkpoints.save(step, state, self.data)

    def _settle(self, step: int) -> None:
        """Waits until a step is on disk; from there on the run may be stopped at any time."""
        self.checkpoints.wait()
        self.stop.release(f"after step {step} of {self.total}, which is saved in {self.checkpoints.directory}")


def top1_metrics(evaluation: Evaluations) -> dict[str, float]:
    """``{"eval/top1_4": 0.61, ...}``, of several targets ``{"eval/action_top1_4": ...}``."""
    rows = score_rows(evaluation)
    return {f"eval/{row['target'] + '_' if 'target' in row else ''}top1_{row['frames']}": row["top1"] for row in rows}


def mean_metrics(
    recent: Sequence[tuple[int, Metrics, np.ndarray]], source: Source, folder: Path, saved: int | None
) -> dict[str, np.floating]:
    """Means over steps, given as (step, metrics, positions of its clips in the source).

    Raises:
        FloatingPointError: a step's loss or gradient is not finite; the message names step and clips.
    """
    steps = jax.device_get([metrics for _, metrics, _ in recent])
    for (step, _, clips), values in zip(recent, steps, strict=True):
        wrong = [name for name in ("loss", "gradient_norm") if not np.isfinite(values[name])]
        if wrong:
            where = f"the checkpoint of step {saved} is from before" if saved else "nothing was saved yet"
            raise FloatingPointError(
                f"the {wrong[0].replace('_', ' ')} is {values[wrong[0]]} at step {step}, of the clips "
                f"{', '.join(str(source[i]['id']) for i in np.asarray(clips))}: lower the learning rate or clip the "
                f"gradient; {where} ({folder})"
            )
    return {f"train/{name}": np.mean([values[name] for values in steps]) for name in steps[0]}
