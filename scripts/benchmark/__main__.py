"""Speed of flaxvid against named peers, measured in one run by interleaved repeats, as ratios.

python scripts/benchmark conv                    Conv against nn.Conv and torch, case by case
python scripts/benchmark model tsm_resnet50      forward, training step, compile time, memory against torch
python scripts/benchmark families                the same of every family at its own clip, as in docs/speed.md
python scripts/benchmark runtimes [MODEL...]     exported programs, float32 and int8, in onnxruntime and OpenVINO
python scripts/benchmark recurrent               LSTM against GRU, and both against torch, time and memory
python scripts/benchmark ffn                     frame-flexible training against training at 16 frames
python scripts/benchmark input [FOLDER]          decoding against decord and OpenCV, clips a second of the pipeline
python scripts/benchmark import                  import time of flaxvid against jax and flax
python scripts/benchmark reading                 time and memory of reading a torch file, against torch.load
python scripts/benchmark gpu                     FFN and each family, bfloat16, against torch, on a GPU

A busy machine slows torch's threads, which wait for each other, far more than XLA's: there, compare one thread by its
CPU time, `taskset -c 0 python scripts/benchmark model tsm_resnet50 --clock cpu`.
"""

import argparse
import functools
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Callable
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leave the peer its share of a GPU's memory

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from models import (
    EXPORTED,
    FAMILIES,
    ON_GPU,
    FlaxvidTrainer,
    compare_families,
    compare_model,
    compare_on_gpu,
    families_table,
)
from reading import compare_reading
from recurrent import compare_recurrent
from timing import CLOCKS, Rows, Timing, count_cores, interleaved, print_rows, random, ready

import flaxvid
from flaxvid.layers.conv import Conv
from flaxvid.layers.norm import BatchNorm
from flaxvid.layers.shift import TemporalShift
from flaxvid.losses.distillation import ffn_loss

try:
    import torch
    from torch_peers import torch_convolution
except ModuleNotFoundError:
    torch = None

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


# --- convolutions ---------------------------------------------------------------------------------------------------


def compare_convolutions(cases: str, timing: Timing) -> Rows:
    """Times flaxvid's Conv, flax's nn.Conv and eager torch (channels last), forward and forward + backward."""
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


def packed_step(trainer: FlaxvidTrainer, model: Any) -> Callable[[], Any]:
    """FFN's gradient with all counts' frames in one pass. Convolutions see all frames, shifts and norms one count's.

    Only its time means something, and it is a lower bound: the counts share norms and logits, and have no gains.
    """
    counts = tuple(trainer.batch["video"])
    edges = list(np.cumsum(counts)[:-1])
    variables = model.init(trainer.key, trainer.batch["video"][counts[0]])

    def each_part(call, args, kwargs, context):
        layer = context.module
        if not isinstance(layer, BatchNorm | TemporalShift) or args[0].shape[1] != sum(counts):
            return call(*args, **kwargs)
        alone, own = layer.clone(parent=None), layer.variables
        apply = functools.partial(alone.apply, own, mutable=["batch_stats"])
        parts = [apply(part, *args[1:], **kwargs)[0] for part in jnp.split(args[0], edges, axis=1)]
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
    """Times a step of FFN (4, 8, 16), one of 16 frames alone, and one packed pass."""
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
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines() if platform.system() == "Linux" else []
    processor = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    names = ("jax", "flax", "torch", "torchvision", "onnxruntime", "openvino")
    versions = {name: importlib.metadata.version(name) for name in names if name in _installed()}
    threads = str(count_cores())
    return {"device": jax.devices()[0].device_kind, "processor": processor, "threads": threads, **versions}


@functools.cache
def _installed() -> set[str]:
    return {distribution.metadata["Name"] for distribution in importlib.metadata.distributions()}


