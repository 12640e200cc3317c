"""A profile of some steps of a training: what the devices and Python did, and when."""

import contextlib
from pathlib import Path

import jax

from flaxvid.tasks.task import Metrics

WARM = 3
"""Steps that are not traced: the first one compiles, and the next ones fill the queues."""


class Profile:
    """Traces `steps` steps of a run after the first `WARM`; a context manager. Only process 0 traces.

    Args:
        folder: gets the trace.
        steps: how many; 0 traces nothing.
        start: the last step before this process.
        total: the steps of the whole run.

    Raises:
        ValueError: the run has fewer steps left.
    """

    def __init__(self, folder: Path, steps: int, start: int, total: int):
        if steps > 0 and WARM + steps > total - start:
            raise ValueError(
                f"expected --profile of at most {max(0, total - start - WARM)} steps, got {steps}: the run has "
                f"{total - start} steps to go, and the first {WARM} are not traced; trace fewer, or train for longer"
            )
        self._folder = folder
        traced = range(start + WARM + 1, start + WARM + steps + 1) if jax.process_index() == 0 else range(0)
        self._steps, self._done, self._begun = traced, 0, False
        self._marked = contextlib.ExitStack()

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *error: object) -> None:
        if self._begun:  # the run was stopped, or a step failed
            self._end()

    def begin_if_due(self, step: int) -> None:
        """Begins before the first traced step, and marks each."""
        if step not in self._steps:
            return
        if step == self._steps[0]:
            jax.profiler.start_trace(self._folder)
            self._begun = True
        self._marked.enter_context(jax.profiler.StepTraceAnnotation("train", step_num=step))

    def end_if_due(self, step: int, metrics: Metrics) -> None:
        """Ends after the last traced step, once the devices have done it."""
        if step not in self._steps:
            return
        self._marked.close()
        self._done += 1
        if step == self._steps[-1]:
            jax.block_until_ready(metrics)
            self._end()

    def _end(self) -> None:
        self._begun = False
        self._marked.close()
        jax.profiler.stop_trace()
        if not self._done:
            return
        first, last = self._steps[0], self._steps[0] + self._done - 1
        cut = "" if self._done == len(self._steps) else f" of the {len(self._steps)} that were asked for"
        print(
            f"traced {self._done} steps{cut}, {first} to {last}, into {self._folder}: pip install xprof && xprof "
            f"--logdir {self._folder}, or open its newest .trace.json.gz at https://ui.perfetto.dev"
        )
