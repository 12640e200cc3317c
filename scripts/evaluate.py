"""Evaluates a run, or a weights file, at any frame counts.

    python scripts/evaluate.py runs/ffn-motion
    python scripts/evaluate.py runs/ffn-ssv2 --frames 4 8 16 --protocol accurate
    python scripts/evaluate.py runs/ffn-folder --root other_videos --split test
    python scripts/evaluate.py tsm.safetensors --data ucf101 --root UCF-101 --frames 8

Without --protocol views are the recipe's own. Protocols are those of TSM's authors: efficient (1 clip, centre crop),
accurate (2 clips x 3 crops at full resolution), dense (10 clips of 64 frames x 3 crops at full resolution). Prints a
table, and writes evaluation.json, film strips and the page index.html into the run's folder; for a weights file into
--output, if given.
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from flaxvid.arguments import number, one_each, read_class_names
from flaxvid.compress.cost import model_cost
from flaxvid.data.clips import ClipConfig
from flaxvid.data.pipeline import eval_batches
from flaxvid.data.sources import Source
from flaxvid.data.subset import Subset
from flaxvid.evaluate.any_frame import clip_milliseconds
from flaxvid.evaluate.evaluator import Evaluations, evaluate_videos, join
from flaxvid.evaluate.record import evaluation_record, write_record
from flaxvid.evaluate.views import PROTOCOLS, describe_views
from flaxvid.report.page import write_page
from flaxvid.report.tables import evaluation_notes, evaluation_table
from flaxvid.train.loop import enable_compilation_cache
from flaxvid.train.mesh import make_mesh, put_batch
from flaxvid.train.recipe import DataRecipe
from flaxvid.train.setup import clip_config, count_classes, open_data
from flaxvid.train.trained import Trained, load_trained
from flaxvid.types import by_task


def main() -> None:
    """Parses and evaluates; what the user can mend is one line, not a traceback."""
    sys.argv[1:] = one_each(sys.argv[1:], "--frames")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN_OR_WEIGHTS", help="a run's folder, or a .safetensors file of flaxvid")
    parser.add_argument(
        "--frames", type=number(int, 1), action="append", help="frame counts (default: the recipe's eval_frames)"
    )
    parser.add_argument("--protocol", choices=PROTOCOLS, help="default: as the recipe says, mostly one view")
    parser.add_argument("--clips", type=int, help="clips a video, instead of the protocol's")
    parser.add_argument("--crops", type=int, choices=(1, 3, 5, 10), help="crops a frame, instead of the protocol's")
    parser.add_argument("--data", help="another data set than the run's: motion, folder, list, ucf101, ...")
    parser.add_argument("--root", help="its folder")
    parser.add_argument("--views", nargs="+", metavar="VIEW", help="only these cameras: the others are missing")
    parser.add_argument("--split", help="its split (default: the recipe's eval_split)")
    parser.add_argument("--fold", type=int, help="which of its official splits")
    parser.add_argument("--lists", help="the folder of its lists")
    parser.add_argument("--limit", type=int, metavar="N", help="only N videos, drawn by chance but always the same")
    parser.add_argument("--batch-size", type=int, metavar="N", help="clips in a step (default: the recipe's)")
    parser.add_argument("--threads", type=int, metavar="N", help="that decode (default: the recipe's)")
    parser.add_argument("--classes", type=Path, help="class names, one a line, where the run does not know them")
    parser.add_argument("--output", type=Path, help="another folder for the results")
    arguments = parser.parse_args()
    try:
        run(arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


def run(arguments: argparse.Namespace) -> None:
    """Loads, evaluates, measures, prints and writes."""
    enable_compilation_cache()
    names = read_class_names(arguments.classes) if arguments.classes else None
    trained = load_trained(arguments.run, names)
    source = open_videos(trained, arguments)
    frames = tuple(dict.fromkeys(arguments.frames or trained.recipe.eval_frames))
    passes = (clip_config(trained.recipe, frames),)
    if arguments.protocol:
        passes = PROTOCOLS[arguments.protocol].passes(passes[0], frames)
    given = {name: getattr(arguments, name) for name in ("clips", "crops") if getattr(arguments, name)}
    passes = tuple(dataclasses.replace(clips, **given) for clips in passes)
    console = Console(stderr=True)
    evaluation = evaluate(trained, source, passes, arguments, console)
    size = passes[0].image_size
    with console.status("measuring"):
        costs = {
            n: {
                "gflops": model_cost(trained.model, (1, n, size, size, 3)).gflops,
                "milliseconds": clip_milliseconds(trained.model, trained.select(n), n, size),
            }
            for n in frames
        }
    name = (arguments.protocol or "the recipe's") + " with other numbers" * bool(given)
    facts = {"name": name, "views": describe_views(passes[0]), "size": size}
    record = evaluation_record(evaluation, source, clips=passes[0], protocol=facts, costs=costs)
    print(evaluation_table(record), *evaluation_notes(record), sep="\n")
    for fault in record["data"]["faults"]:
        print(f"  {'missing' if fault['missing'] else 'unreadable'}: {fault['reason']}")
    if folder := arguments.output or trained.folder:
        path = write_record(folder, record, evaluation, source)
        print(f"{path}\n{write_page(folder)}")


def open_videos(trained: Trained, arguments: argparse.Namespace) -> Source:
    """The run's data set, or the one asked for; its classes must be the network's."""
    recipe = trained.recipe.data
    if arguments.data and arguments.data != recipe.name:
        recipe = DataRecipe(arguments.data, test_size=recipe.test_size, short=recipe.short, views=recipe.views)
    if not recipe.name:
        raise ValueError("a weights file does not say which videos: add --data NAME --root FOLDER")
    names = ("root", "fold", "lists", "views")
    given = {name: value for name in names if (value := getattr(arguments, name))}
    recipe = dataclasses.replace(recipe, **given, missing="keep")  # they are counted and named
    source = open_data(recipe, arguments.split or recipe.eval_split)
    wanted, there = count_classes(trained.classes), count_classes(source.classes)
    if wanted != there:
        some = [
            [name for names in by_task(c).values() for name in names][:3] for c in (trained.classes, source.classes)
        ]
        raise ValueError(
            f"expected videos of the network's {wanted} classes ({', '.join(some[0])}, ...), "
            f"got {there} classes in {source.name} ({', '.join(some[1])}, ...)"
        )
    return Subset(source, arguments.limit) if arguments.limit else source


def evaluate(
    trained: Trained,
    source: Source,
    passes: tuple[ClipConfig, ...],
    arguments: argparse.Namespace,
    console: Console,
) -> Evaluations:
    """All passes over the videos, under a progress bar."""
    mesh, recipe = make_mesh(), trained.recipe
    at_once = (arguments.batch_size or recipe.eval_batch_size) // passes[0].views
    videos = max(mesh.size, at_once - at_once % mesh.size)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    evaluations = []
    with Progress(*columns, console=console) as progress:
        for clips in passes:
            batches = eval_batches(source, clips, videos, num_threads=arguments.threads or recipe.data.num_threads)
            task = progress.add_task(f"{', '.join(map(str, clips.frames))} frames", total=len(source))
            plain = {n: trained.select(n) for n in clips.frames}
            counted = counting(batches, progress, task)
            evaluations.append(evaluate_videos(trained.model, plain, counted, put=lambda batch: put_batch(batch, mesh)))
    return join(evaluations)


def counting(batches: Iterable, progress: Progress, task: TaskID) -> Iterator:
    """The same batches, each counted on the progress bar once it is done with."""
    for batch in batches:
        yield batch
        progress.advance(task, int((batch["index"] >= 0).sum()))


if __name__ == "__main__":
    main()