def main() -> None:
    """Runs one comparison, prints it, and with --json writes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in ("conv", "model", "families", "runtimes", "ffn", "recurrent", "input", "import", "reading", "gpu"):
        sub = commands.add_parser(command)
        sub.add_argument("--repeats", type=int, default=5)
        sub.add_argument("--json", type=pathlib.Path, help="write the numbers here, too")
        if command in ("conv", "model", "families", "runtimes", "ffn", "recurrent", "input", "reading"):
            sub.add_argument("--clock", choices=CLOCKS, default="wall")
        if command in ("model", "ffn"):
            sub.add_argument("name", nargs="?", default="tsm_resnet50")
            sub.add_argument("--batch", type=int, default=1)
            sub.add_argument("--size", type=int, default=None if command == "model" else 224)
    model = commands.choices["model"]
    model.add_argument("--frames", type=int, nargs="+", help="default: the model's own number")
    model.add_argument("--dtype", default="float32")
    for command, names, batch in (("families", FAMILIES, 1), ("runtimes", EXPORTED, 1), ("gpu", ON_GPU, 8)):
        sub = commands.choices[command]
        sub.add_argument("names", nargs="*", default=names, metavar="MODEL", help="default: one of each kind")
        sub.add_argument("--batch", type=int, default=batch)
        sub.add_argument("--scale", type=float, default=1.0, help="of the clips' sides, for a trial")
    commands.choices["gpu"].add_argument("--compiled", action="store_true", help="against torch.compile, too")
    for option, default in (("batch", 8), ("frames", 16), ("hidden", 512)):
        commands.choices["recurrent"].add_argument(f"--{option}", type=int, default=default)
    source = commands.choices["input"]
    source.add_argument("folder", nargs="?", type=pathlib.Path, help="of videos; default: some h264 clips are made")
    source.add_argument("--frames", type=int, default=16)
    source.add_argument("--short-side", type=int, default=256)
    source.add_argument("--videos", type=int, default=40, help="at most so many of them")
    source.add_argument("--seconds", type=float, default=8, help="for each setting of the pipeline")
    commands.choices["reading"].add_argument("--size", type=int, default=350, help="of the file, in MB")
    commands.choices["conv"].add_argument("--cases", default="", help="only those whose name contains this")
    args = parser.parse_args()

    if args.command == "gpu" and jax.default_backend() != "gpu":
        sys.exit(f"expected a GPU that jax and torch can use, got {jax.default_backend()}: run this on another machine")
    print(json.dumps(describe()), flush=True)
    timing = Timing(args.repeats, "wall" if args.command in ("gpu", "import") else args.clock)
    if args.command == "conv":
        rows = compare_convolutions(args.cases, timing)
    elif args.command == "model":
        clip = flaxvid.create_model(args.name).clip
        frames, size = tuple(args.frames or (clip.num_frames,)), args.size or clip.image_size
        rows = compare_model(args.name, frames, args.batch, size, args.dtype, timing)
    elif args.command == "families":
        rows = compare_families(args.names, args.batch, args.scale, timing)
        print(families_table(rows))
    elif args.command == "runtimes":
        from runtimes import compare_runtimes  # the others run without the extra [export]

        rows = compare_runtimes(args.names, args.batch, args.scale, timing)
    elif args.command == "recurrent":
        rows = compare_recurrent(args.batch, args.frames, args.hidden, timing)
    elif args.command == "ffn":
        rows = compare_ffn(args.name, args.batch, args.size, timing)
    elif args.command == "input":
        from input_path import compare_input  # the others run without PyAV

        rows = compare_input(args.folder, args.frames, args.short_side, args.videos, args.seconds, timing)
    elif args.command == "reading":
        rows = compare_reading(args.size, timing)
    elif args.command == "import":
        rows = compare_imports(timing)
    else:
        rows = compare_on_gpu(args.names, args.batch, args.scale, args.compiled)
        print(families_table(rows))
    if args.command not in ("conv", "families", "gpu", "input", "recurrent", "runtimes"):
        print_rows(rows)
    if args.json:
        args.json.write_text(json.dumps({"setup": describe(), "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
