"""Writes whole files, locks folders, and knows where the cache is."""

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yields a path beside `path` to write to; at the end it replaces `path`.

    A reader finds what was there before, or the new file, however the process ends.
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
    """Adds the file's name to errors of the system: a full disk does not say it."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename is None:
            error.filename = str(path)
        raise


def read_json(path: Path, kind: type) -> Any:
    """Reads a JSON file that holds a `kind`, dict or list.

    Raises:
        ValueError: It holds something else, or no JSON. The message names the file.
    """
    words = {dict: "a JSON object", list: "a JSON list"}[kind]
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected {words} in {path}, got a damaged file ({error}): put a whole copy there") from error
    if not isinstance(value, kind):
        raise ValueError(f"expected {words} in {path}, got {str(value)[:60]!r}: put a whole copy there")
    return value


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Holds a lock file until the block or this process ends. The file and its text stay.

    Args:
        path: The file.
        wait: Whether to wait for the process that holds it.

    Yields:
        Whether it is ours; on network disks without locks it always is.
    """
    lock = FileLock(path, timeout=-1 if wait else 0, fallback_to_soft=False)  # a soft lock would outlive a kill
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
    try:
        yield True
    finally:
        lock.release()


def cache_folder() -> Path:
    """Where downloads, drawn data and compiled programs are kept: $FLAXVID_CACHE, or ~/.cache/flaxvid."""
    return Path(os.environ.get("FLAXVID_CACHE") or "~/.cache/flaxvid").expanduser()
