"""Finds the label of a mirrored video, by the words for sides and turns in the class names."""

import functools
import re
from collections.abc import Mapping
from typing import Any

from flaxvid.types import Classes

NO_LABEL = -1
"""A missing label, where a video has several targets. It counts in no loss and no accuracy."""

Label = int | Mapping[str, int]
"""A video's label. Several targets have one each."""

FlipLabels = tuple[int | None, ...] | Mapping[str, tuple[int | None, ...] | None] | None
"""What each label becomes in a mirror; None for a label that must not be mirrored. It is None as a whole if all labels
stay. Several targets have one each."""


@functools.cache
def mirrored_names(names: tuple[str, ...]) -> tuple[int | None, ...] | None:
    """The position of each name's mirror image among the names.

    "pushing it from left to right" becomes "pushing it from right to left", and "turning clockwise" becomes "turning
    counterclockwise" (or anticlockwise). A name with such a word and without a counterpart has None: its videos must
    not be mirrored.

    Returns:
        None if no name has such a word: every video may be mirrored and keeps its label.
    """
    spelled = [_SIDE.sub(_side, name).lower() for name in names]
    mirrored = [_SIDE.sub(lambda match: _MIRROR[_side(match)], name).lower() for name in names]
    if spelled == mirrored:
        return None
    index = {name: i for i, name in enumerate(spelled)}
    return tuple(index.get(name) for name in mirrored)


def flip_labels(classes: Classes) -> FlipLabels:
    """What each label becomes in a mirror: `mirrored_names` of each target's classes."""
    if not isinstance(classes, Mapping):
        return mirrored_names(classes)
    mirrored = {target: mirrored_names(names) for target, names in classes.items()}
    return mirrored if any(mirrored.values()) else None


def mirror(label: Label, mirrored: FlipLabels) -> Label | None:
    """The label of a mirrored video; None if any of its targets forbids mirroring. A missing label stays missing."""
    table: Any = mirrored
    if mirrored is None or not isinstance(label, Mapping):
        return label if mirrored is None or label == NO_LABEL else table[label]
    labels: Any = {target: mirror(own, table[target]) for target, own in label.items()}
    return None if None in labels.values() else labels


def _side(match: re.Match[str]) -> str:
    """A word for a side or a turn, spelled as in `_MIRROR`."""
    return re.sub(r"[-_ ]", "", match[0].lower()).replace("anti", "counter")


_MIRROR = {"left": "right", "right": "left", "clockwise": "counterclockwise", "counterclockwise": "clockwise"}
# Whole words, as in "turn_left" and "turn left", and the parts of "TurnLeft", but not "bright" or "leftover".
_SIDE = re.compile(
    r"(?<![A-Za-z])(?:left|right|LEFT|RIGHT)(?![A-Za-z])|(?<![A-Z])(?:Left|Right)(?![a-z])"
    r"|(?i:(?:(?:counter|anti)[-_ ]?)?clockwise)"
)
