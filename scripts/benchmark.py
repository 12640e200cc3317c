"""Speed of flaxvid against named peers, measured in one run by interleaved repeats, as ratios.

python scripts/benchmark.py conv                    Conv against nn.Conv and torch, case by case
python scripts/benchmark.py model tsm_resnet50      forward, training step, compile time, memory against torch
python scripts/benchmark.py ffn                     frame-flexible training against training at 16 frames
python scripts/benchmark.py import                  import time of flaxvid against jax and flax
python scripts/benchmark.py gpu                     TSM and FFN training in bfloat16 against torch, on a GPU

A busy machine slows torch's threads, which wait for each other, far more than XLA's: there, compare one thread by its
CPU time, `taskset -c 0 python scripts/benchmark.py model tsm_resnet50 --clock cpu`.
"""

import argparse
import dataclasses
import functools
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leave the peer its share of a GPU's memory

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import flaxvid
from flaxvid.layers.conv import Conv
from flaxvid.layers.norm import BatchNorm
from flaxvid.layers.shift import TemporalShift
from flaxvid.losses.distillation import ffn_loss
from flaxvid.tasks.frame_flexible import FrameFlexibleTask
from flaxvid.tasks.task import Supervised
from flaxvid.train.optimizer import make_optimizer
from flaxvid.train.recipe import OptimizerRecipe
from flaxvid.train.state import create_state
from flaxvid.train.step import train_step

try:
    import torch
    from benchmark_torch import TorchTrainer, torch_convolution
except ModuleNotFoundError:
    torch = None

Rows = dict[str, dict[str, float]]

# name: input shape, kernel size, strides, groups, features
CONVOLUTIONS = {
    "1x1, 256 to 64": ((8, 56, 56, 256), (1, 1), 1, 1, 64),
    "1x1, 64 to 256": ((8, 56, 56, 64), (1, 1), 1, 1, 256),
    "1x1 stride 2": ((8, 56, 56, 256), (1, 1), 2, 1, 512),
    "3x3": ((8, 56, 56, 64), (3, 3), 1, 1, 64),
    "3x3 deep": ((8, 14, 14, 256), (3, 3), 1, 1, 256),
    "3x3 stride 2": ((8, 56, 56, 128), (3, 3), 2, 1, 128),
    "7x7 stem": ((8, 224, 224, 3), (7, 7), 2, 1, 64),
    "3x3x3": ((1, 8, 56, 56, 64), (3, 3, 3), 1, 1, 64),
    "3x3x3 stride 2": ((1, 8, 56, 56, 64), (3, 3, 3), 2, 1, 128),
    "1x3x3": ((1, 8, 56, 56, 64), (1, 3, 3), 1, 1, 64),
    "3x1x1": ((1, 8, 28, 28, 256), (3, 1, 1), 1, 1, 128),
    "1x7x7 stem": ((1, 8, 224, 224, 3), (1, 7, 7), (1, 2, 2), 1, 64),
    "5x7x7 stem": ((1, 16, 112, 112, 3), (5, 7, 7), (1, 2, 2), 1, 8),
    "depthwise 3x3x3": ((1, 8, 56, 56, 54), (3, 3, 3), 1, 54, 54),
    "depthwise 5x1x1": ((1, 16, 56, 56, 24), (5, 1, 1), 1, 24, 24),
    "depthwise 3x3": ((8, 56, 56, 96), (3, 3), 1, 96, 96),
    "32 groups, 3x3": ((8, 28, 28, 256), (3, 3), 1, 32, 256),
    "4 groups, 3x3": ((8, 28, 28, 256), (3, 3), 1, 4, 256),
}


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclasses.dataclass(frozen=True)
class Timing:
    """How runs are timed: `repeats` after one for warm-up, by a clock of `CLOCKS`."""

    repeats: int = 5
    clock: str = "wall"


def interleaved(runs: Mapping[str, Callable[[], Any]], timing: Timing, seconds: float = 4.0) -> dict[str, float]:
    """Median seconds of each run; they take turns, so that a busy machine slows all alike.

    A run that has used up its `seconds` is measured no more often than once.
    """
    now = CLOCKS[timing.clock]
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(timing.repeats + 1):
        for name, run in runs.items():
            if turn > 1 and sum(times[name]) > seconds:
                continue
            start = now()
            run()
            if turn:
                times[name].append(now() - start)
    return {name: statistics.median(spent) for name, spent in times.items()}


