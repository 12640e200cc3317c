"""Names what happens in videos: files, folders (with all videos in them), patterns, folders of numbered images.

    python scripts/predict.py --run runs/ffn-folder clip.mp4 holidays/ 'more/*.webm'
    python scripts/predict.py --run runs/ffn-folder --budget-ms 20 holidays/        as many frames as 20 ms allow
    python scripts/predict.py --run runs/ffn-folder --window 5 film.mp4             a line for every 5 seconds
    python scripts/predict.py --model slow_r50 --weights pytorchvideo/kinetics400 clip.mp4    published weights
    python scripts/predict.py --run tsm.safetensors --frames 8 --json holidays/ > answers.jsonl
    python scripts/predict.py --run runs/tsm-causal --stream rtsp://camera/1        a line for every second, live

A stream is a URL, a camera such as /dev/video0, or a file, and goes frame by frame through a causal network, which
remembers what was before. Each line is the mean of --window seconds.

A network of several cameras takes folders as in its training: they have a folder for each camera, with the same file
names. Each scene gets a line; it may lack cameras.

Answers go to stdout as they come, all else to stderr. Unreadable videos are named and counted; with --json each has a
line {"video": ..., "error": ...}. The exit status is 0 if a video could be read (with --json: if all could), else 1; 2
for a wrong command line, 141 if the reader of stdout has gone.
"""

import argparse
import io
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from flaxvid.train.interrupt import end_when_told

if __name__ == "__main__":
    end_when_told("the answers so far stand")  # before the imports, which take seconds

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flaxvid.arguments import add_run, add_runtime, add_weights, number, one_each, read_class_names
from flaxvid.data.clips.decode import VideoError
from flaxvid.data.clips.live import live_frames
from flaxvid.data.clips.windows import SHORTEST
from flaxvid.data.sources.search import collect
from flaxvid.evaluate.cost import largest_within
from flaxvid.evaluate.lines import json_line, printable, text_line
from flaxvid.evaluate.predictor import Prediction
from flaxvid.evaluate.streams import answer_stream
from flaxvid.train.network import Trained
from flaxvid.train.step import enable_compilation_cache, explained_memory
from flaxvid.train.trained import load, name_classes


def main() -> None:
    """Parses and predicts; an error of the user's is one line, not a traceback."""
    arguments = parse(sys.argv[1:])
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file name that is not UTF-8 must not end the program.
        sys.stdout.reconfigure(encoding="utf-8" if arguments.json else None, errors="backslashreplace")
    try:
        with explained_memory("lower --frames"):
            status = run(arguments)
    except BrokenPipeError:  # as after `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes the rest when it ends
        sys.exit(128 + 13)  # the number of SIGPIPE, which Windows does not have
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"{type(error).__name__}: {printable(str(error))}")
    sys.exit(status)


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="*", metavar="VIDEO", help="a file, a folder, or a pattern in quotes")
    add_run(parser)
    add_weights(parser)
    add_runtime(parser)
    parser.add_argument(
        "--frames",
        action="append",
        type=number(int, 1),
        metavar="N",
        help="frames a clip (default: the most that the network was trained at); several to choose from with a budget",
    )
    parser.add_argument(
        "--budget-ms",
        type=number(float, 0),
        metavar="MS",
        help="measure, and take the most frames that a clip may have in MS",
    )
    parser.add_argument(
        "--window", type=number(float, SHORTEST), metavar="SECONDS", help="an answer for each so many seconds"
    )
    parser.add_argument("--stream", action="store_true", help="one video, frame by frame, by a causal network")
    parser.add_argument(
        "--rate", type=number(float, SHORTEST), metavar="FPS", help="of --stream: most frames a second (default: all)"
    )
    parser.add_argument("--top", type=number(int, 1), default=3, metavar="K", help="classes a line (default: 3)")
    parser.add_argument("--json", action="store_true", help="JSON lines instead of a table")
    end = words.index("--") if "--" in words else len(words)  # argparse loses "--" where files and flags mix
    arguments = parser.parse_intermixed_args(one_each(words[:end], "--frames"))
    if "-" in arguments.videos:
        parser.error("expected files, got -: a video is not read from stdin; save it to a file")
    arguments.videos += words[end + 1 :]
    if not arguments.videos:
        parser.error("expected videos, got none: name files, folders or patterns in quotes")
    if arguments.stream and (len(arguments.videos) > 1 or arguments.budget_ms is not None):
        parser.error("expected one video and no --budget-ms with --stream: it looks at every frame")
    if arguments.rate and not arguments.stream:
        parser.error("expected --rate with --stream, got it alone: add --stream, or leave it out")
    if sys.stdout is None:
        parser.error("expected a stdout for the answers, got a closed one")
    return arguments


