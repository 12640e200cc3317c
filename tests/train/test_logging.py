import io
import json
import math

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from flaxvid.report.run import read_metrics
from flaxvid.train import logging
from flaxvid.train.logging import RunLogger, parameter_table


class Clock:
    """Stands in for time.monotonic, so that rates are exact."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(logging.time, "monotonic", clock)
    return clock


def plain():
    return Console(file=io.StringIO(), width=80)


def read_scalars(folder):
    """The (step, name, value) of TensorBoard's event files: length, crc, protobuf, crc."""
    scalars = []
    for path in sorted(folder.glob("events*")):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + length])
            scalars += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            data = data[16 + length :]
    return scalars


def test_metrics_reach_file_tensorboard_and_console(tmp_path):
    console = plain()
    with RunLogger(tmp_path / "run", 2, console=console) as log:
        log.update(1, clips=8)
        log.write(1, {"train/loss": jnp.float32(0.5), "train/accuracy": 1}, epoch=0.25)
        log.write(2, {"eval/top1_4": jnp.array([0.75])})
    first, second = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert first.pop("time") > 1e9
    assert first == {"step": 1, "epoch": 0.25, "train/loss": 0.5, "train/accuracy": 1.0}
    assert second["eval/top1_4"] == 0.75
    expected = [(1, "train/loss", 0.5), (1, "train/accuracy", 1.0), (2, "eval/top1_4", 0.75)]
    assert read_scalars(tmp_path / "run" / "tensorboard") == expected
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "step 1/2  epoch 0.25  loss 0.5  accuracy 1"
    assert lines[1] == "step 2/2  eval/top1_4 0.75"


def test_resume_drops_what_is_done_again_and_a_torn_line(tmp_path):
    with RunLogger(tmp_path, 10, console=plain()) as log:
        for step in range(5):
            log.write(step, {"train/loss": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "train/l')
    with RunLogger(tmp_path, 10, step=2, console=plain()) as log:
        log.write(3, {"train/loss": 30})
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["train/loss"]) for row in rows] == [(0, 0), (1, 1), (2, 2), (3, 30)]
    with RunLogger(tmp_path, 10, console=plain()):
        pass
    assert read_metrics(tmp_path / "metrics.jsonl") == ()


def test_an_evaluation_that_is_made_again_leaves_no_second_line(tmp_path):
    with RunLogger(tmp_path, 10, console=plain()) as log:
        for step in (1, 2):
            log.write(step, {"train/loss": step})
            log.write(step, {"eval/top1_4": step})
        log.write(2, {"test/top1_4": 2})  # the last one, of a run that was killed before it was finished
    kept = [(1, "train/loss"), (1, "eval/top1_4"), (2, "train/loss"), (2, "eval/top1_4")]
    for evaluated, names in ((True, kept), (False, kept[:3])):
        with RunLogger(tmp_path, 10, step=2, evaluated=evaluated, console=plain()):
            pass
        rows = read_metrics(tmp_path / "metrics.jsonl")
        assert [(row["step"], *[name for name in row if "/" in name]) for row in rows] == names


@pytest.mark.parametrize("small_disk", ["64k"], indirect=True)
def test_a_full_disk_is_an_error_that_names_the_file_and_no_hang(small_disk):
    def fill():
        with RunLogger(small_disk, 10**6, console=plain()) as log:
            for step in range(10**6):
                log.write(step, {"train/loss": 1.0})

    with pytest.raises(OSError, match="No space left") as full:
        fill()
    assert str(small_disk) in str(full.value)


def test_rates_leave_out_compilation_and_evaluation(tmp_path, clock):
    console = plain()
    with RunLogger(tmp_path, 11, console=console, interval=0) as log:
        clock.now += 60  # compiling
        for step in (1, 2, 3):
            log.update(step, clips=8)
            clock.now += 2
        log.write(3, {"train/loss": 1.0})
        clock.now += 100  # evaluating
        log.write(3, {"eval/top1_4": 0.5})
        log.update(4, clips=8)
        clock.now += 4
        log.write(4, {"train/loss": 1.0})
    rates = [row.get("train/clips_per_second") for row in read_metrics(tmp_path / "metrics.jsonl")]
    assert rates == [16 / 6, None, 8 / 4]
    assert "clips/s 2.667  ETA 0:00:24" in console.file.getvalue()


def test_plain_lines_come_now_and_then_and_are_not_broken(tmp_path, clock):
    console = plain()
    with RunLogger(tmp_path, 100, console=console, interval=10) as log:
        for step in range(1, 101):
            clock.now += 1
            log.write(step, {"train/loss": 1.0, "train/a_rather_long_name_of_a_metric": 1.0, "train/another_one": 1.0})
    lines = console.file.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == [f"step {i}/100" for i in (*range(1, 100, 10), 100)]


def test_a_terminal_gets_a_bar_with_evaluations_above_it(tmp_path):
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with RunLogger(tmp_path, 4, step=1, console=console) as log:
        log.update(2, clips=8)
        log.write(2, {"train/loss": 0.125})
        log.write(2, {"eval/top1_4": 0.5})
    shown = console.file.getvalue()
    assert "2/4" in shown
    assert "loss 0.125" in shown
    assert "step 2/4  eval/top1_4 0.5" in shown


def test_a_notebook_gets_lines(tmp_path, monkeypatch, capsys):
    """It asks for colours, as a terminal would."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    with RunLogger(tmp_path, 2) as log:
        log.write(1, {"train/loss": 0.5})
    assert capsys.readouterr().out == "step 1/2  loss 0.5\n"


def test_what_is_not_finite_is_null_in_the_file_and_nan_on_the_console(tmp_path):
    console = plain()
    with RunLogger(tmp_path, 2, console=console) as log:
        log.write(1, {"train/loss": jnp.nan, "train/norm": math.inf})
    row = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert (row["train/loss"], row["train/norm"]) == (None, None)
    assert "loss nan  norm inf" in console.file.getvalue()


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    console = plain()
    with RunLogger(tmp_path / "run", 2, console=console) as log:
        log.update(1, clips=8)
        log.write(1, {"train/loss": 1})
        log.print("hello")
    assert not (tmp_path / "run").exists()
    assert console.file.getvalue() == ""


def test_a_metric_must_be_a_scalar(tmp_path):
    with (
        RunLogger(tmp_path, 10, console=plain()) as log,
        pytest.raises(ValueError, match=r"'train/loss', got shape \(2,\)"),
    ):
        log.write(1, {"train/loss": jnp.ones(2)})


def test_parameter_table_counts_collections():
    variables = {
        "params": {"stem": {"conv1": {"kernel": jnp.ones((7, 7, 3, 64))}}, "head": {"bias": jnp.ones(10)}},
        "params_4f": {"stem": {"norm1": {"scale": jax.ShapeDtypeStruct((64,), jnp.bfloat16)}}},
        "batch_stats": {},
    }
    console = plain()
    console.print(parameter_table(variables))
    text = console.file.getvalue()
    rows = {line.split("│")[1].strip(): line for line in text.splitlines() if line.startswith("│")}
    assert [cell.strip() for cell in rows["params"].split("│")[2:5]] == ["2", "9,418", "0.04"]
    assert [cell.strip() for cell in rows["params_4f"].split("│")[2:5]] == ["1", "64", "0.00"]
    assert "9,482" in rows["total"]
