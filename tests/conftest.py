"""What all tests share: a small CPU set-up, a compilation cache that outlives the session, tiny models."""

import gc
import os
import re
import runpy
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

from flaxvid.writing import cache_folder

# Before JAX is imported, and in the environment, so that the processes that tests start have the same.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_folder() / "test-compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Tiny programs run once: compiling them well would take most of the suite's time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import av
import jax
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

from flaxvid.layers.norm import BatchNorm
from flaxvid.train.step import enable_compilation_cache

for _name in ("jax_platforms", "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"):
    _value = os.environ[_name.upper()]
    jax.config.update(_name, float(_value) if _name.endswith("secs") else _value)
enable_compilation_cache()  # many processes share it, and tests kill some of them


ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def clip():
    """Random uint8 video of a shape (b, t, h, w)."""

    def make(*shape, seed=0):
        return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)

    return make


@pytest.fixture(scope="session")
def randomise():
    """Replaces every leaf by random numbers, so that no scale of one or mean of zero hides a slip."""

    def replace(variables, seed=0):
        rng = np.random.default_rng(seed)

        def leaf(path, old):
            shape = old.shape
            if path[-1] in ("scale", "var"):
                return rng.uniform(0.5, 1.5, shape).astype(np.float32)
            if path[-1] == "kernel":
                return rng.normal(0, np.prod(shape[:-1]) ** -0.5, shape).astype(np.float32)
            return rng.uniform(-0.2, 0.2, shape).astype(np.float32)

        return traverse_util.path_aware_map(leaf, variables)

    return replace


@pytest.fixture(scope="session")
def random_variables(randomise):
    """Variables of a model with every leaf random; nothing is compiled for it."""

    def make(model, seed=0):
        size = model.clip.image_size
        video = model.for_cameras(jax.ShapeDtypeStruct((1, model.clip.num_frames, size, size, 3), np.float32))
        return randomise(jax.eval_shape(model.init, jax.random.key(0), video), seed)

    return make


@pytest.fixture(scope="session")
def refused():
    """Checks that a source is refused by the one error, soon, and with its name."""
    from flaxvid.weights.tensors import read_tensors

    def check(source, message, reader=None):
        began = time.monotonic()
        with pytest.raises(ValueError, match=message) as error:
            (reader or read_tensors)(source)
        assert str(error.value).startswith("the state_dict" if isinstance(source, dict) else str(source))
        assert time.monotonic() - began < 60

    return check


@pytest.fixture
def no_batch_statistics():
    """Inside, every batch norm takes its running statistics in training too: what is left of coupling is a leak."""

    def frozen(call, args, kwargs, context):
        return call(args[0]) if isinstance(context.module, BatchNorm) else call(*args, **kwargs)

    with nn.intercept_methods(frozen):
        yield


@pytest.fixture(scope="session")
def motion_data(tmp_path_factory):
    """A folder with a tiny `motion`: 32 x 32 pixels, 16 frames, 24 + 8 + 8 clips."""
    from flaxvid.data.motion.build import MotionConfig, build_motion

    root = tmp_path_factory.mktemp("data")
    build_motion(root, MotionConfig(size=32, num_frames=16, train=24, validation=8, test=8), workers=1)
    return root


@pytest.fixture(scope="session")
def tiny_flags(motion_data):
    """Flags that turn configs/ffn.py into a run of seconds on `motion_data`."""
    overrides = {
        "data.root": motion_data,
        "data.motion.size": 32,
        "data.motion.num_frames": 16,
        "data.motion.train": 24,
        "data.motion.validation": 8,
        "data.motion.test": 8,
        "model.image_size": 32,
        "model.num_frames": 4,
        "model.options.width": 8,
        "model.options.depths": "(1,)",
        "task.frames": "(2, 4)",
        "optimizer.ema": 0.9,
        "batch_size": 8,
        "eval_batch_size": 8,
        "eval_frames": "(2, 3, 4)",
        "log_every": 1,
    }
    return [f"--config.{name}={value}" for name, value in overrides.items()]


@pytest.fixture(scope="session")
def encode_video():
    """Writes RGB pictures as an h264 video, with options of libx264."""

    def write(path, pictures, rate=25, **options):
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=rate, options=options)
            stream.height, stream.width, _ = pictures[0].shape
            stream.pix_fmt = "yuv420p"
            for i, picture in enumerate(pictures):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = i, Fraction(1, rate)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    return write


class Script(subprocess.Popen):
    """A script of this project at work, started as a user starts it, in a process group of its own.

    Its output goes to files: a pipe that nobody reads while the test waits for something else would stop it.
    """

    def __init__(self, folder, *arguments):
        self.out, self.err = folder / "out.txt", folder / "err.txt"
        command = [sys.executable, *map(str, arguments)]
        with self.out.open("w") as out, self.err.open("w") as err:
            super().__init__(command, cwd=ROOT, stdout=out, stderr=err, start_new_session=True)

    def communicate(self, timeout=None):
        """Its output and its errors, once it has ended."""
        self.wait(timeout)
        return self.out.read_text(), self.err.read_text()

    def wait_for(self, happened):
        """Returns as soon as `happened()` is true; the script must still be at work then."""
        deadline = time.monotonic() + 200
        gc.disable()  # what the tests before left may take seconds to collect, and the moment would be over
        try:
            while not happened():
                assert self.poll() is None, self.err.read_text()
                assert time.monotonic() < deadline
                time.sleep(0.005)
        finally:
            gc.enable()

    def workers(self):
        """Process ids of its workers."""
        listing = subprocess.run(["ps", "-A", "-ww", "-o", "pid=,pgid=,args="], capture_output=True, text=True)
        return [int(pid) for pid in re.findall(rf"(\d+) +{self.pid} .*spawn_main", listing.stdout)]


@pytest.fixture(scope="session")
def start_script(tmp_path_factory):
    """Starts a script with its arguments, in a process of its own that does not outlive the tests."""
    scripts = []

    def start(*arguments):
        scripts.append(Script(tmp_path_factory.mktemp("script"), *arguments))
        return scripts[-1]

    yield start
    for script in scripts:
        if script.poll() is None:
            script.kill()


@pytest.fixture
def call_script(monkeypatch):
    """Runs a script in this process: `call_script("evaluate.py", run)`."""

    def call(name, *arguments):
        script = ROOT / "scripts" / name
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        monkeypatch.syspath_prepend(script.parent)
        # It would stay: a thread that ends the tests on a signal, and processes that they start would have it blocked.
        monkeypatch.setattr("flaxvid.train.interrupt.end_when_told", lambda _: None)
        runpy.run_path(str(script), run_name="__main__")

    return call


@pytest.fixture(scope="session")
def start_training(start_script, tiny_flags):
    """Starts scripts/train.py."""

    def start(*flags, config="configs/ffn.py", tiny=True):
        return start_script("scripts/train.py", "--config", config, *(tiny_flags if tiny else []), *flags)

    return start
