"""A data set of files: videos, or folders of frames, under one root; and what reading lists of them has in common."""

import functools
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from flaxvid.data.search import VIDEO_SUFFIXES, find_videos
from flaxvid.data.transforms import mirrored_labels
from flaxvid.types import Classes, by_task

__all__ = ["VIDEO_SUFFIXES", "FileSource", "find_videos"]

HOLD_OUT = 0.2
"""Part of each class that `held_out` keeps for the test."""

FlipLabels = tuple[int | None, ...] | Mapping[str, tuple[int | None, ...] | None] | None
"""What each label becomes in a mirror, None for one that must not be mirrored; by task where there are several; None if
all keep theirs."""

_mirrored = functools.cache(mirrored_labels)  # asked for with every video


def flip_labels(classes: Classes) -> FlipLabels:
    """`mirrored_labels` of each task's classes, or of the only one's."""
    if not isinstance(classes, Mapping):
        return _mirrored(classes)
    mirrored = {task: _mirrored(names) for task, names in classes.items()}
    return mirrored if any(mirrored.values()) else None


@dataclass(frozen=True)
class FileSource:
    """Videos that are files, or folders of frames, under one root.

    Attributes:
        name: The data set and split, for messages.
        root: What the paths are relative to.
        paths: One video each; they are the videos' ids, too.
        labels: One a video; where there are several tasks, that for each task.
        classes: Class names, by label; where there are several tasks, those of each.
        layout: What the data set looks like on disk, for messages.

    Raises:
        ValueError: No videos, or a label outside the classes.
    """

    name: str
    root: str
    paths: tuple[str, ...]
    labels: tuple[int, ...] | Mapping[str, tuple[int, ...]]
    classes: Classes
    layout: str = ""

    def __post_init__(self):
        if not self.paths:
            raise ValueError(
                f"{self.name}: expected videos, got an empty list: check the list, the root and the split; the layout "
                f"is {self.layout}"
            )
        for task, labels in by_task(self.labels).items():
            count = len(by_task(self.classes)[task])
            for path, label in zip(self.paths, labels, strict=True):
                if not 0 <= label < count:
                    raise ValueError(
                        f"{self.name}: expected labels{' of ' * bool(task)}{task} from 0 to {count - 1} ({count} "
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
        label = {task: own[index] for task, own in labels.items()} if isinstance(labels, Mapping) else labels[index]
        return {"video": os.path.join(self.root, path), "label": label, "id": path}

    def check_files(self, *, some: bool = False) -> None:
        """Looks whether all videos are there; with `some`, whether any are.

        Lists each folder once, which on network disks is far faster than asking for every file.

        Raises:
            FileNotFoundError: They are not; with their number, the first few and the layout expected.
        """
        listing = functools.cache(
            lambda folder: frozenset(os.listdir(folder)) if os.path.isdir(folder) else frozenset()
        )
        parts = ((path, *os.path.split(os.path.join(self.root, path))) for path in self.paths)
        missing = [path for path, folder, name in parts if name not in listing(folder)]
        if len(missing) == len(self.paths) or (missing and not some):
            raise FileNotFoundError(
                f"{self.name}: expected {len(self.paths)} videos under {self.root}, {len(missing)} are missing "
                f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}): check the root, fetch them, "
                f"drop them from the list, or go without them by data.missing=keep; the layout is {self.layout}"
            )


def file_source(
    name: str, root: Path, rows: Iterable[tuple[str, int]], classes: Sequence[str], layout: str
) -> FileSource:
    """A source of rows (path, label)."""
    rows = list(rows)
    paths, labels = tuple(path for path, _ in rows), tuple(label for _, label in rows)
    return FileSource(name, str(root), paths, labels, tuple(classes), layout)


def held_out(videos: Sequence[Path], *, test: bool) -> list[Path]:
    """The fifth of some videos that is kept for the test, or the others, chosen by a hash of the file names."""
    ranked = sorted(videos, key=lambda path: hashlib.md5(path.name.encode(), usedforsecurity=False).digest())
    count = max(1, round(HOLD_OUT * len(videos))) if len(videos) > 1 else 0
    return sorted(ranked[:count] if test else ranked[count:])


def open_list(path: Path, layout: str) -> TextIO:
    """Opens a list file; where there is none, the error shows the layout expected."""
    if not path.is_file():
        raise FileNotFoundError(f"expected {layout}; got no file {path}")
    return path.open(encoding="utf-8-sig", newline="")


def read_lines(path: Path, layout: str) -> list[str]:
    """The lines of a list file that are not empty."""
    with open_list(path, layout) as file:
        return [line.strip() for line in file if line.strip()]


def first_file(names: Sequence[str], places: Iterable[str | Path], layout: str) -> Path:
    """The first file with one of the names (which may be patterns) in one of the places."""
    for place in map(Path, places):
        for name in names:
            found = sorted(place.glob(name))
            if found:
                return found[0]
    raise FileNotFoundError(f"expected {layout}; got no {' or '.join(names)}")


def list_places(root: Path, lists: str | Path | None, *folders: str) -> list[Path]:
    """Where list files may lie: where the user says, or else in the root and these folders of it."""
    return [Path(lists).expanduser()] if lists else [root, *(root / folder for folder in folders)]


def videos_folder(root: Path, *folders: str) -> Path:
    """The folder of the videos: the first of these in the root that is there, or else the root itself."""
    return next((root / folder for folder in folders if (root / folder).is_dir()), root)


def check_split(name: str, split: str, splits: Sequence[str]) -> None:
    """Refuses a split that the data set does not have."""
    if split not in splits:
        raise ValueError(f"{name}: expected split {' or '.join(splits)}, got {split!r}")
