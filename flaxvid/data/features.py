"""Features that a frozen network computed once, on disk: one file for each video.

A file is a SHA-256 of the rest, and the arrays in the safetensors format, so damage never goes unnoticed. The folder of
a file names the network and how clips were cut; the file's own name, the video that they were cut from.
"""

import contextlib
import dataclasses
import hashlib
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import deserialize
from safetensors.numpy import save

from flaxvid.data.clips.cut import UNREADABLE
from flaxvid.data.clips.decode import VideoError
from flaxvid.data.mirror import Label
from flaxvid.data.sources.open import Source
from flaxvid.writing import locked, written_whole

Features = Mapping[int, Mapping[str, np.ndarray]]
"""What a network's body gives for a clip of each frame count: its arrays, numbered "0", "1", ..."""

_TYPES = {"F32": np.float32, "BF16": ml_dtypes.bfloat16}
_DIGEST = hashlib.sha256().digest_size


class DamagedError(OSError):
    """A file of features is not what was written."""


@dataclasses.dataclass(frozen=True)
class KeptFeatures:
    """The features of a source's videos; indexed as the source, it gives features and label.

    Attributes:
        folder: Of the files.
        names: The file of each video; "" for a video that the source cannot give.
        labels: The label of each video.
        broken: Positions of the videos that cannot be read, and therefore have no file.
    """

    folder: Path
    names: tuple[str, ...]
    labels: tuple[Label, ...]
    broken: frozenset[int] = frozenset()

    def __getitem__(self, index: int) -> tuple[Features, Label]:
        if index in self.broken:
            raise VideoError(f"video {index} could not be read when its features were computed")
        path = self.folder / self.names[index]
        try:
            return read_features(path), self.labels[index]
        except FileNotFoundError as error:  # not of the video: it must not be replaced by another one
            raise DamagedError(f"{path} was removed while it was in use: the same command computes it again") from error

    def find_missing(self) -> tuple[list[int], list[Path]]:
        """The videos without features, and the files that are damaged: those are removed, and their videos missing."""
        missing, damaged = [], []
        for index, name in enumerate(self.names):
            if index in self.broken:
                continue
            try:
                read_features(self.folder / name)
            except FileNotFoundError:
                missing.append(index)
            except DamagedError:
                damaged.append(self.folder / name)
                damaged[-1].unlink()
                missing.append(index)
        return missing, damaged


def list_features(source: Source, folder: Path) -> KeptFeatures:
    """The files that the features of a source's videos have, whether they are there or not."""
    names, labels, broken = [], [], set()
    for index in range(len(source)):
        try:
            item = source[index]
            names.append(fingerprint(item["video"]))
            labels.append(item["label"])
        except UNREADABLE:
            names.append("")
            labels.append(0)
            broken.add(index)
    return KeptFeatures(folder, tuple(names), tuple(labels), frozenset(broken))


def fingerprint(video: Any) -> str:
    """Names a video: encoded ones by their bytes, files by path, size and time of change. Several cameras by each.

    Raises:
        FileNotFoundError: The file is not there.
    """
    digest = hashlib.sha256()
    for camera, one in video.items() if isinstance(video, Mapping) else [("", video)]:
        digest.update(f"{camera}:".encode())
        if isinstance(one, bytes):
            digest.update(hashlib.sha256(one).digest())
            continue
        path = Path(one).absolute()
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            facts = file.stat()
            digest.update(f"{file} {facts.st_size} {facts.st_mtime_ns};".encode())
    return digest.hexdigest()[:32]


def write_features(path: Path, features: Features) -> None:
    """Writes a file; it is whole or not there."""
    arrays = {
        f"{count}/{name}": np.ascontiguousarray(own) for count, one in features.items() for name, own in one.items()
    }
    content = save(arrays)
    with written_whole(path) as beside:
        beside.write_bytes(hashlib.sha256(content).digest() + content)


def read_features(path: Path) -> Features:
    """Reads a file.

    Raises:
        FileNotFoundError: There is none.
        DamagedError: It is not what was written.
    """
    content = path.read_bytes()
    if hashlib.sha256(content[_DIGEST:]).digest() != content[:_DIGEST]:
        raise DamagedError(f"{path} is damaged: the same command removes it and computes it again")
    features: dict[int, dict[str, np.ndarray]] = {}
    for name, own in deserialize(content[_DIGEST:]):
        count, _, number = name.partition("/")
        array = np.frombuffer(own["data"], _TYPES[own["dtype"]]).reshape(own["shape"])
        features.setdefault(int(count), {})[number] = array
    return features


@contextlib.contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Keeps `make_room` from removing a folder, until the block or this process ends."""
    mark = folder / f".in-use-{socket.gethostname()}-{os.getpid()}"
    with locked(mark):
        os.utime(folder)
        try:
            yield
        finally:  # still locked: from then on another process may remove the folder and all that it finds there
            with contextlib.suppress(OSError):  # Windows keeps a file that is open; filelock removes it there
                mark.unlink()


def make_room(root: Path, own: Path, needed: int, limit: int) -> None:
    """Removes folders of features until so many bytes more have room, those first that were not used for longest.

    Args:
        root: The folder of the folders. The caller holds its lock.
        own: The one that is not removed.
        needed: Bytes that are to be written.
        limit: Bytes that all folders may take.

    Raises:
        ValueError: There is no room, even without all that can be removed.
    """
    sizes = {folder: _size(folder) for folder in root.iterdir() if folder.is_dir()}

    def find_room() -> tuple[int, int]:
        return limit - sum(sizes.values()), shutil.disk_usage(root).free

    for folder in sorted(sizes.keys() - {own}, key=lambda folder: folder.stat().st_mtime):
        if needed <= min(find_room()):
            return
        if not _is_in_use(folder):
            shutil.rmtree(folder)
            del sizes[folder]
    allowed, free = find_room()
    if needed > allowed:
        raise ValueError(
            f"feature_cache: expected room for {needed / 1e9:.3g} GB of features, got a limit of {limit / 1e9:.3g} GB, "
            f"of which {(limit - allowed) / 1e9:.3g} GB are in use in {root}: raise it, or set it to 0 to keep none"
        )
    if needed > free:
        raise ValueError(
            f"feature_cache: expected room for {needed / 1e9:.3g} GB of features in {root}, got {free / 1e9:.3g} GB of "
            "free disk: make room, name another folder by FLAXVID_CACHE, or set feature_cache to 0 to keep none"
        )


def _size(folder: Path) -> int:
    size = 0
    for file in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # a process that ends takes its mark away
            size += file.stat().st_size
    return size


def _is_in_use(folder: Path) -> bool:
    for mark in folder.glob(".in-use-*"):
        with locked(mark) as is_free:
            if not is_free:
                return True
    return False
