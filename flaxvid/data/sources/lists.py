"""Reads videos and labels from lists. Each split has a list, or one list has a column of splits."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from flaxvid.data.mirror import NO_LABEL
from flaxvid.data.sources.files import Disk, FileSource
from flaxvid.data.sources.labels import read_labels
from flaxvid.data.sources.list_files import Rows, read_lists
from flaxvid.data.sources.splits import NoSplitError, check_groups, choose_split, group_rule, hold_out, split_of
from flaxvid.data.sources.texts import first_file, list_places


def list_source(root: Path, split: str, lists: str | Path | None = None, group: str | None = None) -> FileSource:
    """Reads `<lists>/<split>.txt` or `.csv` with lines `path label` or `path,label`, by default in the root.

    Paths are relative to the root. A heading may name the columns, in any order and by the usual words (`Path, Label`,
    `video;class`). A column `split` says the split of each row. Without a heading, mmaction2's `path frames label` is
    read, too. The names of splits may have any case and spelling. Without a test list the validation list is the test.
    Lines that begin with `# ` are comments. Lists are in UTF-8, in UTF-16 with a mark, or in the encoding in which
    their videos exist.

    Labels are class names or numbers. Numbers count from 0, or from 1 where the lists have 1, 2, ... and no 0. A
    `classes.txt` has a class name in each line. Without it the training list gives the names, in alphabetical order.
    All lists are read alike: if every label is a class name, all are names, even if they are numbers.

    A heading such as `path,action,actor` has a target in each column, and labels are `{"action": 3, "actor": 0}`. An
    empty cell, -1 or NaN is a missing label, -1. A row without any label is left out.

    Args:
        root: The folder that paths are relative to.
        split: "train", "test" or "validation"; "all" is every row.
        lists: The folder of the lists, or a list with a column `split`.
        group: The column of the videos' scene, or a regular expression with one group that finds the scene in a path.
            If there is only a training list, a fifth of its scenes is held out for the test.

    Raises:
        FileNotFoundError: There is no such list.
        ValueError: A list cannot be read, or has two readings. The message names file, line and cell.
    """
    places = list_places(root, lists)
    layout = (
        f"{places[0]}/{split}.txt (or .csv) with lines `path label` or `path,label`, paths relative to {root}, and "
        f"perhaps {places[0]}/classes.txt with a name a line; or, for several targets, {split}.csv with the heading "
        "`path,action,actor`"
    )
    names, rows, notes = read_lists(places[0], split, Disk(str(root)), layout, group)
    wanted = split_of(split) or split
    holding_out = bool(group) and wanted in ("train", "test") and list(rows) == ["train"]
    if holding_out:
        parts = ["train"]
    elif wanted == "all" and wanted not in rows and rows:
        parts = list(rows)
    else:
        in_columns = len({own.file for own in rows.values()}) < len(rows)
        if wanted not in rows and not in_columns and not (wanted == "test" and "validation" in rows):
            try:
                first_file([f"{split}.txt", f"{split}.csv"], places, layout)  # says that there is none
            except FileNotFoundError as error:
                raise NoSplitError(str(error)) from None
        wanted, more = choose_split(wanted, rows, f"list {places[0]}")
        parts, notes = [wanted], notes + more
    classes, labels = _read_targets(rows, parts, names)
    paths = [path for part in parts for path in rows[part].paths]
    joined = {target: [label for part in parts for label in own[part]] for target, own in labels.items()}
    together = [*zip(*joined.values(), strict=True)]
    keep = [at for at, own in enumerate(together) if any(label != NO_LABEL for label in own)]
    if len(keep) < len(paths):
        lost = paths[next(at for at, own in enumerate(together) if all(label == NO_LABEL for label in own))]
        notes += (f"{len(paths) - len(keep)} rows of {split} have no label at all and are left out, such as {lost}",)
    for part in parts:
        notes += _find_twice(rows[part], [*zip(*(own[part] for own in labels.values()), strict=True)])
    notes += _find_between(rows)
    if group:
        scenes = {part: _scenes(rows[part], group) for part in rows}
        notes += check_groups(scenes)
        if holding_out:
            own, scene = [together[at] for at in keep], [scenes["train"][at] for at in keep]
            test = hold_out([paths[at] for at in keep], own, scene)
            if not test:
                raise ValueError(
                    f"{rows['train'].file}: expected two scenes or more, to hold one out for the test, got one for "
                    f"data.group={group!r}: correct it, or write a test list"
                )
            keep = [at for number, at in enumerate(keep) if (number in test) == (wanted == "test")]
    picked = {target: tuple(own[at] for at in keep) for target, own in joined.items()}
    several = "" not in picked
    return FileSource(
        f"list {split}",
        str(root),
        tuple(paths[at] for at in keep),
        picked if several else picked[""],
        classes if several else classes[""],
        layout,
        notes,
    )


def _read_targets(
    rows: Mapping[str, Rows], parts: Sequence[str], names: Sequence[str]
) -> tuple[dict[str, tuple[str, ...]], dict[str, dict[str, tuple[int, ...]]]]:
    """The classes of each target, and its labels in each part. An only target is called ""."""
    used = ["train", *(part for part in parts if part != "train")] if "train" in rows else [*parts]
    first = rows[used[0]]
    for part in used:
        if rows[part].targets.keys() != first.targets.keys():
            wanted, got = (", ".join(["path", *(name or "label" for name in r.targets)]) for r in (first, rows[part]))
            raise ValueError(
                f"{rows[part].file}: expected the columns {wanted} of {first.file.name}, got {got}: give both the same"
            )
    classes, labels = {}, {}
    for target in first.targets:
        others = [cell for part, own in rows.items() if part not in used for cell in own.targets.get(target, ())]
        columns = {part: rows[part].column(target) for part in used}
        classes[target], labels[target] = read_labels(columns, target, () if target else names, others)
    return classes, labels


def _find_twice(rows: Rows, labels: Sequence[tuple[int, ...]]) -> tuple[str, ...]:
    """Says whether a list has videos twice.

    Raises:
        ValueError: A video has two labels.
    """
    seen: dict[str, int] = {}
    again = []
    for at, path in enumerate(rows.paths):
        before = seen.setdefault(path, at)
        if labels[before] != labels[at]:
            cells = [", ".join(column[row] for column in rows.targets.values()) for row in (before, at)]
            raise ValueError(
                f"{rows.file}, line {rows.lines[at]}: expected one label for {path}, got {cells[1]}, and {cells[0]} in "
                f"line {rows.lines[before]}: drop one of the lines"
            )
        if before != at:
            again.append(path)
    return (f"{rows.file.name} has {len(again)} videos more than once, such as {again[0]}",) if again else ()


def _find_between(rows: Mapping[str, Rows]) -> tuple[str, ...]:
    """Says which splits have videos of the training list."""
    train = frozenset(rows["train"].paths) if "train" in rows else frozenset()
    return tuple(
        f"{len(both)} videos of {part} are also in train, such as {min(both)}: the test may be too easy"
        for part, own in rows.items()
        if part != "train" and (both := train.intersection(own.paths))
    )


def _scenes(rows: Rows, group: str) -> list[str]:
    """The scene of each video, from a column or by a rule."""
    if group not in rows.columns:
        if "(" not in group:
            raise ValueError(
                f"data.group: expected a column of {rows.file} ({', '.join(rows.columns) or 'it has no heading'}) or a "
                f"regular expression with one group, got {group!r}: name one of them"
            )
        return [*map(group_rule(group), rows.paths)]
    for line, scene in zip(rows.lines, rows.columns[group], strict=True):
        if not scene:
            raise ValueError(f"{rows.file}, line {line}: expected a {group}, got an empty cell: fill it")
    return list(rows.columns[group])
