"""Checks every video of a data set and stores the good ones in ArrayRecord shards, in processes. It can resume.

It works shard by shard, and writes the findings of a shard in `parts/` after the shard's file. So a killed run goes on
after its last findings, and never takes half a file for a whole one.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flaxvid.data.prepare.examine import Encoding, examine, stamp
from flaxvid.data.prepare.report import Finding, Report, summarise
from flaxvid.data.sources.open import Source
from flaxvid.data.sources.tfds import shard_path, shard_writer, write_info
from flaxvid.data.workers import processes
from flaxvid.types import by_target
from flaxvid.writing import locked, read_json, written_whole

IN_FLIGHT = 2**29
"""Most bytes of videos in this process's memory, except for a single larger one. Workers have more of their own."""

VERSION = "1.0.0"  # raise it when the same videos would be stored or reported otherwise


@dataclass(frozen=True)
class Preparation:
    """What to do.

    Attributes:
        name: Name of the data set in its files.
        store: Whether to write the data set, or only check the videos.
        encoding: How to encode videos anew; None stores the files as they are.
        min_frames: Videos with fewer frames are too short and are left out.
        shard_size: Videos of one shard. A killed run loses at most the work on one shard.
    """

    name: str = "prepared"
    store: bool = True
    encoding: Encoding | None = None
    min_frames: int = 1
    shard_size: int = 256

    def __post_init__(self):
        if self.min_frames < 1 or self.shard_size < 1:
            raise ValueError(f"expected min_frames and shard_size of at least 1, got {self}: raise them")
        if self.encoding and not self.store:
            raise ValueError("expected an encoding only with a data set to store, got one for a check: leave it out")


def prepare(
    splits: Mapping[str, Source], output: str | Path, preparation: Preparation, *, workers: int | None = None
) -> Report:
    """Checks all videos, stores the good ones, and reports the others.

    It decodes every frame. `open_source("tfds", output, split)` and TFDS read the result. `report.json` lies beside it.
    Call it again after an interruption to go on. After its end it returns the same report.

    Args:
        splits: The sources, by the split's name.
        output: The folder to write: a new one, or one of the same preparation.
        preparation: What to do.
        workers: Processes; by default one a core. `multiprocessing` demands that a script does its work under
            `if __name__ == "__main__"`.

    Raises:
        ValueError: The folder holds something else, or lies among class folders; the splits have different classes; or
            a split has no good video.
        OSError: Another process works in the folder, or it cannot be written.
    """
    output = Path(output).expanduser().absolute()
    for source in splits.values():
        root = getattr(source, "root", None)
        if root and source.name.startswith("folder ") and output.resolve().is_relative_to(Path(root).resolve()):
            raise ValueError(
                f"expected an output folder outside of the videos' folder {root}, got {output}: there it would be a "
                "class; choose another folder"
            )
    names = [name for source in splits.values() for own in by_target(source.classes).values() for name in own]
    wrong = [name for name in names if len(name.splitlines()) != 1 or re.search("[\ud800-\udfff]", name)]
    if wrong and preparation.store:
        raise ValueError(f"expected class names of one line in UTF-8, got {wrong[0]!r}: rename the class")
    different = {repr(source.classes) for source in splits.values()}
    if len(different) != 1:
        raise ValueError(
            f"expected the same classes in all splits, got {len(different)} different lists: check the lists"
        )
    with _claimed(output, splits, preparation):
        _work(splits, output, preparation, workers or os.cpu_count() or 1)
        parts = {split: [_read(path) for path in _part_files(output, split)] for split in splits}
        report = summarise({split: [row for part in some for row in part] for split, some in parts.items()})
        report.save(output / "report.json")
        if preparation.store:
            empty = [split for split, split_report in report.splits.items() if not split_report.good]
            if empty:
                raise ValueError(
                    f"expected a good video in every split, got none in {', '.join(empty)}: read why in "
                    f"{output / 'report.json'}"
                )
            lengths = {split: [sum(not row.problem for row in part) for part in some] for split, some in parts.items()}
            description = f"Videos prepared by flaxvid: {json.dumps(asdict(preparation))}"
            write_info(output, preparation.name, VERSION, description, next(iter(splits.values())).classes, lengths)
    return report


