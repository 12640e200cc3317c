"""Weights by a known name, downloaded once into a cache. A download that broke off goes on where it stopped."""

import contextlib
import hashlib
import http.client
import os
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from flaxvid.weights.hub import fetch_from_hub, is_on_hub
from flaxvid.weights.known import KNOWN, KnownFile, full_name, nearest
from flaxvid.writing import cache_folder, locked

_PATIENCE = 30.0
"""A transfer fails after so many seconds without a byte, or if it is then slower than `_SLOWEST`."""
_SLOWEST = 1000
"""Bytes a second."""
_STRONG = re.compile(r'"[!#-~]*"')
"""An ETag by which a server tells two files apart; a weak one, ``W/"..."``, does not vouch for every byte."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to https, and from http to http."""

    def redirect_request(self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str):
        """Refuses another scheme before anything is asked there."""
        if urllib.parse.urlsplit(newurl).scheme not in ("https", urllib.parse.urlsplit(req.full_url).scheme):
            raise ConnectionError(f"redirected to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(_Redirects)


def resolve_weights(name_or_path: str | Path, model: str = "") -> Path:
    """The file of a known name or on the Hub, downloaded at first use, or the path itself if there is a file.

    Args:
        name_or_path: such as "slow_r50/pytorchvideo/kinetics400", "hf://OWNER/REPO/FILE" or a path.
        model: with it, "pytorchvideo/kinetics400" will do.

    Raises:
        FileNotFoundError: neither a file nor a known name.
        ConnectionError: the download failed; the message names URL and destination.
        ImportError: a file of the Hub, and huggingface_hub is not installed.
        ValueError: the file is not the one that the name stands for.
    """
    path = Path(name_or_path)
    if (name := full_name(name_or_path, model)) is not None:
        known = KNOWN[name]
        if is_on_hub(known.url):
            return fetch_from_hub(known.url)
        # A name with its digest in it is the only one of its kind; others get a folder.
        unique = known.sha256 and known.sha256[:8] in known.file_name
        return download(known, cache_folder() / ("" if unique else name) / known.file_name)
    if is_on_hub(name_or_path):
        return fetch_from_hub(name_or_path)
    if path.is_file():
        return path
    hint = "it is a folder, pass the file in it" if path.is_dir() else nearest(name_or_path, model)
    raise FileNotFoundError(f"no weights file at {path}: {hint}")


def download(known: KnownFile, destination: Path) -> Path:
    """Fetches a file unless it is there, with a progress bar, and checks its hash either way.

    The file gets its name only when it is whole and right. So a broken transfer is never taken for a file. What came
    of it stays beside as ``.part`` if the server named the file by an ETag; the next call then goes on, as long as the
    server still has that file. Of several processes one fetches, and the others wait for it.

    Raises:
        ConnectionError: no network, the transfer broke off or stands still, or the file is too large.
        ValueError: wrong SHA-256.
    """
    if not destination.is_file():
        destination.parent.mkdir(parents=True, exist_ok=True)
        part, etag, lock = (
            destination.with_name(f"{destination.name}{end}") for end in (".part", ".part.etag", ".lock")
        )
        with _alone(lock, known):
            try:
                if not destination.is_file():  # another process may have fetched it meanwhile
                    with part.open("a+b") as file:
                        _fetch(known, file, etag, destination)
                    os.replace(part, destination)
                    return destination
            finally:
                if not etag.is_file():
                    part.unlink(missing_ok=True)
    with destination.open("rb") as file:
        _check_hash(known, file, f"delete {destination} to fetch it again")
    return destination


@contextlib.contextmanager
def _alone(lock: Path, known: KnownFile) -> Iterator[None]:
    """Waits for another process or thread that fetches the same file. The lock file is gone at the end.

    Who waited for a lock file that is gone locks a new one: filelock sees to that. On a network disk without locks two
    may fetch at once, and one fails by its size or hash.
    """
    with contextlib.ExitStack() as held:
        if not held.enter_context(locked(lock)):
            print(f"{known.file_name}: another process fetches it; this one waits", file=sys.stderr)
            held.enter_context(locked(lock, wait=True))
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # Windows keeps a file that is open; filelock removes it there
                lock.unlink()


def _fetch(known: KnownFile, file: IO[bytes], etag: Path, destination: Path) -> None:
    """Makes the file whole, and checks its hash."""
    try:
        _transfer(known, file, etag)
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: it leads to no address
        again = "call again to go on from there, or " if etag.is_file() else ""
        raise ConnectionError(
            f"could not fetch {known.url} ({' '.join(str(error).split())}): {again}fetch it where there is a network "
            f"and put it at {destination}"
        ) from error
    try:
        _check_hash(known, file, "try again, or report that the file has changed")
    finally:
        etag.unlink(missing_ok=True)


def _transfer(known: KnownFile, file: IO[bytes], etag: Path) -> None:
    """Appends what a URL has beyond the bytes that are there; all of it if the server's file is not the same any more.

    `etag` exists while the bytes in `file` are those of the server's file that it names.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    begun = file.seek(0, os.SEEK_END)
    tag = etag.read_text(errors="replace") if etag.is_file() else ""
    resumes = begun > 0 and _STRONG.fullmatch(tag) is not None
    request = urllib.request.Request(
        known.url, headers={"Range": f"bytes={begun}-", "If-Range": tag} if resumes else {}
    )
    try:
        response = _OPENER.open(request, timeout=_PATIENCE)
    except urllib.error.HTTPError as error:
        if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{begun}":
            return  # nothing is left to fetch
        if error.code == 416:
            etag.unlink()
        raise
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with response, Progress(*columns, console=Console(stderr=True)) as progress:
        if response.headers.get_content_type() == "text/html":
            raise ConnectionError("the server sends a web page, such as one for logging in")
        if response.status == 206:
            if not (resumes and response.headers.get("Content-Range", "").startswith(f"bytes {begun}-")):
                raise _give_up(etag, f"asked for the bytes from {begun}, the server sends others")
        else:
            file.truncate(0)
            etag.unlink(missing_ok=True)
            begun, tag = 0, response.headers.get("ETag", "")
            if _STRONG.fullmatch(tag):
                etag.write_text(tag)
        received, began = begun, time.monotonic()
        announced = response.headers.get("Content-Length", "")
        size = begun + int(announced) if re.fullmatch(r"[0-9]{1,18}", announced) else None
        if size is not None and size > known.largest:
            raise _give_up(etag, f"expected at most {known.largest} bytes, the server announces {size}")
        if size is None and not known.sha256:
            raise _give_up(etag, "the server does not say how many bytes it sends, and no hash is known")
        licence = f" ({known.licence})" if known.licence else ""
        bar = progress.add_task(f"{known.file_name}{licence}", total=size, completed=begun)
        while chunk := response.read1(1 << 20):
            file.write(chunk)
            received += len(chunk)
            progress.advance(bar, len(chunk))
            if received > known.largest:
                raise _give_up(etag, f"expected at most {known.largest} bytes, and the server sends more")
            if (passed := time.monotonic() - began) > _PATIENCE and received - begun < _SLOWEST * passed:
                raise ConnectionError(f"the transfer stands still: {received} bytes in {passed:.0f} s")
    if size not in (None, received):
        raise ConnectionError(f"the transfer broke off after {received} of {size} bytes")
    if file.seek(0, os.SEEK_END) != received:
        raise _give_up(etag, "another process wrote into the same file")


def _give_up(etag: Path, reason: str) -> ConnectionError:
    """An error after which nothing is kept."""
    etag.unlink(missing_ok=True)
    return ConnectionError(reason)


def _check_hash(known: KnownFile, file: IO[bytes], advice: str) -> None:
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest() if known.sha256 else ""  # pyright: ignore[reportArgumentType]
    if not digest.startswith(known.sha256):
        raise ValueError(f"{known.file_name} must have a SHA-256 of {known.sha256}..., got {digest}: {advice}")
