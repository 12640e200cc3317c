"""What happens on SIGTERM, from a scheduler, and on Ctrl-C.

While a run holds something unsaved, `StopRequest` notes the signal and the run saves first. At any other time
`end_when_told` ends a script at once, with one line. This module imports quickly, for scripts import it first.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGINT)

_CLEAR, _CURSOR = "\r\x1b[K", "\x1b[?25h"  # erase the line; show the cursor, which a progress bar hides


class Interrupted(Exception):
    """A run stopped on a signal; it saved its state and can go on.

    Attributes:
        code: the exit status, 128 and the number of the signal, as shells and schedulers expect.
    """

    def __init__(self, message: str, number: int | None):
        super().__init__(message)
        self.code = 128 + (number or signal.SIGTERM)


class StopRequest:
    """Notes SIGTERM and the first Ctrl-C from `hold` to `release`; a second Ctrl-C ends the process at once.

    Of several processes one must get SIGTERM: JAX tells the others and agrees with them on a step. Python handles
    signals in the main thread only; in another thread this does nothing.
    """

    def __init__(self):
        self.signal: int | None = None
        self._unanswered = threading.Lock()
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
        self._before = {}

    def hold(self) -> None:
        """From here on there is something unsaved."""
        import jax

        # With several processes SIGTERM is JAX's own: a handler here would hide it from the coordination service.
        if not self._before and jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal is not None:
            raise KeyboardInterrupt
        self.signal = self.signal or number
        self.answer()

    def answer(self) -> None:
        """Says once what happens now, from the first thread that comes."""
        if self._unanswered.acquire(blocking=False):
            say("stopping after this step, then saving; Ctrl-C once more stops at once, without saving")

    def reached(self, step: int) -> bool:
        """Whether to save after this step and stop; every process calls it after every step."""
        import jax
        from jax.experimental import multihost_utils

        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.signal = signal.SIGTERM
        return self.signal is not None

    def release(self, saved: str) -> None:
        """From here on all is saved; `saved` says what and where.

        Raises:
            Interrupted: a signal came meanwhile.
        """
        self.__exit__()
        if self.signal is not None:
            raise Interrupted(f"stopped as told, {saved}: the same command goes on", self.signal)


def end_when_told(advice: str) -> None:
    """Makes SIGTERM and Ctrl-C end this script at once, with one line, unless a `StopRequest` holds them back.

    A thread waits for the signals: Python's handlers wait for the main thread, which may compile for minutes, and what
    they raise is lost in a call-back. Worker processes hear neither signal; they end with this process.

    Args:
        advice: what to do next, the end of the line.
    """
    heard, tell = socket.socketpair()  # not a pipe, which Windows cannot make non-blocking
    tell.setblocking(False)
    signal.set_wakeup_fd(tell.fileno(), warn_on_full_buffer=False)

    def leave(number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(BlockingIOError):  # it is full, so the signal was heard
            tell.send(bytes([number]))

    for number in SIGNALS:
        signal.signal(number, leave)
    # Threads and processes that start from here on inherit the block; only the thread below lifts it.
    if hasattr(signal, "pthread_sigmask"):  # not on Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    # After a sudden end Python's resource tracker would print several lines.
    sys.warnoptions.append("ignore::UserWarning:multiprocessing.resource_tracker")
    threading.Thread(target=_listen, args=(heard, leave, advice), daemon=True).start()


def _listen(heard: socket.socket, leave: object, advice: str) -> None:
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    told = False
    while True:
        number = heard.recv(1)[0]
        if number not in SIGNALS:
            continue
        handler = signal.getsignal(number)
        if handler is leave or (told and number == signal.SIGINT):
            how = "as told" if handler is leave else "at once, without saving"
            end(f"stopped {how} ({signal.Signals(number).name}): {advice}", 128 + number)
        told = True
        request = getattr(handler, "__self__", None)
        if isinstance(request, StopRequest):  # its handler waits for the main thread
            request.answer()


def say(message: str) -> None:
    """Writes a line to stderr at once; on a terminal it takes the place of a progress bar, which comes back below."""
    os.write(2, f"{_CLEAR * os.isatty(2)}{message}\n".encode(errors="backslashreplace"))


def end(message: str, code: int) -> NoReturn:
    """Ends this process at once, with a last line; no thread and no library can print after it."""
    flush = threading.Thread(target=sys.stdout.flush, daemon=True)
    flush.start()
    flush.join(1)  # the reader of the output may have stopped
    say(_CURSOR * os.isatty(2) + message)
    os._exit(code)
