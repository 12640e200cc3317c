"""The command `flaxvid`: every script by its name, from any folder: flaxvid train --config flaxvid:ffn.

An installed flaxvid has the scripts and the configs within it; a checkout has them beside it.
"""

import ast
import re
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path


def shipped(folder: str) -> dict[str, Path]:
    """The files of `scripts` or `configs`, by their names."""
    package = Path(__file__).parent
    inside = package / folder
    return {path.stem: path for path in sorted((inside if inside.is_dir() else package.parent / folder).glob("*.py"))}


def find_config(argv: Sequence[str]) -> list[str]:
    """The command line with a file for ``flaxvid:NAME``, where it says --config.

    Raises:
        ValueError: there is no config of that name.
    """
    words = list(argv)
    for index, word in enumerate(words):
        flag, equals, value = word.rpartition("=") if word.startswith("--config=") else ("", "", word)
        named = re.fullmatch(r"flaxvid:(?P<name>\w*)(?P<argument>:.*)?", value)
        if named and (flag or words[index - 1] == "--config"):
            configs = shipped("configs")
            if named["name"] not in configs:
                raise ValueError(f"expected one of flaxvid:{', flaxvid:'.join(configs)}, got {value}")
            words[index] = f"{flag}{equals}{configs[named['name']]}{named['argument'] or ''}"
    return words


def main() -> None:
    """Runs a script as `python scripts/NAME.py` does."""
    scripts = shipped("scripts")
    name, *rest = sys.argv[1:] or ["--help"]
    if name in scripts:
        sys.argv = [f"flaxvid {name}", *rest]
        runpy.run_path(str(scripts[name]), run_name="__main__")
        return
    print("flaxvid COMMAND ...; flaxvid COMMAND --help says more. Configs are flaxvid:NAME, or files.")
    for command, path in scripts.items():
        meaning = re.split(r":|,|\.\s|\.$", ast.get_docstring(ast.parse(path.read_text())) or "")[0]
        print(f"  {command:<14}{meaning}")
    print(f"configs: {', '.join(shipped('configs'))}")
    if name not in ("--help", "-h", "help"):
        sys.exit(f"expected one of these commands, got {name}")
