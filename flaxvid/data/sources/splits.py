"""Divides videos into splits, by the names of splits or by a hold-out."""

import hashlib
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

HOLD_OUT = 0.2
"""Share of the videos that is held out for the test."""

SPLITS = ("train", "validation", "test")
WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""The split that each word stands for."""

_SPLIT = re.compile(
    rf"({'|'.join(WORDS)})(?:[ _-]?(?:set|data|split|list|videos?|rawframes|clips|files))*", re.IGNORECASE
)
_COUNTER = re.compile(r"(.*?)([ _.-]*)(c|clip|part|pt|seg|segment|shot|take|chunk|cut|piece|p)?[ _.-]?\(?\d+\)?")


class NoSplitError(FileNotFoundError, ValueError):
    """The data set has no such split."""


def split_of(name: str) -> str | None:
    """The split that a folder or list is named after, in any case and spelling, or None."""
    match = _SPLIT.fullmatch(name.strip())
    return WORDS[match[1].lower()] if match else None


def choose_split(asked: str, there: Collection[str], where: str) -> tuple[str, tuple[str, ...]]:
    """Chooses the split that was asked for. Without a test split the validation split is the test, and a note says so.

    Args:
        asked: The split's name, in any spelling.
        there: The splits that are there.
        where: The data set, for messages.

    Raises:
        NoSplitError: It is not there.
    """
    wanted = split_of(asked) or asked
    if wanted == "test" and wanted not in there and "validation" in there:
        return "validation", (f"{where} has no test split: its validation split is the test",)
    check_split(where, wanted, there)
    return wanted, ()


def check_split(where: str, asked: str, there: Collection[str]) -> None:
    """Refuses a split that a data set does not have."""
    if asked not in there:
        raise NoSplitError(
            f"{where}: expected split {' or '.join(there)}, got {asked!r}: there is none; make it, or ask for another, "
            "such as by data.eval_split"
        )


def group_rule(rule: str) -> Callable[[str], str]:
    """Makes a regular expression with one group into a function that finds the scene in a video's path.

    Raises:
        ValueError: It is no such expression. The function raises it for a path without a match.
    """
    try:
        pattern = re.compile(rule)
    except re.error as error:
        raise ValueError(f"data.group: expected a regular expression, got {rule!r}: correct it ({error})") from error
    if pattern.groups != 1:
        raise ValueError(
            f"data.group: expected a regular expression with one group, the scene, got {rule!r} with {pattern.groups}: "
            "write such as '_(g[0-9]+)_'"
        )

    def scene(path: str) -> str:
        match = pattern.search(path)
        if match is None or not match[1]:
            raise ValueError(f"data.group: expected {rule!r} to match every path, got {path}: correct it")
        return match[1]

    return scene


def hold_out(paths: Sequence[str], labels: Sequence[object], groups: Sequence[str] | None = None) -> frozenset[int]:
    """Positions of the videos that are held out for the test.

    It is a fifth of each class. A hash of the file names chooses it, so a new video moves at most one other. Groups are
    chosen whole in the same way, so no group is on both sides. If a group has several classes, it is a fifth of all
    videos.

    Args:
        paths: The path of each video.
        labels: The label of each video, of any kind.
        groups: The scene of each video.
    """
    one_pool = groups is not None and len(set(zip(groups, labels, strict=True))) > len(set(groups))
    pools: dict[object, dict[Any, list[int]]] = {}
    for position, label in enumerate(labels):
        # The position tells apart videos of one name in two folders.
        unit = (groups[position], 0) if groups else (paths[position].rpartition("/")[2], position)
        pools.setdefault("" if one_pool else label, {}).setdefault(unit, []).append(position)
    test: list[int] = []
    for units in pools.values():
        ranked = sorted(units, key=lambda unit: _hash(unit[0]))
        wanted = len(test) + max(1, round(HOLD_OUT * sum(map(len, units.values()))))
        for unit in ranked[:-1]:  # one of them stays for training
            if len(test) < wanted:
                test += units[unit]
    return frozenset(test)


def _hash(text: str) -> bytes:
    return hashlib.md5(os.fsencode(text), usedforsecurity=False).digest()


def warn_of_scenes(paths: Sequence[str], labels: Sequence[object], test: Collection[int]) -> tuple[str, ...]:
    """Warns if names show parts of one scene on both sides of a hold-out: `v_g01_c01`, `v_g01_c02`.

    Names that count the videos of a class (`jump1`, `jump2`), or frames, say nothing about scenes.
    """
    scenes: dict[tuple[object, str], list[int]] = {}
    stems: dict[object, set[str]] = {}
    told: set[tuple[object, str]] = set()
    for position, (path, label) in enumerate(zip(paths, labels, strict=True)):
        folder, name = os.path.split(path)
        match = _COUNTER.fullmatch(os.path.splitext(name)[0].lower())
        if match and (match[1] or match[3]) and (match[2] or match[3] or match[1][-1:].isalpha()):
            scene = f"{folder}/{match[1]}"
            scenes.setdefault((label, scene), []).append(position)
            stems.setdefault(label, set()).add(scene)
            if match[3] and match[3] not in ("clip", "c", "p") and match[1]:
                told.add((label, scene))
    both = [
        (key, part)
        for key, part in scenes.items()
        if (len(stems[key[0]]) > 1 or key in told) and 0 < sum(position in test for position in part) < len(part)
    ]
    if not both:
        return ()
    (_, part), hit = both[0], sum(position in test for _, part in both for position in part)
    pair = next(p for p in part if p in test), next(p for p in part if p not in test)
    return (
        f"{hit} of {len(test)} test videos look like parts of scenes that are also in training (test "
        f"{os.path.basename(paths[pair[0]])}, training {os.path.basename(paths[pair[1]])}): the test may be too easy; "
        "keep scenes together, such as by --config.data.group='(.*)[_-][a-z]*[0-9]+'",
    )


def check_groups(groups: Mapping[str, Collection[str]]) -> tuple[str, ...]:
    """Warns if groups of the training split are also in another split."""
    train = set(groups.get("train", ()))
    return tuple(
        f"{len(both)} groups are in train and in {split}, such as {min(both)}: the test may be too easy"
        for split, own in groups.items()
        if split != "train" and (both := train & set(own))
    )
