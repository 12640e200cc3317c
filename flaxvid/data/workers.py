"""Worker processes: they leave signals to the main process, and end when it does."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any


class WorkerKilled(OSError):
    """A worker process was killed from outside, mostly by the system for lack of memory."""


def begin_worker(*_: object) -> None:
    """What a worker process does first: it ignores SIGINT and SIGTERM, and ends when its parent has ended.

    Ctrl-C in a terminal, SLURM and systemd tell every process of a group to stop. The main process still needs its
    workers then, to finish what it saves.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:  # a worker whose parent was killed would wait for it for ever
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


@contextlib.contextmanager
def started_deaf() -> Iterator[None]:
    """Processes that this thread starts inside are deaf to SIGINT and SIGTERM from birth, long before `begin_worker`.

    They inherit that both are blocked; a signal that comes meanwhile reaches this process right after.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Pool(ProcessPoolExecutor):
    def submit(self, *job: Any, **named: Any) -> Future:
        try:
            with started_deaf():  # a process is started when a job finds none idle
                future = super().submit(*job, **named)
        except BrokenPipeError as error:  # the process was killed while it was started
            raise BrokenProcessPool("a process ended before it began") from error
        if self._broken:  # it broke meanwhile: nobody is left to say so of this job, and waiting for it would not end
            raise BrokenProcessPool(self._broken)
        return future


@contextlib.contextmanager
def processes(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of spawned processes.

    Raises:
        WorkerKilled: one of them was killed.
    """
    others = set(multiprocessing.active_children())
    pool = _Pool(workers, multiprocessing.get_context("spawn"), initializer=begin_worker)
    try:
        yield pool
    except BrokenProcessPool as error:
        for worker in set(multiprocessing.active_children()) - others:  # the pool only asks the rest, with SIGTERM
            worker.kill()
        raise WorkerKilled(
            "a worker process was killed, by the system for lack of memory or by a fault of the decoder: run the same "
            "command again, with fewer workers, to go on"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
