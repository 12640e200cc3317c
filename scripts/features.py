"""Writes the features of videos into an .npz file: files, folders (with all videos in them), patterns.

    python scripts/features.py --run runs/ffn-folder clip.mp4 holidays/ 'more/*.webm' --out features.npz
    python scripts/features.py --run tsm.safetensors --frames 8 holidays/ --out features.npz

A feature is what the network gives its classifier, pooled over the clip. The file has `features` (videos, channels) in
float32, and the name of each row in `videos`:

    table = numpy.load("features.npz"); table["features"], table["videos"]

A network of several cameras takes folders as in its training, as scripts/predict.py does. Unreadable videos are named
and have no row. The exit status is 0 if a video could be read, else 1; 2 for a wrong command line.
"""

import argparse
import os
import sys
from pathlib import Path

from flaxvid.train.interrupt import end_when_told

if __name__ == "__main__":
    end_when_told("the same command begins anew")  # before the imports, which take seconds

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flaxvid.arguments import add_run, add_weights, number
from flaxvid.data.broken import why_broken
from flaxvid.data.pipeline import eval_batches
from flaxvid.data.sources.search import collect
from flaxvid.data.sources.unlabelled import Unlabelled
from flaxvid.evaluate.lines import printable
from flaxvid.train.step import enable_compilation_cache, explained_memory
from flaxvid.train.trained import load
from flaxvid.writing import written_whole


def main() -> None:
    """Parses and computes; an error of the user's is one line, not a traceback."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="a file, a folder, or a pattern in quotes")
    add_run(parser)
    add_weights(parser, classes=False)
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.npz", help="the file to write")
    parser.add_argument(
        "--frames",
        type=number(int, 1),
        metavar="N",
        help="frames a clip (default: the most that the network was trained at)",
    )
    parser.add_argument("--batch-size", type=number(int, 1), default=8, metavar="N", help="videos at once (default: 8)")
    parser.add_argument(
        "--threads", type=number(int, 1), default=os.cpu_count() or 1, help="that decode (default: one for each core)"
    )
    arguments = parser.parse_intermixed_args()
    try:
        with explained_memory("lower --batch-size"):
            status = run(arguments)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"{type(error).__name__}: {printable(str(error))}")
    sys.exit(status)


def run(arguments: argparse.Namespace) -> int:
    """Loads, finds, computes and writes; returns the exit status."""
    if arguments.out.suffix != ".npz":
        raise ValueError(f"expected a file that ends in .npz, got {arguments.out}")
    if not arguments.out.absolute().parent.is_dir():
        raise FileNotFoundError(f"expected a folder for {arguments.out}, got none: make it first")
    enable_compilation_cache()
    console = Console(stderr=True, highlight=False, emoji=False)
    trained = load(arguments.run, arguments.checkpoint, model=arguments.model, part=arguments.part)
    predictor, frames = trained.predictor, arguments.frames or max(trained.frames)
    videos = Unlabelled(collect(arguments.videos, trained.model.cameras), trained.model.cameras)
    batch_size = 1 if videos.cameras else arguments.batch_size  # scenes may lack cameras, each other ones
    clips = predictor.clips(frames)
    features, rows = [], []
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(f"{frames} frames", total=len(videos))
        for batch in eval_batches(videos, clips, batch_size, num_threads=arguments.threads):
            good, read = batch["mask"], batch["index"] >= 0
            if good.any():
                features.append(predictor.features(batch["video"][frames])[good])
            rows += batch["index"][good].tolist()
            for position in batch["broken"][batch["broken"] >= 0].tolist():
                console.print(f"unreadable: {printable(why_broken(videos, position, clips))}", markup=False)
            progress.advance(task, int(read.sum()))
    console.print(f"{len(rows)} of {len(videos)} videos read, {frames} frames a clip")
    if not rows:
        return 1
    with written_whole(arguments.out) as part, part.open("wb") as file:
        np.savez(file, features=np.concatenate(features), videos=np.array([videos.names[row] for row in rows]))
    console.print(f"features ({len(rows)}, {features[0].shape[1]}) -> {arguments.out}")
    return 0


if __name__ == "__main__":
    main()
