"""Where videos and labels come from: `open_source` opens any data set that the library knows, by name.

A source is a read-only sequence of `{"video": bytes or path, "label": int, "id": str}`, or, where several things are
asked of each video, with labels such as `{"action": 3, "actor": 0}`. Opening one reads the lists and
checks that every video is there; nothing is decoded.
"""

import csv
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from flaxvid.data.files import (
    VIDEO_SUFFIXES,
    FileSource,
    FlipLabels,
    file_source,
    find_videos,
    first_file,
    held_out,
    list_places,
    open_list,
    read_lines,
)
from flaxvid.data.published import (
    diving48_source,
    hmdb51_source,
    jester_source,
    kinetics_source,
    ssv1_source,
    ssv2_source,
    ucf101_source,
)
from flaxvid.data.stored import tfds_source
from flaxvid.types import Classes

if TYPE_CHECKING:
    from flaxvid.data.motion import MotionConfig


class Source(Protocol):
    """A labelled set of videos, indexed from 0; picklable, since worker processes get a copy.

    One of scenes that several cameras saw has besides `views`, their names, and dicts for videos; see `data.scenes`.
    """

    @property
    def name(self) -> str:
        """The data set and split, for messages."""
        ...

    @property
    def classes(self) -> Classes:
        """Class names, by label; where there are several tasks, those of each."""
        ...

    @property
    def flip_labels(self) -> FlipLabels:
        """The label of each class's mirror image, None for a class that must not be mirrored; None if all keep it."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


def open_source(
    name: str,
    root: str | Path | None,
    split: str = "train",
    *,
    fold: int | None = None,
    lists: str | Path | None = None,
    motion: "MotionConfig | None" = None,
    missing: Literal["error", "keep"] = "error",
) -> Source:
    """Opens one split of a data set.

    Args:
        name: One of `SOURCES`; what each expects on disk is in its function's docstring and its errors. A data set that
            TFDS has prepared is `tfds:NAME`, as in `tfds:ucf101/ucf101_1:2.0.0`, and `tfds` alone whatever lies in the
            root, such as what `scripts/prepare_data.py` wrote there.
        root: The folder of the videos; for `motion` the folder to build it in, or None for the cache.
        split: "train", "test"; or "validation" where the data set has it.
        fold: Which of the official splits, from 1 (`ucf101`, `hmdb51`; 1 by default).
        lists: The folder of the list files where it is not found by itself (data sets that have lists).
        motion: What `motion` is to look like (its defaults).
        missing: What to do where listed files are not there: "error", or "keep" them in the source, where reading one
            fails, unless all are missing.

    Raises:
        ValueError: An unknown name, an option that the data set does not have, or what its files hold is wrong.
        FileNotFoundError: Files are not where the data set has them; the message shows the layout expected.
    """
    name, _, dataset = name.partition(":")
    if name not in SOURCES or (dataset and name != "tfds"):
        wrong = f"{name}:{dataset}" if dataset else name
        raise ValueError(
            f"expected one of {', '.join(sorted(SOURCES))} or tfds:NAME, got {wrong!r}: your own videos are `folder` "
            "or `list`"
        )
    if missing not in ("error", "keep"):
        raise ValueError(f'expected missing="error" or "keep", got {missing!r}')
    options = {"fold": fold, "lists": lists, "motion": motion, "dataset": dataset or None}
    given = {key: value for key, value in options.items() if value is not None}
    kind = SOURCES[name]
    if given.keys() - kind.options:
        known = ", ".join(sorted(kind.options - {"dataset"})) or "no options"  # `dataset` is part of the name
        raise ValueError(
            f"{name}: expected {known}, got {', '.join(sorted(given.keys() - kind.options))}: leave it out"
        )
    if root is None and name != "motion":
        raise ValueError(f"{name}: expected the folder of the videos as root, got None")
    source = kind.open(None if root is None else Path(root).expanduser(), split, **given)
    if isinstance(source, FileSource):
        source.check_files(some=missing == "keep")
    return source


def motion_source(root: Path | None, split: str, motion: "MotionConfig | None" = None) -> Source:
    """The embedded data set, built under `root` on first use."""
    from flaxvid.data.motion import MotionConfig, MotionSource, build_motion  # brings tensorflow_datasets

    return MotionSource(build_motion(root, motion or MotionConfig()), split)


def folder_source(root: Path, split: str) -> FileSource:
    """Class folders of videos: `<root>/<split>/<class>/*.mp4`, or `<root>/<class>/*.mp4` with a hold-out.

    Without split folders a fifth of each class, chosen by a hash of the file names, is "test" and the rest "train", so
    that a new video moves at most one other. Classes are the folders' names, sorted; with split folders those of
    `train`. The split "all" is every video.
    """
    layout = f"{root}/<class>/<video>.mp4, or {root}/train/<class>/<video>.mp4 and {root}/test/<class>/..."
    if not root.is_dir():
        raise FileNotFoundError(f"folder: expected {layout}; got no folder {root}")
    has_splits = (root / "train").is_dir()
    train = root / "train" if has_splits else root
    classes = sorted(path.name for path in train.iterdir() if path.is_dir() and not path.name.startswith("."))
    if has_splits:
        folders = sorted(path.name for path in root.glob("*/")) if split == "all" else [split]
        videos = {name: [path for part in folders for path in find_videos(root / part / name)] for name in classes}
        strange = (
            {path.name for path in (root / split).glob("*/")} - set(classes) if split not in ("train", "all") else set()
        )
        if strange:
            raise ValueError(f"folder: expected in {root / split} the classes of {train}, got also {sorted(strange)}")
    elif split == "all":
        videos = {name: find_videos(root / name) for name in classes}
    else:
        if split not in ("train", "test"):
            raise ValueError(f"folder: expected split train or test without split folders, got {split!r}: use {layout}")
        videos = {name: held_out(find_videos(root / name), test=split == "test") for name in classes}
    rows = [(path.relative_to(root).as_posix(), label) for label, name in enumerate(classes) for path in videos[name]]
    if not rows:
        raise ValueError(f"folder: expected {layout} ({', '.join(VIDEO_SUFFIXES)}); got no {split} videos in {root}")
    return file_source(f"folder {split}", root, rows, classes, layout)


def list_source(root: Path, split: str, lists: str | Path | None = None) -> FileSource:
    """A list `<lists>/<split>.txt` or `.csv` of lines `path label` or `path,label`, by default in the root.

    Paths are relative to the root. Labels count from 0, or are class names where there is a `classes.txt` with one
    name a line. Without it the classes are as many as the largest label of the training list and this one asks for,
    named by their numbers. Lines that begin with `# ` are comments, and the first may be the heading `path,label`.

    A CSV with a heading such as `path,action,actor` has a task in each column, and its labels are
    `{"action": 3, "actor": 0}`. A column of numbers counts its classes from 0; any other holds class names, and the
    classes are those of the training list in alphabetical order.
    """
    places = list_places(root, lists)
    layout = (
        f"{places[0]}/{split}.txt (or .csv) with lines `path label` or `path,label`, paths relative to {root}, and if "
        f"you like {places[0]}/classes.txt with a name a line; or, for several tasks, {split}.csv with the heading "
        "`path,action,actor`"
    )
    path = first_file(_list_names(split), places, layout)
    if any(re.fullmatch(TASKS_HEADING, line) for line in read_lines(path, layout)[:1]):
        return _tasks_source(f"list {split}", root, path, layout)
    names = read_lines(path.with_name("classes.txt"), layout) if path.with_name("classes.txt").is_file() else []
    rows = _labelled(path, layout, names)
    if not names:
        train = [path.with_name(name) for name in _list_names("train") if path.with_name(name).is_file()]
        known = rows + (_labelled(train[0], layout, ()) if train else [])
        names = [str(label) for label in range(max((label for _, label in known), default=-1) + 1)]
    return file_source(f"list {split}", root, rows, names, layout)


TASKS_HEADING = r"path(\s*,\s*[A-Za-z]\w*){2,}"


def _tasks_source(name: str, root: Path, path: Path, layout: str) -> FileSource:
    """A list with a column of labels for each task."""
    beside = (path.with_name(candidate) for candidate in _list_names("train"))
    train = next((candidate for candidate in beside if candidate.is_file()), path)
    table, known = _read_columns(path, layout), _read_columns(train, layout)
    paths, classes, labels = table.pop("path"), {}, {}
    if known.keys() - {"path"} != table.keys() or table.keys() & {"label", "video", "id"}:
        raise ValueError(
            f"{path}: expected the columns {', '.join(known)} of {train.name}, and none named label, video or id, got "
            f"path, {', '.join(table)}: {layout}"
        )
    for task, values in table.items():
        if all(value.isdecimal() for value in (*known[task], *values)):
            classes[task] = tuple(map(str, range(1 + max(map(int, (*known[task], *values)), default=-1))))
        else:
            classes[task] = tuple(sorted(set(known[task])))
        index = {text: label for label, text in enumerate(classes[task])}
        if unknown := sorted(set(values) - set(index)):
            raise ValueError(
                f"{path}: expected {task} to be one of {', '.join(index)}, as in {train.name}, got {', '.join(unknown)}"
            )
        labels[task] = tuple(index[value] for value in values)
    return FileSource(name, str(root), tuple(paths), labels, classes, layout)


def _read_columns(path: Path, layout: str) -> dict[str, list[str]]:
    """The columns of a CSV by their headings; lines that begin with `# ` are comments."""
    with open_list(path, layout) as file:
        heading, *rows = [row for row in csv.reader(file) if row and not row[0].startswith("# ")] or [[]]
    for row in rows:
        if len(row) != len(heading):
            raise ValueError(f"{path}: expected {len(heading)} columns ({', '.join(heading)}), got {row}: {layout}")
    return {name.strip(): [row[column].strip() for row in rows] for column, name in enumerate(heading)}


def _list_names(split: str) -> list[str]:
    names = ("validation", "val") if split == "validation" else (split,)
    return [f"{name}{suffix}" for name in names for suffix in (".txt", ".csv")]


def _labelled(path: Path, layout: str, names: Sequence[str]) -> list[tuple[str, int]]:
    """Rows of a list; a comma separates where a label follows it, and white space otherwise."""
    rows, index = [], {name: label for label, name in enumerate(names)}
    for number, line in enumerate(read_lines(path, layout), start=1):
        if line.startswith("# ") or (number == 1 and re.fullmatch(r"\w+\s*[,\s]\s*label", line)):
            continue
        pairs = [[part.strip(' \t"') for part in line.rsplit(separator, 1)] for separator in (",", None)]
        pair = next((pair for pair in pairs if len(pair) == 2 and pair[0] and _is_label(pair[1], index)), None)
        if pair is None:
            raise ValueError(
                f"{path}: expected lines `path label` or `path,label`, got {line!r} as entry {number}: {layout}"
            )
        rows.append((pair[0], index[pair[1]] if pair[1] in index else int(pair[1])))
    return rows


def _is_label(text: str, index: dict[str, int]) -> bool:
    return text in index or re.fullmatch(r"-?\d+", text) is not None


class Kind(NamedTuple):
    """A kind of data set: the function that opens it, which of `open_source`'s options it has, and its splits."""

    open: Callable[..., Any]  # a `Source`
    options: frozenset[str] = frozenset()
    splits: tuple[str, ...] = ("train", "test")


_LISTS, _FOLDS = frozenset({"lists"}), frozenset({"fold", "lists"})
SOURCES = {
    "motion": Kind(motion_source, frozenset({"motion"}), ("train", "validation", "test")),
    "folder": Kind(folder_source),
    "list": Kind(list_source, _LISTS),
    "tfds": Kind(tfds_source, frozenset({"dataset"})),
    "ucf101": Kind(ucf101_source, _FOLDS),
    "hmdb51": Kind(hmdb51_source, _FOLDS),
    "diving48": Kind(diving48_source, _LISTS),
    "jester": Kind(jester_source, _LISTS, ("train", "validation")),
    "ssv1": Kind(ssv1_source, _LISTS, ("train", "validation")),
    "ssv2": Kind(ssv2_source, _LISTS, ("train", "validation")),
    "kinetics400": Kind(kinetics_source, _LISTS, ("train", "validation")),
    "kinetics600": Kind(kinetics_source, _LISTS, ("train", "validation")),
    "kinetics700": Kind(kinetics_source, _LISTS, ("train", "validation")),
}
"""What can be opened, by name."""
