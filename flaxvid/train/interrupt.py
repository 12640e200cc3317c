"""Being told to stop: by a scheduler (SIGTERM) or by hand (Ctrl-C).

While a run holds something that is not saved, `StopRequest` notes the signal and the run saves first. At any other time
`end_when_told` ends a script at once, in one line. Importing this module is quick: scripts call it before the rest.
"""

import contextlib
import os
import signal
import sys
import threading
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGINT)

_CLEAR, _CURSOR = "\r\x1b[K", "\x1b[?25h"  # erases the line; shows the cursor, which a progress bar hides


class Interrupted(Exception):
    """A run that was told to stop, saved its state and can go on.

    Attributes:
        code: exit status that shells and schedulers expect of a process that a signal ended: 128 and its number.
    """

    def __init__(self, message: str, number: int | None):
        super().__init__(message)
        self.code = 128 + (number or signal.SIGTERM)


class StopRequest:
    """Answers SIGTERM and the first Ctrl-C, from `hold` to `release`, instead of dying of them.

    Outside of that, signals do what they did before. A second Ctrl-C ends at once. With several processes it is enough
    that one of them gets SIGTERM: JAX tells the others and agrees with them on a step. Signals belong to the main
    thread; in others nothing is noted.
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
        """From here on there is something to save."""
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
        """Says once, from whichever thread comes first, that the signal was heard and what happens now."""
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
        """Everything is saved, as `saved` says.

        Raises:
            Interrupted: the run was told to stop meanwhile.
        """
        self.__exit__()
        if self.signal is not None:
            raise Interrupted(f"stopped as told, {saved}: the same command goes on", self.signal)


def end_when_told(advice: str) -> None:
    """SIGTERM and Ctrl-C end this script at once from here on, in one line, unless a `StopRequest` holds them back.

    A thread of its own waits for them: Python's handlers wait for the main thread, which may compile for minutes, and
    what they raise is lost in a call-back. Worker processes hear neither signal, even while they start; they end with
    this process.

    Args:
        advice: what to do next, the end of the line.
    """
    heard, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)

    def leave(number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(BlockingIOError):  # heard already, unless an event loop took the wake-up for itself
            os.write(tell, bytes([number]))

    for number in SIGNALS:
        signal.signal(number, leave)
    # Every thread and process that starts from here on inherits that both are blocked; only the thread below is not.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    # The process that tidies up after a sudden end would say so, in several lines.
    sys.warnoptions.append("ignore::UserWarning:multiprocessing.resource_tracker")
    threading.Thread(target=_listen, args=(heard, leave, advice), daemon=True).start()


def _listen(heard: int, leave: object, advice: str) -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    told = False
    while True:
        number = os.read(heard, 1)[0]
        if number not in SIGNALS:
            continue
        handler = signal.getsignal(number)
        if handler is leave or (told and number == signal.SIGINT):
            how = "as told" if handler is leave else "at once, without saving"
            end(f"stopped {how} ({signal.Signals(number).name}): {advice}", 128 + number)
        told = True
        request = getattr(handler, "__self__", None)
        if isinstance(request, StopRequest):  # its own handler waits for the main thread, which may compute for long
            request.answer()


def say(message: str) -> None:
    """Writes a line to stderr at once; on a terminal in the place of a progress bar, which is drawn anew below it."""
    os.write(2, f"{_CLEAR * os.isatty(2)}{message}\n".encode(errors="backslashreplace"))


def end(message: str, code: int) -> NoReturn:
    """Ends this process now, with a last line: no thread, no half-dead library gets another word in."""
    flush = threading.Thread(target=sys.stdout.flush, daemon=True)
    flush.start()
    flush.join(1)  # whoever reads the output may have stopped to
    say(_CURSOR * os.isatty(2) + message)
    os._exit(code)
