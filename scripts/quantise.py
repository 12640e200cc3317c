"""Makes an int8 network of a trained one: calibrates it on training clips, tests it, and writes it into one file.

    python scripts/quantise.py runs/tsm-motion tsm-int8.safetensors
    python scripts/quantise.py runs/ffn-motion ffn-8-int8.safetensors --frames 8 --clips 256
    python scripts/quantise.py x3d.safetensors x3d-int8.safetensors --data folder --root videos

Weights have a scale for each channel, inputs one for each layer; shortcuts are rounded, too. The head,
squeeze-and-excitation, norms and pools stay in floating point; --keep names others. The file has about a quarter of the
size. scripts/predict.py, evaluate.py and flaxvid.load read it, and answer with the rounded network. In JAX that saves
no time on a CPU; in OpenVINO it does (scripts/export.py).
"""

import argparse
import dataclasses
import re
import sys
from pathlib import Path

from flaxvid.train.interrupt import end_when_told

if __name__ == "__main__":
    end_when_told("the same command begins anew")  # before the imports, which take seconds

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flaxvid import trees
from flaxvid.arguments import NETWORK, add_weights, number, read_class_names
from flaxvid.compress.quantise import calibrate, quantise
from flaxvid.data.sources.open import Source
from flaxvid.data.sources.subset import random_subset
from flaxvid.evaluate.evaluator import score_rows
from flaxvid.layers.int8 import KEPT
from flaxvid.train.network import Trained, save
from flaxvid.train.setup import clip_config, open_data
from flaxvid.train.step import enable_compilation_cache, explained_memory
from flaxvid.train.testing import calibration_clips, choose_data, evaluate_passes, open_test
from flaxvid.train.trained import load, name_classes


def pattern(text: str) -> str:
    """The type of a regular expression."""
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression ({error})") from error
    return text


def main() -> None:
    """Parses and quantises; an error of the user's is one line, not a traceback."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN_OR_WEIGHTS", help=NETWORK)
    parser.add_argument("output", type=Path, metavar="FILE.safetensors", help="the file to write")
    add_weights(parser)
    parser.add_argument("--frames", type=number(int, 1), metavar="N", help="frames of its clips (default: the most)")
    parser.add_argument("--clips", type=number(int, 1), default=128, metavar="N", help="to calibrate with (128)")
    parser.add_argument(
        "--keep",
        nargs="+",
        type=pattern,
        metavar="PATTERN",
        default=[],
        help="further layers in floating point, such as body/.*/conv2 or body/.*/sum",
    )
    parser.add_argument("--data", help="another data set than the run's: motion, folder, list, ucf101, ...")
    parser.add_argument("--root", help="its folder")
    parser.add_argument("--threads", type=number(int, 1), metavar="N", help="that decode (default: the recipe's)")
    parser.add_argument("--no-test", action="store_true", help="do not compare the accuracies")
    arguments = parser.parse_args()
    try:
        with explained_memory("lower --frames, or set JAX_PLATFORMS=cpu"):
            run(arguments)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


def run(arguments: argparse.Namespace) -> None:
    """Loads, calibrates, writes, tests and prints."""
    enable_compilation_cache()
    output: Path = arguments.output
    if output.suffix != ".safetensors" or output.is_dir():
        raise ValueError(f"expected a file that ends in .safetensors, got {output}: give another name")
    if output.exists() and Path(arguments.run).exists() and output.samefile(arguments.run):
        raise ValueError(f"expected a file beside the network, got the network itself, {output}: give another name")
    names = read_class_names(arguments.classes)
    trained = name_classes(
        load(arguments.run, arguments.checkpoint, classes=names, model=arguments.model, part=arguments.part)
    )
    frames = arguments.frames or max(trained.frames)
    trained = dataclasses.replace(trained, variables=trained.select(frames), frames=(frames,))
    data = choose_data(trained.recipe.data, arguments.data or "", {"root": arguments.root} if arguments.root else {})
    source = open_data(data, data.train_split)
    source = random_subset(source, min(arguments.clips, len(source)))
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        batches = -(-len(source) // min(trained.recipe.eval_batch_size, len(source)))
        clips = calibration_clips(trained, source, arguments.threads or 0)
        clips = progress.track(clips, batches, description="calibrating")
        ranges = calibrate(trained.model, trained.variables, clips, (*KEPT, *arguments.keep))
        rounded = dataclasses.replace(trained, model=quantise(trained.model, ranges))
        save(rounded, output)
        written = load(output)
        rows = []
        if not arguments.no_test:
            test = open_test(trained, data, {})
            rows = [test_accuracy(one, test, progress, arguments.threads or 0) for one in (trained, written)]
    before = sum(leaf.nbytes for leaf in jax.tree.leaves(dict(trained.variables)))
    size = output.stat().st_size
    layers = sum(f"params/{path}/kernel" in trees.flatten(trained.variables) for path in ranges)
    print(f"{layers} layers in int8, {before / 1e6:.2f} MB -> {size / 1e6:.2f} MB: {output}")
    for exact, inexact in zip(*rows, strict=True):
        target = f"{exact['target']}, " if "target" in exact else ""
        print(
            f"top-1 at {target}{frames} frames, {exact['clips']} videos: {100 * exact['top1']:.2f} as it was, "
            f"{100 * inexact['top1']:.2f} in int8"
        )


def test_accuracy(trained: Trained, source: Source, progress: Progress, threads: int) -> list[dict]:
    """The accuracy of a network on test videos, of each target."""
    task = progress.add_task("testing", total=len(source))
    clips = clip_config(trained.recipe, trained.frames)
    evaluations = evaluate_passes(
        trained, source, [clips], batch_size=0, num_threads=threads, advance=lambda n: progress.advance(task, n)
    )
    return score_rows(evaluations)


if __name__ == "__main__":
    main()
