"""Real processes that train together, by scripts/launch.py on the loopback."""

import os
import re
import shutil
import signal
import socket
import subprocess
import time

import numpy as np
import pytest

import flaxvid
from flaxvid.report.run import read_metrics
from flaxvid.train.checkpoint import restore_variables
from flaxvid.train.hosts import LOST_PEER, connect


@pytest.fixture(scope="module")
def launch(start_script, tiny_flags):
    """Starts so many processes with so many devices each."""

    def start(workdir, processes, devices, *flags):
        launcher = ("scripts/launch.py", f"--processes={processes}", f"--devices={devices}")
        training = ("scripts/train.py", "--config", "configs/ffn.py", *tiny_flags, f"--workdir={workdir}", *flags)
        return start_script(*launcher, *training)

    return start


def losses(workdir):
    return np.array([row["train/loss"] for row in read_metrics(workdir / "metrics.jsonl") if "train/loss" in row])


def children(process):
    listing = subprocess.run(["ps", "-ww", "-A", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True)
    found = re.findall(rf"(\d+) +{process.pid} .*--process_id=(\d+)", listing.stdout)
    return {int(index): int(pid) for pid, index in found}


@pytest.fixture(scope="module")
def curves(launch, tmp_path_factory):
    """Work folders of the same run on 2 processes x 2 devices, 1 x 4 and 1 x 1."""
    folders = {shape: tmp_path_factory.mktemp("x".join(map(str, shape))) for shape in ((2, 2), (1, 4), (1, 1))}
    for shape, folder in folders.items():
        process = launch(folder / "run", *shape, "--config.epochs=3")
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err[-3000:]
        assert out.count("compiled the training step") == 1  # one of them speaks
        assert f"on {shape[0] * shape[1]} cpu device(s)" in out
    return {shape: folder / "run" for shape, folder in folders.items()}


def test_processes_and_devices_change_nothing_but_the_order_of_sums(curves):
    one = losses(curves[1, 1])
    assert len(one) == 9
    for shape in ((2, 2), (1, 4)):
        np.testing.assert_allclose(losses(curves[shape]), one, rtol=2e-5)
        assert (curves[shape] / "any_frame.json").exists()
    states = [restore_variables(curves[shape])["params"]["stem"]["conv1"]["kernel"] for shape in curves]
    for state in states[1:]:
        np.testing.assert_allclose(state, states[0], atol=2e-4)


def test_parameters_divided_over_processes_go_on_divided_otherwise(curves, launch, tmp_path):
    """Each of four devices of two processes keeps a part of the kernels; the last epoch comes again on two devices."""
    run = tmp_path / "run"
    for shape, flag in (((2, 2), "--config.fsdp=4"), ((2, 1), "--config.fsdp=1")):
        process = launch(run, *shape, "--config.epochs=3", flag)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err[-3000:]
        np.testing.assert_allclose(losses(run), losses(curves[1, 1]), rtol=2e-5)
        (run / "any_frame.json").unlink()
        shutil.rmtree(run / "checkpoints" / "9")
    assert "fsdp: 4 there, 1 here" in out
    assert "going on after step 6" in out
    assert len(flaxvid.load(run).predict(np.zeros((4, 32, 32, 3), np.uint8))["probabilities"]) == 16


@pytest.mark.parametrize("victim", [0, 1])
def test_a_lost_process_ends_the_other_in_words(launch, tmp_path, victim):
    process = launch(
        tmp_path / "run", 2, 1, "--config.epochs=1000", "--config.checkpoint_every=1000", "--config.eval_every=0"
    )
    process.wait_for(lambda: len(children(process)) == 2 and len(losses(tmp_path / "run")) > 2)
    os.kill(children(process)[victim], signal.SIGKILL)
    killed = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - killed < 30
    assert process.returncode in (128 + signal.SIGKILL, LOST_PEER)
    assert f"process {1 - victim} of 2 ends, for another one is lost" in err
    assert "they go on after the last checkpoint" in err


def test_one_sigterm_stops_all_and_all_go_on(launch, tmp_path):
    steps, flags = 300, ("--config.epochs=100", "--config.checkpoint_every=1000", "--config.eval_every=0")
    process = launch(tmp_path / "run", 2, 2, *flags)
    process.wait_for(lambda: len(losses(tmp_path / "run")))
    os.kill(children(process)[1], signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert err.count("stopped as told, after step ") == 2
    stopped = len(losses(tmp_path / "run"))
    again = launch(tmp_path / "run", 2, 2, *flags)
    out, err = again.communicate(timeout=200)
    assert again.returncode == 0, err[-3000:]
    assert f"going on after step {stopped}" in out
    assert len(losses(tmp_path / "run")) == steps
    assert np.isfinite(losses(tmp_path / "run")).all()


PORT = """
import re, socket, sys
port = int(re.search(r"--coordinator=localhost:(\\d+)", " ".join(sys.argv))[1])
with socket.socket() as other:
    try:
        other.bind(("localhost", port))
    except OSError:
        print("kept", flush=True)
with socket.socket() as server:  # as JAX's
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    server.bind(("localhost", port))
    server.listen()
    socket.create_connection(("localhost", port)).close()
    server.accept()[0].close()
    print("served", flush=True)
"""


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="ports cannot be shared")
def test_the_port_of_the_processes_is_kept_for_them(start_script, tmp_path):
    (tmp_path / "port.py").write_text(PORT)
    out, err = start_script("scripts/launch.py", "--processes=1", tmp_path / "port.py").communicate(timeout=60)
    assert (out, err) == ("kept\nserved\n", "")


TOLD = """
import os, runpy, signal, subprocess, sys

class Told(subprocess.Popen):
    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        print(self.pid, flush=True)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)

subprocess.Popen = Told
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT, signal.SIGTERM])  # what started this may have blocked them
sys.argv = ["launch.py", "--processes=2", "--patience=60", sys.argv[1]]
runpy.run_path("scripts/launch.py", run_name="__main__")
"""


def test_whoever_is_told_while_it_starts_processes_tells_them(start_script, tmp_path):
    (tmp_path / "told.py").write_text(TOLD)
    (tmp_path / "wait.py").write_text("import time; time.sleep(100)")
    process = start_script(tmp_path / "told.py", tmp_path / "wait.py")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + signal.SIGTERM, "")
    for pid in map(int, out.split()):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert len(out.split()) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"coordinator": "localhost:1"}, "num_processes, process_id is missing"),
        ({"coordinator": "localhost", "num_processes": 2, "process_id": 0}, "coordinator=host:port"),
        ({"coordinator": "localhost:1", "num_processes": 2, "process_id": 2}, "0 <= process_id < num_processes"),
    ],
)
def test_what_is_missing_is_said(given, message):
    with pytest.raises(ValueError, match=message):
        connect(**given)


def test_no_cluster_is_said(start_training, tmp_path):
    process = start_training("--distributed", "--workdir", str(tmp_path / "run"))
    _, err = process.communicate(timeout=100)
    assert process.returncode == 1
    assert err.startswith("ValueError: no cluster was found")
    assert len(err.strip().splitlines()) == 1
