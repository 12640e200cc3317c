"""Scripts that are told to stop: one line, 130 or 143, at once, whatever they are doing; and worker processes."""

import dataclasses
import json
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
import optax
import pytest

from flaxvid.data.motion.build import MotionConfig, build_motion
from flaxvid.data.workers import WorkerKilled, processes
from flaxvid.tasks.supervised import SupervisedRecipe
from flaxvid.train.checkpoint import Checkpoints
from flaxvid.train.recipe import DataRecipe, ModelRecipe, Recipe, to_json
from flaxvid.train.setup import make_model
from flaxvid.train.state import create_state

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Two classes of videos that take seconds to decode."""
    folder = tmp_path_factory.mktemp("slow")
    pictures = np.random.default_rng(0).integers(0, 255, (4, 360, 480, 3), np.uint8)
    with av.open(str(folder / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast", "g": "1000"})
        stream.width, stream.height, stream.pix_fmt = 480, 360, "yuv420p"
        for i in range(300):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pictures[i % 4], format="rgb24")))
        container.mux(stream.encode())
    for label in ("jump", "run"):
        for i in range(8):
            (folder / "videos" / label).mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / "a.mp4", folder / "videos" / label / f"{i}.mp4")
    return folder / "videos"


@pytest.fixture(scope="module")
def run(videos, tmp_path_factory):
    """A run's folder as training leaves it."""
    recipe = Recipe(
        model=ModelRecipe("tsm_resnet18", image_size=32, num_frames=2, options={"width": 8, "depths": (1,)}),
        data=DataRecipe("folder", root=str(videos), eval_split="train", num_threads=1),
        task=SupervisedRecipe(frames=(2,)),
        eval_frames=(2,),
        eval_batch_size=1,
    )
    folder = tmp_path_factory.mktemp("run")
    (folder / "recipe.json").write_text(to_json(recipe))
    (folder / "classes.json").write_text(json.dumps(["jump", "run"]))
    with Checkpoints(folder / "checkpoints") as checkpoints:
        variables = recipe.task.make(make_model(recipe, 2)).init(jax.random.key(0))
        checkpoints.save(3, create_state(variables, optax.sgd(0.1)))
    return folder


@dataclasses.dataclass
class Command:
    """A script in a process group of its own."""

    folder: Path
    arguments: tuple

    def __post_init__(self):
        self.out, self.err = self.folder / "out.txt", self.folder / "err.txt"
        command = [sys.executable, *map(str, self.arguments)]
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=err, start_new_session=True)

    def wait_for(self, happened):
        deadline = time.monotonic() + 200
        while not happened():
            assert self.process.poll() is None, self.err.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def stop(self, number):
        """Tells its whole group; gives the lines on stderr."""
        os.killpg(self.process.pid, number)
        assert self.process.wait(20) == 128 + number, self.err.read_text()
        return self.err.read_text().splitlines()

    def workers(self):
        listing = subprocess.run(["ps", "-A", "-ww", "-o", "pid=,pgid=,args="], capture_output=True, text=True)
        return [int(pid) for pid in re.findall(rf"(\d+) +{self.process.pid} .*spawn_main", listing.stdout)]


def test_predict_keeps_the_answers_that_it_gave(run, videos, tmp_path):
    command = Command(tmp_path, ("scripts/predict.py", "--run", run, "--json", videos))
    command.wait_for(lambda: command.out.read_text().count("\n") >= 2)
    assert command.stop(signal.SIGINT) == ["stopped as told (SIGINT): the answers so far stand"]
    answers = [json.loads(line) for line in command.out.read_text().splitlines()]
    assert 2 <= len(answers) < 16


def test_evaluate_writes_nothing(run, tmp_path):
    command = Command(tmp_path, ("scripts/evaluate.py", run))
    command.wait_for(lambda: time.time() > command.err.stat().st_ctime + 3)
    assert command.stop(signal.SIGTERM) == ["stopped as told (SIGTERM): the same command begins anew"]
    assert not (run / "evaluation.json").exists()


@pytest.mark.parametrize("script", ["evaluate", "predict", "prepare_data", "train"])
def test_in_the_seconds_of_the_imports(tmp_path, script):
    command = Command(tmp_path, (f"scripts/{script}.py", *{"train": ("--config", "configs/ffn.py")}.get(script, "xyz")))
    time.sleep(0.7)
    if command.process.poll() is None:
        (line,) = command.stop(signal.SIGINT)
        assert line.startswith("stopped as told (SIGINT): ")


