"""Reports what a check of a data set found: unreadable, short and duplicate videos."""

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from rich.console import Group
from rich.markup import escape
from rich.table import Table

NEAR = 3.0
"""Largest difference of two signatures (root mean square, in grey levels) of the same pictures."""

SAME_FILE, TWO_LABELS, SAME_PICTURES = "same file", "same file, two labels", "same pictures"
"""Kinds of duplicates."""


@dataclass(frozen=True)
class Finding:
    """What was found out about one video.

    Attributes:
        id: The video.
        label: Its label. Several targets have one each.
        frames: How many frames decode.
        digest: SHA-256 of the file, or of all files of a folder of frames; empty if there is none.
        signature: Grey levels of a few small pictures as hexadecimal digits, or empty; see `near_pairs`.
        problem: "missing", "unreadable" or "short"; empty for a good one.
        reason: The problem in words.
        stamp: Size and time of the file.
    """

    id: str
    label: int | Mapping[str, int]
    frames: int = 0
    digest: str = ""
    signature: str = ""
    problem: str = ""
    reason: str = ""
    stamp: str = ""


@dataclass(frozen=True)
class SplitReport:
    """One split: its videos, the good ones, their lengths in frames, and the bad ones by name."""

    videos: int
    good: int
    shortest: int
    median: int
    longest: int
    missing: tuple[str, ...]
    unreadable: Mapping[str, str]
    short: Mapping[str, int]


@dataclass(frozen=True)
class Duplicate:
    """A video that is in two splits, or has two labels. `difference` is in grey levels, 0 for the same file."""

    splits: tuple[str, str]
    ids: tuple[str, str]
    kind: str
    difference: float = 0.0


@dataclass(frozen=True)
class Report:
    """All splits, and the duplicates."""

    splits: Mapping[str, SplitReport]
    duplicates: tuple[Duplicate, ...]

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return not self.duplicates and all(split.good == split.videos for split in self.splits.values())

    def save(self, path: Path) -> None:
        """Writes it as JSON."""
        path.write_text(
            json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n",
            encoding="utf-8",
            errors="backslashreplace",
        )


def summarise(findings: Mapping[str, Sequence[Finding]]) -> Report:
    """The report of all splits' findings."""
    splits = {}
    for split, rows in findings.items():
        lengths = [row.frames for row in rows if not row.problem] or [0]
        splits[split] = SplitReport(
            videos=len(rows),
            good=sum(not row.problem for row in rows),
            shortest=min(lengths),
            median=int(np.median(lengths)),
            longest=max(lengths),
            missing=tuple(row.id for row in rows if row.problem == "missing"),
            unreadable={row.id: row.reason for row in rows if row.problem == "unreadable"},
            short={row.id: row.frames for row in rows if row.problem == "short"},
        )
    twice = [duplicate for split, rows in findings.items() for duplicate in find_contradictions(split, rows)]
    for a, b in itertools.combinations(findings, 2):
        twice += find_duplicates((a, b), findings[a], findings[b])
    return Report(splits, tuple(twice))


def find_contradictions(split: str, rows: Sequence[Finding]) -> list[Duplicate]:
    """Files that are in one split with two labels. Each comes once, with the first one of another label."""
    first: dict[str, list[Finding]] = {}
    found = []
    for row in rows:
        known = first.setdefault(row.digest, []) if row.digest else []
        if other := next((one for one in known if _contradict(one.label, row.label)), None):
            found.append(Duplicate((split, split), (other.id, row.id), TWO_LABELS))
        if all(one.label != row.label for one in known):
            known.append(row)
    return found


def _contradict(a: int | Mapping[str, int], b: int | Mapping[str, int]) -> bool:
    """Whether two labels differ. With several targets only those that both have count."""
    if not isinstance(a, Mapping) or not isinstance(b, Mapping):
        return a != b
    return any(a[target] != b[target] and a[target] >= 0 and b[target] >= 0 for target in a)


