"""Turns a PyTorch checkpoint into one .safetensors file of flaxvid, and shows where each variable came from.

    python scripts/import_torch.py tsm_resnet50 checkpoint.pth tsm.safetensors
    python scripts/import_torch.py tsm_resnet50 torchvision/resnet50-imagenet1k-v1 start.safetensors --num-classes 174 \
        --frames 4 8 16

Training, evaluation and prediction read the result. The file names the options of its model, with those that the origin
of the checkpoint implies.
"""

import argparse
import dataclasses
import sys
import warnings
from pathlib import Path

from rich.console import Console
from rich.table import Table

from flaxvid import trees
from flaxvid.arguments import number, one_each
from flaxvid.models.registry import list_models
from flaxvid.weights.known import known_of
from flaxvid.weights.native import WeightsInfo, save_variables
from flaxvid.weights.readings import as_options
from flaxvid.weights.torch import Imported, import_torch


def main() -> None:
    """Parses, imports, saves and prints."""
    sys.argv[1:] = one_each(sys.argv[1:], "--frames")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=list_models(), metavar="MODEL", help="a name of flaxvid.list_models()")
    parser.add_argument("source", help="a file with the keys of torch, or a name of flaxvid.list_weights()")
    parser.add_argument("output", type=Path, help="the .safetensors file to write")
    parser.add_argument("--num-classes", type=number(int, 1), help="another number than the file's makes a fresh head")
    parser.add_argument(
        "--frames", type=number(int, 1), action="append", help="frame counts to make private copies for"
    )
    parser.add_argument("--format", help="the reference whose keys the file has (default: detected)")
    parser.add_argument("--part", help='which part of a file of several networks, such as "ema"')
    parser.add_argument("--allow-nonfinite", action="store_true", help="take NaN and infinite numbers")
    arguments = parser.parse_args()
    warnings.showwarning = lambda message, *_, **__: print(message, file=sys.stderr)
    try:
        imported = import_torch(
            arguments.model,
            arguments.source,
            num_classes=arguments.num_classes,
            frames=arguments.frames,
            format=arguments.format,
            part=arguments.part,
            allow_nonfinite=arguments.allow_nonfinite,
        )
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(f"error: {error}") from error
    overrides = dict(imported.implied)
    if imported.num_classes is not None:
        overrides["num_classes"] = imported.num_classes
    info = WeightsInfo(arguments.model, overrides, imported.frames)
    if (known := known_of(arguments.source, arguments.model)) is not None:
        info = dataclasses.replace(info, classes=None if imported.fresh else known.class_names, clips=known.clips)
    save_variables(arguments.output, imported.variables, info)
    console = Console()
    console.print(account(imported))
    frames = "" if imported.frames is None else f", frames={imported.frames}"
    console.print(f"{arguments.model} from {imported.format} keys{frames} -> {arguments.output}")
    if imported.implied:
        console.print(f"{imported.format} implies {as_options(imported.implied)}, which {arguments.output} says too")


def account(imported: Imported) -> Table:
    """A row for each variable: its shape and where it came from."""
    flat = trees.flatten(imported.variables)
    table = Table()
    for heading in ("variable", "shape", "from"):
        table.add_column(heading, overflow="fold")
    for path in sorted(flat):
        made = "fresh" if path in imported.fresh else "made for its frame count"
        table.add_row(path, str(tuple(flat[path].shape)), ", ".join(imported.keys.get(path, (made,))))
    return table


if __name__ == "__main__":
    main()
