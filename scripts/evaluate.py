"""Evaluates a run, or a weights file, at any frame counts.

    python scripts/evaluate.py runs/ffn-motion
    python scripts/evaluate.py runs/ffn-ssv2 --frames 4 8 16 --protocol accurate
    python scripts/evaluate.py runs/ffn-folder --root other_videos --split all
    python scripts/evaluate.py runs/tsm-folder --root other_hospital --adapt adabn
    python scripts/evaluate.py tsm.safetensors --data ucf101 --root UCF-101 --frames 8

Without --protocol the views are the recipe's. Protocols are those of TSM's authors: efficient (1 clip, centre crop),
accurate (2 clips x 3 crops at full resolution), dense (10 clips x 3 crops at full resolution, each clip over 64 frames
of the video).

Labels are matched to the network's classes by name. The data may lack classes, but may not have others; --rename gives
the network's name for the data's. Prints a table, and writes evaluation.json, film strips and the page index.html into
the run's folder, or into --output. Records of other videos than the run's own go into its folder evaluations/NAME.

Of a masked pre-training it tells how well the network fills in masked video. Its record always goes into a folder
evaluations/NAME.
"""

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from flaxvid.train.interrupt import end_when_told

if __name__ == "__main__":
    end_when_told("the same command begins anew")  # before the imports, which take seconds

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flaxvid.arguments import (
    NETWORK,
    Renamed,
    add_runtime,
    add_weights,
    number,
    one_each,
    read_class_names,
    read_renames,
)
from flaxvid.data.sources.subset import random_subset
from flaxvid.evaluate.reconstruction import finish_reconstruction
from flaxvid.evaluate.record import finish_evaluation, output_folder
from flaxvid.evaluate.views import PROTOCOLS
from flaxvid.report.tables import evaluation_notes, evaluation_table, reconstruction_table
from flaxvid.tasks.masked import MaskedRecipe
from flaxvid.train.network import Trained
from flaxvid.train.recipe import DataRecipe
from flaxvid.train.setup import clip_config, data_origin, open_data
from flaxvid.train.step import enable_compilation_cache, explained_memory
from flaxvid.train.testing import (
    ADAPTATIONS,
    adapt,
    choose_data,
    evaluate_masked,
    evaluate_passes,
    is_own,
    open_test,
)
from flaxvid.train.trained import load, name_classes


def main() -> None:
    """Parses and evaluates; an error of the user's is one line, not a traceback."""
    sys.argv[1:] = one_each(sys.argv[1:], "--frames")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN_OR_WEIGHTS", help=NETWORK)
    add_weights(parser)
    add_runtime(parser)
    parser.add_argument(
        "--frames", type=number(int, 1), action="append", help="frame counts (default: the recipe's eval_frames)"
    )
    parser.add_argument("--protocol", choices=PROTOCOLS, help="default: as the recipe says, mostly one view")
    parser.add_argument("--clips", type=int, help="clips a video, instead of the protocol's")
    parser.add_argument("--crops", type=int, choices=(1, 3, 5, 10), help="crops a frame, instead of the protocol's")
    parser.add_argument("--data", help="another data set than the run's: motion, folder, list, ucf101, ...")
    parser.add_argument("--root", help="its folder")
    parser.add_argument("--cameras", nargs="+", metavar="CAMERA", help="only these cameras: the others are missing")
    parser.add_argument("--views", nargs="*", action=Renamed, const="--cameras", help=argparse.SUPPRESS)
    parser.add_argument("--split", help="its split (default: the recipe's eval_split); all of a labelled folder: all")
    parser.add_argument("--fold", type=int, help="which of its official splits")
    parser.add_argument("--lists", help="the folder of its lists")
    parser.add_argument("--limit", type=int, metavar="N", help="only N videos, drawn by chance but always the same")
    parser.add_argument("--batch-size", type=int, metavar="N", help="clips in a step (default: the recipe's)")
    parser.add_argument("--threads", type=int, metavar="N", help="that decode (default: the recipe's)")
    parser.add_argument(
        "--rename", type=Path, metavar="MAP.json", help='{"a class of the data": "the network\'s name for it", ...}'
    )
    parser.add_argument(
        "--adapt",
        choices=ADAPTATIONS,
        help="first adapt to these videos, without their labels: adabn measures the norms' statistics anew, tent also "
        "makes the answers sure",
    )
    parser.add_argument("--output", type=Path, help="another folder for the results")
    arguments = parser.parse_args()
    try:
        with explained_memory("lower --batch-size"):
            run(arguments)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


