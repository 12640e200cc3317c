"""Being told to stop: by a scheduler (SIGTERM) or by hand (Ctrl-C)."""

import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils


class Interrupted(Exception):
    """A run that was told to stop, saved its state and can go on.

    Attributes:
        code: exit status that shells and schedulers expect of a process that a signal ended: 128 and its number.
    """

    def __init__(self, message: str, number: int | None):
        super().__init__(message)
        self.code = 128 + (number or signal.SIGTERM)


class StopRequest:
    """Notes SIGTERM and the first Ctrl-C instead of dying of them; a second Ctrl-C ends at once.

    With several processes it is enough that one of them gets SIGTERM: JAX tells the others and agrees with them on a
    step. Signals belong to the main thread; in others nothing is noted.
    """

    def __init__(self):
        self.signal: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        # With several processes SIGTERM is JAX's own: a handler here would hide it from the coordination service.
        wanted = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ()
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in wanted}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number

    def reached(self, step: int) -> bool:
        """Whether to save after this step and stop; every process calls it after every step."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.signal = signal.SIGTERM
        return self.signal is not None
