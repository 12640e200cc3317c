"""Real runs that are told to stop, at every moment and in every way; then the same command goes on.

Each answers at once, is saved, resumed bit for bit as the run that nobody stopped, and ends in one line with 128 and
the signal's number. Two ways run always; all twelve, and the death of the main process, do with FLAXVID_TEST_STOPS=all
(minutes).
"""

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import chex
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from flaxvid.report.run import read_metrics
from flaxvid.train.checkpoint import restore_variables

STEPS, TESTED = 48, 24
CONFIG = """
from flaxvid.train.recipe import *

def get_config():
    return Recipe(
        model=ModelRecipe("tsm_resnet18", num_frames=2, image_size=32, options={"width": 8, "depths": (1,)}),
        data=DataRecipe("folder", num_threads=1, validation_split="test"),
        task=SupervisedRecipe(frames=(2,)),
        optimizer=OptimizerRecipe("adamw", 1e-3, schedule="constant"),
        batch_size=2, epochs=12, eval_batch_size=1, eval_frames=(2,), eval_every=6, checkpoint_every=1000, log_every=1,
    )
"""
HEARD = "stopping after this step, then saving; Ctrl-C once more stops at once, without saving"
ADVICE = "the same command goes on after the last checkpoint, or begins anew"
EVERY = os.environ.get("FLAXVID_TEST_STOPS") == "all"
TERM, INT = signal.SIGTERM, signal.SIGINT
WAYS = [
    (TERM, "group", 2, "loop"),
    (INT, "group", 2, "evaluation"),
    (TERM, "group", 2, "before"),
    (TERM, "group", 2, "after"),
    (TERM, "group", 0, "evaluation"),
    (TERM, "main", 2, "before"),
    (TERM, "main", 0, "loop"),
    (INT, "group", 2, "import"),
    (INT, "group", 0, "before"),
    (INT, "main", 2, "loop"),
    (INT, "main", 0, "evaluation"),
    (INT, "main", 0, "after"),
][: None if EVERY else 2]


@pytest.fixture(scope="module")
def train(encode_video, start_script, tmp_path_factory):
    """Starts a config in a work folder with so many worker processes; 8 videos to train on and 4 to test on."""
    folder = tmp_path_factory.mktemp("stops")
    (folder / "tiny.py").write_text(CONFIG)
    pictures = np.random.default_rng(0).integers(0, 255, (4, 240, 320, 3), np.uint8)  # noise takes its time to decode
    for split, count, frames in (("train", 4, 60), ("test", 2, 400)):
        video = [pictures[i % 4] for i in range(frames)]
        file = encode_video(folder / f"{split}.mp4", video, preset="ultrafast", g="1000")
        for label in ("a", "b"):
            place = folder / "videos" / split / label
            place.mkdir(parents=True)
            for i in range(count):
                shutil.copy(file, place / f"{i}.mp4")

    def start(work, workers):
        flags = f"--config.data.root={folder / 'videos'}", f"--config.data.num_workers={workers}"
        return start_script("scripts/train.py", "--config", folder / "tiny.py", f"--workdir={work}", *flags)

    return start


def wait_for(moment, run, work):
    saved, began = work / "checkpoints" / str(TESTED), time.monotonic()
    happened = {
        "import": lambda: time.monotonic() > began + 1,
        "before": lambda: (work / "recipe.json").exists(),
        "loop": lambda: any(row["step"] == 3 for row in read_metrics(work / "metrics.jsonl")),
        "evaluation": lambda: saved.exists() and time.time() > saved.stat().st_ctime + 0.3,
        "after": lambda: "testing on" in run.out.read_text(),
    }
    run.wait_for(happened[moment])


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory):
    """Work folders of the run that nobody stopped, by its worker processes."""

    @functools.cache
    def make(workers):
        work = tmp_path_factory.mktemp(f"whole{workers}") / "run"
        run = train(work, workers)
        _, err = run.communicate(200)
        assert run.returncode == 0, err
        return work

    return make


def saved_steps(work):
    return sorted(int(path.name) for path in (work / "checkpoints").glob("*") if path.name.isdigit())


def state(work):
    training = ocp.PyTreeCheckpointHandler().restore(epath.Path(work / "checkpoints" / str(STEPS) / "training"))
    return {"variables": restore_variables(work), "training": training}


