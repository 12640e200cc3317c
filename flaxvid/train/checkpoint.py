"""Checkpoints of a run.

A step's folder holds `variables`, `training` (the rest of the state), `data` (the position in it), `extra` (shapes and
types) and `metrics` (the score). Evaluation and export read `variables` alone.
"""

import contextlib
import dataclasses
import errno
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from grain.checkpoint import CheckpointRestore, CheckpointSave
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from flaxvid.train.workdir import plainly_named
from flaxvid.types import Variables
from flaxvid.writing import written_whole

State = TypeVar("State")
_SHOWN = 12
_OBJECTS = ("metrics", "metadata", "_CHECKPOINT_METADATA")
"""Files of a step that hold a JSON object whatever their first byte."""
_FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT), "RESOURCE_EXHAUSTED")
_PASSING = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT)
"""Errors that pass: the file may be whole."""


class Checkpoints:
    """Saves and restores a run's training state; a context manager that waits for its last save.

    Saving goes on in the background: `save` returns when it has copied the state, which the next step may then donate.
    Every process must call every method.

    The first checkpoint that an object saves is read back at the next `save` or `wait`: a disk that loses data must not
    show only on resume. A damaged checkpoint is renamed to `damaged-<step>`, with a message, and the one before it is
    the latest; nothing is deleted.

    Args:
        directory: the folder of the steps' folders, `<run>/checkpoints`.
        keep: see `Recipe.keep`; None keeps all.
        keep_every: steps divisible by this stay for ever.

    Raises:
        ValueError: no checkpoint of those there can be read.
        OSError: the folder cannot be written, or a checkpoint cannot be read now.
    """

    def __init__(self, directory: str | Path, keep: int | None = 3, keep_every: int | None = None):
        self.directory = Path(directory).absolute()
        self._proving, self._unproven = False, None
        self.directory.mkdir(parents=True, exist_ok=True)
        self._check_writable()
        if jax.process_index() == 0:
            _put_damaged_aside(self.directory)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints are aside")
        best = policies.BestN(get_metric_fn=_score, n=1)
        kept = [policies.LatestN(keep), best, *([policies.EveryNSteps(keep_every)] if keep_every else [])]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(kept), best_fn=_score, cleanup_tmp_directories=True
        )
        with self._disk(), contextlib.ExitStack() as stack:
            self._manager = ocp.CheckpointManager(stack.enter_context(plainly_named(self.directory)), options=options)
            self._name = stack.pop_all()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint; None if there is none."""
        return self._manager.latest_step()

    def has_score(self, step: int) -> bool:
        """Whether a saved step has a score."""
        return _score(self._manager.metrics(step) or {}) > -math.inf

    def set_score(self, step: int, score: float) -> None:
        """Writes the score of a saved step, the higher the better; the best step stays."""
        self.wait()
        if jax.process_index() == 0:
            with written_whole(self.directory / str(step) / "metrics" / "metrics") as path:
                path.write_text(json.dumps({"score": score}))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("the score is written")
        self._manager.reload()

    def save(self, step: int, state: Any, data: Any = None) -> None:
        """Starts to save; saving the latest step again does nothing.

        Args:
            step: updates done so far, the name of the folder.
            state: a dataclass pytree such as TrainState, with a field `variables`.
            data: knows the position in the training data: `Prefetch`, or an iterator of Grain's.

        Raises:
            OSError: the disk is full or cannot be written, or the first checkpoint cannot be read back. Earlier
                checkpoints stay whole. The next calls may raise it, for saving goes on in the background.
            ValueError: the folder holds a later step, which a resume would take instead of this one.
        """
        latest = self.latest_step()
        if latest == step:
            return
        if latest is not None and latest > step:
            raise ValueError(
                f"expected a step after {latest}, the latest checkpoint in {self.directory}, got {step}: restore that "
                f"one first, or give this run a folder of its own"
            )
        variables, training = _split(state)
        items = {
            "variables": ocp.args.StandardSave(variables),
            "training": ocp.args.StandardSave(training),
            "extra": ocp.args.JsonSave({"leaves": _leaves(state)}),
        }
        if data is not None:
            items["data"] = CheckpointSave(data)
        self.wait()
        self._check_writable()
        with self._disk():
            self._manager.save(step, args=ocp.args.Composite(**items), metrics={"score": -math.inf}, force=True)
        if not self._proving:
            self._proving, self._unproven = True, step

    def restore(self, state: State, data: Any = None) -> State:
        """Restores the latest step onto the devices of `state`, whatever devices it was saved from.

        Args:
            state: arrays, or `jax.ShapeDtypeStruct`s whose `sharding` places them (none: the first device).
            data: is moved to the saved position.

        Raises:
            FileNotFoundError: there is no checkpoint, or it holds no position in the data.
            ValueError: paths, shapes or types differ from the state's; the message lists the differences. Or another
                number of processes saved the position in the data.
        """
        self.wait()
        folder = find_checkpoint(self.directory)
        note = json.loads((folder / "extra" / "metadata").read_text())
        _check_leaves(note["leaves"], _leaves(state), folder)
        variables, training = _split(jax.tree.map(_abstract, state))
        items: dict[str, Any] = {
            "variables": ocp.args.StandardRestore(variables),
            "training": ocp.args.StandardRestore(training),
        }
        if data is not None:
            if not (folder / "data").exists():
                raise FileNotFoundError(
                    f"expected a position in the data in {folder}, got none: it was saved without `data`; restore "
                    f"without it to begin a new pass"
                )
            _check_processes(folder)
            items["data"] = CheckpointRestore(data)
        restored = self._manager.restore(int(folder.name), args=ocp.args.Composite(**items))
        return dataclasses.replace(state, variables=restored.variables, **restored.training)  # pyright: ignore

    def wait(self) -> None:
        """Waits until every save is on disk; raises what went wrong in the background."""
        with self._disk():
            self._manager.wait_until_finished()
        step, self._unproven = self._unproven, None
        if step is not None and jax.process_index() == 0 and (problem := _damage(self.directory / str(step))):
            raise OSError(
                f"the checkpoint of step {step} was saved in {self.directory} and cannot be read back ({problem}): "
                "give --workdir a folder on another disk"
            )

    def close(self) -> None:
        """Waits, then ends the background threads."""
        with self._name, self._disk():
            self._manager.close()

    def _check_writable(self) -> None:
        """Raises at once; Orbax would try for five minutes."""
        if jax.process_index() > 0:
            return
        try:
            tempfile.TemporaryFile(dir=self.directory).close()
        except OSError as error:
            place = str(self.directory)
            raise OSError(error.errno, f"no checkpoint can be written ({error.strerror})", place) from error

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        """Says in one line why a checkpoint is not on disk, whichever library raised it."""
        try:
            yield
        except Exception as error:
            full = any(sign.lower() in f"{error} {error.__cause__}".lower() for sign in _FULL)
            if not full and jax.process_count() > 1:  # another process may be lost
                raise
            if not full:
                raise OSError(
                    f"the checkpoint was not saved in {self.directory} ({_first_line(error)}): correct that and give "
                    "the same command again"
                ) from error
            steps = _steps(self.directory)
            raise OSError(
                errno.ENOSPC,
                f"the disk of {self.directory} is full and the checkpoint was not saved: make room and give the same "
                f"command again, it {f'goes on after step {steps[-1]}' if steps else 'begins anew'}",
            ) from error


def find_checkpoint(path: str | Path, checkpoint: str | int = "latest") -> Path:
    """Finds the folder of one of a run's checkpoints; its name is the step.

    Args:
        path: a run's folder, its `checkpoints`, or one step's folder, which is the answer then.
        checkpoint: "latest", "best" (the highest score of the evaluations during training), or a step.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: `checkpoint` is something else.
    """
    folder, wanted = Path(path).absolute(), str(checkpoint)
    if wanted not in ("latest", "best") and not wanted.isdecimal():
        raise ValueError(f'expected checkpoint "latest", "best" or a step such as 1500, got {checkpoint!r}')
    if (folder / "variables").exists():
        if wanted not in ("latest", folder.name):
            raise FileNotFoundError(
                f"expected a run's folder for checkpoint {wanted}, got that of one step, {folder}: leave {wanted} out"
            )
        return folder
    folder = folder / "checkpoints" if (folder / "checkpoints").exists() else folder
    steps = _steps(folder)
    if not steps:
        found = "a folder without checkpoints" if folder.exists() else "no such folder"
        raise FileNotFoundError(f"expected checkpoints in {folder}, got {found}: check the path, or train first")
    scores = {step: _saved_score(folder / str(step)) for step in steps} if wanted == "best" else {}
    if wanted == "best" and max(scores.values()) == -math.inf:
        raise FileNotFoundError(
            f"expected a best checkpoint in {folder}, got none with a score: the run was not evaluated during training "
            f"(eval_every); take the latest, or one of the steps {', '.join(map(str, steps))}"
        )
    step = max(scores, key=scores.__getitem__) if wanted == "best" else steps[-1] if wanted == "latest" else int(wanted)
    if step not in steps:
        raise FileNotFoundError(f"expected one of the steps {', '.join(map(str, steps))} in {folder}, got {step}")
    return folder / str(step)


def restore_variables(path: str | Path, checkpoint: str | int = "latest") -> dict[str, Any]:
    """Reads a checkpoint's variables as NumPy arrays; arguments and errors as in `find_checkpoint`.

    Raises:
        ValueError: the checkpoint is damaged.
    """
    folder = find_checkpoint(path, checkpoint)
    try:
        return _read_numpy(folder / "variables")
    except Exception as error:
        raise ValueError(f"{folder} cannot be read: {_fault(error)}: give the folder of another step") from error


def _steps(directory: Path) -> list[int]:
    return sorted(int(p.name) for p in directory.glob("*") if p.name.isdigit() and (p / "variables").exists())


def _score(metrics: Any) -> float:
    score = metrics.get("score")
    return score if isinstance(score, int | float) else -math.inf


def _saved_score(folder: Path) -> float:
    try:
        return _score(json.loads((folder / "metrics" / "metrics").read_text()))
    except (OSError, ValueError, AttributeError):  # a file that is missing, damaged, or no object
        return -math.inf


def _put_damaged_aside(directory: Path) -> None:
    """Reads checkpoints from the newest back to a whole one; of earlier ones only the part that Orbax reads at once."""
    damaged, whole = {}, None
    for step in reversed(_steps(directory)):
        folder = directory / str(step)
        if problem := _damage(folder / "metrics" if whole else folder):
            damaged[step] = problem
        else:
            whole = whole or step
    if damaged and not whole:
        step, problem = damaged.popitem()
        raise ValueError(
            f"no checkpoint in {directory} can be read (the first, of step {step}: {problem}): give --workdir another "
            "folder to begin again; nothing was changed in this one"
        )
    for step, problem in damaged.items():
        aside = directory / f"damaged-{step}"
        while aside.exists():
            aside = aside.with_name(f"{aside.name}-again")
        (directory / str(step)).rename(aside)
        print(f"the checkpoint of step {step} is damaged ({problem}): put aside as {aside}, the one before it is used")


def _damage(folder: Path) -> str:
    """Why a checkpoint, or a part of it, cannot be read; "" if it can. Reads all of its files."""
    try:
        for file in (path for path in folder.rglob("*") if path.is_file()):
            with file.open("rb") as content:
                if not (first := content.peek(1)[:1]):
                    return f"{file.relative_to(folder)} is empty"
                if (first == b"{" or file.name in _OBJECTS) and not isinstance(json.load(content), dict):
                    return f"{file.relative_to(folder)} is no JSON object"
        for item in ("variables", "training"):
            if (folder / item).exists():
                _read_numpy(folder / item)
    except Exception as error:  # libraries raise anything on broken files
        return _fault(error)
    return ""


def _fault(error: Exception) -> str:
    """What a reading error says of the file, in one line; raises an error that passes."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _PASSING):
        raise error
    return f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")[:200]


