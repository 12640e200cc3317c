"""What a run says while it trains: a progress bar or plain lines, metrics.jsonl, TensorBoard."""

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.summary import scalar

from flaxvid.report.run import read_metrics
from flaxvid.types import Variables
from flaxvid.writing import named_in_errors, written_whole


class RunLogger:
    """Writes a run's metrics to its folder and its progress to the console; a context manager.

    A terminal gets a progress bar; a file or a cluster's log gets a line every `interval` seconds and for every
    evaluation. Only process 0 writes; the others may call everything.

    Args:
        workdir: the run's folder, for metrics.jsonl and tensorboard/.
        total_steps: the steps of the whole run.
        step: the step that training resumes from. Lines of later steps leave metrics.jsonl; step 0 begins it anew.
        evaluated: whether `step` has its score. If not, the line of its evaluation leaves metrics.jsonl, too.
        interval: seconds between plain lines.
        console: prints; None is stdout.
        track: gets the metrics of a step, too; see `open_trackers`.
    """

    def __init__(
        self,
        workdir: str | Path,
        total_steps: int,
        step: int = 0,
        evaluated: bool = True,
        interval: float = 10.0,
        console: Console | None = None,
        track: Callable[[int, Mapping[str, float]], None] | None = None,
    ):
        self.workdir, self.total_steps = Path(workdir), total_steps
        self._first_step = self._step = step
        self._evaluated = evaluated
        self._interval, self._last_line = interval, -math.inf
        self._started = self._mark = time.monotonic()
        self._clips = 0
        # A notebook gets lines, as a log does: it says that it has colours, and rich takes it for a terminal.
        self._console = console or Console(force_jupyter=False, force_terminal=sys.stdout.isatty())
        self._writes = jax.process_index() == 0
        self._bar, self._track = None, track

    def __enter__(self) -> "RunLogger":
        if self._writes:
            self.workdir.mkdir(parents=True, exist_ok=True)
            self._path, folder = self.workdir / "metrics.jsonl", self.workdir / "tensorboard"
            _drop_after(self._path, self._first_step, self._evaluated)
            self._file = self._path.open("a")
            folder.mkdir(exist_ok=True)
            # Not a SummaryWriter: on a full disk its thread dies, and the run waits for it for ever.
            self._tensorboard = EventsWriter(str(folder / "events"))
            purge = SessionLog(status=SessionLog.START)  # hides what an earlier process logged from this step on
            self._tensorboard.write_event(Event(step=self._first_step + 1, wall_time=time.time(), session_log=purge))
            if self._console.is_terminal:
                self._bar = _progress(self._console)
                self._task = self._bar.add_task("", total=self.total_steps, completed=self._first_step)
                self._bar.start()
        self._started = self._mark = time.monotonic()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar:
            self._bar.stop()
        if self._writes:
            for file in (self._file, self._tensorboard):
                # On a full disk the first error has named the file already.
                with contextlib.suppress(OSError) if any(error) else named_in_errors(self.workdir):
                    file.close()

    def update(self, step: int, clips: int) -> None:
        """Notes that `step` updates are done, the last with `clips` clips of all processes; waits for no device."""
        if self._step == self._first_step:  # the first update compiles; its time must not count in clips/s
            self._started = self._mark = time.monotonic()
        else:
            self._clips += clips
        self._step = step
        if self._bar:
            self._bar.update(self._task, completed=step)

    def write(self, step: int, metrics: Mapping[str, Any], epoch: float | None = None) -> None:
        """Writes metrics of a step to every place; waits for those still on the device.

        Adds `train/clips_per_second` if there were updates since the last call. Write training metrics before an
        evaluation, so that its time does not count.

        Args:
            step: updates done.
            metrics: scalars such as "train/loss", "eval/top1_4"; a number that is not finite is null in the file.
            epoch: passes over the data done.

        Raises:
            ValueError: a metric is not a scalar.
        """
        fetched = jax.device_get(list(metrics.values()))  # a dictionary would come back sorted
        values = {name: _scalar(name, value) for name, value in zip(metrics, fetched, strict=True)}
        now = time.monotonic()
        if self._clips:
            values["train/clips_per_second"] = self._clips / max(now - self._mark, 1e-9)
        self._clips, self._mark = 0, now
        if self._writes:
            self._record(step, values, epoch)
            self._show(step, values, epoch, now)

    def print(self, message: str | Table) -> None:
        """Prints a sentence or a table above the progress bar."""
        if self._writes:
            # Without soft wrap rich would break a log's lines at 80 columns.
            self._console.print(message, markup=False, highlight=False, soft_wrap=isinstance(message, str))

    def _record(self, step: int, values: Mapping[str, float], epoch: float | None) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        now = time.time()
        row = {"step": step} | ({} if epoch is None else {"epoch": epoch}) | {"time": now} | finite
        with named_in_errors(self._path):
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        with named_in_errors(self.workdir / "tensorboard"):
            for name, value in values.items():
                self._tensorboard.write_event(Event(step=step, wall_time=now, summary=scalar(name, value)))
            self._tensorboard.flush()
        if self._track:
            self._track(step, values)

    def _show(self, step: int, values: Mapping[str, float], epoch: float | None, now: float) -> None:
        evaluation = not any(name.startswith("train/") for name in values)
        ordered = sorted(values, key=lambda name: name != "train/loss")  # the loss first
        short = {name.removeprefix("train/").replace("clips_per_second", "clips/s"): name for name in ordered}
        parts = [f"{label} {values[name]:.4g}" for label, name in short.items()]
        if self._bar and not evaluation:
            self._bar.update(self._task, description="  ".join(parts))
        elif self._bar or evaluation or step >= self.total_steps or now - self._last_line >= self._interval:
            self._last_line = self._last_line if evaluation else now
            where = f"step {step}/{self.total_steps}" + ("" if epoch is None else f"  epoch {epoch:.4g}")
            self.print("  ".join([where, *parts, *self._remaining(step, now)]))

    def _remaining(self, step: int, now: float) -> list[str]:
        """The time left at the pace so far, with evaluations; empty before the second update."""
        done = self._step - self._first_step - 1
        if done < 1 or step >= self.total_steps:
            return []
        seconds = round((now - self._started) / done * (self.total_steps - step))
        return [f"ETA {seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"]