def _work(splits: Mapping[str, Source], output: Path, preparation: Preparation, workers: int) -> None:
    """Does all incomplete shards, under a progress bar."""
    jobs, total = [], sum(len(source) for source in splits.values())
    for split, source in splits.items():
        for number, start in enumerate(range(0, len(source), preparation.shard_size)):
            indices = range(start, min(start + preparation.shard_size, len(source)))
            if not _is_done(_part_file(output, split, number), source, indices):
                jobs += [(split, number, index) for index in indices]
    if not jobs:
        return
    write = shard_writer(next(iter(splits.values())).classes) if preparation.store else None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with (
        Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as progress,
        processes(workers) as pool,
    ):
        task = progress.add_task("Checking videos", total=total, completed=total - len(jobs))
        items = (splits[split][index] for split, _, index in jobs)
        look = partial(examine, min_frames=preparation.min_frames, encoding=preparation.encoding)
        results = _in_order(partial(pool.submit, look), items, ahead=4 * workers, size=_size)
        bad = 0

        def good(group: Iterable[Any], rows: list[Finding]) -> Iterator[dict[str, Any]]:
            """Yields the good videos, because a shard is too large for memory. All findings go into `rows`."""
            nonlocal bad
            for _, (finding, content) in group:
                rows.append(finding)
                bad += bool(finding.problem)
                progress.update(task, advance=1, description=f"Checking videos ({bad} bad)" if bad else None)
                if not finding.problem:
                    yield {"video": content, "label": finding.label, "id": finding.id}

        for (split, number), group in itertools.groupby(zip(jobs, results, strict=True), key=lambda pair: pair[0][:2]):
            rows: list[Finding] = []
            examples = good(group, rows)
            if write:
                write(shard_path(output, preparation.name, split, number), examples)
            else:
                deque(examples, maxlen=0)
            with written_whole(_part_file(output, split, number)) as path:
                path.write_text(json.dumps([asdict(row) for row in rows]))


def _is_done(part: Path, source: Source, indices: range) -> bool:
    """Whether a shard is complete and its bad files have not changed since."""
    if not part.exists():
        return False
    bad = [(index, row) for index, row in zip(indices, _read(part), strict=True) if row.problem]
    return all(stamp(source[index]["video"]) == row.stamp for index, row in bad)


def _in_order(
    submit: Callable[[Any], Future], items: Iterable[Any], ahead: int, size: Callable[[Any], int]
) -> Iterator[Any]:
    """Yields results in the order of the items. It bounds those that wait, because results are whole videos.

    At most `ahead` items and `IN_FLIGHT` bytes are under way, or a single larger item.
    """
    pending: deque[tuple[int, Future]] = deque()
    total = 0
    for item in items:
        own = size(item)
        while pending and (len(pending) >= ahead or total + own > IN_FLIGHT):
            done, future = pending.popleft()
            yield future.result()
            del future  # the video with it
            total -= done
        pending.append((own, submit(item)))
        total += own
    while pending:
        yield pending.popleft()[1].result()


def _size(item: Mapping[str, Any]) -> int:
    """Bytes that a video takes in memory; 0 if it is missing."""
    video = item["video"]
    if isinstance(video, bytes):
        return len(video)
    if os.path.isdir(video):
        with os.scandir(video) as entries:
            return sum(entry.stat().st_size for entry in entries if entry.is_file())
    return os.path.getsize(video) if os.path.exists(video) else 0


def _part_file(output: Path, split: str, number: int) -> Path:
    return output / "parts" / f"{split}-{number:05d}.json"


def _part_files(output: Path, split: str) -> list[Path]:
    return sorted((output / "parts").glob(f"{split}-[0-9]*.json"))


def _read(path: Path) -> list[Finding]:
    try:
        return [Finding(**row) for row in read_json(path, list)]
    except TypeError as error:  # a row of something else
        raise ValueError(
            f"expected findings in {path}, got something else ({error}): remove it and the shard of its number"
        ) from error


@contextlib.contextmanager
def _claimed(output: Path, splits: Mapping[str, Source], preparation: Preparation) -> Iterator[None]:
    """Locks the folder for this process, and checks that it is new or of the same preparation."""
    marks = {"version": VERSION, **asdict(preparation)}
    for split, source in splits.items():
        described = (
            repr(source) if dataclasses.is_dataclass(source) else f"{source.name} {len(source)} {source.classes}"
        )
        marks[f"split {split}"] = hashlib.sha256(described.encode()).hexdigest()
    record = output / "preparation.json"
    if output.exists() and not record.exists() and any(output.iterdir()):
        raise ValueError(f"expected a new or empty folder, or one of an earlier run, got {output}: choose another")
    (output / "parts").mkdir(parents=True, exist_ok=True)
    with locked(output / "parts" / ".lock") as is_ours:
        if not is_ours:
            raise OSError(
                f"expected a folder for this process alone, got {output}, where another one works: wait, or choose "
                "another folder"
            )
        if record.exists():
            before = read_json(record, dict)
            other = [key for key in {**before, **marks} if before.get(key) != marks.get(key)]
            if other:
                raise ValueError(
                    f"expected in {output} the same videos and options as before, got a different {', '.join(other)}: "
                    "choose another folder"
                )
        with written_whole(record) as path:
            path.write_text(json.dumps(marks, indent=1))
        yield
