"""Checks every video of a data set, and writes the good ones as a sharded TFDS/ArrayRecord data set.

    python scripts/prepare_data.py ucf101 /data/UCF101 /data/ucf101-256 --short-side 256
    python scripts/prepare_data.py folder /data/mine /data/mine-check --check-only

It decodes every frame. The report names videos that are missing, unreadable, too short, there twice with two labels, or
in two splits (the same file, or the same pictures encoded anew); it is printed, and saved as OUTPUT/report.json. The
data set leaves out bad videos and keeps duplicates. After a stop the same command goes on; after repairs it makes the
shards of the repaired videos anew. Train from the result with

    --config.data.name=tfds --config.data.root=OUTPUT

Exit status: 0 all good; 1 done, with findings in the report; 2 not done, one line says why; 130 or 143 stopped by
Ctrl-C or SIGTERM.
"""

import argparse
import sys
import warnings

from flaxvid.train.interrupt import end_when_told

if __name__ == "__main__":
    end_when_told("the same command goes on")  # before the imports, which take seconds

from rich.console import Console

from flaxvid.data.prepare.examine import Encoding
from flaxvid.data.prepare.report import show
from flaxvid.data.prepare.run import Preparation, prepare
from flaxvid.data.sources.account import describe_splits
from flaxvid.data.sources.open import SOURCES, open_source


def parse() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help=f"kind of data set: {', '.join(sorted(SOURCES))}, or tfds:NAME")
    parser.add_argument("root", help="folder of the videos and lists")
    parser.add_argument("output", help="folder to write, new or of an interrupted run")
    parser.add_argument("--splits", nargs="+", metavar="SPLIT", help="default: those the data set has with labels")
    parser.add_argument("--fold", type=int, help="official split, from 1 (ucf101, hmdb51)")
    parser.add_argument("--lists", help="folder of the lists, where not found by itself")
    parser.add_argument("--group", help="rule that keeps scenes together where a test is held out; see data.group")
    parser.add_argument("--check-only", action="store_true", help="report only, write no data set")
    parser.add_argument("--min-frames", type=int, default=1, help="fewer frames are too short (default: %(default)s)")
    parser.add_argument("--short-side", type=int, help="encode anew as h264 with this shorter side, pixels")
    parser.add_argument("--key-frames", type=int, help="with --short-side: distance of key frames (default: 12)")
    parser.add_argument("--crf", type=int, help="with --short-side: quality, from 18 (best) to 28 (default: 20)")
    parser.add_argument("--shard-size", type=int, default=256, help="videos of one file (default: %(default)s)")
    parser.add_argument("--workers", type=int, help="processes (default: one a core)")
    arguments = parser.parse_args()
    if arguments.short_side is None and (arguments.key_frames or arguments.crf is not None):
        parser.error("--key-frames and --crf say how to encode anew: add --short-side")
    return arguments


def main() -> int:
    """Opens the splits, prepares them and prints the report."""
    arguments, console = parse(), Console(stderr=True)
    warnings.showwarning = lambda message, *_: console.print(f"warning: {message}", highlight=False, markup=False)
    given = {"short_side": arguments.short_side, "key_frames": arguments.key_frames, "crf": arguments.crf}
    name = arguments.data.partition(":")[0]
    try:
        encoding = Encoding(**{key: value for key, value in given.items() if value is not None})
        preparation = Preparation(
            name=name,
            store=not arguments.check_only,
            encoding=encoding if arguments.short_side else None,
            min_frames=arguments.min_frames,
            shard_size=arguments.shard_size,
        )
        names = arguments.splits or (SOURCES[name].splits if name in SOURCES else ("train",))
        options = {"fold": arguments.fold, "lists": arguments.lists, "group": arguments.group}
        splits = {
            split: open_source(arguments.data, arguments.root, split, **options, missing="keep") for split in names
        }
        if account := describe_splits(splits):
            console.print(account, highlight=False, markup=False, soft_wrap=True)
        report = prepare(splits, arguments.output, preparation, workers=arguments.workers)
    except (ValueError, OSError) as error:
        console.print(f"{type(error).__name__}: {error}", highlight=False, markup=False, soft_wrap=True)
        return 2
    Console().print(show(report))
    if not arguments.check_only:
        output = arguments.output
        print(f"Written to {output}; train with --config.data.name=tfds --config.data.root={output}")
        print("and, where the recipe has official splits, --config.data.fold=0")
    print("All videos are good." if report.clean else f"All findings: {arguments.output}/report.json")
    return 0 if report.clean else 1


if __name__ == "__main__":
    sys.exit(main())
