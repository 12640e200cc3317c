"""Reads a list of videos as a table: finds the separator and what each column is."""

import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from flaxvid.data.sources.labels import is_number
from flaxvid.data.sources.search import VIDEO_SUFFIXES

PATHS = (
    *("path", "filepath", "videopath", "clippath", "relativepath", "relpath", "filename", "videoname", "videofile"),
    *("clipname", "file", "video", "clip", "vidname", "vid", "framesdir", "framedir", "folder", "directory", "videoid"),
    *("clipid", "name", "files", "paths", "videos", "id"),
)
"""Names of the column of videos, in lower case without spaces and signs. The first one that a list has is taken."""

LABELS = (
    *("label", "labels", "class", "classes", "category", "classname", "labelname", "classid", "labelid", "classindex"),
    *("labelindex", "classlabel", "target", "y"),
)
_SPLIT = ("split", "subset", "partition", "set")
_COUNTS = ("", "unnamed0", "index", "idx", "id", "no", "number", "row", "videoid", "clipid")
_FACTS = (
    *("frames", "numframes", "nframes", "nbframes", "totalframes", "framecount", "length", "duration", "fps", "width"),
    *("height", "resolution", "size", "md5", "sha256", "url", "source"),
)
_PARTS = ("start", "end", "begin", "starttime", "endtime", "timestart", "timeend", "startframe", "endframe", "offset")
_SAMPLE = 32
_AFTER_SUFFIX = re.compile(rf'"?(.*?(?:{"|".join(map(re.escape, VIDEO_SUFFIXES))}))"?\s+(.+)', re.IGNORECASE)
_COUNTED = re.compile(r'"?(.+?)"?\s+\d+\s+(\S+)')
_SEPARATORS = {"\t": "tabs", ";": "semicolons", ",": "commas"}

Exists = Callable[[str], bool]


@dataclass(frozen=True)
class Table:
    """A list as a table: the videos, and the cells of each column.

    Attributes:
        file: The list's path.
        lines: The line of each row in the file.
        paths: The videos, as the list has them.
        targets: The columns of labels, by name. An only one is called "".
        split: The column that says the split, if there is one.
        others: The columns that are not used.
        columns: All columns by their names in the heading.
    """

    file: Path
    lines: list[int]
    paths: list[str]
    targets: Mapping[str, list[str]]
    split: list[str] | None
    others: tuple[str, ...]
    columns: Mapping[str, list[str]]


def read_table(
    file: Path, text: str, names: Sequence[str], exists: Exists, layout: str, group: str | None = None
) -> Table:
    """Reads a list with a heading that names its columns, or one of `path label`, or mmaction2's `path frames label`.

    Tabs, semicolons, commas or spaces separate columns. A list without a heading may have several readings: the one
    whose videos exist is taken.

    Args:
        file: The list.
        text: Its content.
        names: Class names, if they are known.
        exists: Whether there is a video of that path.
        layout: What lists look like, for messages.
        group: A column that is no label.

    Raises:
        ValueError: It cannot be read. The message names the line.
    """
    lines = [(number, line.strip("\ufeff \r")) for number, line in enumerate(_split_lines(text), start=1)]
    lines = [(number, line) for number, line in lines if line.strip(' \t,;"') and not line.startswith("# ")]
    if lines and re.fullmatch(r'"?sep=."?', lines[0][1]):  # Excel's; the heading shows the separator, too
        del lines[0]
    if not lines:
        return Table(file, [], [], {"": []}, None, (), {})
    if heading := _heading(lines[0][1], exists):
        return _with_heading(file, lines, *heading, layout, group)
    return _without_heading(file, lines, frozenset(names), exists, layout)


def _split_lines(text: str) -> list[str]:
    return re.split(r"\r\n|\r|\n", text)  # splitlines() also cuts at characters that may be in a name


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.lower())


def _heading(line: str, exists: Exists) -> tuple[str, list[str]] | None:
    """The separator ("" is white space) and the names of the columns, if the line is a heading."""
    for separator in (*_SEPARATORS, ""):
        try:
            cells = _cells([line], separator or " ")[0] if separator or '"' in line else line.split()
        except csv.Error:
            continue
        cells = [cell.strip().strip("#\"'").strip() for cell in cells]
        plain = [_plain(cell) for cell in cells]
        if len(cells) < 2 or any(map(is_number, cells)) or not any(name in PATHS for name in plain):
            continue
        labelled = any(name in LABELS for name in plain)
        begins = [" ".join(cells[:end]) for end in range(1, len(cells))]  # a video may be called "video"
        if labelled or ((separator or len(cells) > 2) and not any(map(exists, cells if separator else begins))):
            return separator, cells
    return None


