"""Real runs that are told to stop, at every moment and in every way; then the same command goes on.

Each answers at once, is saved, resumed bit for bit as the run that nobody stopped, and ends in one line with 128 and
the signal's number. Two ways run always; all twelve, and the death of the main process, do with FLAXVID_TEST_STOPS=all
(minutes).
"""

import dataclasses
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import jax
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


def write_noise(path, frames):
    """A video that takes its time to decode."""
    pictures = np.random.default_rng(0).integers(0, 255, (4, 240, 320, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast", "g": "1000"})
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for i in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pictures[i % 4], format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of class folders, 8 videos to train on and 4 to test on, and a config."""
    folder = tmp_path_factory.mktemp("stops")
    (folder / "tiny.py").write_text(CONFIG)
    write_noise(folder / "short.mp4", 60)
    write_noise(folder / "long.mp4", 400)
    for split, count, name in (("train", 4, "short.mp4"), ("test", 2, "long.mp4")):
        for label in ("a", "b"):
            place = folder / "videos" / split / label
            place.mkdir(parents=True)
            for i in range(count):
                shutil.copy(folder / name, place / f"{i}.mp4")
    return folder


@dataclasses.dataclass
class Run:
    """A run of scripts/train.py in a process group of its own."""

    data: Path
    folder: Path
    workers: int

    def __post_init__(self):
        self.folder.mkdir(exist_ok=True)
        self.work, self.out, self.err = (self.folder / name for name in ("run", "out.txt", "err.txt"))
        flags = f"--config.data.root={self.data / 'videos'}", f"--config.data.num_workers={self.workers}"
        command = sys.executable, "scripts/train.py", "--config", str(self.data / "tiny.py"), f"--workdir={self.work}"
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                [*command, *flags], cwd=Path(__file__).parents[2], stdout=out, stderr=err, start_new_session=True
            )

    def wait_for(self, moment):
        deadline, began = time.monotonic() + 200, time.monotonic()
        happened = {
            "import": lambda: time.monotonic() > began + 1,
            "before": lambda: (self.work / "recipe.json").exists(),
            "loop": lambda: any(row["step"] == 3 for row in read_metrics(self.work / "metrics.jsonl")),
            "evaluation": lambda: time.time() > self.saved_at(TESTED) + 0.3,
            "after": lambda: "testing on" in self.out.read_text(),
        }[moment]
        while not happened():
            assert self.process.poll() is None, self.err.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def saved_at(self, step):
        folder = self.work / "checkpoints" / str(step)
        return folder.stat().st_ctime if folder.exists() else math.inf

    def tell(self, number, whom):
        (os.kill if whom == "main" else os.killpg)(self.process.pid, number)

    def finish(self):
        """Its exit status, and the lines on stderr of all its processes."""
        code = self.process.wait(200)
        return code, self.err.read_text().splitlines()

    def children(self):
        listing = subprocess.run(["ps", "-A", "-ww", "-o", "pid=,pgid=,args="], capture_output=True, text=True)
        return [int(pid) for pid in re.findall(rf"(\d+) +{self.process.pid} .*spawn_main", listing.stdout)]


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """Work folders of the run that nobody stopped, by its worker processes."""
    made = {}

    def make(workers):
        if workers not in made:
            run = Run(data, tmp_path_factory.mktemp(f"whole{workers}"), workers)
            assert run.finish()[0] == 0, run.err.read_text()
            made[workers] = run.work
        return made[workers]

    return make


def saved_steps(work):
    return sorted(int(path.name) for path in (work / "checkpoints").glob("*") if path.name.isdigit())


def state(work):
    training = ocp.PyTreeCheckpointHandler().restore(epath.Path(work / "checkpoints" / str(STEPS) / "training"))
    return {"variables": restore_variables(work), "training": training}


def rows(work):
    timed = ("time", "train/clips_per_second", "train/waiting_for_data")
    return [{k: v for k, v in row.items() if k not in timed} for row in read_metrics(work / "metrics.jsonl")]


def assert_goes_on(run, whole):
    """The same command ends as the run that nobody stopped, bit for bit, with every evaluation made once."""
    again = Run(run.data, run.folder, run.workers)
    assert again.finish()[0] == 0, again.err.read_text()
    mine, theirs = state(run.work), state(whole)
    assert jax.tree.structure(mine) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    assert rows(run.work) == rows(whole)
    assert [row["step"] for row in rows(run.work) if "eval/top1_2" in row] == [TESTED, STEPS]
    for step in (TESTED, STEPS):
        scores = [(work / "checkpoints" / str(step) / "metrics" / "metrics") for work in (run.work, whole)]
        assert json.loads(scores[0].read_text()) == json.loads(scores[1].read_text())
        assert json.loads(scores[0].read_text())["score"] >= 0
    assert (run.work / "any_frame.json").read_text() == (whole / "any_frame.json").read_text()
    return again


@pytest.mark.parametrize(("number", "whom", "workers", "moment"), WAYS)
def test_a_run_that_is_told_to_stop_goes_on_bit_for_bit(data, whole, tmp_path, number, whom, workers, moment):
    run = Run(data, tmp_path / "stopped", workers)
    run.wait_for(moment)
    told = time.monotonic()
    run.tell(number, whom)
    code, shown = run.finish()
    assert code == 128 + number, shown
    assert time.monotonic() - told < 30
    after = re.fullmatch(
        rf"stopped as told, after step (\d+) of {STEPS}, which is saved in .*: the same .* goes on", shown[-1]
    )
    if after:
        assert shown[:-1] == [HEARD]
    else:  # as nothing was unsaved
        assert moment != "loop"
        assert shown == [f"stopped as told ({number.name}): {ADVICE}"]
    expected = {"loop": [int(after[1])] if after else [], "evaluation": [TESTED], "after": [TESTED, STEPS]}
    saved = saved_steps(run.work) if run.work.exists() else []
    assert saved == expected.get(moment, [])
    again = assert_goes_on(run, whole(workers))
    if saved and saved[-1] < STEPS:
        assert f"going on after step {saved[-1]}" in again.out.read_text()


def test_a_worker_that_is_killed_is_one_line_after_saving(data, whole, tmp_path):
    run = Run(data, tmp_path / "killed", 2)
    run.wait_for("loop")
    os.kill(run.children()[0], signal.SIGKILL)
    code, shown = run.finish()
    assert code == 1
    assert len(shown) == 1, shown
    message = rf"WorkerKilled: a worker process that decodes was killed, .* \(step (\d+) of {STEPS} is saved\)"
    step = int(re.fullmatch(message, shown[0])[1])
    assert saved_steps(run.work)[-1] == step
    assert_goes_on(run, whole(2))


@pytest.mark.skipif(not EVERY, reason="takes another minute: set FLAXVID_TEST_STOPS=all")
def test_workers_end_with_a_main_process_that_is_killed(data, whole, tmp_path):
    run = Run(data, tmp_path / "killed", 2)
    run.wait_for("evaluation")
    assert len(run.children()) == 2
    run.tell(signal.SIGKILL, "main")
    assert run.finish()[0] == -signal.SIGKILL
    deadline = time.monotonic() + 20
    while run.children():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert_goes_on(run, whole(2))


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
