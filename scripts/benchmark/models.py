"""Whole models: forward pass, training step, compile time and memory against torch, on a CPU or a GPU."""

import functools
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from timing import Rows, Timing, interleaved, print_rows, random

import flaxvid
from flaxvid.evaluate.cost import model_cost
from flaxvid.report.tables import render
from flaxvid.tasks.frame_flexible import FfnRecipe
from flaxvid.tasks.supervised import SupervisedRecipe
from flaxvid.train.optimizer import make_optimizer
from flaxvid.train.recipe import OptimizerRecipe
from flaxvid.train.state import create_state
from flaxvid.train.step import train_step

try:
    from torch_peers import TorchTrainer, has_reference
except ModuleNotFoundError:
    TorchTrainer = None

FAMILIES = (
    "tsm_resnet50",
    "slow_r50",
    "res3dcnn",
    "r3d_18",
    "r3d_18_se",
    "r2plus1d_r18",
    "r2plus1d_r34",
    "r2plus1d_r50",
    "x3d_xs",
    "x3d_s",
    "x3d_m",
    "x3d_l",
    "slowfast_r50",
    "slowfast_r101",
    "cnn_lstm",
    "cnn_gru",
    "videomae_small",
    "videomae_base",
    "vivit_base",
    "timesformer_base",
    "mvit_base",
    "mvit_v2_s",
)
"""The families of docs/speed.md, each at its own clip."""

ON_GPU = (FAMILIES[0], f"{FAMILIES[0]}:4,8,16", *FAMILIES[1:])
"""What the GPU's table has: those, and FFN on the first."""

EXPORTED = ("tsm_resnet50", "slow_r50", "r3d_18", "x3d_s", "x3d_m", "slowfast_r50", "videomae_base", "cnn_lstm")
"""The models whose exports are timed, each at its own clip."""

UNITS = {"forward": "forward, s", "train": "training step, s", "peak MB": "peak memory, MB"}

LIKE_THE_PEER = {"r2plus1d_r34": {"shared_midplanes": True}}
"""Options that make a model the network that the peer is, where its default is another."""


class FlaxvidTrainer:
    """A model and its training step on random clips; with several frame counts, the frame-flexible one."""

    def __init__(self, name: str, frames: tuple[int, ...], batch: int, size: int, dtype: str):
        options = {"num_frames": frames[-1], "image_size": size, "dtype": dtype, **LIKE_THE_PEER.get(name, {})}
        model = flaxvid.create_model(name, num_classes=174, **options)
        task = SupervisedRecipe(frames).make(model)
        if len(frames) > 1:
            task = FfnRecipe(frames).make(model)
        recipe = OptimizerRecipe()
        optimizer = make_optimizer(recipe)
        self.key = jax.random.key(0)
        self.state = create_state(task.init(self.key), optimizer)
        self.batch = jax.device_put(
            {
                "video": {count: model.for_cameras(random(batch, count, size, size, 3)) for count in frames},
                "label": np.arange(batch, dtype=np.int32),
            }
        )
        one_step = functools.partial(train_step, rate=recipe.learning_rate, task=task, optimizer=optimizer)
        step = jax.jit(one_step, donate_argnums=0)
        start = time.perf_counter()
        self.step = step.lower(self.state, self.batch, self.key).compile()
        self.compile_seconds = time.perf_counter() - start
        analysis: Any = self.step.memory_analysis()
        self.temporary_bytes = analysis.temp_size_in_bytes

        def evaluate(variables, clip, count):
            return model.apply(task.select(variables, count), clip)

        self.evaluate = jax.jit(evaluate, static_argnums=2)

    def train(self, calls: int = 1) -> None:
        """Takes `calls` steps one after the other, and waits for the last."""
        for _ in range(calls):
            self.state, metrics = self.step(self.state, self.batch, self.key)
        jax.block_until_ready((self.state, metrics))

    def forward(self, calls: int = 1) -> None:
        """Logits of each count, as in evaluation."""
        for _ in range(calls):
            logits = [self.evaluate(self.state.variables, clip, count) for count, clip in self.batch["video"].items()]
        jax.block_until_ready(logits)

    def peak_bytes(self) -> int | None:
        """The most of the device's memory that was used; None on CPU."""
        return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def resident_peak() -> int:
    """Peak of this process's resident memory in bytes; `ru_maxrss` would include that of the process it came from."""
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def make_trainer(peer: str, *setup: Any) -> Any:
    """The trainer of a peer; `setup` is (model, frames, batch, size, dtype)."""
    if TorchTrainer and peer != "flaxvid":
        return TorchTrainer(*setup, device=jax.default_backend(), compiled=peer == "torch.compile")
    return FlaxvidTrainer(*setup)


def in_fresh_process(peer: str, *setup: Any, cache: str = "", calls: int = 0) -> dict[str, float]:
    """What `once` measures, in a fresh process."""
    command = [sys.executable, __file__, json.dumps((peer, cache, calls, setup))]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def once(peer: str, cache: str, calls: int, setup: Sequence[Any]) -> dict[str, float]:
    """Takes two training steps: {"compile seconds", "peak MB", "temporaries MB"}. With `calls` also {"train",
    "forward"}, in seconds. Temporaries are what XLA plans for a step beside arguments and results; torch plans nothing.

    These are the time of one call, where `calls` of them follow each other.
    """
    if cache:
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    name, frames, *rest = setup
    trainer = make_trainer(peer, name, tuple(frames), *rest)  # JSON made a list of them
    for _ in range(2):
        trainer.train()
    result = {
        "compile seconds": getattr(trainer, "compile_seconds", 0.0),
        "peak MB": (trainer.peak_bytes() or resident_peak()) / 1e6,
        "temporaries MB": getattr(trainer, "temporary_bytes", 0) / 1e6,
    }
    for method in ("train", "forward") if calls else ():
        run = functools.partial(getattr(trainer, method), calls)
        result[method] = interleaved({peer: run}, Timing(), seconds=60)[peer] / calls
    return result


