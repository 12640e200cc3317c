"""Checkpoints of a run: variables, the rest of the training state, the position in the data, a JSON note.

A step's folder holds the items `variables`, `training`, `data` and `extra`. Variables stand apart so that evaluation
and export read them without knowing the optimizer that made them.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from grain.checkpoint import CheckpointRestore, CheckpointSave

from flaxvid.types import Variables

State = TypeVar("State")
_SHOWN = 12


class Checkpoints:
    """Saves and restores a run's training state; a context manager that waits for its last save.

    Saving is asynchronous: `save` returns when device memory was copied and the position in the data taken, so the
    next step may donate its state. Every process must call every method.

    Args:
        directory: where the steps' folders go, `<run>/checkpoints`.
        keep: how many of the latest steps stay; None keeps all.
        keep_every: steps divisible by this stay for ever, beside the latest.
    """

    def __init__(self, directory: str | Path, keep: int | None = 3, keep_every: int | None = None):
        if keep is not None and keep < 1:
            raise ValueError(f"expected keep >= 1 checkpoints or None for all, got keep={keep}")
        self.directory = Path(directory).absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, keep_period=keep_every, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def latest_step(self) -> int | None:
        """The step of the newest whole checkpoint; None in an empty folder."""
        return self._manager.latest_step()

    def save(
        self,
        step: int,
        state: Any,
        data: grain.DatasetIterator | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Starts to save; saving the latest step again does nothing.

        Args:
            step: updates done so far, the name of the folder.
            state: a dataclass pytree such as TrainState, with `variables` among its fields.
            data: the training data's iterator, to resume in the middle of an epoch.
            extra: anything JSON, such as the recipe.

        Raises:
            ValueError: the folder holds a later step, which a resume would prefer to this one.
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
        note = {"leaves": _leaves(state), "extra": dict(extra or {})}
        items = {
            "variables": ocp.args.StandardSave(variables),
            "training": ocp.args.StandardSave(training),
            "extra": ocp.args.JsonSave(note),
        }
        if data is not None:
            items["data"] = CheckpointSave(data)
        self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def restore(
        self, state: State, data: grain.DatasetIterator | None = None, step: int | None = None
    ) -> tuple[State, dict[str, Any]]:
        """Restores a step onto the devices that `state` names, whatever devices it was saved from.

        Args:
            state: what to fill: arrays, or `jax.ShapeDtypeStruct`s whose `sharding` places them (none: the first
                device).
            data: an iterator made like the saved one; it is moved to the saved position.
            step: which one; None is the latest.

        Returns:
            The restored state and the `extra` note.

        Raises:
            FileNotFoundError: there is no such checkpoint, or it holds no position in the data.
            ValueError: paths, shapes or types differ from the state's; all differences are listed.
        """
        self.wait()
        step = _existing_step(self.directory, step)
        folder = self.directory / str(step)
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
            items["data"] = CheckpointRestore(data)
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        state = dataclasses.replace(state, variables=restored.variables, **restored.training)  # pyright: ignore
        return state, note["extra"]

    def wait(self) -> None:
        """Returns when every started save is on disk; raises what went wrong in the background."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and frees the background threads."""
        self._manager.close()


def restore_variables(path: str | Path, step: int | None = None) -> dict[str, Any]:
    """Reads a checkpoint's variables as nested dictionaries of numpy arrays, without model, optimizer or devices.

    Args:
        path: a run's folder, its `checkpoints`, or one step's folder.
        step: which step; None is the latest.

    Returns:
        Variables such as {"params": ..., "params_4f": ..., "batch_stats_4f": ...}.

    Raises:
        FileNotFoundError: there is no such checkpoint.
    """
    folder = Path(path).absolute()
    if not (folder / "variables").exists():
        folder = folder / "checkpoints" if (folder / "checkpoints").exists() else folder
        folder = folder / str(_existing_step(folder, step))
    handler = ocp.PyTreeCheckpointHandler()
    saved = epath.Path(folder / "variables")
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(saved).tree)
    return handler.restore(saved, args=ocp.args.PyTreeRestore(restore_args=as_numpy))


def _existing_step(directory: Path, step: int | None) -> int:
    steps = sorted(int(p.name) for p in directory.glob("*") if p.name.isdigit() and (p / "variables").exists())
    if not steps:
        found = "a folder without checkpoints" if directory.exists() else "no such folder"
        raise FileNotFoundError(f"expected checkpoints in {directory}, got {found}: check the path, or train first")
    if step is not None and step not in steps:
        raise FileNotFoundError(f"expected one of the steps {steps} in {directory}, got step={step}")
    return steps[-1] if step is None else step


def _split(state: Any) -> tuple[Variables, dict[str, Any]]:
    """Splits a state into its variables and its other pytree fields."""
    nodes = [f.name for f in dataclasses.fields(state) if f.metadata.get("pytree_node", True)]
    return state.variables, {name: getattr(state, name) for name in nodes if name != "variables"}


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _leaves(state: Any) -> dict[str, str]:
    """Describes every leaf, {"variables/params/...": "float32[3, 3]"}: what two trees must share to be the same."""
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
