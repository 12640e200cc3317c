"""Trains a recipe: python scripts/train.py --config configs/ffn.py [--workdir FOLDER] [--config.epochs=5 ...].

--list after a config prints every field of its recipe: flag, value and meaning. Of several processes each runs this: on
a cluster with --distributed, elsewhere with --coordinator=HOST:PORT --num_processes=N --process_id=I; scripts/launch.py
starts them on one machine.
"""

import sys
import threading
from pathlib import Path

from flaxvid.train.interrupt import Interrupted, end, end_when_told

if __name__ == "__main__":
    # Before the imports, which take seconds.
    end_when_told("the same command goes on after the last checkpoint, or begins anew")

from absl import app, flags, logging
from ml_collections import config_flags

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; default runs/<config>-<argument or data>.")
_PROFILE = flags.DEFINE_integer("profile", 0, "Steps whose trace goes into the folder's profile/.", lower_bound=0)
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the other processes of this SLURM, MPI, ... or TPU job.")
_COORDINATOR = flags.DEFINE_string("coordinator", "", "host:port of process 0, with --num_processes and --process_id.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", 0, "How many processes there are.")
_PROCESS_ID = flags.DEFINE_integer("process_id", -1, "Which of them this is, from 0.")


def main(_argv: list[str]) -> None:
    """Runs the recipe; an error of the user's is one line, not a traceback."""
    # Orbax and Grain log a lot. An error in one of their threads is raised here, too, so it is printed once.
    logging.set_verbosity(logging.FATAL)
    threading.excepthook = sys.unraisablehook = lambda _: None
    from flaxvid.train.hosts import connect, leave
    from flaxvid.train.loop import run

    file, _colon, argument = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    recipe = flags.FLAGS.config
    workdir = _WORKDIR.value or Path("runs") / "-".join(filter(None, (Path(file).stem, argument or recipe.data.name)))
    try:
        if _DISTRIBUTED.value or _COORDINATOR.value or _NUM_PROCESSES.value or _PROCESS_ID.value >= 0:
            connect(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        run(recipe, workdir, _PROFILE.value)
    except (ValueError, OSError, FloatingPointError) as error:
        end(f"{type(error).__name__}: {error}", 1)
    except Interrupted as stop:
        leave(str(stop), stop.code)


def parse(argv: list[str]) -> list[str]:
    """Parses the flags and loads the recipe."""
    from flaxvid.train.flags import parse_recipe

    return parse_recipe(argv)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