def peers_of(name: str) -> list[str]:
    """flaxvid, and torch if an installed package has the model."""
    return ["flaxvid", "torch"] if TorchTrainer and has_reference(name) else ["flaxvid"]


def label_of(name: str, frames: tuple[int, ...], batch: int, size: int, dtype: str) -> str:
    """What a row is about."""
    return f"{name} {frames} frames, batch {batch}, {size} px, {dtype}"


def time_model(setup: tuple[Any, ...], timing: Timing) -> Rows:
    """Seconds of a forward pass and of a training step (forward, backward, update)."""
    trainers = {peer: make_trainer(peer, *setup) for peer in peers_of(setup[0])}
    rows: Rows = {}
    for method in ("forward", "train"):
        runs = {peer: getattr(trainer, method) for peer, trainer in trainers.items()}
        rows[f"{label_of(*setup)}, {method}"] = interleaved(runs, timing, seconds=60)
    return rows


def compare_model(name: str, frames: tuple[int, ...], batch: int, size: int, dtype: str, timing: Timing) -> Rows:
    """Forward pass and training step against torch eager; compile time and memory, each in fresh processes."""
    setup = (name, frames, batch, size, dtype)
    rows = time_model(setup, timing)
    with tempfile.TemporaryDirectory() as cache:
        cold, warm = (in_fresh_process("flaxvid", *setup, cache=cache) for _ in range(2))
    rows[f"{label_of(*setup)}, compile"] = {"cold": cold["compile seconds"], "warm": warm["compile seconds"]}
    rows[f"{label_of(*setup)}, peak MB"] = {"flaxvid": cold["peak MB"]}
    if "torch" in peers_of(name):
        rows[f"{label_of(*setup)}, peak MB"]["torch"] = in_fresh_process("torch", *setup)["peak MB"]
    return rows


def compare_families(names: Sequence[str], batch: int, scale: float, timing: Timing) -> Rows:
    """Time and peak memory of training each model at its own clip, whose sides are multiplied by `scale`."""
    rows: Rows = {}
    for name in names:
        clip = flaxvid.create_model(name).clip
        setup = (name, (clip.num_frames,), batch, round(clip.image_size * scale), "float32")
        own = time_model(setup, timing)
        found = {peer: in_fresh_process(peer, *setup) for peer in peers_of(name)}
        own[f"{label_of(*setup)}, peak MB"] = {peer: found[peer]["peak MB"] for peer in found}
        own[f"{label_of(*setup)}, temporaries MB"] = {"flaxvid": found["flaxvid"]["temporaries MB"]}
        print_rows(own)
        rows |= own
    return rows


def compare_on_gpu(names: Sequence[str], batch: int, scale: float, compiled: bool, calls: int = 10) -> Rows:
    """Training in bfloat16 of MODEL, at its own clip, or MODEL:FRAMES,FRAMES,..., which is FFN.

    Each peer has a process of its own, for the two would share the memory. Calls follow each other as in a real run:
    the GPU need not wait for Python between them.
    """
    rows: Rows = {}
    for entry in names:
        name, _, counts = entry.partition(":")
        model = flaxvid.create_model(name, num_classes=174)
        frames = tuple(map(int, counts.split(","))) if counts else (model.clip.num_frames,)
        size = round(model.clip.image_size * scale)
        setup = (name, frames, batch, size, "bfloat16")
        peers = [*peers_of(name), "torch.compile"] if compiled else peers_of(name)
        with tempfile.TemporaryDirectory() as cache:
            # Twice, for the first process tries many algorithms, and their scratch memory counts.
            compilation = in_fresh_process("flaxvid", *setup, cache=cache)["compile seconds"]
            found = {peer: in_fresh_process(peer, *setup, cache=cache, calls=calls) for peer in peers}
        own = {f"{label_of(*setup)}, {what}": {peer: found[peer][what] for peer in peers} for what in UNITS}
        macs = batch * sum(model_cost(model, (1, count, size, size, 3)).macs for count in frames)
        own[f"{label_of(*setup)}, clips a second"] = {peer: batch / found[peer]["train"] for peer in peers}
        # A multiply-add is two operations, and the backward pass twice the forward one.
        own[f"{label_of(*setup)}, TFLOP/s"] = {peer: 6e-12 * macs / found[peer]["train"] for peer in peers}
        own[f"{label_of(*setup)}, compile"] = {"flaxvid": compilation}
        print_rows(own)
        rows |= own
    return rows


def families_table(rows: Rows) -> str:
    """Rows of forward, training and memory as Markdown: seconds and megabytes of flaxvid, and ratios to the peers'."""
    cells: dict[str, list[str]] = {}
    header = ["model"]
    for label, row in rows.items():
        others = [peer for peer in row if peer != "flaxvid"]
        model, _, what = label.rpartition(", ")
        if not cells or list(cells) == [model]:
            header.append(UNITS.get(what, what) + "".join(f" (/ {peer})" for peer in others))
        ratios = "".join(f" ({row['flaxvid'] / row[peer]:.2f})" for peer in others)
        cells.setdefault(model, []).append(f"{row['flaxvid']:,.4g}{ratios}")
    return render(tuple(header), [(label, *values) for label, values in cells.items()])


if __name__ == "__main__":  # as `in_fresh_process` starts it
    print(json.dumps(once(*json.loads(sys.argv[1]))))
