"""Scripts that are told to stop: one line, 130 or 143, at once, whatever they are doing; and worker processes."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import reduction
from multiprocessing.process import BaseProcess
from pathlib import Path

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
def videos(encode_video, tmp_path_factory):
    """Two classes of videos that take seconds to decode."""
    folder = tmp_path_factory.mktemp("slow")
    pictures = np.random.default_rng(0).integers(0, 255, (4, 360, 480, 3), np.uint8)
    encode_video(folder / "a.mp4", [pictures[i % 4] for i in range(300)], preset="ultrafast", g="1000")
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


def stop(script, number):
    """Tells its whole process group; gives the lines on stderr."""
    os.killpg(script.pid, number)
    _, err = script.communicate(20)
    assert script.returncode == 128 + number, err
    return err.splitlines()


def status(script):
    """What Linux says of a process, such as {"SigBlk": "..."}."""
    lines = Path(f"/proc/{script.pid}/status").read_text().splitlines()
    return dict(line.split(":", 1) for line in lines)


def test_predict_keeps_the_answers_that_it_gave(run, videos, start_script):
    script = start_script("scripts/predict.py", "--run", run, "--json", videos)
    script.wait_for(lambda: script.out.read_text().count("\n") >= 2)
    assert stop(script, signal.SIGINT) == ["stopped as told (SIGINT): the answers so far stand"]
    answers = [json.loads(line) for line in script.out.read_text().splitlines()]
    assert 2 <= len(answers) < 16


def test_evaluate_writes_nothing(run, start_script):
    script = start_script("scripts/evaluate.py", run)
    script.wait_for(lambda: int(status(script)["Threads"]) > 8)  # JAX and the decoders are at work
    assert stop(script, signal.SIGTERM) == ["stopped as told (SIGTERM): the same command begins anew"]
    assert not (run / "evaluation.json").exists()


TELL = """
import os, signal, subprocess, sys
from pathlib import Path

signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
script = subprocess.Popen(sys.argv[1:], start_new_session=True)
status = lambda: dict(line.split(":", 1) for line in Path(f"/proc/{script.pid}/status").read_text().splitlines())
while not int(status()["SigBlk"], 16) >> (signal.SIGINT - 1) & 1:
    assert script.poll() is None
os.killpg(script.pid, signal.SIGINT)
sys.exit(script.wait())
"""
"""Starts a script and presses Ctrl-C as soon as it is left to a thread of its own, with which scripts begin.

A small process does so: the tests' own may pause for seconds to collect garbage, and scripts are at their end then."""


@pytest.mark.parametrize("script", ["evaluate", "predict", "prepare_data", "train"])
def test_in_the_seconds_of_the_imports(script):
    arguments = {"train": ("--config", "configs/ffn.py")}.get(script, ("xyz",))
    command = [sys.executable, "-c", TELL, sys.executable, f"scripts/{script}.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 128 + signal.SIGINT, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("stopped as told (SIGINT): ")


def test_prepare_data_stops_with_its_workers_and_goes_on(videos, start_script, tmp_path):
    for label in ("jump", "run"):  # enough to do for whoever is slow to tell
        (tmp_path / "videos" / label).mkdir(parents=True)
        for i in range(100):
            os.link(videos / label / "0.mp4", tmp_path / "videos" / label / f"{i}.mp4")
    arguments = ["folder", tmp_path / "videos", tmp_path / "made"]
    arguments += ["--check-only", "--workers", "2", "--shard-size", "2", "--splits", "train"]
    script = start_script("scripts/prepare_data.py", *arguments)
    script.wait_for(lambda: list((tmp_path / "made").glob("parts/train-*.json")))
    shown = stop(script, signal.SIGINT)
    assert shown[-1] == "stopped as told (SIGINT): the same command goes on"
    assert not any("Traceback" in line for line in shown)
    again = start_script("scripts/prepare_data.py", *arguments)
    again.wait_for(again.workers)
    os.kill(again.workers()[0], signal.SIGKILL)
    _, err = again.communicate(60)
    assert again.returncode == 2
    assert "WorkerKilled: a worker process was killed" in err
    assert "Traceback" not in err


def test_workers_of_a_pool_ignore_what_stops_the_main_process():
    with processes(2) as pool:
        told = [pool.submit(signal.raise_signal, number) for number in (signal.SIGINT, signal.SIGTERM)]
        assert [job.result(60) for job in told] == [None, None]

    def kill_one_of_two():
        with processes(2) as pool:
            waiting = pool.submit(time.sleep, 3)
            pool.submit(signal.raise_signal, signal.SIGKILL).result(60)
            waiting.result(60)

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
    def read():
        return int(re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())[1])

    def kill_in_mid_result():
        with processes(1) as pool:
            before, job = read(), pool.submit(bytes, 400_000_000)
            while read() < before + 10_000_000:  # of the result
                time.sleep(0.001)
            os.kill(*pool._processes, signal.SIGKILL)
            job.result(60)

    began = time.monotonic()
    with pytest.raises(WorkerKilled, match="with fewer workers"):
        kill_in_mid_result()
    assert time.monotonic() - began < 60


