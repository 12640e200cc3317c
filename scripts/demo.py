"""Shows a network in the browser: drop a video in, see its classes over time, and what more frames cost and bring.

    python scripts/demo.py --run runs/ffn-motion
    python scripts/demo.py --model slow_r50 --weights pytorchvideo/kinetics400
    python scripts/demo.py --run exported --runtime onnxruntime

The page is for this machine alone, at 127.0.0.1, and keeps no video. To see it from another machine:
ssh -L 8765:127.0.0.1:8765 MACHINE. Accuracies are those of the run's last test; milliseconds are measured here.
"""

import argparse
import sys

from flaxvid.train.interrupt import end_when_told

if __name__ == "__main__":
    end_when_told("the page is gone")  # before the imports, which take seconds

from flaxvid.arguments import add_run, add_runtime, add_weights, number, read_class_names
from flaxvid.evaluate.demo import DemoServer, offered_counts
from flaxvid.report.run import read_run
from flaxvid.train.network import Trained, private_counts
from flaxvid.train.step import enable_compilation_cache
from flaxvid.train.trained import load, name_classes


def main() -> None:
    """Parses, loads and serves; an error of the user's is one line, not a traceback."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_run(parser)
    add_weights(parser)
    add_runtime(parser)
    parser.add_argument(
        "--port", type=number(int, 0), default=8765, metavar="N", help="of 127.0.0.1 (default: 8765); 0 is any free one"
    )
    parser.add_argument(
        "--largest", type=number(int, 1), default=200, metavar="MB", help="size that a video may have (default: 200 MB)"
    )
    arguments = parser.parse_args()
    try:
        server = make_server(arguments)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(f"{server.url} shows the page; Ctrl-C ends it", flush=True)
    server.serve_forever()


def make_server(arguments: argparse.Namespace) -> DemoServer:
    """Loads the network and makes its page."""
    enable_compilation_cache()
    trained = name_classes(
        load(
            arguments.run,
            arguments.checkpoint,
            classes=read_class_names(arguments.classes),
            model=arguments.model,
            part=arguments.part,
            runtime=arguments.runtime,
        )
    )
    if trained.model.cameras:
        raise ValueError(f"expected a network of one video, got one of {', '.join(trained.model.cameras)}: see predict")
    accuracies = read_accuracies(trained)
    if trained.runtime != "jax":
        counts = sorted(trained.programs)
        if not counts:
            raise ValueError("expected an export with programs for clips, got those for streams alone: see predict")
    elif private_counts(trained.variables):
        counts = sorted({*trained.frames, *trained.recipe.eval_frames})
    else:
        counts = offered_counts(trained.model, trained.select(max(trained.frames)), [*trained.frames, *accuracies])
    title = trained.folder.resolve().name if trained.folder else f"{arguments.model} {arguments.run}".strip()
    start, most = max(trained.frames), arguments.largest * 1_000_000
    return DemoServer(trained.predictor, title, counts, start, accuracies, arguments.port, most)


def read_accuracies(trained: Trained) -> dict[int, str]:
    """What the run's last test found at each frame count, if it was a test of these weights."""
    if trained.folder is None or (trained.checkpoint or {}).get("name") != "latest":
        return {}
    found: dict[int, list[str]] = {}
    for row in read_run(trained.folder).any_frame:
        found.setdefault(row["frames"], []).append(f"{row.get('target', '')} {100 * row['top1']:.1f} %".strip())
    return {count: ", ".join(texts) for count, texts in found.items()}


if __name__ == "__main__":
    main()
