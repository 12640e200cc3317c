"""Trains a recipe: python scripts/train.py --config configs/ffn.py [--workdir FOLDER] [--config.epochs=5 ...].

--list after a config prints every field of its recipe: flag, value and meaning. Of several processes each runs this: on
a cluster with --distributed, elsewhere with --coordinator=HOST:PORT --num_processes=N --process_id=I; scripts/launch.py
starts them on one machine.
"""

import sys
import threading
import traceback
from pathlib import Path

from flaxvid.train.interrupt import Interrupted, end, end_when_told

if __name__ == "__main__":
    # Before the imports, which take seconds.
    end_when_told("the same command goes on after the last checkpoint, or begins anew")

from absl import app, flags, logging
from ml_collections import config_flags

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; default runs/<config>-<argument>.")
_LIST = flags.DEFINE_bool("list", False, "Print every field of the recipe, its value and its meaning; so does --help.")
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
        run(recipe, workdir)
    except (ValueError, OSError, FloatingPointError) as error:
        end(f"{type(error).__name__}: {error}", 1)
    except Interrupted as stop:
        leave(str(stop), stop.code)


def parse(argv: list[str]) -> list[str]:
    """Parses the flags and loads the recipe; an error is one line that says how to correct it."""
    from flaxvid.train.flags import describe, explain, last_of_each, register_types
    from flaxvid.train.recipe import Recipe

    register_types()
    try:
        argv = last_of_each(argv)
        if any(word.startswith("--config") for word in argv):
            argv = ["--list" if word in ("--help", "-help", "-h") else word for word in argv]
        config_flags.DEFINE_config_file("config", None, "Recipe: FILE or FILE:ARGUMENT.", sys_argv=argv)
        rest = flags.FLAGS(argv)
        recipe = flags.FLAGS.config
        hasattr(recipe, "model")  # loads the file, which may not be there
    except (KeyError, ValueError, OSError, flags.Error) as error:
        sys.exit(explain(error, argv))
    except Exception as error:  # the user's file may raise anything
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = "" if isinstance(error, SyntaxError) else f" ({place.filename}, line {place.lineno})"
        sys.exit(
            "expected a config file, Python with a function get_config() as in configs/tsm.py, "
            f"got {type(error).__name__}: {error}{where}"
        )
    if recipe is None:
        sys.exit("expected a config file, such as --config configs/ffn.py")
    if not isinstance(recipe, Recipe):
        sys.exit(f"expected get_config() to return a Recipe as in configs/tsm.py, got {type(recipe).__name__}")
    if rest[1:]:
        sys.exit(f"expected flags only, such as --config configs/ffn.py, got {' '.join(rest[1:])}")
    if _LIST.value:
        print(*describe(recipe), sep="\n")
        sys.exit()
    return rest


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