def _cells(lines: Sequence[str], separator: str) -> list[list[str]]:
    return [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=separator, skipinitialspace=True)]


def _rows(file: Path, lines: Sequence[tuple[int, str]], separator: str) -> list[list[str]]:
    try:
        rows = _cells([line for _, line in lines], separator)
    except csv.Error as error:
        raise ValueError(f"{file}: expected lines of cells, got {error}: close all quotation marks") from error
    if len(rows) == len(lines):
        return rows
    at = next((at for at, (_, line) in enumerate(lines) if line.count('"') % 2), 0)
    raise ValueError(
        f"{file}, line {lines[at][0]}: expected closed quotation marks, got {lines[at][1][:80]!r}: add one"
    )


def _with_heading(
    file: Path, lines: Sequence[tuple[int, str]], separator: str, heading: list[str], layout: str, group: str | None
) -> Table:
    plain = [_plain(name) for name in heading]
    path = next(plain.index(name) for name in PATHS if name in plain)
    if separator:
        rows = _rows(file, lines[1:], separator)
    else:
        cut = str.split if path else str.rsplit  # a path may have spaces
        rows = [[cell.strip('"') for cell in cut(line, None, len(heading) - 1)] for _, line in lines[1:]]
        if any('"' in line for _, line in lines[1:]):  # quotation marks tell spaces in cells from those between them
            quoted = _rows(file, lines[1:], " ")
            rows = [row if len(row) == len(heading) else plainly for row, plainly in zip(quoted, rows, strict=True)]
    numbers = [number for number, _ in lines[1:]]
    for number, row in zip(numbers, rows, strict=True):
        if len(row) > len(heading) == 2 and path == 0:
            row[:] = [separator.join(row[:-1]), row[-1]]  # a path with commas and without quotation marks
        if len(row) != len(heading):
            raise ValueError(
                f"{file}, line {number}: expected {len(heading)} columns ({', '.join(heading)}), got {row}: {layout}"
            )
    while len(heading) > 2 and not any(cells[-1] for cells in (heading, *rows)):  # spreadsheets leave empty columns
        for cells in (heading, plain, *rows):
            del cells[-1]
    if len(set(heading)) < len(heading):
        raise ValueError(f"{file}: expected columns of different names, got {', '.join(heading)}: rename one")
    if parts := [name for name, word in zip(heading, plain, strict=True) if word in _PARTS]:
        raise ValueError(
            f"{file}: expected whole videos, got parts of them ({', '.join(parts)}): cut the videos first, then drop "
            "these columns"
        )
    columns = {name: [row[at] for row in rows] for at, name in enumerate(heading)}
    free = {name: word for at, (name, word) in enumerate(zip(heading, plain, strict=True)) if at != path}
    split = next((name for name, word in free.items() if word in _SPLIT), None)
    free = {name: word for name, word in free.items() if name not in (split, group) and word not in (*_COUNTS, *_FACTS)}
    used = _labels(file, columns, free, layout)
    targets = {"": columns[used[0]]} if used[0] in free and len(used) == 1 else {name: columns[name] for name in used}
    others = tuple(name for name in free if name not in used and free[name] not in LABELS)
    return Table(file, numbers, columns[heading[path]], targets, columns[split] if split else None, others, columns)


def _labels(file: Path, columns: Mapping[str, list[str]], free: Mapping[str, str], layout: str) -> list[str]:
    """The columns of labels: the one with such a name, otherwise all that are left, each a target."""
    named = [name for name, word in free.items() if word in LABELS]
    figures = [name for name in named if all(map(is_number, columns[name]))]
    if len(named) == 2 and len(figures) == 1:  # numbers and names of the same classes: take the names
        named.remove(figures[0])
        pairs = set(zip(columns[figures[0]], columns[named[0]], strict=True))
        if any(len({pair[side] for pair in pairs}) < len(pairs) for side in (0, 1)):
            raise ValueError(
                f"{file}: expected one number for each class name, got several in {figures[0]} and {named[0]}: drop "
                "one of the columns"
            )
    if len(named) > 1 or not free:
        got = ", ".join(columns) if not free else f"several, {', '.join(named)}"
        raise ValueError(f"{file}: expected a column of labels, got {got}: {layout}")
    if named or len(free) == 1:
        return named or [*free]
    for name in free:
        if not re.fullmatch(r"[A-Za-z]\w*", name) or name in ("video", "id"):
            raise ValueError(
                f"{file}: expected as names of columns of labels words other than video and id, got {name!r}: rename "
                "the column; an only one may be called `label`"
            )
    return [*free]