def run(arguments: argparse.Namespace) -> int:
    """Loads, finds, predicts and prints; returns the exit status."""
    if arguments.budget_ms is None and len(arguments.frames or ()) > 1:
        raise ValueError(f"expected one frame count, got {arguments.frames}: several are for --budget-ms")
    enable_compilation_cache()
    console = Console(stderr=True, highlight=False, emoji=False)
    names = read_class_names(arguments.classes)
    trained = load(
        arguments.run,
        arguments.checkpoint,
        classes=names,
        model=arguments.model,
        part=arguments.part,
        runtime=arguments.runtime,
    )
    trained = name_classes(trained)
    if arguments.stream:
        return watch(arguments, trained, console)
    videos = videos_for(trained.model.cameras, arguments)
    predictor = trained.predictor
    num_frames = arguments.frames[0] if arguments.frames else max(trained.frames)
    if arguments.budget_ms is not None:
        counts = arguments.frames or {*trained.frames, *trained.recipe.eval_frames}
        with console.status("measuring"):
            num_frames, measured = largest_within(arguments.budget_ms, list(counts), predictor.milliseconds)
        times = ", ".join(f"{n} frames {milliseconds:.3g} ms" for n, milliseconds in sorted(measured.items()))
        budget = f"{arguments.budget_ms:g} ms (measured, without decoding: {times})"
        console.print(f"{num_frames} frames a clip for {budget}", soft_wrap=True)
    names = [name for own in predictor.classes.values() for name in own]
    widths = max(len(printable(name)) for name in videos), max(map(len, names))
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    failed, as_json = 0, arguments.json
    # A terminal gets lines above the bar; a pipe must get them on stdout and unchanged.
    hidden, redirected = not console.is_terminal, sys.stdout.isatty()
    with Progress(*columns, console=console, disable=hidden, redirect_stdout=redirected, transient=True) as progress:
        task = progress.add_task(f"{num_frames} frames", total=len(videos))
        for name, video in videos.items():
            for answer in predictor.answers(video, num_frames, arguments.window):
                if isinstance(answer, Prediction):
                    top = predictor.top(answer.probabilities, arguments.top)
                    line = json_line(name, answer, top, num_frames) if as_json else text_line(name, answer, top, widths)
                    print(line, flush=True)
                    continue
                failed += 1
                console.print(f"unreadable: {printable(str(answer))}", markup=False, soft_wrap=True)
                if as_json:
                    print(json.dumps({"video": name, "error": str(answer)}, ensure_ascii=False), flush=True)
            progress.advance(task)
    read = len(videos) - failed
    console.print(f"{read} of {len(videos)} videos read, {failed} unreadable, {num_frames} frames a clip")
    return int(not read or (as_json and failed > 0))


def watch(arguments: argparse.Namespace, trained: Trained, console: Console) -> int:
    """Predicts a stream as it comes; returns the exit status."""
    (source,), counts = arguments.videos, arguments.frames or [max(trained.frames)]
    predictor, stream = trained.predictor, trained.stream(counts[0])
    names = [name for own in predictor.classes.values() for name in own]
    frames = live_frames(source, predictor.clips(counts[0]), arguments.rate)
    try:
        for answer in answer_stream(stream, frames, arguments.window or 1.0):
            top = predictor.top(answer.probabilities, arguments.top)
            widths = len(printable(source)), max(map(len, names))
            line = (
                json_line(source, answer, top, counts[0]) if arguments.json else text_line(source, answer, top, widths)
            )
            print(line, flush=True)
    except VideoError as error:
        console.print(f"unreadable: {printable(str(error))}", markup=False, soft_wrap=True)
        if arguments.json:
            print(json.dumps({"video": source, "error": str(error)}, ensure_ascii=False), flush=True)
        return 1
    return 0


def videos_for(cameras: tuple[str, ...], arguments: argparse.Namespace) -> dict[str, Any]:
    """Videos by name, or for a network of several cameras scenes."""
    if cameras and arguments.window is not None:
        raise ValueError(
            "expected no --window for a network of several cameras, which takes a scene whole: leave it out"
        )
    return collect(arguments.videos, cameras)


if __name__ == "__main__":
    main()