def rows(work):
    timed = ("time", "train/clips_per_second", "train/waiting_for_data")
    return [{k: v for k, v in row.items() if k not in timed} for row in read_metrics(work / "metrics.jsonl")]


def assert_goes_on(again, work, whole):
    """The same command ends as the run that nobody stopped, bit for bit, with every evaluation made once."""
    out, err = again.communicate(200)
    assert again.returncode == 0, err
    chex.assert_trees_all_equal(state(work), state(whole), strict=True)
    assert rows(work) == rows(whole)
    assert [row["step"] for row in rows(work) if "eval/top1_2" in row] == [TESTED, STEPS]
    for step in (TESTED, STEPS):
        mine, theirs = (
            json.loads((folder / "checkpoints" / str(step) / "metrics" / "metrics").read_text())
            for folder in (work, whole)
        )
        assert mine == theirs
        assert mine["score"] >= 0
    assert (work / "any_frame.json").read_text() == (whole / "any_frame.json").read_text()
    return out


@pytest.mark.parametrize(("number", "whom", "workers", "moment"), WAYS)
def test_a_run_that_is_told_to_stop_goes_on_bit_for_bit(train, whole, tmp_path, number, whom, workers, moment):
    run = train(tmp_path, workers)
    wait_for(moment, run, tmp_path)
    told = time.monotonic()
    (os.kill if whom == "main" else os.killpg)(run.pid, number)
    _, err = run.communicate(200)
    shown = err.splitlines()
    assert run.returncode == 128 + number, shown
    assert time.monotonic() - told < 30
    after = re.fullmatch(
        rf"stopped as told, after step (\d+) of {STEPS}, which is saved in .*: the same .* goes on", shown[-1]
    )
    if after:
        assert shown[:-1] == [HEARD]
        assert "Not evaluated yet" in (tmp_path / "index.html").read_text()
    else:  # as nothing was unsaved
        assert moment != "loop"
        assert shown == [f"stopped as told ({number.name}): {ADVICE}"]
    expected = {"loop": [int(after[1])] if after else [], "evaluation": [TESTED], "after": [TESTED, STEPS]}
    saved = saved_steps(tmp_path)
    assert saved == expected.get(moment, [])
    out = assert_goes_on(train(tmp_path, workers), tmp_path, whole(workers))
    if saved and saved[-1] < STEPS:
        assert f"going on after step {saved[-1]}" in out


def test_a_worker_that_is_killed_is_one_line_after_saving(train, whole, tmp_path):
    run = train(tmp_path, 2)
    wait_for("loop", run, tmp_path)
    os.kill(run.workers()[0], signal.SIGKILL)
    _, err = run.communicate(200)
    assert run.returncode == 1
    (line,) = err.splitlines()
    message = rf"WorkerKilled: a worker process that decodes was killed, .* \(step (\d+) of {STEPS} is saved\)"
    step = int(re.fullmatch(message, line)[1])
    assert saved_steps(tmp_path)[-1] == step
    assert "last training loss" in (tmp_path / "index.html").read_text()
    assert_goes_on(train(tmp_path, 2), tmp_path, whole(2))


@pytest.mark.skipif(not EVERY, reason="takes another minute: set FLAXVID_TEST_STOPS=all")
def test_workers_end_with_a_main_process_that_is_killed(train, whole, tmp_path):
    run = train(tmp_path, 2)
    wait_for("evaluation", run, tmp_path)
    assert len(run.workers()) == 2
    run.kill()
    assert run.wait(200) == -signal.SIGKILL
    deadline = time.monotonic() + 20
    while run.workers():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert_goes_on(train(tmp_path, 2), tmp_path, whole(2))


BUSY = """
import ctypes
from flaxvid.train.interrupt import StopRequest, end_when_told

end_when_told("go on")
StopRequest().hold()
print("held", flush=True)
ctypes.CDLL(None).sleep(100)  # as a computation does, it lets no handler of Python's run
"""


def test_ctrl_c_is_answered_at_once_and_the_second_one_ends():
    process = subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == f"{HEARD}\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[1] == "stopped at once, without saving (SIGINT): go on\n"
    assert process.returncode == 130