def test_the_way_of_results_is_closed_once():
    with processes(1) as pool:
        writer = pool._result_queue._writer
        began, close, times = threading.Event(), writer._close, []

        def close_slowly():
            times.append(time.monotonic())
            began.set()
            time.sleep(0.2)
            close()

        writer._close = close_slowly
        other = threading.Thread(target=writer.close)
        other.start()
        began.wait()
        writer.close()
        other.join()
        assert writer.closed
        assert len(times) == 1


def test_a_pool_that_breaks_while_it_starts_a_process_is_told(monkeypatch):
    """The number of the pool's pipe, which the process shall get, goes to a pipe of the process's own."""
    dump, numbers = reduction.dump, [os.dup(0)]

    def start():
        with processes(1) as pool:

            def break_meanwhile(process, file):
                dump(process, file)
                if isinstance(process, BaseProcess):
                    os.close(numbers.pop(0))  # the end that this process keeps; the end of the other is the next
                    pool._call_queue._reader.close()

            numbers.extend(os.dup(0) for _ in range(64))  # no other number is free before the pipe's
            monkeypatch.setattr(reduction, "dump", break_meanwhile)
            pool.submit(abs, 1)

    with pytest.raises(WorkerKilled, match="with fewer workers") as error:
        start()
    for number in numbers:
        os.close(number)
    assert len(numbers) == 64
    assert "fds_to_keep" in str(error.value.__cause__.__cause__)


def test_a_process_that_is_started_while_the_pool_breaks_is_ended():
    with processes(1) as pool:
        os.kill(pool.submit(os.getpid).result(60), signal.SIGKILL)
        pool._executor_manager_thread.join(60)
        while not pool._result_queue._writer.closed:  # all that were there are ended
            time.sleep(0.01)
        late = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
        late.start()
        pool._processes[late.pid] = late
        late.join(30)
        assert late.exitcode == -signal.SIGKILL


BUILD = """
import sys
from flaxvid.train.interrupt import end_when_told
if __name__ == "__main__":
    end_when_told("again")
    from flaxvid.data.motion.build import MotionConfig, build_motion
    build_motion(sys.argv[1], MotionConfig(size=32, num_frames=16, train=100_000, validation=8, test=8), workers=2)
"""


def test_a_data_set_in_the_making_stops_and_leaves_nothing_that_looks_finished(start_script, tmp_path):
    (tmp_path / "build.py").write_text(BUILD)
    script = start_script(tmp_path / "build.py", tmp_path / "data")
    script.wait_for(
        lambda: len(script.workers()) == 2 and any(path.is_file() for path in tmp_path.glob("data/**/.*/*"))
    )
    shown = stop(script, signal.SIGINT)
    assert shown[-1] == "stopped as told (SIGINT): again"
    assert not any("Traceback" in line for line in shown)
    deadline = time.monotonic() + 60
    while workers := script.workers():
        assert time.monotonic() < deadline, workers
        time.sleep(0.1)
    assert not list((tmp_path / "data" / "motion").glob("*/[!.]*"))
    config = MotionConfig(size=32, num_frames=16, train=24, validation=8, test=8)
    assert build_motion(tmp_path / "data", config, workers=1).exists()
