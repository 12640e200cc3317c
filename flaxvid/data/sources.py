"""Where videos and labels come from: the embedded data set, class folders, lists, and well-known data sets' own files.

A source is a read-only sequence of `{"video": bytes or path, "label": int, "id": str}`. Opening one reads the lists and
checks that every video is there; nothing is decoded.
"""

import csv
import functools
import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from flaxvid.data.transforms import mirrored_labels

if TYPE_CHECKING:
    from flaxvid.data.motion import MotionConfig

VIDEO_SUFFIXES = (".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
HOLD_OUT = 0.2
"""Part of each class that `folder` keeps for the test where there are no split folders."""


class Source(Protocol):
    """A labelled set of videos, indexed from 0; picklable, since worker processes get a copy."""

    @property
    def name(self) -> str:
        """The data set and split, for messages."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, by label."""
        ...

    @property
    def flip_labels(self) -> tuple[int | None, ...] | None:
        """The label of each class's mirror image, None for a class that must not be mirrored; None if all keep it."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


@dataclass(frozen=True)
class FileSource:
    """Videos that are files, or folders of frames, under one root.

    Raises:
        ValueError: No videos, or a label outside the classes.
        FileNotFoundError: Videos that are not there; with their number and the first few.
    """

    name: str
    root: str
    paths: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]

    def __post_init__(self):
        if not self.paths:
            raise ValueError(f"{self.name}: expected videos, got an empty list: check the list, the root and the split")
        for path, label in zip(self.paths, self.labels, strict=True):
            if not 0 <= label < len(self.classes):
                raise ValueError(
                    f"{self.name}: expected labels from 0 to {len(self.classes) - 1} ({len(self.classes)} classes), "
                    f"got {label} for {path}: correct the list or the class names"
                )
        missing = _missing(self.root, self.paths)
        if missing:
            raise FileNotFoundError(
                f"{self.name}: expected {len(self.paths)} videos under {self.root}, {len(missing)} are missing "
                f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}): check the root, fetch them or drop "
                "them from the list"
            )

    @functools.cached_property
    def flip_labels(self) -> tuple[int | None, ...] | None:
        """What each label becomes in a mirror, by the words "left" and "right" in the class names."""
        return mirrored_labels(self.classes)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.paths[index]
        return {"video": os.path.join(self.root, path), "label": self.labels[index], "id": path}


def open_source(
    name: str,
    root: str | Path | None,
    split: str = "train",
    *,
    fold: int | None = None,
    lists: str | Path | None = None,
    motion: "MotionConfig | None" = None,
) -> Source:
    """Opens one split of a data set.

    Args:
        name: One of `SOURCES`; what each expects on disk is in its function's docstring and its errors.
        root: The folder of the videos; for `motion` the folder to build it in, or None for the cache.
        split: "train", "test"; or "validation" where the data set has it.
        fold: Which of the official splits, from 1 (`ucf101`, `hmdb51`; 1 by default).
        lists: The folder of the list files where it is not found by itself (data sets that have lists).
        motion: What `motion` is to look like (its defaults).

    Raises:
        ValueError: An unknown name, an option that the data set does not have, or what its files hold is wrong.
        FileNotFoundError: Files are not where the data set has them; the message shows the layout expected.
    """
    if name not in SOURCES:
        raise ValueError(f"expected one of {', '.join(sorted(SOURCES))}, got {name!r}: your own videos are `folder`")
    given = {key: value for key, value in {"fold": fold, "lists": lists, "motion": motion}.items() if value is not None}
    function, options = SOURCES[name]
    if given.keys() - options:
        known = ", ".join(sorted(options)) or "no options"
        raise ValueError(f"{name}: expected {known}, got {', '.join(sorted(given.keys() - options))}: leave it out")
    if root is None and name != "motion":
        raise ValueError(f"{name}: expected the folder of the videos as root, got None")
    return function(None if root is None else Path(root).expanduser(), split, **given)


def motion_source(root: Path | None, split: str, motion: "MotionConfig | None" = None) -> Source:
    """The embedded data set, built under `root` on first use."""
    from flaxvid.data.motion import MotionConfig, MotionSource, build_motion  # brings tensorflow_datasets

    return MotionSource(build_motion(root, motion or MotionConfig()), split)


def folder_source(root: Path, split: str) -> FileSource:
    """Class folders of videos: `<root>/<split>/<class>/*.mp4`, or `<root>/<class>/*.mp4` with a hold-out.

    Without split folders a fifth of each class, chosen by a hash of the file names, is "test" and the rest "train", so
    that a new video moves at most one other. Classes are the folders' names, sorted; with split folders those of
    `train`.
    """
    layout = f"{root}/<class>/<video>.mp4, or {root}/train/<class>/<video>.mp4 and {root}/{split}/<class>/<video>.mp4"
    if not root.is_dir():
        raise FileNotFoundError(f"folder: expected {layout}; got no folder {root}")
    has_splits = (root / "train").is_dir()
    train = root / "train" if has_splits else root
    classes = tuple(sorted(path.name for path in train.iterdir() if path.is_dir() and not path.name.startswith(".")))
    if has_splits:
        videos = {name: _videos(root / split / name) for name in classes}
        strange = {path.name for path in (root / split).glob("*/")} - set(classes) if split != "train" else set()
        if strange:
            raise ValueError(f"folder: expected in {root / split} the classes of {train}, got also {sorted(strange)}")
    else:
        if split not in ("train", "test"):
            raise ValueError(f"folder: expected split train or test without split folders, got {split!r}: use {layout}")
        videos = {name: _held_out(_videos(root / name), test=split == "test") for name in classes}
    paths = [(path.relative_to(root).as_posix(), label) for label, name in enumerate(classes) for path in videos[name]]
    if not paths:
        raise ValueError(f"folder: expected {layout} ({', '.join(VIDEO_SUFFIXES)}); got no {split} videos in {root}")
    return _file_source(f"folder {split}", root, paths, classes)


def list_source(root: Path, split: str, lists: str | Path | None = None) -> FileSource:
    """A text list `<lists>/<split>.txt` of lines `path label`, paths relative to `root` (where the list is, too).

    Labels count from 0, or are class names where there is a `classes.txt` with one name a line. Without it the classes
    are as many as the largest label of train.txt and this list asks for, named by their numbers.
    """
    folder = Path(lists) if lists else root
    layout = f"{folder}/{split}.txt with lines `path label`, and if you like {folder}/classes.txt with a name a line"
    names = tuple(_lines(folder / "classes.txt", layout)) if (folder / "classes.txt").is_file() else ()
    rows = _labelled(folder / f"{split}.txt", layout, names)
    if not names:
        train = folder / "train.txt"
        known = rows + (_labelled(train, layout, ()) if train.is_file() else [])
        names = tuple(str(label) for label in range(max((label for _, label in known), default=-1) + 1))
    return _file_source(f"list {split}", root, rows, names)


def ucf101_source(root: Path, split: str, fold: int = 1, lists: str | Path | None = None) -> FileSource:
    """UCF-101 with its own lists: classInd.txt, trainlist01.txt, testlist01.txt, and `<class>/v_*.avi`."""
    layout = (
        f"{root}/<class>/v_<class>_g01_c01.avi (or {root}/UCF-101/<class>/...), and classInd.txt, trainlist0{fold}.txt "
        f"and testlist0{fold}.txt in {root} or {root}/ucfTrainTestlist (or lists=)"
    )
    _check_split("ucf101", split, ("train", "test"))
    folder = _folder_with("classInd.txt", [lists] if lists else [root, root / "ucfTrainTestlist"], layout)
    index = dict(line.split()[::-1] for line in _lines(folder / "classInd.txt", layout))
    classes = tuple(sorted(index, key=lambda name: int(index[name])))
    if [int(index[name]) for name in classes] != list(range(1, len(classes) + 1)):
        raise ValueError(f"ucf101: expected classes numbered from 1 in {folder / 'classInd.txt'}, got {index}")
    rows = []
    for line in _lines(folder / f"{split}list{fold:02d}.txt", layout):
        path, _, number = line.partition(" ")  # test lists have no labels: the folder tells the class
        name = path.partition("/")[0]
        if name not in index or number not in ("", index[name]):
            raise ValueError(f"ucf101: expected a class of classInd.txt and its number, got {line!r}: {layout}")
        rows.append((path, classes.index(name)))
    videos = next((place for place in (root / "UCF-101", root / "videos") if place.is_dir()), root)
    return _file_source(f"ucf101 {split}{fold}", videos, rows, classes)


def hmdb51_source(root: Path, split: str, fold: int = 1, lists: str | Path | None = None) -> FileSource:
    """HMDB-51 with its own lists, one a class: `<class>_test_split1.txt` of lines `video.avi 0|1|2`; 1 is training."""
    pattern = f"*_test_split{fold}.txt"
    layout = (
        f"{root}/<class>/<video>.avi (or {root}/videos/<class>/...), and {pattern} in {root}, "
        f"{root}/testTrainMulti_7030_splits or {root}/splits (or lists=)"
    )
    _check_split("hmdb51", split, ("train", "test"))
    places = [lists] if lists else [root, root / "testTrainMulti_7030_splits", root / "splits"]
    files = sorted(_folder_with(pattern, places, layout).glob(pattern))
    classes = tuple(path.name.removesuffix(pattern[1:]) for path in files)
    wanted = {"train": "1", "test": "2"}[split]
    rows = [
        (f"{name}/{line.rsplit(maxsplit=1)[0]}", label)
        for label, (name, path) in enumerate(zip(classes, files, strict=True))
        for line in _lines(path, layout)
        if line.split()[-1] == wanted
    ]
    return _file_source(f"hmdb51 {split}{fold}", root / "videos" if (root / "videos").is_dir() else root, rows, classes)


def kinetics400_source(root: Path, split: str, lists: str | Path | None = None) -> FileSource:
    """Kinetics-400 with its CSV files (label, youtube_id, time_start, time_end, split).

    Clips disappear from the web, so missing ones are dropped, with a warning that counts them.
    """
    _check_split("kinetics400", split, ("train", "validation", "test"))
    part = "val" if split == "validation" else split
    layout = (
        f"{root}/{part}/<youtube_id>_<start, 6 digits>_<end>.mp4, with or without a class folder in between, and "
        f"train.csv and {part}.csv in {root} or {root}/annotations (or lists=)"
    )
    folder = _folder_with(f"{part}.csv", [lists] if lists else [root, root / "annotations"], layout)
    tables = {}
    for name in {"train", part}:
        with _opened(folder / f"{name}.csv", layout) as file:
            tables[name] = list(csv.DictReader(file))
    for column in ("label", "youtube_id", "time_start", "time_end"):
        if not tables[part] or column not in tables[part][0]:
            raise ValueError(f"kinetics400: expected a column {column!r} in {folder / part}.csv; {layout}")
    classes = tuple(sorted({row["label"] for row in tables["train"]}))
    index = {name: label for label, name in enumerate(classes)}
    found = {path.name: path.relative_to(root).as_posix() for path in (root / part).rglob("*.mp4")}
    names = [f"{r['youtube_id']}_{int(r['time_start']):06d}_{int(r['time_end']):06d}.mp4" for r in tables[part]]
    rows = [
        (found[name], index.get(row["label"], -1))
        for name, row in zip(names, tables[part], strict=True)
        if name in found
    ]
    if not rows:
        raise FileNotFoundError(f"kinetics400: expected {layout}; got none of {len(names)} videos, such as {names[0]}")
    if len(rows) < len(names):
        warnings.warn(f"kinetics400 {split}: {len(names) - len(rows)} of {len(names)} videos are missing", stacklevel=3)
    return _file_source(f"kinetics400 {split}", root, rows, classes)


def ssv1_source(root: Path, split: str, lists: str | Path | None = None) -> FileSource:
    """Something-Something V1: folders of JPEG frames, and its CSV files (`id;template`, one template a line)."""
    return _something(root, split, lists, version="v1")


def ssv2_source(root: Path, split: str, lists: str | Path | None = None) -> FileSource:
    """Something-Something V2: WebM videos, and its JSON files (labels.json, train.json, validation.json)."""
    return _something(root, split, lists, version="v2")


def _something(root: Path, split: str, lists: str | Path | None, version: str) -> FileSource:
    """Both versions: classes by the official label files, so that directional templates are told by their text."""
    name, prefix, suffix = f"ss{version}", f"something-something-{version}", {"v1": "csv", "v2": "json"}[version]
    _check_split(name, split, ("train", "validation"))  # the test set has no public labels
    example = {"v1": "<id>/00001.jpg", "v2": "<id>.webm"}[version]
    layout = (
        f"{root}/20bn-{prefix}/{example} (or {root}/{example}), and {prefix}-labels.{suffix} and "
        f"{prefix}-{split}.{suffix} (or labels.{suffix} and {split}.{suffix}) in {root} or {root}/labels (or lists=)"
    )
    places = [Path(place) for place in ([lists] if lists else [root, root / "labels"])]
    beginnings = [(folder, start) for folder in places for start in (f"{prefix}-", "")]
    folder, start = next((p for p in beginnings if (p[0] / f"{p[1]}labels.{suffix}").is_file()), beginnings[0])
    labels, entries = folder / f"{start}labels.{suffix}", folder / f"{start}{split}.{suffix}"
    if version == "v1":
        classes = tuple(_lines(labels, layout))
        pairs = [line.split(";", 1) for line in _lines(entries, layout)]
    else:
        with _opened(labels, layout) as file:
            numbers: Mapping[str, str] = json.load(file)
        classes = tuple(sorted(numbers, key=lambda text: int(numbers[text])))
        with _opened(entries, layout) as file:
            pairs = [(f"{e['id']}.webm", re.sub(r"[\[\]]", "", e["template"])) for e in json.load(file)]
    index = {text: label for label, text in enumerate(classes)}
    rows = []
    for path, text in pairs:
        if text not in index:
            raise ValueError(f"{name}: expected a template of {labels}, got {text!r} for {path} in {entries}")
        rows.append((path, index[text]))
    videos = root / f"20bn-{prefix}" if (root / f"20bn-{prefix}").is_dir() else root
    return _file_source(f"{name} {split}", videos, rows, classes)


SOURCES = {
    "motion": (motion_source, {"motion"}),
    "folder": (folder_source, set()),
    "list": (list_source, {"lists"}),
    "ucf101": (ucf101_source, {"fold", "lists"}),
    "hmdb51": (hmdb51_source, {"fold", "lists"}),
    "kinetics400": (kinetics400_source, {"lists"}),
    "ssv1": (ssv1_source, {"lists"}),
    "ssv2": (ssv2_source, {"lists"}),
}
"""By name: the function that opens it, and which of `open_source`'s options it has."""


def _file_source(name: str, root: Path, rows: Iterable[tuple[str, int]], classes: Sequence[str]) -> FileSource:
    rows = list(rows)
    return FileSource(
        name, str(root), tuple(path for path, _ in rows), tuple(label for _, label in rows), tuple(classes)
    )


def _missing(root: str, paths: Iterable[str]) -> list[str]:
    """Listed videos that are not there; lists each folder once, which on network disks is far faster than asking."""
    listing = functools.cache(lambda folder: frozenset(os.listdir(folder)) if os.path.isdir(folder) else frozenset())
    parts = ((path, *os.path.split(os.path.join(root, path))) for path in paths)
    return [path for path, folder, name in parts if name not in listing(folder)]


def _videos(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES)


def _held_out(videos: list[Path], *, test: bool) -> list[Path]:
    ranked = sorted(videos, key=lambda path: hashlib.md5(path.name.encode(), usedforsecurity=False).digest())
    count = max(1, round(HOLD_OUT * len(videos))) if len(videos) > 1 else 0
    return sorted(ranked[:count] if test else ranked[count:])


def _labelled(path: Path, layout: str, names: Sequence[str]) -> list[tuple[str, int]]:
    rows, index = [], {name: label for label, name in enumerate(names)}
    for number, line in enumerate(_lines(path, layout), start=1):
        video, _, label = line.rpartition(" ")
        if not video or not (label in index or re.fullmatch(r"-?\d+", label)):
            raise ValueError(f"{path}: expected lines `path label`, got {line!r} as entry {number}: {layout}")
        rows.append((video.strip(), index[label] if label in index else int(label)))
    return rows


def _opened(path: Path, layout: str):
    if not path.is_file():
        raise FileNotFoundError(f"expected {layout}; got no file {path}")
    return path.open(encoding="utf-8", newline="")


def _lines(path: Path, layout: str) -> list[str]:
    with _opened(path, layout) as file:
        return [line.strip() for line in file if line.strip() and not line.startswith("#")]


def _folder_with(pattern: str, places: Iterable[str | Path], layout: str) -> Path:
    for place in map(Path, places):
        if any(place.glob(pattern)):
            return place
    raise FileNotFoundError(f"expected {layout}; got no {pattern}")


def _check_split(name: str, split: str, splits: Sequence[str]) -> None:
    if split not in splits:
        raise ValueError(f"{name}: expected split {' or '.join(splits)}, got {split!r}")
