"""Runs with trackers: stand-ins that note every call, and the real packages where they are installed."""

import dataclasses
import json
import sys
from importlib.machinery import PathFinder

import jax
import pytest

import flaxvid
from flaxvid.report.run import read_metrics
from flaxvid.train import trackers
from flaxvid.train.trackers import open_trackers

WANDB = """
import json, pathlib

def note(*call):
    with (pathlib.Path(__file__).parent / "calls.jsonl").open("a") as file:
        print(json.dumps(call), file=file)

class Run:
    def __init__(self, id):
        self.id = id or "w1"

    def define_metric(self, name, step_metric):
        assert (name, step_metric) == ("*", "step")

    def log(self, values):
        note("wandb", "log", values.pop("step"), values)

    def finish(self, exit_code):
        note("wandb", "finish", exit_code)

def init(project, name, dir, config, id, resume):
    note("wandb", "init", project, name, dir, config["model.name"], id, resume)
    return Run(id)
"""
MLFLOW = """
import types, wandb

def start_run(run_id, run_name):
    wandb.note("mlflow", "start", run_id, run_name)
    return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id or "m1"))

def log_params(values):
    wandb.note("mlflow", "params", values["model.name"], values["task.name"])

def log_metrics(values, step):
    wandb.note("mlflow", "log", step, values)

def end_run(status):
    wandb.note("mlflow", "end", status)
"""


@pytest.fixture
def recipe(colour_recipe):
    return dataclasses.replace(colour_recipe, epochs=1, log_every=1, trackers=("wandb", "mlflow"))


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Packages of the trackers' names; gives what reads their calls."""
    folder = tmp_path / "packages"
    folder.mkdir()
    for name, program in (("wandb", WANDB), ("mlflow", MLFLOW)):
        (folder / f"{name}.py").write_text(program)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)

    def read(tracker, kind=None):
        file = folder / "calls.jsonl"
        calls = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return [call[1:] for call in calls if call[0] == tracker and kind in (None, call[1])]

    yield read
    for name in ("wandb", "mlflow"):
        sys.modules.pop(name, None)


def rows_of(folder):
    """What metrics.jsonl says: step and metrics of each line."""
    return [
        [row["step"], {name: row[name] for name in row if "/" in name}]
        for row in read_metrics(folder / "metrics.jsonl")
    ]


def test_trackers_get_every_line_and_a_resume_goes_on_in_the_same_run(recipe, stand_in, tmp_path):
    run = tmp_path / "run"
    flaxvid.run(recipe, run)
    first = rows_of(run)
    assert {name.partition("/")[0] for _, metrics in first for name in metrics} == {"train", "test"}
    flaxvid.run(dataclasses.replace(recipe, epochs=2), run)
    again = [row for row in rows_of(run) if row[0] > first[-1][0]]
    assert again
    for name in ("wandb", "mlflow"):
        assert [call[1:] for call in stand_in(name, "log")] == first + again
    place = ["init", "flaxvid", "run", str(run), "tsm_resnet18"]
    assert stand_in("wandb", "init") == [[*place, None, None], [*place, "w1", "allow"]]
    assert stand_in("wandb", "finish") == [["finish", 0]] * 2
    assert stand_in("mlflow", "start") == [["start", None, "run"], ["start", "m1", "run"]]
    assert stand_in("mlflow", "params") == [["params", "tsm_resnet18", "supervised"]]
    assert stand_in("mlflow", "end") == [["end", "FINISHED"]] * 2


def test_a_run_that_begins_anew_is_a_new_run_and_one_that_fails_is_said_to(recipe, stand_in, tmp_path):
    with pytest.raises(FloatingPointError), open_trackers(recipe, tmp_path, 0):
        raise FloatingPointError
    assert stand_in("wandb", "finish") == [["finish", 1]]
    assert stand_in("mlflow", "end") == [["end", "FAILED"]]
    for step in (0, 5):
        with open_trackers(recipe, tmp_path, step) as write:
            write(step, {"train/loss": 1.0})
    assert [call[-2] for call in stand_in("wandb", "init")] == [None, None, "w1"]


def test_a_tracker_that_fails_does_not_end_the_training(recipe, stand_in, tmp_path, capsys):
    def refuse(values, step):
        raise RuntimeError("no\nserver")

    with open_trackers(recipe, tmp_path, 0) as write:
        sys.modules["mlflow"].log_metrics = refuse
        for step in (1, 2):
            write(step, {"train/loss": 1.0})
    assert len(stand_in("wandb", "log")) == 2
    told = capsys.readouterr().out.splitlines()
    assert told == ["mlflow gets no more metrics (no server); metrics.jsonl has them all"]


def test_a_tracker_that_does_not_open_stops_the_run_before_the_training(recipe, stand_in, tmp_path):
    (tmp_path / "packages" / "mlflow.py").write_text("def start_run(**of): raise RuntimeError('no such\\nrun')")
    with pytest.raises(ConnectionError, match=r"^mlflow does not open \(no such run\): log in, .*trackers.json"):
        flaxvid.run(recipe, tmp_path / "run")
    assert stand_in("wandb") == [stand_in("wandb", "init")[0], ["finish", 1]]
    assert not list((tmp_path / "run").glob("checkpoints/[0-9]*"))


def test_only_the_first_process_tracks(recipe, stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with open_trackers(recipe, tmp_path, 0) as write:
        write(1, {"train/loss": 1.0})
    assert stand_in("wandb") == stand_in("mlflow") == []
    assert not (tmp_path / "trackers.json").exists()


def test_what_is_not_installed_is_said_at_the_door(recipe, tmp_path, monkeypatch):
    """A folder that wandb has written is no package."""
    (tmp_path / "wandb").mkdir()
    found = PathFinder.find_spec("wandb", [str(tmp_path)])
    assert found is not None
    monkeypatch.setattr(trackers.importlib.util, "find_spec", {"wandb": found, "mlflow": None}.get)
    with pytest.raises(ValueError) as refused:
        flaxvid.run(recipe, tmp_path / "run")
    for name in recipe.trackers:
        assert f"trackers: {name} is not installed: pip install 'flaxvid[{name}]'" in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_wandb_itself_offline(recipe, tmp_path, monkeypatch):
    pytest.importorskip("wandb.sdk")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tmp_path / "run"
    for epochs in (1, 2):
        flaxvid.run(dataclasses.replace(recipe, trackers=("wandb",), epochs=epochs), run)
    written = sorted(run.glob("wandb/offline-run-*/*.wandb"))
    known = json.loads((run / "trackers.json").read_text())["wandb"]
    assert [file.name for file in written] == [f"run-{known}.wandb"] * 2
    for file, name in zip(written, ("train/loss", "test/top1_2"), strict=True):
        assert name.encode() in file.read_bytes()


def test_mlflow_itself(recipe, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow.tracking")
    place = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place)
    run = tmp_path / "run"
    for epochs in (1, 2):
        flaxvid.run(dataclasses.replace(recipe, trackers=("mlflow",), epochs=epochs), run)
    client = mlflow.MlflowClient(place)
    known = client.get_run(json.loads((run / "trackers.json").read_text())["mlflow"])
    assert (known.info.run_name, known.info.status) == ("run", "FINISHED")
    assert known.data.params["model.name"] == "tsm_resnet18"
    losses = [(step, metrics["train/loss"]) for step, metrics in rows_of(run) if "train/loss" in metrics]
    history = client.get_metric_history(known.info.run_id, "train/loss")
    assert sorted((point.step, point.value) for point in history) == losses