def random(*shape: int) -> np.ndarray:
    """Standard normal float32."""
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def ready(run: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    """The call, ended when its results are there."""
    return lambda: jax.block_until_ready(run(*args))


# --- convolutions ---------------------------------------------------------------------------------------------------


def compare_convolutions(cases: str, timing: Timing) -> Rows:
    """Seconds of flaxvid's Conv, flax's nn.Conv and torch eager (channels last), forward and forward + backward."""
    rows: Rows = {}
    for name, (shape, size, strides, groups, features) in CONVOLUTIONS.items():
        if cases not in name:
            continue
        pads = [(k - 1) // 2 for k in size]
        x, kernel = random(*shape), random(*size, shape[-1] // groups, features) / 16
        layers = {
            "flaxvid": Conv(features, size, strides, groups=groups),
            "nn.Conv": nn.Conv(features, size, strides, pads, feature_group_count=groups, use_bias=False),
        }
        runs: dict[str, dict[str, Callable[[], Any]]] = {"forward": {}, "forward+backward": {}}
        cotangent = np.ones(
            jax.eval_shape(layers["flaxvid"].apply, {"params": {"kernel": kernel}}, x).shape, np.float32
        )
        args = jax.device_put((kernel, x, cotangent))
        for peer, layer in layers.items():

            def forward(kernel, x, layer=layer):
                return layer.apply({"params": {"kernel": kernel}}, x)

            def both(kernel, x, cotangent, forward=forward):
                y, vjp = jax.vjp(forward, kernel, x)
                return y, vjp(cotangent)

            runs["forward"][peer] = ready(jax.jit(forward), *args[:2])
            runs["forward+backward"][peer] = ready(jax.jit(both), *args)
        if torch:
            runs["forward"]["torch"], runs["forward+backward"]["torch"] = torch_convolution(
                x, kernel, cotangent, strides, pads, groups
            )
        for direction, peers in runs.items():
            rows[f"{name}, {direction}"] = interleaved(peers, timing)
        print_rows({key: row for key, row in rows.items() if key.startswith(f"{name}, f")})
    return rows


# --- models ---------------------------------------------------------------------------------------------------------


class FlaxvidTrainer:
    """A model and its training step on random clips; with several frame counts, the frame-flexible one."""

    def __init__(self, name: str, frames: tuple[int, ...], batch: int, size: int, dtype: str):
        model = flaxvid.create_model(name, num_classes=174, num_frames=frames[-1], image_size=size, dtype=dtype)
        task = Supervised(model, frames)
        if len(frames) > 1:
            task = FrameFlexibleTask(flaxvid.FrameFlexible(model, frames))
        recipe = OptimizerRecipe()
        optimizer = make_optimizer(recipe, lambda step: recipe.learning_rate)
        self.key = jax.random.key(0)
        self.state = create_state(task.init(self.key), optimizer)
        self.batch = jax.device_put(
            {
                "video": {count: random(batch, count, size, size, 3) for count in frames},
                "label": np.arange(batch, dtype=np.int32),
            }
        )
        step = jax.jit(functools.partial(train_step, task=task, optimizer=optimizer), donate_argnums=0)
        start = time.perf_counter()
        self.step = step.lower(self.state, self.batch, self.key).compile()
        self.compile_seconds = time.perf_counter() - start
        self.evaluate = jax.jit(lambda variables, clip: model.apply(task.select(variables, clip.shape[1]), clip))

    def train(self) -> None:
        """One step."""
        self.state, metrics = self.step(self.state, self.batch, self.key)
        jax.block_until_ready((self.state, metrics))

    def forward(self) -> None:
        """Logits of each count, as in evaluation."""
        for clip in self.batch["video"].values():
            jax.block_until_ready(self.evaluate(self.state.variables, clip))

    def peak_bytes(self) -> int | None:
        """The most of the device's memory that was used; None on CPU."""
        return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def resident_peak() -> int:
    """Peak of this process's resident memory in bytes; `ru_maxrss` would include that of the process it came from."""
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def make_trainer(peer: str, *setup: Any) -> Any:
    """The peer's trainer for (model, frames, batch, size, dtype)."""
    return FlaxvidTrainer(*setup) if peer == "flaxvid" else TorchTrainer(*setup, device=jax.default_backend())


def in_fresh_process(peer: str, *setup: Any, cache: str = "") -> dict[str, float]:
    """Two training steps in a process of their own: {"compile seconds", "peak MB"}."""
    name, frames, batch, size, dtype = setup
    command = [sys.executable, __file__, "once", name, "--peer", peer, "--frames", *map(str, frames)]
    command += ["--batch", str(batch), "--size", str(size), "--dtype", dtype, "--cache", cache]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def once(peer: str, cache: str, *setup: Any) -> dict[str, float]:
    """What `in_fresh_process` runs."""
    if cache:
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    trainer = make_trainer(peer, *setup)
    for _ in range(2):
        trainer.train()
    return {
        "compile seconds": getattr(trainer, "compile_seconds", 0.0),
        "peak MB": (trainer.peak_bytes() or resident_peak()) / 1e6,
    }


def compare_model(name: str, frames: tuple[int, ...], batch: int, size: int, dtype: str, timing: Timing) -> Rows:
    """Forward pass and training step against torch eager; compile time and memory, each in fresh processes."""
    setup = (name, frames, batch, size, dtype)
    peers = ["flaxvid", "torch"] if torch else ["flaxvid"]
    trainers = {peer: make_trainer(peer, *setup) for peer in peers}
    label = f"{name} {frames} frames, batch {batch}, {size} px, {dtype}"
    rows: Rows = {}
    for method in ("forward", "train"):
        runs = {peer: getattr(trainer, method) for peer, trainer in trainers.items()}
        rows[f"{label}, {method}"] = interleaved(runs, timing, seconds=60)
    del trainers
    with tempfile.TemporaryDirectory() as cache:
        cold, warm = (in_fresh_process("flaxvid", *setup, cache=cache) for _ in range(2))
    rows[f"{label}, compile"] = {"cold": cold["compile seconds"], "warm": warm["compile seconds"]}
    rows[f"{label}, peak MB"] = {"flaxvid": cold["peak MB"]}
    if torch:
        rows[f"{label}, peak MB"]["torch"] = in_fresh_process("torch", *setup)["peak MB"]
    return rows


def packed_step(trainer: FlaxvidTrainer, model: Any) -> Callable[[], Any]:
    """Gradient of FFN's loss with all counts' frames in one pass: convolutions see them all, shifts and norms parts.

    Only its time means something: the counts share the norms' parameters and the logits and have no gains, all of which
    costs a packed pass less than the real thing.
    """
    counts = tuple(trainer.batch["video"])
    edges = list(np.cumsum(counts)[:-1])
    variables = model.init(trainer.key, trainer.batch["video"][counts[0]])

    def each_part(call, args, kwargs, context):
        apart = isinstance(context.module, BatchNorm | TemporalShift)
        if not apart or context.method_name != "__call__" or args[0].shape[1] != sum(counts):
            return call(*args, **kwargs)  # also a part, on its way to the parent class
        parts = [call(part, *args[1:], **kwargs) for part in jnp.split(args[0], edges, axis=1)]
        return jnp.concatenate(parts, axis=1)

    def loss(params, stats, batch):
        video = jnp.concatenate(list(batch["video"].values()), axis=1)
        state = {"params": params, "batch_stats": stats}
        with nn.intercept_methods(each_part):
            logits, state = model.apply(
                state, video, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)}
            )
        return ffn_loss({count: logits for count in counts}, batch["label"])[0], state  # noqa: C420

    gradient = jax.jit(jax.grad(loss, has_aux=True))
    return ready(gradient, variables["params"], variables["batch_stats"], trainer.batch)


def compare_ffn(name: str, batch: int, size: int, timing: Timing) -> Rows:
    """FFN(4, 8, 16)'s step over that of 16 frames alone, and over one packed pass."""
    flexible = FlaxvidTrainer(name, (4, 8, 16), batch, size, "float32")
    longest = FlaxvidTrainer(name, (16,), batch, size, "float32")
    model = flaxvid.create_model(name, num_classes=174, num_frames=16, image_size=size)
    runs = {"FFN (4, 8, 16)": flexible.train, "16 frames": longest.train, "packed": packed_step(flexible, model)}
    return {f"{name}, batch {batch}, {size} px, train": interleaved(runs, timing, seconds=90)}


def compare_imports(timing: Timing) -> Rows:
    """Seconds of imports, each in a fresh interpreter."""
    statements = {
        "import flaxvid": "import flaxvid",
        "jax and flax": "import jax, flax.linen",
        "flaxvid and create_model": "import flaxvid; flaxvid.create_model",
    }
    runs = {
        name: functools.partial(subprocess.run, [sys.executable, "-c", statement], check=True)
        for name, statement in statements.items()
    }
    return {"import": interleaved(runs, timing, seconds=60)}


# --- command line ---------------------------------------------------------------------------------------------------


def describe() -> dict[str, str]:
    """Device and versions."""
    names = ("jax", "flax", "torch", "torchvision")
    versions = {name: importlib.metadata.version(name) for name in names if name in _installed()}
    threads = str(len(os.sched_getaffinity(0)))
    return {"device": jax.devices()[0].device_kind, "host": platform.machine(), "threads": threads, **versions}


@functools.cache
def _installed() -> set[str]:
    return {distribution.metadata["Name"] for distribution in importlib.metadata.distributions()}


def print_rows(rows: Rows) -> None:
    """Each row's numbers, and the ratios of its first to the others."""
    for name, row in rows.items():
        first, *others = row
        values = "  ".join(f"{peer} {value:.4g}" for peer, value in row.items())
        ratios = "  ".join(f"{first}/{peer} {row[first] / row[peer]:.2f}" for peer in others)
        print(f"{name:62s} {values:60s} {ratios}", flush=True)


def main() -> None:
    """Runs one comparison, prints it, and with --json writes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in ("conv", "model", "ffn", "import", "gpu", "once"):
        sub = commands.add_parser(command)
        sub.add_argument("--repeats", type=int, default=5)
        sub.add_argument("--json", type=pathlib.Path, help="write the numbers here, too")
        if command in ("conv", "model", "ffn", "gpu"):
            sub.add_argument("--clock", choices=CLOCKS, default="wall")
        if command in ("model", "ffn", "gpu", "once"):
            sub.add_argument("name", nargs="?", default="tsm_resnet50")
            sub.add_argument("--batch", type=int, default=8 if command == "gpu" else 1)
            sub.add_argument("--size", type=int, default=224)
        if command in ("model", "once"):
            sub.add_argument("--frames", type=int, nargs="+", default=[8])
            sub.add_argument("--dtype", default="float32")
    commands.choices["conv"].add_argument("--cases", default="", help="only those whose name contains this")
    commands.choices["once"].add_argument("--peer", default="flaxvid")
    commands.choices["once"].add_argument("--cache", default="")
    args = parser.parse_args()

    if args.command == "gpu" and jax.default_backend() != "gpu":
        sys.exit(f"benchmark.py gpu needs a GPU that jax and torch can use, found {jax.default_backend()}")
    if args.command == "once":
        print(json.dumps(once(args.peer, args.cache, args.name, tuple(args.frames), args.batch, args.size, args.dtype)))
        return
    print(json.dumps(describe()), flush=True)
    timing = Timing(args.repeats, "wall" if args.command == "import" else args.clock)
    if args.command == "conv":
        rows = compare_convolutions(args.cases, timing)
    elif args.command == "model":
        rows = compare_model(args.name, tuple(args.frames), args.batch, args.size, args.dtype, timing)
    elif args.command == "ffn":
        rows = compare_ffn(args.name, args.batch, args.size, timing)
    elif args.command == "import":
        rows = compare_imports(timing)
    else:
        rows = {}
        for frames in ((8,), (4, 8, 16)):
            rows |= compare_model(args.name, frames, args.batch, args.size, "bfloat16", timing)
            train = next(row for key, row in rows.items() if f" {frames} " in key and key.endswith("train"))
            rows[f"{args.name} {frames} frames per second"] = {
                peer: args.batch * sum(frames) / seconds for peer, seconds in train.items()
            }
    if args.command != "conv":
        print_rows(rows)
    if args.json:
        args.json.write_text(json.dumps({"setup": describe(), "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