def test_prepare_data_stops_with_its_workers_and_goes_on(videos, tmp_path):
    for label in ("jump", "run"):  # enough to do for whoever is slow to tell
        (tmp_path / "videos" / label).mkdir(parents=True)
        for i in range(100):
            os.link(videos / label / "0.mp4", tmp_path / "videos" / label / f"{i}.mp4")
    arguments = (
        "scripts/prepare_data.py",
        "folder",
        tmp_path / "videos",
        tmp_path / "made",
        "--check-only",
        "--workers",
        "2",
    )
    arguments = *arguments, "--shard-size", "2", "--splits", "train"
    command = Command(tmp_path, arguments)
    command.wait_for(lambda: list((tmp_path / "made").glob("parts/train-*.json")))
    assert command.stop(signal.SIGINT)[-1] == "stopped as told (SIGINT): the same command goes on"
    assert "Traceback" not in command.err.read_text()
    command.folder.joinpath("made", "report.json").unlink(missing_ok=True)
    again = Command(tmp_path, arguments)
    again.wait_for(again.workers)
    os.kill(again.workers()[0], signal.SIGKILL)
    assert again.process.wait(60) == 2
    assert "WorkerKilled: a worker process was killed" in again.err.read_text()
    assert "Traceback" not in again.err.read_text()


def test_workers_of_a_pool_ignore_what_stops_the_main_process():
    with processes(2) as pool:
        told = [pool.submit(signal.raise_signal, number) for number in (signal.SIGINT, signal.SIGTERM)]
        assert [job.result(60) for job in told] == [None, None]
    began = time.monotonic()
    with pytest.raises(WorkerKilled, match="with fewer workers"):
        kill_one_of_two()
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("victim", [0, 1])
def test_a_worker_that_is_killed_when_all_is_done_holds_nothing_up(victim):
    """One of two idle workers holds the lock of the queue, which the other waits for."""
    began = time.monotonic()
    with processes(2) as pool:
        assert {job.result(60) for job in [pool.submit(time.sleep, 1) for _ in range(2)]} == {None}
        os.kill(sorted(pool._processes)[victim], signal.SIGKILL)
    assert time.monotonic() - began < 60


def test_a_worker_that_is_killed_in_mid_result_is_told():
    began = time.monotonic()
    with pytest.raises(WorkerKilled, match="with fewer workers"):
        kill_in_mid_result()
    assert time.monotonic() - began < 60


def kill_in_mid_result():
    def read():
        return int(re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())[1])

    with processes(1) as pool:
        before, job = read(), pool.submit(bytes, 400_000_000)
        while read() < before + 10_000_000:  # of the result
            time.sleep(0.001)
        os.kill(*pool._processes, signal.SIGKILL)
        job.result(60)


def kill_one_of_two():
    with processes(2) as pool:
        waiting = pool.submit(time.sleep, 3)
        pool.submit(signal.raise_signal, signal.SIGKILL).result(60)
        waiting.result(60)


BUILD = """
import sys
from flaxvid.train.interrupt import end_when_told
if __name__ == "__main__":
    end_when_told("again")
    from flaxvid.data.motion.build import MotionConfig, build_motion
    build_motion(sys.argv[1], MotionConfig(size=32, num_frames=16, train=100_000, validation=8, test=8), workers=2)
"""


def test_a_data_set_in_the_making_stops_and_leaves_nothing_that_looks_finished(tmp_path):
    (tmp_path / "build.py").write_text(BUILD)
    command = Command(tmp_path, (tmp_path / "build.py", tmp_path / "data"))
    command.wait_for(lambda: len(command.workers()) == 2)
    time.sleep(1)
    workers = command.workers()
    assert command.stop(signal.SIGINT)[-1] == "stopped as told (SIGINT): again"
    assert "Traceback" not in command.err.read_text()
    deadline = time.monotonic() + 20
    while command.workers():
        assert time.monotonic() < deadline, workers
        time.sleep(0.1)
    assert not list((tmp_path / "data" / "motion").glob("*/[!.]*"))
    config = MotionConfig(size=32, num_frames=16, train=24, validation=8, test=8)
    assert build_motion(tmp_path / "data", config, workers=1).exists()
