"""Reads a column of labels, as numbers or as class names. All lists of a data set are read alike."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from flaxvid.data.mirror import NO_LABEL
from flaxvid.data.sources.names import list_names

MOST = 10_000
"""Least number that is a code and counts no class, in a column without a list of names."""

_NUMBER = re.compile(r"[+-]?[0-9]+(\.0*)?")
_DECIMAL = re.compile(r"[+-]?([0-9]+[.,][0-9]*|[.,][0-9]+|[0-9]+(?=e))(e[+-]?[0-9]+)?", re.IGNORECASE)
_NONE = frozenset({"", "nan", "<na>", "-1", "-1.0"})
_NONE_BESIDE_NUMBERS = _NONE | {"none", "null", "na", "n/a"}


class Column(NamedTuple):
    """A column of a list.

    Attributes:
        file: The list, for messages.
        cells: The label of each video, as text.
        lines: The line of each video in the file.
        paths: The path of each video.
    """

    file: Path
    cells: Sequence[str]
    lines: Sequence[int]
    paths: Sequence[str]

    def at(self, cell: str) -> str:
        """Where a cell is, for messages."""
        return f"{self.file}, line {self.lines[self.cells.index(cell)]}"

    def video(self, cell: str) -> str:
        """The first video that has a cell."""
        return self.paths[self.cells.index(cell)]


def is_number(cell: str) -> bool:
    """Whether a cell is a whole number, which may be written as 10.0."""
    return _NUMBER.fullmatch(cell) is not None


def _plainly(cell: str) -> str:
    """Writes the number 10.0 as 10, as names do."""
    return str(int(cell.partition(".")[0])) if is_number(cell) else cell


def read_labels(
    columns: Mapping[str, Column], target: str = "", names: Sequence[str] = (), others: Sequence[str] = ()
) -> tuple[tuple[str, ...], dict[str, tuple[int, ...]]]:
    """The classes of a column, and its labels in each list.

    If all cells are class names, they are read as names, even if the names are numbers. Other numbers count from 0, or
    from 1 where the lists have 1, 2, ... and no 0. Without `names`, the first list gives the classes: its names in
    alphabetical order, or all numbers up to its largest one.

    Args:
        columns: The same column of each list, that of "train" first if there is one.
        target: The column's name, if there are several targets. Then an empty cell, -1 or NaN is `NO_LABEL`.
        names: The class names, if they are known.
        others: Cells of the column in further lists. They help to tell whether numbers count from 0 or 1.

    Raises:
        ValueError: A cell does not fit. The message names list, line and cell.
    """
    first = next(iter(columns.values()))
    own = dict.fromkeys(first.cells)
    none = _NONE_BESIDE_NUMBERS if 2 * sum(map(is_number, own)) > len(own) else _NONE
    cells = {cell: column for column in columns.values() for cell in dict.fromkeys(column.cells)}
    absent = {cell for cell in cells if cell.lower() in none and cell not in names}
    for cell in absent if not target else ():
        column = cells[cell]
        raise ValueError(
            f"{column.at(cell)}: expected a label, got {cell or 'an empty cell'} for {column.video(cell)}: label the "
            "video or drop it"
        )
    known = [cell for cell in own if cell not in absent]
    further = [cell for cell in (*cells, *dict.fromkeys(others)) if cell not in absent and cell.lower() not in none]
    index, classes = _index(first, known, further, names, target)
    labels = {}
    for split, column in columns.items():
        for cell in dict.fromkeys(column.cells):
            if cell not in index and cell not in absent:
                raise _unknown(column, cell, classes, "classes.txt" if names else first.file.name, target)
        labels[split] = tuple(index.get(cell, NO_LABEL) for cell in column.cells)
    return classes, labels


def _index(
    first: Column, known: Sequence[str], cells: Sequence[str], names: Sequence[str], target: str
) -> tuple[dict[str, int], tuple[str, ...]]:
    """The label of each cell, and the classes."""
    by_name = {name: label for label, name in enumerate(names)}
    as_names = {cell: by_name[name] for cell in cells if (name := _plainly(cell)) in by_name} | by_name
    if names and all(cell in as_names for cell in known):
        return as_names, tuple(names)
    words = [cell for cell in known if not is_number(cell) and cell not in by_name]
    figures = [cell for cell in known if is_number(cell)]
    if fractions := [cell for cell in words if _DECIMAL.fullmatch(cell)]:
        raise ValueError(
            f"{first.at(fractions[0])}: expected whole numbers or class names, got {fractions[0]}: correct it"
        )
    if names and words:
        raise _unknown(first, words[0], names, "classes.txt", target)
    if names and len(figures) < len(known) and any(map(is_number, names)):
        odd = next(cell for cell in figures if cell not in by_name)
        raise ValueError(
            f"{first.at(odd)}: expected class names as in the other lines, got the number {odd}, but some names are "
            "numbers: write names only"
        )
    if not names and figures and words:
        odd, rule = (words[0], "numbers") if len(figures) >= len(words) else (figures[0], "class names")
        raise ValueError(
            f"{first.at(odd)}: expected {rule} as in the other lines, got {odd} for {first.video(odd)}"
            f"{f' as {target}' * bool(target)}: write one or the other in all of them"
        )
    if not figures:
        classes = tuple(sorted(words))
        return {name: label for label, name in enumerate(classes)}, classes
    values = {cell: int(cell.partition(".")[0]) for cell in cells if is_number(cell)}
    return _numbered(first, figures, values, names)


def _numbered(
    first: Column, figures: Sequence[str], values: Mapping[str, int], names: Sequence[str]
) -> tuple[dict[str, int], tuple[str, ...]]:
    """The label of each cell that is a number, and the classes. `values` has the cells of all lists."""
    own = {values[cell] for cell in figures}
    largest = max(own)
    if not names and len(own) <= largest - min(own) and _are_folders(first):
        order = sorted(own)
        return {cell: order.index(value) for cell, value in values.items() if value in own}, tuple(map(str, order))
    if not names and largest >= MOST:
        cell = next(cell for cell in figures if values[cell] == largest)
        raise ValueError(
            f"{first.at(cell)}: expected labels that count classes, below {MOST}, got {cell}: if it is a code, write "
            "class names instead, or a classes.txt with a name a line"
        )
    every = set(values.values())
    low = int(min(every) == 1 and (max(every) == len(names) if names else every == set(range(1, max(every) + 1))))
    classes = tuple(names) or tuple(map(str, range(low, largest + 1)))
    for cell in figures:
        if not 0 <= values[cell] - low < len(classes):
            raise ValueError(
                f"{first.at(cell)}: expected labels from {low} to {low + len(classes) - 1} ({len(classes)} classes), "
                f"got {cell} for {first.video(cell)}: correct the list or the class names"
            )
    words = {name: label for label, name in enumerate(names) if not is_number(name)}
    return words | {cell: v - low for cell, v in values.items() if 0 <= v - low < len(classes)}, classes


def _are_folders(column: Column) -> bool:
    """Whether each number is the name of the folder of its video."""
    folders = (os.path.basename(os.path.dirname(path)) for path in column.paths)
    return all(folder == cell for folder, cell in zip(folders, column.cells, strict=True))


def _unknown(column: Column, cell: str, classes: Sequence[str], where: str, target: str) -> ValueError:
    return ValueError(
        f"{column.at(cell)}: expected {target or 'the label'} to be one of {list_names(classes)}, as in {where}, got "
        f"{cell} for {column.video(cell)}: correct it, or give the class training videos"
    )
