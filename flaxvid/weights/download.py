"""Weights by a known name, downloaded once into a cache."""

import dataclasses
import difflib
import hashlib
import http.client
import os
import re
import time
import urllib.request
import uuid
from pathlib import Path

from flaxvid.writing import cache_folder

_PATIENCE = 30.0
"""A transfer fails after so many seconds without a byte, or if it is then slower than `_SLOWEST`."""
_SLOWEST = 1000
"""Bytes a second."""


@dataclasses.dataclass(frozen=True)
class KnownFile:
    """A file with a name of its own.

    Attributes:
        url: where it is.
        sha256: in hex, or its first digits. torchvision publishes eight, in the file name. They catch a damaged or
            mixed-up file, but not a forger's; against that stand HTTPS and a reader that runs no code.
        largest: fetches no more bytes than this, whatever the server says or sends.
    """

    url: str
    sha256: str
    largest: int = 2 << 30

    @property
    def file_name(self) -> str:
        """The last part of the URL."""
        return self.url.rpartition("/")[-1]


def _torchvision(file_name: str) -> KnownFile:
    digits = file_name.removesuffix(".pth").rpartition("-")[-1]
    return KnownFile(f"https://download.pytorch.org/models/{file_name}", digits)


KNOWN = {
    "torchvision/resnet18-imagenet1k-v1": _torchvision("resnet18-f37072fd.pth"),
    "torchvision/resnet34-imagenet1k-v1": _torchvision("resnet34-b627a593.pth"),
    "torchvision/resnet50-imagenet1k-v1": _torchvision("resnet50-0676ba61.pth"),
    "torchvision/resnet50-imagenet1k-v2": _torchvision("resnet50-11ad3fa6.pth"),
    "torchvision/resnet101-imagenet1k-v1": _torchvision("resnet101-63fe2227.pth"),
    "torchvision/resnet101-imagenet1k-v2": _torchvision("resnet101-cd907fc2.pth"),
    "torchvision/resnet152-imagenet1k-v1": _torchvision("resnet152-394f9c45.pth"),
    "torchvision/resnet152-imagenet1k-v2": _torchvision("resnet152-f82ba261.pth"),
}


def resolve_weights(name_or_path: str | Path) -> Path:
    """The file of a known name, downloaded at first use, or the path itself if there is a file.

    Raises:
        FileNotFoundError: neither a file nor a known name.
        ConnectionError: the download failed; the message names URL and destination.
        ValueError: the file is not the one that the name stands for.
    """
    known = KNOWN.get(str(name_or_path))
    if known is not None:
        return download(known, cache_folder() / known.file_name)
    path = Path(name_or_path)
    if path.is_file():
        return path
    near = difflib.get_close_matches(str(name_or_path), KNOWN, n=2, cutoff=0.6)
    if path.is_dir():
        raise FileNotFoundError(f"no weights file at {path}: it is a folder, pass the file in it")
    hint = f"did you mean {' or '.join(near)}?" if near else f"correct the path; known names are {', '.join(KNOWN)}"
    raise FileNotFoundError(f"no weights file at {path}: {hint}")


def download(known: KnownFile, destination: Path) -> Path:
    """Fetches a file unless it is there, with a progress bar, and checks its hash either way.

    The file gets its name only when it is whole and right. So a broken transfer is never taken for a file.

    Raises:
        ConnectionError: no network, the transfer broke off or stands still, or the file is too large.
        ValueError: wrong SHA-256.
    """
    if destination.is_file():
        with destination.open("rb") as file:
            _check_hash(
                known, hashlib.file_digest(file, "sha256").hexdigest(), f"delete {destination} to fetch it again"
            )
        return destination
    destination.parent.mkdir(parents=True, exist_ok=True)
    part = destination.with_name(f"{destination.name}.{uuid.uuid4().hex}.part")
    try:
        try:
            digest = _transfer(known, part)
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: it leads to no address
            raise ConnectionError(
                f"could not fetch {known.url} ({' '.join(str(error).split())}): fetch it where there is a network and "
                f"put it at {destination}"
            ) from error
        _check_hash(known, digest, "try again, or report that the file has changed")
        os.replace(part, destination)
    finally:
        part.unlink(missing_ok=True)
    return destination


def _transfer(known: KnownFile, part: Path) -> str:
    """Copies a URL into a file; its SHA-256 in hex."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    digest, received, began = hashlib.sha256(), 0, time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with (
        urllib.request.urlopen(known.url, timeout=_PATIENCE) as response,
        part.open("wb") as file,
        Progress(*columns) as progress,
    ):
        if known.url.startswith("https:") and not response.url.startswith("https:"):
            raise ConnectionError(f"redirected to {response.url}, which is not https")
        announced = response.headers.get("Content-Length", "")
        size = int(announced) if re.fullmatch(r"[0-9]{1,18}", announced) else None
        if size is not None and size > known.largest:
            raise ConnectionError(f"expected at most {known.largest} bytes, the server announces {size}")
        bar = progress.add_task(known.file_name, total=size)
        while chunk := response.read1(1 << 20):
            file.write(chunk)
            digest.update(chunk)
            received += len(chunk)
            progress.advance(bar, len(chunk))
            if received > known.largest:
                raise ConnectionError(f"expected at most {known.largest} bytes, and the server sends more")
            if (passed := time.monotonic() - began) > _PATIENCE and received < _SLOWEST * passed:
                raise ConnectionError(f"the transfer stands still: {received} bytes in {passed:.0f} s")
    if size is not None and received != size:
        raise ConnectionError(f"the transfer broke off after {received} of {size} bytes")
    return digest.hexdigest()


def _check_hash(known: KnownFile, digest: str, advice: str) -> None:
    if not digest.startswith(known.sha256):
        raise ValueError(f"{known.file_name} must have a SHA-256 of {known.sha256}..., got {digest}: {advice}")
