"""Runs of several processes: how they meet, and what happens when one is lost."""

import contextlib
import sys
from collections.abc import Iterator
from typing import NoReturn

import jax

from flaxvid.train.interrupt import end

PATIENCE = 10
"""Seconds after which the others end if a process is silent; a lost connection ends them sooner."""

LOST_PEER = 75
"""Exit status of a process that ends because another one is lost."""


def connect(coordinator: str = "", num_processes: int = 0, process_id: int = -1) -> None:
    """Joins this process to the others, before JAX is used for anything else.

    Args:
        coordinator: `host:port` of process 0, with a free port; "" asks the cluster (SLURM, Open MPI, Kubernetes, TPU)
            or JAX's own variables JAX_COORDINATOR_ADDRESS, ...
        num_processes: number of processes; with `coordinator` only.
        process_id: number of this process, from 0; with `coordinator` only.

    Raises:
        ValueError: one of the three is missing or does not fit, or no cluster is found.
        ConnectionError: the others did not come in time.
    """
    given = {"coordinator": bool(coordinator), "num_processes": num_processes > 0, "process_id": process_id >= 0}
    if any(given.values()) and not all(given.values()):
        missing = ", ".join(name for name, there in given.items() if not there)
        raise ValueError(
            f"expected coordinator, num_processes and process_id together, {missing} is missing; on a cluster that JAX "
            "knows (SLURM, Open MPI, Kubernetes, TPU) leave out all three"
        )
    if coordinator and (process_id >= num_processes or ":" not in coordinator):
        raise ValueError(
            f"expected coordinator=host:port and 0 <= process_id < num_processes, got coordinator={coordinator}, "
            f"num_processes={num_processes}, process_id={process_id}"
        )
    try:
        jax.distributed.initialize(
            coordinator or None,
            num_processes or None,
            process_id if process_id >= 0 else None,
            initialization_timeout=120,
            heartbeat_timeout_seconds=PATIENCE,  # the shutdown waits longer: one of them writes the report
        )
    except ValueError as error:
        raise ValueError(f"no cluster was found ({error}): give coordinator, num_processes and process_id") from error
    except RuntimeError as error:
        raise ConnectionError(
            f"the {num_processes or ''} processes did not find each other ({error}): start all of them, with a "
            "coordinator that each can reach"
        ) from error


def leave(message: str, code: int) -> NoReturn:
    """Ends this process with a last line. One of several exits in order, or its peers would take it for lost."""
    if jax.process_count() == 1:
        end(message, code)
    print(message, file=sys.stderr, flush=True)
    sys.exit(code)


@contextlib.contextmanager
def end_with_peers() -> Iterator[None]:
    """Ends this process with a message when a computation fails because another process is gone.

    It does not clean up, for that would wait for its peers. On GPUs a computation may hang instead of failing: JAX then
    ends the process after `PATIENCE` seconds, with a message of its own.
    """
    try:
        yield
    except (ValueError, TimeoutError, jax.errors.JaxRuntimeError) as error:
        signs = ("gloo", "nccl", "coordination", "barrier", "socket closed", "connection closed", "connection reset")
        if jax.process_count() == 1 or not any(sign in str(error).lower() for sign in signs):
            raise
        end(
            f"process {jax.process_index()} of {jax.process_count()} ends, for another one is lost (its own log says "
            f"why; here: {str(error).splitlines()[0][:200]}). Start all of them again with the same command: they go "
            "on after the last checkpoint",
            LOST_PEER,
        )