def run(arguments: argparse.Namespace) -> None:
    """Loads, evaluates, measures, prints and writes."""
    enable_compilation_cache()
    names = read_class_names(arguments.classes)
    trained = load(
        arguments.run,
        arguments.checkpoint,
        classes=names,
        model=arguments.model,
        part=arguments.part,
        headless=True,
        runtime=arguments.runtime,
    )
    folder = output_folder(trained.folder, arguments.output)
    changes = {"root": arguments.root, "fold": arguments.fold, "lists": arguments.lists, "cameras": arguments.cameras}
    changes = {name: value for name, value in {**changes, "eval_split": arguments.split}.items() if value}
    data = choose_data(trained.recipe.data, arguments.data or "", changes)
    if isinstance(trained.recipe.task, MaskedRecipe):
        reconstruct(arguments, trained, trained.recipe.task, data, folder or Path())
    else:
        classify(arguments, trained, data, folder)


def classify(arguments: argparse.Namespace, trained: Trained, data: DataRecipe, folder: Path | None) -> None:
    """Tests a classifier."""
    trained, frames = name_classes(trained), frame_counts(arguments, trained)
    source = open_test(trained, data, read_renames(arguments.rename) if arguments.rename else {})
    source = random_subset(source, arguments.limit) if arguments.limit else source
    passes = (clip_config(trained.recipe, frames),)
    if arguments.protocol:
        passes = PROTOCOLS[arguments.protocol].passes(passes[0], frames)
    passes = tuple(dataclasses.replace(clips, **views(arguments)) for clips in passes)
    plain = {}
    if arguments.adapt:
        with Console(stderr=True).status(f"adapting to {len(source)} videos"):
            for clips in passes:
                plain |= adapt(trained, source, clips, arguments.adapt, arguments.batch_size or 0)
    with progress(frames, len(source) * len(passes)) as advance:
        evaluation = evaluate_passes(
            trained,
            source,
            passes,
            plain=plain,
            batch_size=arguments.batch_size or 0,
            num_threads=arguments.threads or 0,
            advance=advance,
        )
    with Console(stderr=True).status("measuring"):
        record, path = finish_evaluation(
            evaluation,
            source,
            trained.model,
            max(passes, key=lambda clips: max(clips.frames)),
            origin=data_origin(data) | ({} if trained.named else {"by_number": True}),
            checkpoint=trained.checkpoint,
            folder=folder,
            protocol=(arguments.protocol or "the recipe's")
            + " with other numbers" * bool(views(arguments))
            + f", adapted to its videos by {arguments.adapt}" * bool(arguments.adapt),
            variables=plain or {n: trained.answering(n) for n in frames},
            timed=True,
            runtime=trained.runtime,
            own=(is_own(trained.recipe.data, data) and not (arguments.limit or arguments.adapt))
            or folder != trained.folder,
        )
    print(evaluation_table(record), *evaluation_notes(record), sep="\n")
    for fault in record["data"]["faults"]:
        print(f"  {'missing' if fault['missing'] else 'unreadable'}: {fault['reason']}")
    if folder:
        print(f"{path}\n{folder / 'index.html'}")


def reconstruct(
    arguments: argparse.Namespace, trained: Trained, task: MaskedRecipe, data: DataRecipe, folder: Path
) -> None:
    """Tests a masked pre-training."""
    if given := [name for name in ("protocol", "rename", "classes", "cameras", "adapt") if getattr(arguments, name)]:
        raise ValueError(f"{arguments.run} is a masked pre-training without classes: leave out --{', --'.join(given)}")
    source, frames = open_data(data, data.eval_split), frame_counts(arguments, trained)
    source = random_subset(source, arguments.limit) if arguments.limit else source
    with progress(frames, len(source)) as advance:
        findings = evaluate_masked(
            trained,
            source,
            dataclasses.replace(clip_config(trained.recipe, frames), **views(arguments)),
            batch_size=arguments.batch_size or 0,
            num_threads=arguments.threads or 0,
            advance=advance,
        )
    rows, place = finish_reconstruction(
        findings.details,
        source,
        mask_ratio=task.mask_ratio,
        by_cube=task.by_cube,
        origin=data_origin(data),
        checkpoint=trained.checkpoint or {},
        folder=folder,
        apart=trained.folder is not None and folder.resolve() == trained.folder.resolve(),
    )
    print(reconstruction_table(rows), place / "reconstruction.json", place / "index.html", sep="\n")


def frame_counts(arguments: argparse.Namespace, trained: Trained) -> tuple[int, ...]:
    """The frame counts of the table."""
    return tuple(dict.fromkeys(arguments.frames or trained.recipe.eval_frames))


def views(arguments: argparse.Namespace) -> dict[str, int]:
    """Clips and crops that are asked for."""
    return {name: getattr(arguments, name) for name in ("clips", "crops") if getattr(arguments, name)}


@contextlib.contextmanager
def progress(frames: Sequence[int], total: int) -> Iterator[Callable[[int], None]]:
    """Shows how many of `total` videos are tested; gives what is called with the videos of each batch."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task(f"{', '.join(map(str, frames))} frames", total=total)
        yield lambda videos: shown.advance(task, videos)


if __name__ == "__main__":
    main()
