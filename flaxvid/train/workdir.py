"""The folder of a run: one recipe, one run at a time."""

import contextlib
import hashlib
import json
import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from flaxvid.data.clips.cut import UNREADABLE
from flaxvid.data.sources.class_names import as_classes, differences
from flaxvid.data.sources.open import Source
from flaxvid.train.recipe import Recipe, read_recipe, to_json
from flaxvid.types import Classes
from flaxvid.writing import locked, read_json, written_whole

CLASSES_FILE = "classes.json"
"""The file of a run's folder with its class names, in the order of the logits."""

RESULTS = ("any_frame.json", "reconstruction.json")
"""In a run's folder: the rows of the last test. Whichever is there says that the run is finished."""


def run_folder(path: Path) -> Path | None:
    """The folder of a run, given that folder or one of its checkpoints; None for another path."""
    return next((place for place in (path, *path.absolute().parents[:2]) if (place / "recipe.json").exists()), None)


def is_finished(workdir: Path) -> bool:
    """Whether the folder holds the results of a run."""
    return any((workdir / name).exists() for name in RESULTS)


def read_classes(workdir: Path) -> Classes | None:
    """The class names of a run's folder; None if an older version wrote none.

    Raises:
        ValueError: the file is damaged.
    """
    file = workdir / CLASSES_FILE
    try:
        return as_classes(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else None
    except (ValueError, RecursionError) as error:  # ValueError is wrong UTF-8 or JSON, too
        raise ValueError(
            f"expected class names in {file}, got a damaged file ({error}): restore it, a list in the order of the "
            "logits"
        ) from error


@contextlib.contextmanager
def lock_workdir(workdir: Path) -> Iterator[Callable[[], None]]:
    """Makes a work folder and keeps other runs out of it, until this process ends.

    Yields a function that raises FileNotFoundError once the folder was deleted or moved: writing on would leave half a
    folder.

    Raises:
        ValueError: a run is at work there; the message names its process.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    file = workdir / ".lock"
    with locked(file) as is_ours:
        if not is_ours:
            raise ValueError(
                f"another run is at work in {workdir} ({_owner(file) or 'it has just begun'}): wait for "
                "it, stop it, or give --workdir another folder"
            )
        with contextlib.suppress(PermissionError):  # Windows lets nobody write into a file that is locked
            file.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        ours = file.stat()

        def check_there() -> None:
            try:
                there = os.path.samestat(ours, file.stat())
            except FileNotFoundError:
                there = False
            if not there:
                raise FileNotFoundError(
                    f"{workdir} was deleted or moved while the run was at work, which ends here: move it back and give "
                    "the same command again to go on, or begin anew"
                )

        yield check_there


def _owner(lock: Path) -> str:
    try:
        return lock.read_text().strip()
    except PermissionError:  # Windows lets nobody read it either
        return "Windows does not say which"


def check_name(workdir: Path) -> None:
    """Refuses a work folder that is an address, or whose name is not UTF-8."""
    if re.match(r"\w+:/", str(workdir)):
        raise ValueError(
            f"expected a work folder on a disk, got the address {workdir}: mount it, and give --workdir that folder"
        )
    try:
        str(workdir.absolute()).encode()
    except UnicodeEncodeError as error:
        name = str(workdir.absolute()).encode(errors="surrogateescape")
        raise ValueError(f"expected a work folder with a name in UTF-8, got {name!r}: rename it") from error


@contextlib.contextmanager
def plainly_named(folder: Path) -> Iterator[Path]:
    """The same folder by a name that Orbax and TensorStore do not misread.

    Orbax takes `[x]`, `*` and `?` for a pattern, and `gs:/` or a mount `/s3` for an address. TensorStore takes a
    backslash for a slash, and only UTF-8. They would write elsewhere, or nothing readable, without a word.
    """
    folder = folder.resolve()
    name = folder.as_posix()  # on Windows every path has backslashes
    if not re.search(r"[*?\[\\]|/(gs|s3|az|hf):?/", name) and name == name.encode(errors="ignore").decode():
        yield folder
        return
    if not Path("/proc/self/fd").exists():
        raise ValueError(
            f"expected a folder whose path has no *, ?, [, backslash, gs: or s3:, got {name!r}: rename it, or give "
            "--workdir another one"
        )
    opened = os.open(folder, os.O_RDONLY)
    try:
        yield Path(f"/proc/self/fd/{opened}")
    finally:
        os.close(opened)


MAY_CHANGE = frozenset(
    {
        *("data.root", "data.lists", "data.missing", "data.max_broken", "data.num_threads", "data.validation_split"),
        *("data.target.root", "data.target.lists"),
        *("checkpoint_every", "keep", "keep_every", "log_every", "eval_every", "eval_batch_size", "published"),
        *("trackers",),
        *("fsdp", "tensor"),
        *("task.teachers", "task.teacher_models", "task.teacher_frames", "task.teacher_sizes"),
    }
)
"""Fields that change no result: a run goes on with other values. `claim_videos` and `claim_teachers` check that videos
and teachers are the same."""

TESTS = frozenset({"data.eval_split", "data.clips.test_size", "data.clips.clips", "data.clips.crops", "eval_frames"})
"""Fields that change the test alone: a run goes on with other values, a finished run is tested again."""


def claim_workdir(recipe: Recipe, workdir: Path) -> None:
    """Writes recipe.json into a new work folder, or checks that an old one holds the same run.

    The same run computes the same numbers; other changes are printed and written. A run can get more epochs if its
    schedule stays the same for the epochs before. A folder without checkpoints and results is new: a run that stopped
    at its first batch can be corrected.

    Raises:
        ValueError: the folder belongs to another run; the message names the fields that differ.
    """
    file = workdir / "recipe.json"
    if file.exists() and has_results(workdir):
        mine, theirs = (json.loads(to_json(one)) for one in (recipe, read_recipe(workdir)))
        changes = {path: f"{path}: {old} there, {new} here" for path, old, new in _differences(theirs, mine)}
        extends = recipe.epochs > theirs["epochs"] and recipe.optimizer.schedule != "cosine"
        free = MAY_CHANGE | TESTS | ({"epochs"} if extends else set())
        if refused := [line for path, line in changes.items() if path not in free]:
            if "epochs" in changes and "epochs" not in free:
                refused.append(
                    "a run cannot be shortened"
                    if recipe.epochs < theirs["epochs"]
                    else "a cosine ends with its epochs: to train longer, begin a new run with "
                    f"--config.model.weights={workdir}"
                )
            listed = "\n  ".join(refused)
            raise ValueError(f"{workdir} holds a run of another recipe:\n  {listed}\ngive --workdir another folder")
        options = read_json(file, dict).get("model", {}).get("options", {})
        if options.get("freeze_norms") and not is_finished(workdir):
            raise ValueError(
                f"{workdir} was begun by an older version with model.options.freeze_norms, whose checkpoints hold more "
                f"than those of --config.freeze: begin a new run with --config.model.weights={workdir}"
            )
        if not changes:
            return
        print(f"{workdir} goes on with changes:\n  " + "\n  ".join(changes.values()))
        if changes.keys() & (TESTS | {"epochs"}):
            for name in RESULTS:
                (workdir / name).unlink(missing_ok=True)  # of other epochs or another test
    workdir.mkdir(parents=True, exist_ok=True)
    with written_whole(file) as path:
        path.write_text(to_json(recipe))


def claim_videos(source: Source, workdir: Path, name: str = "data.json") -> None:
    """Writes a file of that name into a new work folder, or checks that an old run was trained on the same videos.

    It compares names, labels and order, for the next batches follow from them; the videos may lie in another folder.

    Raises:
        ValueError: the training videos are others now.
    """
    lines = []
    for position in range(len(source)):
        try:
            item = source[position]
            lines.append(json.dumps([str(item["id"]), item["label"]]))
        except UNREADABLE:
            lines.append("")
    mine = {"videos": len(lines), "digest": hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]}
    file = workdir / name
    if not has_results(workdir):
        file.write_text(json.dumps(mine))  # every host writes the same
    elif file.exists() and (theirs := read_json(file, dict)) != mine:
        raise ValueError(
            f"expected the {theirs.get('videos')} training videos that the run in {workdir} learnt from, got "
            f"{len(lines)} with other names, labels or order: give them back, or give --workdir another folder"
        )


def claim_classes(classes: Classes, workdir: Path) -> None:
    """Writes classes.json into a new work folder, or checks that an old run was trained on the same classes.

    A network answers by number: after class folders were renamed, added or removed, a number means another class.

    Raises:
        ValueError: the classes are others now, or in another order; the message names them.
    """
    if not has_results(workdir):
        (workdir / CLASSES_FILE).write_text(json.dumps(classes))  # every host writes the same
    elif (saved := read_classes(workdir)) is None:
        print(f"{workdir} has no {CLASSES_FILE}: its classes are taken to be those that the data has now")
    elif lines := differences(saved, classes):
        raise ValueError(
            f"expected the classes that the run in {workdir} was trained on, got others: {'; '.join(lines)}: give the "
            "data its class names and their order back, or give --workdir another folder"
        )


def has_results(workdir: Path) -> bool:
    """Whether a run has saved anything in the folder that another must not mix with."""
    saved = any(path.name.isdigit() for path in workdir.glob("checkpoints/*"))
    return saved or is_finished(workdir)


def _differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The fields in which nested dicts differ: path and both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))
    elif old != new:
        yield path, old, new
