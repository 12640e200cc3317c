"""Experiment trackers: Weights & Biases and MLflow get a run's metrics beside its own files.

Their own environment variables and logins say where to: WANDB_MODE, WANDB_PROJECT, MLFLOW_TRACKING_URI,
MLFLOW_EXPERIMENT_NAME, ...
"""

import contextlib
import importlib.util
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from flaxvid.train.fields import walk
from flaxvid.train.recipe import Recipe
from flaxvid.writing import read_json, written_whole

Write = Callable[[int, Mapping[str, float]], None]
"""Takes the metrics of a step."""


class Tracker(NamedTuple):
    """A run in a tracker: the name that the tracker gave it, what takes metrics, and what ends it, well or not."""

    id: str
    write: Write
    finish: Callable[[bool], None]


def _open_wandb(folder: Path, settings: dict[str, Any], known: str | None) -> Tracker:
    import wandb  # pyright: ignore[reportMissingImports]  (of the extra [wandb])

    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "flaxvid"),
        name=folder.name,
        dir=str(folder),
        config=settings,
        id=known,
        resume="allow" if known else None,
    )
    # Not wandb's own count of steps, which only rises: a resume writes again what came after the checkpoint.
    run.define_metric("*", step_metric="step")
    return Tracker(
        run.id,
        lambda step, values: run.log({"step": step, **values}),
        lambda whole: run.finish(exit_code=int(not whole)),
    )


def _open_mlflow(folder: Path, settings: dict[str, Any], known: str | None) -> Tracker:
    import mlflow  # pyright: ignore[reportMissingImports]  (of the extra [mlflow])

    run = mlflow.start_run(run_id=known, run_name=folder.name)
    if not known:  # MLflow refuses another value of a parameter, and a resume may change some
        mlflow.log_params(settings)
    return Tracker(
        run.info.run_id,
        lambda step, values: mlflow.log_metrics(dict(values), step=step),
        lambda whole: mlflow.end_run("FINISHED" if whole else "FAILED"),
    )


TRACKERS = {"wandb": _open_wandb, "mlflow": _open_mlflow}
"""What opens a tracker, by the name of its package."""


def is_installed(name: str) -> bool:
    """Whether a tracker's package is there. A folder that wandb has written, `wandb`, is none."""
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None


@contextlib.contextmanager
def open_trackers(recipe: Recipe, workdir: Path, step: int) -> Iterator[Write]:
    """Opens the trackers of a recipe; yields what writes metrics to all of them. Only process 0 tracks.

    A run that goes on after `step` goes on in the trackers' runs, too: trackers.json has their names. A tracker that
    fails later gets no more, and the training goes on.

    Raises:
        ConnectionError: a tracker cannot be opened: there is no login, no network, or no such run any more.
    """
    file = workdir / "trackers.json"
    known = read_json(file, dict) if step and file.exists() else {}
    settings = {field.path: field.value for field in walk(recipe)} | {"task.name": recipe.task.name}
    trackers: dict[str, Tracker] = {}
    whole = False

    def write(step: int, metrics: Mapping[str, float]) -> None:
        for name in tuple(trackers):
            with _forgiven(f"{name} gets no more metrics", trackers, name):
                trackers[name].write(step, metrics)

    try:
        for name in recipe.trackers if jax.process_index() == 0 else ():
            try:
                trackers[name] = TRACKERS[name](workdir.resolve(), settings, known.get(name))
            except Exception as error:  # each has errors of its own
                raise ConnectionError(
                    f"{name} does not open ({' '.join(str(error).split())}): log in, see that its server is there, or "
                    f"leave it out of --config.trackers; without {file} it begins a new run"
                ) from error
        if trackers:
            with written_whole(file) as part:
                part.write_text(json.dumps(known | {name: tracker.id for name, tracker in trackers.items()}))
        yield write
        whole = True
    finally:
        for name in tuple(trackers):
            with _forgiven(f"{name} did not end well", trackers, name):
                trackers[name].finish(whole)


@contextlib.contextmanager
def _forgiven(what: str, trackers: dict[str, Tracker], name: str) -> Iterator[None]:
    """Says an error of a tracker, and drops the tracker: a training is worth more."""
    try:
        yield
    except Exception as error:  # each has errors of its own
        del trackers[name]
        print(f"{what} ({' '.join(str(error).split())}); metrics.jsonl has them all")
