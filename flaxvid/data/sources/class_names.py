"""Compares classes by name, never by number: a number means another class in another data set."""

import dataclasses
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from flaxvid.data.mirror import NO_LABEL, FlipLabels, flip_labels
from flaxvid.data.sources.files import FileSource
from flaxvid.data.sources.names import list_names
from flaxvid.data.sources.open import Source
from flaxvid.types import Classes, by_target


@dataclasses.dataclass(frozen=True)
class Relabelled:
    """A source whose labels count the classes of a network instead of its own.

    Attributes:
        source: The source with its own labels.
        classes: The network's classes. Targets that it does not have are left out.
        numbers: For each target, the number in `classes` of each of the source's classes.
    """

    source: Source
    classes: Classes
    numbers: Mapping[str, tuple[int, ...]]

    @property
    def name(self) -> str:
        """The source's name."""
        return self.source.name

    @property
    def flip_labels(self) -> FlipLabels:
        """By the words for sides and turns in `classes`."""
        return flip_labels(self.classes)

    @property
    def cameras(self) -> tuple[str, ...]:
        """The source's cameras, if it has scenes."""
        return getattr(self.source, "cameras", ())

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.source[index]
        labels = {target: _renumber(by_target(item["label"])[target], own) for target, own in self.numbers.items()}
        return {**item, "label": labels if isinstance(self.classes, Mapping) else labels[""]}


def relabel(
    source: Source,
    classes: Classes,
    owner: str,
    advice: str,
    renames: Mapping[str, Mapping[str, str]] | None = None,
) -> Source:
    """Makes the labels of a source count `classes`. It matches classes by name.

    The source may lack some classes, have them in another order, and name further ones that no video has. Names that
    differ in case, spaces or underscores are different names: nothing is guessed.

    Args:
        source: The videos.
        classes: The network's classes; of several targets those of each.
        owner: Whose classes they are, for messages: "the network".
        advice: What the message says to do about other names.
        renames: For each target ("" if there is only one), names of the source and what `classes` calls them. Two names
            may become one.

    Raises:
        ValueError: The source has videos of other classes, or other targets. The message shows both lists.
    """
    known, own, renames = by_target(classes), by_target(source.classes), renames or {}
    if isinstance(classes, Mapping) != isinstance(source.classes, Mapping) or known.keys() - own.keys():
        raise ValueError(
            f"expected labels of {owner}'s {_targets(known)}, got {_targets(own)} in {source.name}: write a "
            "list with a column of that name for each target"
        )
    if strange := sorted(renames.keys() - known.keys()):
        raise ValueError(f"expected renames of {_targets(known)}, got {_targets(dict.fromkeys(strange))}: drop them")
    wrong, numbers = [], {}
    for target, names in known.items():
        renamed = _rename(own[target], renames.get(target, {}), source.name)
        found = find_classes(renamed, names)
        seen = {*by_target(source.labels)[target]} if isinstance(source, FileSource) else {*range(len(found))}
        unknown = [renamed[own] for own, number in enumerate(found) if number is None and own in seen]
        if unknown:
            wrong.append(_difference(target, names, renamed, unknown, owner, source.name))
        numbers[target] = tuple(NO_LABEL if number is None else number for number in found)
    if wrong:
        raise ValueError(f"{'; '.join(wrong)}: {advice}")
    same = known.keys() == own.keys() and all(numbers[target] == tuple(range(len(known[target]))) for target in known)
    if same:
        return source
    if isinstance(source, FileSource):  # it stays a FileSource: its labels are in memory and can be counted
        labels = {
            target: tuple(_renumber(label, numbers[target]) for label in by_target(source.labels)[target])
            for target in known
        }
        return dataclasses.replace(
            source, labels=labels if isinstance(classes, Mapping) else labels[""], classes=classes
        )
    return Relabelled(source, classes, numbers)