def _read_numpy(folder: Path) -> Any:
    with plainly_named(folder) as plain:
        handler, saved = ocp.PyTreeCheckpointHandler(), epath.Path(plain)
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(saved).tree)
        return handler.restore(saved, args=ocp.args.PyTreeRestore(restore_args=as_numpy))


def _split(state: Any) -> tuple[Variables, dict[str, Any]]:
    """Splits a state into its variables and its other pytree fields."""
    nodes = [f.name for f in dataclasses.fields(state) if f.metadata.get("pytree_node", True)]
    return state.variables, {name: getattr(state, name) for name in nodes if name != "variables"}


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _check_processes(folder: Path) -> None:
    """Refuses to go on with another number of processes: each has its own position in the data."""
    saved = {int(file.stem.rpartition("-of-")[2]) for file in (folder / "data").glob("process_*-of-*.json")}
    if saved and jax.process_count() not in saved:
        raise ValueError(
            f"expected {max(saved)} processes, with which {folder} was saved, got {jax.process_count()}: start as "
            "many, on any number of devices"
        )


def _leaves(state: Any) -> dict[str, str]:
    """Describes every leaf: {"variables/params/...": "float32[3, 3]"}."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(_split(state))
    roots = ("variables", "training")
    return {
        "/".join((roots[path[0].idx], jax.tree_util.keystr(path[1:], simple=True, separator="/"))): (
            f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
        )
        for path, leaf in leaves
    }


def _check_leaves(saved: Mapping[str, str], wanted: Mapping[str, str], folder: Path) -> None:
    both = [path for path in wanted if path in saved and saved[path] != wanted[path]]
    differences = [f"{path}: saved {saved[path]}, expected {wanted[path]}" for path in both]
    differences += [f"{path}: expected, but not saved" for path in wanted if path not in saved]
    differences += [f"{path}: saved, but not expected" for path in saved if path not in wanted]
    if differences:
        rest = len(differences) - _SHOWN
        more = [f"... and {rest} more"] if rest > 0 else []
        raise ValueError(
            f"expected a checkpoint of this model and optimizer, got {len(differences)} differences in {folder}:\n  "
            + "\n  ".join(differences[:_SHOWN] + more)
            + "\nUse the recipe that it was trained with, or another folder."
        )
