"""Arguments of several scripts, for argparse."""

import argparse
import codecs
import json
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

NETWORK = (
    "a run's folder, an export's, a file of flaxvid, a torch file, a name of flaxvid.list_weights(), or "
    "hf://OWNER/REPO/FILE of the Hugging Face Hub"
)
"""What scripts read a trained network from."""


class Renamed(argparse.Action):
    """The old name of a flag; the error says the new one, which is `const`."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Ends the program with the error."""
        parser.error(f"{option_string} is {self.const} now")


def add_run(parser: argparse.ArgumentParser) -> None:
    """Adds the network that a script asks; the script reads it as `run`."""
    parser.add_argument("--run", "--weights", required=True, metavar="RUN", help=NETWORK)


def add_weights(parser: argparse.ArgumentParser, *, classes: bool = True) -> None:
    """Adds the options that say more about a `NETWORK`.

    Args:
        parser: gets them.
        classes: whether the script uses class names.
    """
    parser.add_argument("--model", default="", metavar="NAME", help="the network of a torch file, as tsm_resnet50")
    parser.add_argument("--part", metavar="NAME", help="which part of a torch file of several networks, as ema")
    parser.add_argument("--checkpoint", default="latest", metavar="WHICH", help="latest (default), best, or a step")
    if classes:
        parser.add_argument(
            "--classes",
            type=Path,
            help="class names, one a line or as in classes.json, where the run does not know them",
        )


def add_runtime(parser: argparse.ArgumentParser) -> None:
    """Adds the choice of what runs an exported network."""
    parser.add_argument(
        "--runtime",
        choices=("jax", "onnxruntime", "openvino"),
        default="jax",
        help="what runs a folder of scripts/export.py; the last two need its ONNX files (default: jax)",
    )


def number(kind: type[int] | type[float], least: float) -> Callable[[str], Any]:
    """The type of an argument that is a number of at least `least`; NaN is refused."""

    def read(text: str) -> int | float:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not value >= least:
            whole = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"expected {whole} of at least {least}, got {text!r}")
        return value

    return read


def one_each(words: Sequence[str], flag: str) -> list[str]:
    """Turns ``--frames 4 8 a.mp4`` into ``--frames=4 --frames=8 a.mp4``, for a flag with the action "append".

    With ``nargs="+"`` argparse would take a.mp4 for a number, too.
    """
    found: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        numbers = list(takewhile(lambda one: one.removeprefix("-").isdecimal(), rest)) if word == flag else []
        found += [f"{flag}={number}" for number in numbers] or [word]
        del rest[: len(numbers)]
    return found


def read_class_names(path: Path | None) -> tuple[str, ...] | dict[str, tuple[str, ...]] | None:
    """Reads class names from a file: one a line, or JSON as in a run's classes.json; None from no file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no text, no names, or other JSON.
    """
    if path is None:
        return None
    content = path.read_bytes()
    utf_16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if utf_16 else "utf-8-sig")
        names = json.loads(text) if path.suffix.lower() == ".json" else re.split("[\r\n]+", text)
    except ValueError as error:
        raise ValueError(f"expected class names in {path}, one a line or as JSON, in UTF-8, got {error}") from error
    if path.suffix.lower() != ".json":
        names = [name.strip() for name in names if name.strip()]
    for own in names.values() if isinstance(names, Mapping) else [names]:
        if not isinstance(own, list) or not own or not all(isinstance(name, str) and name.strip() for name in own):
            raise ValueError(
                f'expected class names in {path}, one a line or as JSON such as ["jump", "run"], or such a list for '
                f"each target, got {text[:60]!r}"
            )
    return {target: tuple(own) for target, own in names.items()} if isinstance(names, Mapping) else tuple(names)


def read_renames(path: Path) -> dict[str, dict[str, str]]:
    """Reads the network's class names by the data's, for each target; a single target is called ""."""
    try:
        names = json.loads(path.read_bytes().decode("utf-8-sig"))
        targets = names if names and all(isinstance(value, Mapping) for value in names.values()) else {"": names}
        wrong = [name for own in targets.values() for name in own.values() if not isinstance(name, str)]
    except (ValueError, AttributeError) as error:
        wrong = [error]
    if wrong:
        raise ValueError(f'expected {{"their name": "the network\'s", ...}} as JSON in {path}, got {wrong[0]}')
    return targets
