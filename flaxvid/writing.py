"""Files that are there as a whole or not at all, and folders that one process writes to at a time."""

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives a path beside `path` to write to; it takes the place of `path` once all of it is written.

    However the process ends, and whoever reads meanwhile: the file is the old one, or none, or the new one.
    """
    beside = path.with_name(f".{path.name}.part")
    try:
        with named_in_errors(path):
            yield beside
            os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextlib.contextmanager
def named_in_errors(path: Path) -> Iterator[None]:
    """Gives the system's errors the name of the file: a full disk alone does not say which."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename is None:
            error.filename = str(path)
        raise


def read_json(path: Path, kind: type) -> Any:
    """Reads a JSON file that holds a `kind`, dict or list.

    Raises:
        ValueError: it holds anything else, or no JSON; the message names the file.
    """
    words = {dict: "a JSON object", list: "a JSON list"}[kind]
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected {words} in {path}, got a damaged file ({error}): put a whole copy there") from error
    if not isinstance(value, kind):
        raise ValueError(f"expected {words} in {path}, got {str(value)[:60]!r}: put a whole copy there")
    return value


def take_lock(file: IO[Any], *, wait: bool = False) -> bool:
    """Locks an open file against other processes until it is closed or this one ends, however it does.

    Args:
        file: the open file.
        wait: for whoever has it.

    Returns:
        Whether it is ours; True, too, on network disks that know no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
            raise
    return True
