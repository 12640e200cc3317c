"""Starts worker processes, which leave signals to the main process and end with it."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from typing import Any


class WorkerKilled(OSError):
    """A worker process was killed from outside, mostly by the system because memory ran out."""


def begin_worker(*_: object) -> None:
    """Makes a worker process ignore SIGINT and SIGTERM, and end when its parent has ended.

    Ctrl-C in a terminal, SLURM and systemd tell every process of a group to stop, but the main process still needs its
    workers to finish what it saves.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:  # otherwise a worker would wait for ever for a parent that was killed
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


@contextlib.contextmanager
def started_deaf() -> Iterator[None]:
    """Makes processes that this thread starts inside ignore SIGINT and SIGTERM from birth, before `begin_worker` runs.

    They inherit blocked signals. A signal that comes meanwhile reaches this process right after. Windows blocks none.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Pool(ProcessPoolExecutor):
    """Python's pool, which also ends when a worker is killed at a bad moment.

    A worker may be killed while it holds the lock of the queue, or in the middle of a result. Python's pool would wait
    for the lock, or for the rest of the result, for ever.
    """

    def __init__(self, *options: Any, **named: Any) -> None:
        super().__init__(*options, **named)
        writer: Any = self._result_queue._writer  # pyright: ignore[reportAttributeAccessIssue]
        # `watch` and `shutdown` may both close it at one moment; the second would close what has its number by then.
        self._lock, self._close = threading.Lock(), writer.close
        writer.close = self._close_writer

    def _close_writer(self) -> None:
        with self._lock:
            self._close()

    def submit(self, *job: Any, **named: Any) -> Future:
        try:
            with started_deaf():  # a job that finds no idle process starts one
                future = super().submit(*job, **named)
        except (OSError, ValueError) as error:  # it was killed, or the pool closed its pipes, while it was started
            raise BrokenProcessPool("a process ended before it began") from error
        if self._broken:  # it broke meanwhile: nobody would end this job
            raise BrokenProcessPool(self._broken)
        return future

    def watch(self, done: threading.Event) -> None:
        """Until `done`, ends all workers as soon as one was killed, and whoever is started meanwhile."""
        workers: Sequence[BaseProcess] = ()
        broken = False
        while not done.wait(0.2):
            workers = tuple((self._processes or {}).values()) or workers
            broken = broken or any(worker.exitcode for worker in workers)
            if broken:
                for worker in workers:
                    worker.kill()  # the pool only sends SIGTERM, which they ignore
                # The last writer closes, so whoever waits for the rest of a result finds its end.
                self._close_writer()


@contextlib.contextmanager
def processes(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of spawned processes.

    Raises:
        WorkerKilled: One of them was killed.
    """
    pool, done = _Pool(workers, multiprocessing.get_context("spawn"), initializer=begin_worker), threading.Event()
    watcher = threading.Thread(target=pool.watch, args=(done,), daemon=True)
    watcher.start()
    try:
        yield pool
    except BrokenProcessPool as error:
        raise WorkerKilled(
            "a worker process was killed, by the system for lack of memory or by a fault of the decoder: run the same "
            "command again, with fewer workers, to go on"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        done.set()
        watcher.join()
