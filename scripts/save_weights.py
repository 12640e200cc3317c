"""Writes the weights of a run into one file, of flaxvid or with PyTorch's keys.

    python scripts/save_weights.py runs/ffn-motion mine.safetensors             a file of flaxvid: flaxvid.load reads it
    python scripts/save_weights.py runs/ffn-motion mine.pth                     for torch.load; torch is not needed
    python scripts/save_weights.py runs/tsm mine.safetensors --format tsm       PyTorch's keys in the other kind of file
    python scripts/save_weights.py runs/ffn-motion mine.pth --frames 8          of one frame count: an ordinary network

A file of flaxvid holds the network's options, its class names and how its test cuts clips. One with PyTorch's keys is a
state_dict alone; the options of its network are printed.
"""

import argparse
import dataclasses
import sys
import warnings
from pathlib import Path

from flaxvid.arguments import NETWORK, add_weights, number, read_class_names
from flaxvid.train.network import Trained, save
from flaxvid.train.trained import load
from flaxvid.weights.readings import as_options
from flaxvid.weights.torch import to_torch
from flaxvid.weights.torch_file import write_torch_file
from flaxvid.writing import written_whole


def main() -> None:
    """Parses and writes; an error of the user's is one line, not a traceback."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN_OR_WEIGHTS", help=NETWORK)
    parser.add_argument("output", type=Path, metavar="FILE", help="the .safetensors or .pth file to write")
    add_weights(parser)
    parser.add_argument("--frames", type=number(int, 1), metavar="N", help="the variables of this frame count alone")
    parser.add_argument(
        "--format", help="the reference whose keys the file gets (default: none for .safetensors, the fitting for .pth)"
    )
    arguments = parser.parse_args()
    warnings.showwarning = lambda message, *_, **__: print(message, file=sys.stderr)
    try:
        run(arguments)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


def run(arguments: argparse.Namespace) -> None:
    """Loads, selects and writes."""
    output, names = arguments.output, read_class_names(arguments.classes)
    if output.suffix not in (".safetensors", ".pth"):
        raise ValueError(f"expected a file that ends in .safetensors or .pth, got {output}")
    trained = load(arguments.run, arguments.checkpoint, classes=names, model=arguments.model, part=arguments.part)
    if arguments.frames:
        trained = dataclasses.replace(trained, variables=trained.select(arguments.frames), frames=(arguments.frames,))
    if output.suffix == ".safetensors" and not arguments.format:
        save(trained, output)
        print(f"{trained.model.zoo_name} at {', '.join(map(str, trained.frames))} frames -> {output}")
    else:
        save_state_dict(trained, output, arguments.format)


def save_state_dict(trained: Trained, output: Path, format: str | None) -> None:
    """Writes a state_dict with a reference's keys, and prints what they do not say."""
    name, overrides = trained.model.zoo_name, trained.model.overrides
    state_dict = to_torch(name, trained.variables, format, overrides=overrides)
    output.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(output) as part:
        if output.suffix == ".pth":
            write_torch_file(part, state_dict)
        else:
            from safetensors.numpy import save

            part.write_bytes(save(state_dict, metadata={"format": "pt"}))
    options = {option: value for option, value in overrides.items() if option not in ("dtype", "remat")}
    print(f"{len(state_dict)} tensors of {name} -> {output}")
    print(f'read back by flaxvid.load_model("{name}", "{output}", {as_options(options)})')


if __name__ == "__main__":
    main()
