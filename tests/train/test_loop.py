"""Real runs of scripts/train.py on a tiny `motion`: killed, resumed, finished, refused."""

import json
import re
import signal

import chex
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from flaxvid.report.run import read_metrics
from flaxvid.train.checkpoint import restore_variables

STEPS = 24
LENGTH = ("--config.epochs=8", "--config.eval_every=3")


def finish(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    return out


def saved_steps(run):
    return sorted(int(path.name) for path in (run / "checkpoints").glob("*") if path.name.isdigit())


@pytest.fixture(scope="module")
def runs(start_training, tmp_path_factory):
    """Two folders of one recipe: one run went through, the other was killed after a checkpoint and started again."""
    folder = tmp_path_factory.mktemp("runs")
    whole, broken = folder / "whole", folder / "broken"
    through = start_training(*LENGTH, "--workdir", str(whole))
    killed = start_training(*LENGTH, "--workdir", str(broken))
    killed.wait_for(lambda: saved_steps(broken))
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert saved_steps(broken)[-1] < STEPS
    assert not (broken / "any_frame.json").exists()
    resumed = start_training(*LENGTH, "--workdir", str(broken))
    outputs = {whole: finish(through), broken: finish(resumed)}
    return whole, broken, outputs


@pytest.fixture(scope="module")
def second_starts(runs, start_training):
    """The finished run started again, and another recipe started in its folder; returns (code, output, errors)."""
    whole, _, _ = runs
    results = []
    for changed in ((), ("--config.optimizer.learning_rate=0.5", "--config.seed=3")):  # in turn: one run a folder
        process = start_training(*LENGTH, "--workdir", str(whole), *changed)
        out, err = process.communicate(timeout=120)
        results.append((process.returncode, out, err))
    return results


def training(run):
    return ocp.PyTreeCheckpointHandler().restore(epath.Path(run / "checkpoints" / str(STEPS) / "training"))


def test_resuming_gives_the_uninterrupted_run_bit_for_bit(runs):
    whole, broken, outputs = runs
    assert "going on after step" in outputs[broken]
    assert "going on after step" not in outputs[whole]
    variables = restore_variables(whole, STEPS)
    names = {"params", "params_2f", "params_4f", "batch_stats_2f", "batch_stats_4f"}
    assert set(variables) == names | {f"ema_{name}" for name in names}
    chex.assert_trees_all_equal(variables, restore_variables(broken, STEPS), strict=True)
    assert int(training(whole)["step"]) == STEPS
    chex.assert_trees_all_equal(training(whole), training(broken), strict=True)
    position = [(run / "checkpoints" / str(STEPS) / "data") for run in (whole, broken)]
    states = [{path.name: path.read_bytes() for path in folder.glob("process*")} for folder in position]
    assert states[0] == states[1]
    assert states[0]


def test_the_files_of_the_two_runs_agree(runs):
    whole, broken, _ = runs
    for name in ("recipe.json", "any_frame.json"):
        assert (whole / name).read_text() == (broken / name).read_text()
    rows = json.loads((whole / "any_frame.json").read_text())
    assert [row["frames"] for row in rows] == [2, 3, 4]
    assert all(row["clips"] == 8 and 0 <= row["top1"] <= row["top5"] <= 1 for row in rows)
    assert rows[2]["gflops"] == pytest.approx(2 * rows[0]["gflops"], rel=1e-3)


def test_metrics_have_no_gap_and_no_duplicate(runs):
    whole, broken, _ = runs
    timeless = [
        [
            {k: v for k, v in row.items() if k not in ("time", "train/clips_per_second", "train/waiting_for_data")}
            for row in rows
        ]
        for rows in (read_metrics(run / "metrics.jsonl") for run in (whole, broken))
    ]
    assert timeless[0] == timeless[1]
    rows = timeless[0]
    assert [row["step"] for row in rows if "train/loss" in row] == list(range(1, STEPS + 1))
    assert [row["step"] for row in rows if "eval/top1_4" in row] == [9, 18]
    assert [row["step"] for row in rows if "test/top1_3" in row] == [STEPS]
    assert {"train/ce", "train/kl_2", "train/accuracy_2", "train/gradient_norm"} <= rows[0].keys()


def test_it_learns(runs):
    losses = [row["train/loss"] for row in read_metrics(runs[0] / "metrics.jsonl") if "train/loss" in row]
    assert np.isfinite(losses).all()
    assert np.mean(losses[-6:]) < np.mean(losses[:6])


def test_a_finished_run_only_gives_its_results(runs, second_starts):
    code, out, err = second_starts[0]
    assert code == 0, err
    assert "is finished" in out
    assert "compiled" not in out
    assert saved_steps(runs[0])[-1] == STEPS


def test_another_recipe_is_refused(runs, second_starts):
    whole, _, _ = runs
    before = (whole / "recipe.json").read_text()
    code, _, err = second_starts[1]
    assert code != 0
    assert "Traceback" not in err
    assert "holds a run of another recipe" in err
    rate = json.loads(before)["optimizer"]["learning_rate"]
    assert f"optimizer.learning_rate: {rate} there, 0.5 here" in err
    assert "seed: 0 there, 3 here" in err
    assert (whole / "recipe.json").read_text() == before


def test_ctrl_c_in_mid_epoch_saves_and_goes_on_to_the_same_end(runs, start_training, tmp_path):
    """SIGTERM, and runs with worker processes, are in test_stops.py."""
    whole, _, _ = runs
    workdir = ("--workdir", str(tmp_path), *LENGTH)
    process = start_training(*workdir)
    process.wait_for(lambda: any(row["step"] % 3 == 1 for row in read_metrics(tmp_path / "metrics.jsonl")))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 130, err
    heard, stopped = err.splitlines()
    assert heard == "stopping after this step, then saving; Ctrl-C once more stops at once, without saving"
    step = int(re.fullmatch(rf"stopped as told, after step (\d+) of {STEPS}, .*: the same command goes on", stopped)[1])
    assert saved_steps(tmp_path)[-1] == step < STEPS
    assert f"going on after step {step}" in finish(start_training(*workdir))
    chex.assert_trees_all_equal(restore_variables(tmp_path), restore_variables(whole), strict=True)
    chex.assert_trees_all_equal(training(tmp_path), training(whole), strict=True)


def test_two_runs_in_one_folder(start_training, tmp_path):
    long = ("--config.epochs=1000", "--workdir", str(tmp_path))  # the first is at work when the second has begun
    first = start_training(*long)
    first.wait_for((tmp_path / "recipe.json").exists)
    second = start_training(*long)
    _, err = second.communicate(timeout=200)
    assert first.poll() is None
    first.kill()
    first.wait()
    assert second.returncode == 1
    assert f"another run is at work in {tmp_path} (process {first.pid} on " in err