def _without_heading(
    file: Path, lines: Sequence[tuple[int, str]], names: frozenset[str], exists: Exists, layout: str
) -> Table:
    """Takes the reading whose videos exist. Without videos it takes the first one, numbers before words."""
    step = max(1, len(lines) // _SAMPLE)

    def rank(reading: _Reading) -> tuple[int, bool, bool]:
        sample = reading.rows[::step]
        frames = reading.counted and not any(" " in path or path.lower().endswith(VIDEO_SUFFIXES) for path, _ in sample)
        plain = all(is_number(label) or label in names for label in {label for _, label in reading.rows})
        return sum(exists(path) for path, _ in sample), frames, plain

    def fits(reading: _Reading) -> bool:
        return all(_is_label(label, names) for label in {label for _, label in reading.rows})

    readings = [reading for reading in _readings(file, lines) if fits(reading)]
    if not readings:
        at, line = _misfit(lines, names)
        advice = "name the columns in a heading; " if len(line.split(",")) > 2 or len(line.split()) > 2 else ""
        raise ValueError(
            f"{file}, line {lines[at][0]}: expected lines `path label` or `path,label`, got {line!r} as entry "
            f"{at + 1}: {advice}{layout}"
        )
    best = max(readings, key=rank)
    paths, labels = [path for path, _ in best.rows], [label for _, label in best.rows]
    odd = not is_number(labels[0]) and labels[0] not in names and labels[0] not in labels[1:]
    if odd and not exists(paths[0]) and not paths[0].lower().endswith(VIDEO_SUFFIXES) and any(map(exists, paths[1:9])):
        raise ValueError(
            f"{file}, line {lines[0][0]}: expected a video, or a heading of usual words such as `path,label`, got "
            f"{lines[0][1]!r}: rename the columns, or correct the line"
        )
    if best.counted and any(path.lower().endswith(VIDEO_SUFFIXES) for path in paths):
        raise ValueError(
            f"{file}, line {lines[0][0]}: expected lines `path label`, got two numbers in {lines[0][1]!r}: add the "
            "heading `path frames label` if the first one counts frames, or `path one two` if both are labels"
        )
    return Table(file, [number for number, _ in lines], paths, {"": labels}, None, (), {})


class _Reading(NamedTuple):
    """A way to split all lines into path and label. `counted` lines have a number of frames in between."""

    rows: list[tuple[str, str]]
    counted: bool = False


def _readings(file: Path, lines: Sequence[tuple[int, str]]) -> Iterator[_Reading]:
    for separator in _SEPARATORS:
        if all(separator in line for _, line in lines):
            rows = _rows(file, lines, separator)
            if min(map(len, rows)) > 1:
                yield _Reading([(separator.join(row[:-1]), row[-1]) for row in rows])
            if all(len(row) == 3 and row[1].isdecimal() for row in rows):
                yield _Reading([(row[0], row[2]) for row in rows], counted=True)
    spaced = [line for _, line in lines]
    if all(matches := [_AFTER_SUFFIX.fullmatch(line) for line in spaced]):
        yield _Reading([(match[1], match[2].strip(' "')) for match in matches if match])
    parts = [[part.strip(' \t"') for part in line.rsplit(None, 1)] for line in spaced]
    if all(len(part) == 2 and part[0] for part in parts):
        yield _Reading([(path, label) for path, label in parts])
    if all(matches := [_COUNTED.fullmatch(line) for line in spaced]):
        yield _Reading([(match[1], match[2]) for match in matches if match], counted=True)


def _misfit(lines: Sequence[tuple[int, str]], names: frozenset[str]) -> tuple[int, str]:
    """The first line that differs from the others."""
    for at, (_, line) in enumerate(lines):
        pairs = [line.rsplit(separator, 1) for separator in (*_SEPARATORS, None)]
        if not any(len(pair) == 2 and pair[0] and _is_label(pair[1].strip(' "'), names) for pair in pairs):
            return at, line
    separator = next((s for s in _SEPARATORS if s in lines[0][1]), " ")
    return next(((at, line) for at, (_, line) in enumerate(lines) if separator not in line), (0, lines[0][1]))


def _is_label(text: str, names: frozenset[str]) -> bool:
    return text in names or is_number(text) or not (names or text.lower().endswith(VIDEO_SUFFIXES))
