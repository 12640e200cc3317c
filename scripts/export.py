"""Exports a network as programs for other runtimes, each with its weights in it.

    python scripts/export.py runs/ffn-motion out/                   ONNX and StableHLO, at each trained frame count
    python scripts/export.py runs/ffn-motion out/ --frames 8        at 8 frames alone
    python scripts/export.py tsm.safetensors out/ --only onnx       for onnxruntime, OpenVINO and others alone
    python scripts/export.py runs/tsm-causal out/ --only stream     ONNX that takes one frame after the other

Programs take uint8 video (batch, frames, height, width, RGB), any batch, and give logits. Each is compared with the
network in JAX before its file gets its name: ONNX in onnxruntime, and in OpenVINO where that is installed. The folder
also gets the weights and bundle.json, which says how clips are cut, what the classes are called, and how accurate the
run was. flaxvid.load and the other scripts take the folder like a run.
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

import flaxvid
from flaxvid.arguments import NETWORK, add_weights, number, read_class_names
from flaxvid.train.bundle import DESCRIPTION
from flaxvid.train.step import enable_compilation_cache, explained_memory
from flaxvid.train.trained import load, name_classes
from flaxvid.writing import read_json

KINDS = ("onnx", "stablehlo", "stream")


def main() -> None:
    """Parses and exports; an error of the user's is one line, not a traceback."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN_OR_WEIGHTS", help=NETWORK)
    parser.add_argument("output", type=Path, metavar="FOLDER", help="the folder to write")
    add_weights(parser)
    parser.add_argument(
        "--frames", type=number(int, 1), nargs="+", default=(), help="frame counts (default: those of the training)"
    )
    parser.add_argument("--only", choices=KINDS, help="this kind of program alone")
    arguments = parser.parse_args()
    try:
        with explained_memory("lower --frames, or set JAX_PLATFORMS=cpu"):
            run(arguments)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


def run(arguments: argparse.Namespace) -> None:
    """Loads, exports count by count, and prints what was written."""
    enable_compilation_cache()
    kinds = (arguments.only,) if arguments.only else ("onnx", "stablehlo")
    exports = {kind: getattr(flaxvid, f"export_{kind}") for kind in kinds}  # ONNX needs the extra [export]
    names = read_class_names(arguments.classes)
    trained = name_classes(
        load(arguments.run, arguments.checkpoint, classes=names, model=arguments.model, part=arguments.part)
    )
    console = Console(stderr=True)
    for kind in kinds:
        for count in arguments.frames or trained.frames:
            with console.status(f"{count} frames as {kind}"):
                exports[kind](trained, arguments.output, (count,))
    table = Table("program", "MB", "difference from JAX")
    for program in read_json(arguments.output / DESCRIPTION, dict)["programs"]:
        differences = (f"{difference:.1e} in {runtime}" for runtime, difference in program["difference"].items())
        size = (arguments.output / program["file"]).stat().st_size / 1e6
        table.add_row(program["file"], f"{size:.3g}", ", ".join(differences))
    Console().print(table)


if __name__ == "__main__":
    main()
