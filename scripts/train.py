"""Trains a recipe: python scripts/train.py --config configs/ffn.py [--workdir FOLDER] [--config.epochs=5 ...]."""

import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe: FILE or FILE:ARGUMENT.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; default runs/<config>-<argument>.")


def main(_: list[str]) -> None:
    """Runs the recipe; what the user can mend is one line, not a traceback."""
    from flaxvid.train.loop import run

    logging.set_verbosity(logging.WARNING)  # Orbax reports every step of every save

    file, _, argument = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    recipe = _CONFIG.value
    workdir = _WORKDIR.value or Path("runs") / "-".join(filter(None, (Path(file).stem, argument or recipe.data.name)))
    try:
        run(recipe, workdir)
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
