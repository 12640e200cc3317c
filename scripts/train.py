"""Trains a recipe: python scripts/train.py --config configs/ffn.py [--workdir FOLDER] [--config.epochs=5 ...].

With several processes each of them runs this: on a cluster with --distributed; elsewhere with --coordinator=HOST:PORT
--num_processes=N --process_id=I, or by scripts/launch.py on one machine.
"""

import dataclasses
import pkgutil
import re
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

_CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe: FILE or FILE:ARGUMENT.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; default runs/<config>-<argument>.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the other processes of this SLURM, MPI, ... or TPU job.")
_COORDINATOR = flags.DEFINE_string("coordinator", "", "host:port of process 0, with --num_processes and --process_id.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", 0, "How many processes there are.")
_PROCESS_ID = flags.DEFINE_integer("process_id", -1, "Which of them this is, from 0.")


def main(_argv: list[str]) -> None:
    """Runs the recipe; what the user can mend is one line, not a traceback."""
    # Orbax reports every step of every save, Grain what its profiler lacks. What goes wrong in a thread of theirs is
    # raised here, too: it is said once, last, and not under a page of each thread's own.
    logging.set_verbosity(logging.FATAL)
    threading.excepthook = sys.unraisablehook = lambda _: None
    from flaxvid.train.hosts import connect, leave
    from flaxvid.train.loop import run

    file, _colon, argument = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    recipe = _CONFIG.value
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
    """Parses the flags and loads the recipe; a slip of the pen is one line that says what would be right."""
    from flaxvid.train.recipe import Recipe

    try:
        rest = flags.FLAGS(argv)
        recipe = flags.FLAGS.config
        hasattr(recipe, "model")  # a file that is not there shows only here
    except (KeyError, ValueError, OSError, flags.Error) as error:
        text = str(error.args[0] if isinstance(error, KeyError) else error).strip()
        field = re.match(r"Field (?P<field>\w+) .*<class '(?P<place>.+)\.(?P<name>\w+)'>", text) or re.match(
            r"Attribute <class '(?P<place>.+)\.(?P<name>\w+)'>\.(?P<field>\w+) does not exist", text
        )
        if field:
            known = dataclasses.fields(pkgutil.resolve_name(f"{field['place']}:{field['name']}"))
            text = f"{field['name']} has no field {field['field']!r}: valid ones are {', '.join(f.name for f in known)}"
        elif isinstance(error, KeyError):
            text = f"the recipe has no entry {text!r}: entries of a dict are added in the config file, not by a flag"
        *before, last = text.splitlines()
        sys.exit(last.strip() if re.match(r"\s*(ValueError:|\[Errno)", last) or not before else text)
    except Exception as error:  # whatever the user's own file raises
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = "" if isinstance(error, SyntaxError) else f" ({place.filename}, line {place.lineno})"
        sys.exit(
            "expected a config file, Python with a function get_config() as in configs/tsm.py, "
            f"got {type(error).__name__}: {error}{where}"
        )
    if not isinstance(recipe, Recipe):
        sys.exit(f"expected get_config() to return a Recipe as in configs/tsm.py, got {type(recipe).__name__}")
    return rest


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=parse)