def parameter_table(variables: Variables) -> Table:
    """A table of variables, or their shapes, by collection."""
    table = Table("variables", "arrays", "numbers", "MB")
    for column in table.columns[1:]:
        column.justify = "right"
    for collection, tree in variables.items():
        table.add_row(collection, *_sizes(tree))
    table.add_section()
    table.add_row("total", *_sizes(variables))
    return table


def _sizes(tree: Any) -> tuple[str, str, str]:
    sizes = [(math.prod(leaf.shape), np.dtype(leaf.dtype).itemsize) for leaf in jax.tree.leaves(tree)]
    numbers, size = sum(number for number, _ in sizes), sum(number * item for number, item in sizes)
    return f"{len(sizes):,}", f"{numbers:,}", f"{size / 1e6:,.2f}"


def _progress(console: Console) -> Progress:
    def still(width: int) -> Column:  # long metrics would push it out
        return Column(min_width=width, no_wrap=True)

    return Progress(
        BarColumn(20, table_column=still(20)),
        MofNCompleteColumn(table_column=still(11)),
        TimeRemainingColumn(table_column=still(7)),
        TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
        console=console,
        expand=True,
    )


def _scalar(name: str, value: Any) -> float:
    if np.size(value) != 1:
        raise ValueError(f"expected a scalar for {name!r}, got shape {np.shape(value)}: take its mean, or split it up")
    return float(np.reshape(value, ()))


def _drop_after(path: Path, step: int, evaluated: bool) -> None:
    """Drops the lines after `step` and a half-written last line; writes the whole file or nothing."""
    kept = [row for row in read_metrics(path) if row["step"] <= step] if step else []
    stand = ("train/", "eval/") if evaluated else ("train/",)  # a resume makes the last test anew
    kept = [row for row in kept if row["step"] < step or any(name.startswith(stand) for name in row)]
    with written_whole(path) as replacement:
        replacement.write_text("".join(json.dumps(row) + "\n" for row in kept))
