"""A data set of files: videos, or folders of frames, under one root."""

import collections
import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flaxvid.data.mirror import NO_LABEL, FlipLabels, flip_labels
from flaxvid.data.sources.names import list_names
from flaxvid.data.sources.search import VIDEO_SUFFIXES, is_junk
from flaxvid.types import Classes, by_target


@dataclass(frozen=True)
class FileSource:
    """Videos that are files, or folders of frames, under one root.

    Attributes:
        name: The data set and split, for messages.
        root: The folder that paths are relative to.
        paths: The path of each video, which is also its id.
        labels: The label of each video. Several targets have such a tuple each, with `NO_LABEL` for a missing label.
        classes: Class names, by label. Several targets have such a tuple each.
        layout: What the data set looks like on disk, for messages.
        notes: What was left out or looks odd, a sentence each. `describe_splits` shows them.

    Raises:
        ValueError: There are no videos, or a label is outside the classes.
    """

    name: str
    root: str
    paths: tuple[str, ...]
    labels: tuple[int, ...] | Mapping[str, tuple[int, ...]]
    classes: Classes
    layout: str = ""
    notes: tuple[str, ...] = field(default=(), repr=False, compare=False)

    def __post_init__(self):
        if not self.paths:
            raise ValueError(
                f"{self.name}: expected videos, got an empty list: check the list, the root and the split; the layout "
                f"is {self.layout}"
            )
        least = NO_LABEL if isinstance(self.labels, Mapping) else 0
        for target, labels in by_target(self.labels).items():
            count = len(by_target(self.classes)[target])
            for path, label in zip(self.paths, labels, strict=True):
                if not least <= label < count:
                    raise ValueError(
                        f"{self.name}: expected labels{' of ' * bool(target)}{target} from 0 to {count - 1} ({count} "
                        f"classes), got {label} for {path}: correct the list or the class names"
                    )

    @property
    def flip_labels(self) -> FlipLabels:
        """What each label becomes in a mirror, by the words for sides and turns in the class names."""
        return flip_labels(self.classes)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, labels = self.paths[index], self.labels
        label = {target: own[index] for target, own in labels.items()} if isinstance(labels, Mapping) else labels[index]
        return {"video": os.path.join(self.root, path), "label": label, "id": path}

    def located(self, *, some: bool = False) -> "FileSource":
        """Gives the same source with the paths that its videos have on disk.

        A list may say `a.avi` where `a.mp4` lies, or a folder of frames `a`. Names may also differ in case and in how
        accents are written. If only one such video is there, it is taken, and a note counts them. Each folder is listed
        once, because asking for every file is slow on network disks.

        Args:
            some: Whether some videos may be missing. They stay in the source.

        Raises:
            FileNotFoundError: Videos are missing. The message counts them and names the first ones.
            ValueError: Two names of the list fit only one video.
        """
        disk = Disk(self.root)
        wanted = set(self.paths)
        paths, missing, other = [], [], []
        for path in self.paths:
            if not disk.has(path):
                found = disk.alike(path)
                if found is None or found in wanted:
                    missing.append(path)
                else:
                    other.append((path, found))
                    path = found
            paths.append(path)
        if len(missing) == len(paths) or (missing and not some):
            raise FileNotFoundError(
                f"{self.name}: expected {len(self.paths)} videos under {self.root}, {len(missing)} are missing "
                f"({list_names(missing, 3)}): check the root, fetch them, drop them from the list, or go without them "
                f"by data.missing=keep; the layout is {self.layout}"
            )
        if not other:
            return self
        if len(set(paths)) < len(wanted):
            twice = next(path for path, count in collections.Counter(found for _, found in other).items() if count > 1)
            names = ", ".join(path for path, found in other if found == twice)
            raise ValueError(f"{self.name}: expected a video for each of {names}, got only {twice}: correct the list")
        note = f"{len(other)} videos have another name on disk than listed, such as {other[0][1]} for {other[0][0]}"
        return replace(self, paths=tuple(paths), notes=(*self.notes, note))


class Disk:
    """Knows which videos lie under a root. It lists a folder once, on the first question about it."""

    def __init__(self, root: str):
        self._root = root
        self._names: dict[str, frozenset[str]] = {}
        self._stems: dict[str, dict[str, list[str]]] = {}

    def has(self, path: str) -> bool:
        """Whether the file or folder exists."""
        folder, name = os.path.split(path)
        if (names := self._names.get(folder)) is None:
            full = os.path.join(self._root, folder)
            names = self._names[folder] = frozenset(os.listdir(full) if os.path.isdir(full) else ())
        return name in names

    def alike(self, path: str) -> str | None:
        """The video whose name differs only in suffix, case or accents; None if there is none, or several."""
        folder, name = os.path.split(path)
        if folder not in self._stems:
            stems = self._stems[folder] = {}
            for there in sorted(self._names[folder]):
                if not is_junk(there):
                    stems.setdefault(video_stem(there), []).append(there)
        same = [there for there in self._stems[folder].get(video_stem(name), ()) if self._is_video(folder, there)]
        return os.path.join(folder, same[0]) if len(same) == 1 else None

    def _is_video(self, folder: str, name: str) -> bool:
        return name.lower().endswith(VIDEO_SUFFIXES) or os.path.isdir(os.path.join(self._root, folder, name))


def video_stem(name: str) -> str:
    """A video's name without suffix, in lower case, with accents in one form. All spellings have the same stem."""
    stem, suffix = os.path.splitext(name)
    return unicodedata.normalize("NFC", stem if suffix.lower() in VIDEO_SUFFIXES else name).casefold()


def file_source(
    name: str,
    root: Path,
    rows: Sequence[tuple[str, int]],
    classes: Sequence[str],
    layout: str,
    notes: tuple[str, ...] = (),
) -> FileSource:
    """Makes a source of rows (path, label)."""
    paths, labels = tuple(path for path, _ in rows), tuple(label for _, label in rows)
    return FileSource(name, str(root), paths, labels, tuple(classes), layout, notes)
