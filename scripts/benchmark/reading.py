"""Reading a torch file: time and memory against torch.load, each in processes of their own."""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from timing import Rows, Timing

from flaxvid.weights.torch_file import write_torch_file

PROGRAM = """
import functools, json, pathlib, sys, time

def megabytes(field):
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.partition(field + ":")[2].split()[0]) * 1024 / 1e6

now, times = {"wall": time.perf_counter, "cpu": time.process_time}[sys.argv[2]], []
times.append(now())
IMPORT
times.append(now())
before = megabytes("VmRSS")
tensors = read(sys.argv[1])
times.append(now())
print(json.dumps({"import, seconds": times[1] - times[0], "read, seconds": times[2] - times[1],
                  "peak MB": megabytes("VmHWM"), "peak MB above the imports": megabytes("VmHWM") - before}))
"""
IMPORTS = {
    "flaxvid": "from flaxvid.weights.tensors import read_tensors as read",
    "torch": "import torch; read = functools.partial(torch.load, weights_only=True)",
}


def compare_reading(size: int, timing: Timing) -> Rows:
    """Imports a reader and reads a float32 file of `size` MB, which the system may still hold in memory."""
    found: dict[str, list[dict[str, float]]] = {reader: [] for reader in IMPORTS}
    with tempfile.TemporaryDirectory() as folder:
        path, rng = Path(folder) / "weights.pth", np.random.default_rng(0)
        write_torch_file(path, {f"{n}.weight": rng.standard_normal((1000, 1000), np.float32) for n in range(size // 4)})
        for _ in range(timing.repeats):
            for reader, imports in IMPORTS.items():
                command = [sys.executable, "-c", PROGRAM.replace("IMPORT", imports), str(path), timing.clock]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                found[reader].append(json.loads(done.stdout))
    return {
        what: {reader: statistics.median(one[what] for one in runs) for reader, runs in found.items()}
        for what in found["flaxvid"][0]
    }