def find_classes(names: Sequence[str], known: Sequence[str]) -> tuple[int | None, ...]:
    """The number in `known` of each of `names`; None where `known` lacks it or has it twice.

    Equal lists match name by name, even if a name comes twice.
    """
    if tuple(names) == tuple(known):
        return tuple(range(len(known)))
    times = Counter(map(_text, known))
    index = {_text(name): number for number, name in enumerate(known) if times[_text(name)] == 1}
    return tuple(index.get(_text(name)) for name in names)


def differences(old: Classes, new: Classes) -> list[str]:
    """Says how class names changed, a line for each target: the gone and the new ones, or another order."""
    lines = []
    if isinstance(old, Mapping) != isinstance(new, Mapping) or by_target(old).keys() != by_target(new).keys():
        lines.append(f"{_targets(by_target(old))} there, {_targets(by_target(new))} here")
    for target in (target for target in by_target(old) if target in by_target(new)):
        there, here = by_target(old)[target], by_target(new)[target]
        gone = [name for name, number in zip(there, find_classes(there, here), strict=True) if number is None]
        come = [name for name, number in zip(here, find_classes(here, there), strict=True) if number is None]
        parts = [f"{text} {list_names(names)}" for text, names in (("gone:", gone), ("new:", come)) if names]
        if not parts and (len(there) != len(here) or find_classes(there, here) != tuple(range(len(here)))):
            parts = [f"in another order: {list_names(there)} there, {list_names(here)} here"]
        lines += [f"{f'{target}: ' if target else ''}{part}" for part in parts]
    return lines


def are_numbers(names: Sequence[str]) -> bool:
    """Whether all names are numbers, as in a list without a classes.txt."""
    return all(name.isdecimal() for name in names)


def as_classes(value: Any) -> Classes:
    """Turns class names that were read from JSON into tuples.

    Raises:
        ValueError: The value is neither a list of texts nor a dict of such lists.
    """
    for names in by_target(value).values() or [()]:
        if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
            raise ValueError("expected class names as a list of texts, or such a list for each target")
    return {target: tuple(names) for target, names in value.items()} if isinstance(value, Mapping) else tuple(value)


def _renumber(label: int, numbers: Sequence[int]) -> int:
    return numbers[label] if label >= 0 else label  # a negative label is missing


def _difference(
    target: str, known: Sequence[str], names: Sequence[str], unknown: Sequence[str], owner: str, where: str
) -> str:
    folded = {_folded(name): name for name in known}
    meant = [f"{folded[_folded(name)]!r} for {name!r}" for name in unknown if _folded(name) in folded]
    text = (
        f"expected classes of {owner}{f' for {target}' * bool(target)} ({list_names(known)}), got "
        + ("none of them" if len(unknown) == len(names) else f"also {list_names(unknown)}")
        + f" in {where} ({list_names(names)})"
    )
    if meant:
        return f"{text}; did you mean {list_names(meant)}? Names are not guessed"
    if are_numbers(known) != are_numbers(names):
        fix = ": put the names into classes.txt" if are_numbers(names) else f", and {owner} has only numbers"
        return f"{text}; numbers are no names{fix}"
    return text


def _rename(names: Sequence[str], renames: Mapping[str, str], where: str) -> tuple[str, ...]:
    strange = sorted(renames.keys() - set(names))
    if strange:
        raise ValueError(
            f"expected to rename classes of {where} ({list_names(names)}), got {list_names(strange)}: give the data's "
            "own name first, then the network's"
        )
    return tuple(renames.get(name, name) for name in names)


def _targets(targets: Mapping[str, Any]) -> str:
    return f"targets {', '.join(targets)}" if "" not in targets else "one target without a name"


def _text(name: str) -> str:
    return unicodedata.normalize("NFC", name)  # macOS writes an accent as a letter of its own


def _folded(name: str) -> str:
    return re.sub(r"[\s_-]+", "", _text(name)).casefold()
