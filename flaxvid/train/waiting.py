"""Measures how much of its time the accelerator waits for data."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax


class WaitingShare:
    """Measures the share of time in which the devices had no step to do because the next batch was missing.

    The host sends steps ahead of the devices, so its own times say little: a thread notes when each step's outputs are
    ready.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, "waiting-share")
        self._ready: Future[float] | None = None
        self._waited, self._since = 0.0, clock()

    def sent(self, outputs: Any) -> None:
        """Notes that a step was sent; `outputs` must not be donated to the next."""
        self._ready = self._thread.submit(lambda: (jax.block_until_ready(outputs), self._clock())[1])

    def arrived(self) -> None:
        """Notes that the next batch has come."""
        if self._ready is not None and self._ready.done():
            self._waited += self._clock() - max(self._ready.result(), self._since)

    def take(self) -> float:
        """The share since the last call, in [0, 1]."""
        now = self._clock()
        share = self._waited / max(now - self._since, 1e-9)
        self._waited, self._since = 0.0, now
        return share
