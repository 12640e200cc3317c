"""How scripts/benchmark times: peers in turn, medians, ratios."""

import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

Rows = dict[str, dict[str, float]]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def count_cores() -> int:
    """The cores that this process may use; outside of Linux all there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclasses.dataclass(frozen=True)
class Timing:
    """How runs are timed: `repeats` after one for warm-up, by a clock of `CLOCKS`."""

    repeats: int = 5
    clock: str = "wall"


def interleaved(runs: Mapping[str, Callable[[], Any]], timing: Timing, seconds: float = 4.0) -> dict[str, float]:
    """Median seconds of each run; they take turns, so that a busy machine slows all alike.

    A run that has used up its `seconds` is measured no more often than once.
    """
    now = CLOCKS[timing.clock]
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(timing.repeats + 1):
        for name, run in runs.items():
            if turn > 1 and sum(times[name]) > seconds:
                continue
            start = now()
            run()
            if turn:
                times[name].append(now() - start)
    return {name: statistics.median(spent) for name, spent in times.items()}


def random(*shape: int) -> np.ndarray:
    """Standard normal float32."""
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def ready(run: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    """The call, ended when its results are there."""
    return lambda: jax.block_until_ready(run(*args))


def print_rows(rows: Rows) -> None:
    """Each row's numbers, and the ratios of its first to the others."""
    for name, row in rows.items():
        first, *others = row
        values = "  ".join(f"{peer} {value:.4g}" for peer, value in row.items())
        ratios = "  ".join(f"{first}/{peer} {row[first] / row[peer]:.2f}" for peer in others)
        print(f"{name:74s} {values:60s} {ratios}", flush=True)
