"""Finds the lists of a data set and reads their rows by split. It picks the encoding in which the videos exist."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from flaxvid.data.sources.files import Disk
from flaxvid.data.sources.labels import Column
from flaxvid.data.sources.names import list_names
from flaxvid.data.sources.search import is_junk
from flaxvid.data.sources.splits import SPLITS, WORDS, split_of
from flaxvid.data.sources.tables import Table, read_table
from flaxvid.data.sources.texts import read_lines, read_texts, unknown_encoding

SUFFIXES = (".txt", ".csv", ".tsv", ".lst", ".list")
CLASSES = "classes.txt"
_MANY = 32  # of more files none is read in search of a column of splits
_SAMPLE = 64
_NUMBERED = re.compile(r"(\d+)[\s,;:]+(.+)|(.+?)\s*[,;\t]\s*(\d+)")
_HEADING = re.compile(
    r"#?\s*(id|idx|index|no|nr|number|(class|label|category)([ _]?(id|idx|index|name))?|name)[\s,;:]+[a-z _]+",
    re.IGNORECASE,
)


class Rows(NamedTuple):
    """The rows of one split.

    Attributes:
        file: The list.
        lines: The line of each row in the file.
        paths: The video of each row.
        targets: The labels of each target, as text. An only target is called "".
        columns: All columns by their names in the heading. There are none without a heading.
    """

    file: Path
    lines: Sequence[int]
    paths: Sequence[str]
    targets: Mapping[str, Sequence[str]]
    columns: Mapping[str, Sequence[str]]

    def column(self, target: str) -> Column:
        """The cells of a target."""
        return Column(self.file, self.targets[target], self.lines, self.paths)


def read_lists(
    place: Path, asked: str, disk: Disk, layout: str, group: str | None = None
) -> tuple[tuple[str, ...], dict[str, Rows], tuple[str, ...]]:
    """The class names of a `classes.txt`, the rows of every split, and notes on what was left out.

    Args:
        place: The folder of the lists, or a list with a column of splits.
        asked: The wanted split. Its list and the training list must be readable; others are left out if they are not.
        disk: Where the videos are.
        layout: What lists look like, for messages.
        group: A column that is no label.
    """
    names = _read_names((place.parent if place.is_file() else place) / CLASSES, layout)
    wanted, notes = split_of(asked) or asked, ()
    own: dict[str, Rows] = {}
    beside: dict[str, Rows] = {}
    for split, file in _find_lists(place, asked):
        try:
            table = _read_list(file, names, disk, layout, group)
        except ValueError as error:
            if split in ("train", wanted, ""):
                raise
            notes += (f"{file} is left out, because it is no list of labels: {str(error)[:200]}",)
            continue
        for part, rows in _by_split(table, split, disk).items():
            (own if part == split else beside)[part] = rows
        if table.others:
            notes += (f"unused columns of {file.name}: {', '.join(table.others)}",)
    found = {**beside, **own}
    order = sorted(found, key=lambda part: SPLITS.index(part) if part in SPLITS else len(SPLITS))
    return names, {part: found[part] for part in order}, notes


def _find_lists(place: Path, asked: str) -> list[tuple[str, Path]]:
    """Pairs of a split and its list. The split is "" for a list with a column of splits.

    Raises:
        ValueError: A split has several lists, or several lists have such a column.
    """
    if place.is_file():
        return [("", place)]
    files = sorted(
        path
        for path in (place.iterdir() if place.is_dir() else ())
        if path.suffix.lower() in SUFFIXES and path.name.lower() != CLASSES and path.is_file()
        if not is_junk(path.name)
    )
    named: dict[str, list[Path]] = {}
    for path in files:
        if split := split_of(path.stem) or (asked if path.stem == asked else None):
            named.setdefault(split, []).append(path)
    lists = []
    for split, paths in named.items():
        plain = [path for path in paths if path.stem.lower() in WORDS] or paths
        if len(plain) > 1:
            raise ValueError(
                f"list: expected one list of the {split} split in {place}, got "
                f"{' and '.join(path.name for path in plain)}: move the others away"
            )
        lists.append((split, plain[0]))
    if lists or len(files) > _MANY:
        return lists
    split = [path for path in files if _has_splits(path)]
    if len(split) > 1:
        raise ValueError(
            f"list: expected one list with a column of splits in {place}, got "
            f"{' and '.join(path.name for path in split)}: name one of them by lists="
        )
    return [("", path) for path in split]


def _has_splits(path: Path) -> bool:
    try:
        first = re.split(r"\r\n|\r|\n", next(iter(read_texts(path, "").values())))[0]
    except ValueError:  # no text, though it ends in .txt
        return False
    return re.search(r"(^|[\W_])(split|subset|partition|set)([\W_]|$)", first, re.IGNORECASE) is not None


def _read_names(path: Path, layout: str) -> tuple[str, ...]:
    """The class names of a classes.txt, with or without numbers and a heading. No file, no names."""
    found = [file for file in path.parent.iterdir() if file.name.lower() == CLASSES] if path.parent.is_dir() else []
    if not found:
        return ()
    path = path if path in found else found[0]
    names = [line for line in read_lines(path, layout) if not line.startswith("# ")]
    if not names:
        raise ValueError(f"{path}: expected a class name a line, got an empty file: fill it or remove it")
    headed = len(names) > 2 and _HEADING.fullmatch(names[0]) is not None
    numbered = [_NUMBERED.fullmatch(line) for line in names[headed:]]
    pairs = sorted((int(match[1] or match[4]), match[2] or match[3]) for match in numbered if match)
    if len(pairs) == len(numbered):
        if [number for number, _ in pairs] in ([*range(len(pairs))], [*range(1, len(pairs) + 1)]):
            names = [name for _, name in pairs]
        elif all(re.search("[,;\t]", line) for line in names):
            raise ValueError(
                f"{path}: expected classes numbered from 0 or from 1 without gaps, got "
                f"{list_names(names[headed:], 5)}: correct the numbers"
            )
    ends = [re.fullmatch(r"(.+)\s+(\d+)", name) for name in names]
    numbers = [int(match[2]) for match in ends if match]
    distinct = len({match[1] for match in ends if match}) == len(names)
    if distinct and numbers != (order := sorted(numbers)) and order == [*range(order[0], order[0] + len(names))]:
        raise ValueError(
            f"{path}: expected lines `name` or `number name`, got {names[0]!r} and numbers that are not in order: put "
            "the numbers first, or a comma before them"
        )
    names = [name[1:-1] if re.fullmatch('".+"', name) else name for name in names]
    if twice := next((name for at, name in enumerate(names) if name in names[:at]), None):
        raise ValueError(f"{path}: expected each class once, got {twice} twice: remove one of the lines")
    return tuple(names)


def _read_list(file: Path, names: Sequence[str], disk: Disk, layout: str, group: str | None) -> Table:
    """Reads a list in its encoding. An unknown one is the encoding in which the videos exist."""

    def exists(path: str) -> bool:
        path = _tidy(path, disk)
        return bool(path) and (disk.has(path) or disk.alike(path) is not None)

    texts = read_texts(file, layout)
    if len(texts) == 1:
        return read_table(file, next(iter(texts.values())), names, exists, layout, group)
    best: list[tuple[int, Table]] = []
    for encoding, text in texts.items():
        try:
            table = read_table(file, text, names, exists, layout, group)
        except ValueError:
            continue
        if encoding == "bytes" and any(not _is_text(cell) for cells in table.targets.values() for cell in set(cells)):
            continue
        foreign = [path for path in table.paths if not path.isascii()][:_SAMPLE]
        best.append((sum(map(exists, foreign)), table))
    there = max((count for count, _ in best), default=0)
    tables = [table for count, table in best if count == there]
    if not there or any((table.paths, table.targets) != (tables[0].paths, tables[0].targets) for table in tables):
        raise unknown_encoding(file)
    return tables[0]


def _is_text(cell: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in cell)


def _by_split(table: Table, name: str, disk: Disk) -> dict[str, Rows]:
    """The rows of a list by split. `name` is the split of a list without a column of splits."""
    paths = [_tidy(path, disk) for path in table.paths]
    for path, line in zip(paths, table.lines, strict=True):
        if not path:
            raise ValueError(f"{table.file}, line {line}: expected the path of a video, got an empty cell: fill it")
    if table.split is None:
        if not name:
            raise ValueError(f"{table.file}: expected a column that says the split, such as `split`, got none: add it")
        return {name: Rows(table.file, table.lines, paths, table.targets, table.columns)}
    rows: dict[str, list[int]] = {}
    for at, value in enumerate(table.split):
        if not value:
            raise ValueError(f"{table.file}, line {table.lines[at]}: expected a split, got an empty cell: fill it")
        rows.setdefault(split_of(value) or value, []).append(at)
    if not rows.keys() & set(SPLITS) and rows:
        raise ValueError(
            f"{table.file}, line {table.lines[0]}: expected a split (train, validation or test), got "
            f"{list_names(sorted(rows), 5)}: write one of them in each line"
        )
    found = {}
    for split, at in rows.items():
        lines, own = [table.lines[row] for row in at], [paths[row] for row in at]
        targets, columns = (
            {name: [cells[row] for row in at] for name, cells in some.items()}
            for some in (table.targets, table.columns)
        )
        found[split] = Rows(table.file, lines, own, targets, columns)
    return found


def _tidy(path: str, disk: Disk) -> str:
    """A path as this system writes it: with `/`, without `./` in front and `/` at the end."""
    if "\\" in path and not disk.has(path):
        path = path.replace("\\", "/")
    if "//" in path or "/./" in path:
        path = re.sub(r"/(\./|/)+", "/", path)
    while path.startswith("./"):
        path = path[2:]
    return path.rstrip("/") if path != "/" else path
