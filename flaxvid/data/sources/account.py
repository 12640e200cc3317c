"""Says in words what splits hold: videos of each class, what was left out, and what looks odd."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any
from unicodedata import normalize

from flaxvid.data.mirror import NO_LABEL
from flaxvid.data.sources.names import list_names
from flaxvid.types import by_target

SHOWN = 20
"""Most classes that the table lists one by one. Of more classes it lists only the odd ones."""


def describe_splits(splits: Mapping[str, Any]) -> str:
    """Describes sources in a block of text: a table of classes and splits, and a line for each thing to know.

    It counts the classes only of sources that have their labels in memory. Those of TFDS have not.

    Args:
        splits: Sources by the names of their splits.

    Raises:
        ValueError: All videos of "train" have the same label, so there is nothing to learn.
    """
    if "train" in splits:
        check_labels(splits["train"], fewest=2)
    first = {split: _first(source) for split, source in splits.items()}
    lines = list(dict.fromkeys(note for source in first.values() for note in getattr(source, "notes", ())))
    counted = {split: by_target(source.labels) for split, source in first.items() if hasattr(source, "labels")}
    for target, classes in by_target(next(iter(first.values())).classes).items() if counted else ():
        counts = {split: Counter(labels[target]) for split, labels in counted.items() if target in labels}
        lines = _table(target, classes, counts) + _alike(classes) + lines
    lines = ["".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line) for line in lines]
    return "\n".join(lines)  # file names may hold any bytes, line ends too


def check_labels(source: Any, fewest: int) -> None:
    """Refuses videos of too few classes. Training needs two, a test one. It counts only labels in memory.

    Raises:
        ValueError: Some target has fewer.
    """
    source = _first(source)
    for target, labels in by_target(getattr(source, "labels", {})).items() if hasattr(source, "labels") else ():
        seen = sorted({*labels} - {NO_LABEL})
        if len(seen) < fewest:
            only = ", ".join(by_target(source.classes)[target][label] for label in seen) or "no label"
            wanted = "videos of two classes" if fewest > 1 else "a labelled video"
            raise ValueError(
                f"{source.name}: expected {wanted}{f' of {target}' * bool(target)} or more, got all {len(source)} of "
                f"{only}: correct the list, or add videos{'; or drop the column' * bool(target)}"
            )


def _first(source: Any) -> Any:
    """The source of the first camera, where there are several."""
    of_cameras = getattr(source, "sources", None)
    return next(iter(of_cameras.values())) if of_cameras else source


def _table(target: str, classes: Sequence[str], counts: Mapping[str, Counter[int]]) -> list[str]:
    rows = [(name, [own[label] for own in counts.values()]) for label, name in enumerate(classes)]
    if missing := [own[NO_LABEL] for own in counts.values()] if any(own[NO_LABEL] for own in counts.values()) else []:
        rows.append(("(no label)", missing))
    odd = [row for row in rows if 0 in row[1]]
    shown = rows if len(rows) <= SHOWN else odd[:SHOWN]
    width = max([len(name) for name, _ in shown] + [len(target), 7])
    lines = [f"{target or 'class':<{width}}" + "".join(f"{split:>12}" for split in counts)]
    lines += [f"{name:<{width}}" + "".join(f"{count:>12}" for count in row) for name, row in shown]
    if len(shown) < len(rows):
        spans = []
        names = {name for name, _ in shown}
        for at, split in enumerate(counts):
            own = [row[at] for name, row in rows if name not in names]
            spans.append(f"{min(own)} to {max(own)} in {split}")
        lines.append(f"{'... and ' if shown else ''}{len(rows) - len(shown)} classes of {', '.join(spans)}")
    for at, split in enumerate(counts):
        if empty := [name for name, row in rows[: len(classes)] if not row[at]]:
            lines.append(f"classes without {split} videos{f' of {target}' * bool(target)}: {list_names(empty)}")
    if "train" in counts and len(counts) > 1:
        single = [name for name, row in rows[: len(classes)] if sum(row) == 1]
        if single:
            lines.append(f"classes of one video, which cannot be tested: {list_names(single)}")
    return lines


def _alike(classes: Sequence[str]) -> list[str]:
    known: dict[str, list[str]] = {}
    for name in classes:
        known.setdefault(re.sub(r"[\W_]+", "", normalize("NFC", name)).casefold(), []).append(name)
    return [f"classes with nearly the same name: {', '.join(names)}" for names in known.values() if len(names) > 1]
