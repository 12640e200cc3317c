"""Prunes a trained run, and trains it again on the same videos.

    python scripts/prune.py runs/tsm-motion --channels 0.5             half of the channels within blocks: faster
    python scripts/prune.py runs/tsm-motion --sparsity 0.9             nine tenths of the weights: a small packed file
    python scripts/prune.py runs/tsm-motion --channels 0.5 --epochs 2 --workdir runs/tsm-thin

--channels removes whole channels at once: the network is another one, with less to compute. --sparsity sets the
smallest weights to zero, step by step, in the first half of the epochs; the network computes as much as before. The
training goes through the run's own schedule once more, in as many epochs unless --epochs says otherwise. The same
command goes on where it stopped.
"""

import argparse
import sys
from pathlib import Path

from flaxvid.train.interrupt import Interrupted, end_when_told

if __name__ == "__main__":
    end_when_told("the same command begins anew")  # before the imports, which take seconds

from absl import logging
from rich.console import Console
from rich.table import Table

from flaxvid.arguments import number
from flaxvid.evaluate.cost import clip_milliseconds, model_cost
from flaxvid.train.hosts import leave
from flaxvid.train.loop import run
from flaxvid.train.network import Trained
from flaxvid.train.retrain import make_sparse, make_thin, retrained
from flaxvid.train.step import enable_compilation_cache
from flaxvid.train.trained import load


def share(text: str) -> float:
    """The type of an argument that is a part of a whole."""
    value = number(float, 0)(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, got {text!r}")
    return value


def main() -> None:
    """Parses and prunes; an error of the user's is one line, not a traceback."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="a run's folder")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--channels", type=share, metavar="SHARE", help="of the channels within blocks that is removed")
    what.add_argument("--sparsity", type=share, metavar="SHARE", help="of the weights that is removed")
    parser.add_argument("--multiple", type=number(int, 1), help="round the channels that stay; 8 for GPUs (default: 1)")
    parser.add_argument(
        "--scope", choices=("global", "layer"), help="compare all weights (default), or those of each layer"
    )
    parser.add_argument("--epochs", type=number(int, 1), help="of the training (default: the run's)")
    parser.add_argument("--learning-rate", type=number(float, 0), help="its peak (default: the run's)")
    parser.add_argument("--seed", type=number(int, 0), default=0)
    parser.add_argument("--checkpoint", default="latest", metavar="WHICH", help="latest (default), best, or a step")
    parser.add_argument("--workdir", type=Path, help="folder of the new run (default: beside RUN)")
    arguments = parser.parse_args()
    for option, owner in (("multiple", "channels"), ("scope", "sparsity")):
        if getattr(arguments, option) and not getattr(arguments, owner):
            parser.error(f"--{option} is for --{owner}: leave it out")
    logging.set_verbosity(logging.FATAL)  # Orbax and Grain log a lot
    try:
        prune(arguments)
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except Interrupted as stop:
        leave(str(stop), stop.code)


def prune(arguments: argparse.Namespace) -> None:
    """Loads, prunes, says what that saves, and trains."""
    enable_compilation_cache()
    trained = load(arguments.run, arguments.checkpoint, headless=True)
    recipe = retrained(trained, arguments.epochs, arguments.learning_rate, arguments.seed)
    folder = Path(arguments.run).resolve()
    if arguments.sparsity:
        workdir = arguments.workdir or folder.with_name(f"{folder.name}-sparse{100 * arguments.sparsity:g}")
        recipe = make_sparse(recipe, arguments.sparsity, arguments.scope or "global")
    else:
        workdir = arguments.workdir or folder.with_name(f"{folder.name}-thin{100 * arguments.channels:g}")
        recipe, thin = make_thin(recipe, trained, workdir, arguments.channels, arguments.multiple or 1)
        with Console(stderr=True).status("measuring"):
            table = compare(trained, thin)
        Console().print(table)
    run(recipe, workdir)


def compare(before: Trained, after: Trained) -> Table:
    """What both networks cost, for a clip of the largest frame count."""
    frames, size = max(before.frames), before.recipe.model.image_size or before.model.clip.image_size
    table = Table("", "parameters", "GMACs", "ms a clip", title=f"{frames} frames of {size} x {size}")
    for name, trained in (("before", before), ("after", after)):
        variables = trained.select(frames)
        cost = model_cost(trained.model, (1, frames, size, size, 3), variables)
        milliseconds = clip_milliseconds(trained.model, variables, frames, size)
        table.add_row(name, f"{cost.parameters:,}", f"{cost.gflops:.4g}", f"{milliseconds:.3g}")
    return table


if __name__ == "__main__":
    main()