def find_duplicates(
    splits: tuple[str, str], first: Sequence[Finding], second: Sequence[Finding]
) -> tuple[Duplicate, ...]:
    """Videos of one split that are also in another: the same file, or the same pictures in another encoding.

    It does not find videos with another length, or mirrored or recoloured ones.
    """
    first, second = ([row for row in rows if row.signature] for rows in (first, second))
    if not first or not second:
        return ()
    known: dict[str, list[Finding]] = {}
    for row in second:
        known.setdefault(row.digest, []).append(row)
    found = [
        Duplicate(splits, (a.id, b.id), TWO_LABELS if _contradict(a.label, b.label) else SAME_FILE)
        for a in first
        for b in known.get(a.digest, ())
    ]
    a, b = (np.stack([np.frombuffer(bytes.fromhex(r.signature), np.uint8) for r in rows]) for rows in (first, second))
    for i, j, difference in near_pairs(a, b):
        if first[i].digest != second[j].digest:
            found.append(Duplicate(splits, (first[i].id, second[j].id), SAME_PICTURES, round(difference, 2)))
    return tuple(found)


def near_pairs(
    a: UInt8[np.ndarray, "n d"], b: UInt8[np.ndarray, "m d"], limit: float = NEAR
) -> list[tuple[int, int, float]]:
    """Pairs (row of a, row of b, difference) whose root mean square difference is at most `limit`.

    A product of matrices compares a block of rows: 200,000 videos against 20,000 take a minute on a core or two.
    """
    pairs, dims = [], a.shape[1]
    centre = b.mean(axis=0, dtype=np.float32)  # float32 is exact enough for differences of squares of small numbers
    right: Float[np.ndarray, "m d"] = b - centre
    for start in range(0, len(a), 1024):
        left = a[start : start + 1024] - centre
        squares = (left**2).sum(1)[:, None] + (right**2).sum(1) - 2 * left @ right.T
        for i, j in np.argwhere(squares <= (limit + 0.5) ** 2 * dims):
            exact = float(np.sqrt(np.mean((left[i] - right[j]) ** 2)))
            if exact <= limit:
                pairs.append((start + int(i), int(j), exact))
    return pairs


def show(report: Report, limit: int = 10) -> Group:
    """The report as tables for a terminal, with the first findings of each kind."""
    overview = Table(title="Videos")
    for heading in ("split", "videos", "good", "missing", "unreadable", "too short", "frames (min, median, max)"):
        overview.add_column(heading, justify="left" if heading == "split" else "right")
    findings = Table(title="Findings")
    for heading in ("split", "video", "finding"):
        findings.add_column(heading, overflow="fold")
    for name, split in report.splits.items():
        counts = (split.videos, split.good, len(split.missing), len(split.unreadable), len(split.short))
        overview.add_row(name, *map(str, counts), f"{split.shortest}, {split.median}, {split.longest}")
        _add(findings, limit, [(name, video, "missing") for video in split.missing])
        _add(findings, limit, [(name, *pair) for pair in split.unreadable.items()])
        _add(findings, limit, [(name, video, f"{frames} frames") for video, frames in split.short.items()])
    for kind in (TWO_LABELS, SAME_FILE, SAME_PICTURES):
        same = [duplicate for duplicate in report.duplicates if duplicate.kind == kind]
        _add(findings, limit, [(" and ".join(dict.fromkeys(pair.splits)), "\n".join(pair.ids), kind) for pair in same])
    return Group(overview, *([findings] if findings.row_count else []))


def _add(table: Table, limit: int, rows: list[tuple[str, str, str]]) -> None:
    for row in rows[:limit]:
        table.add_row(*(escape(cell.encode(errors="backslashreplace").decode()) for cell in row))
    if len(rows) > limit:
        table.add_row(rows[0][0], f"... and {len(rows) - limit} more", "")
