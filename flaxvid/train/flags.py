"""Flags that change a recipe: values by the types of its fields, and one line for a wrong flag."""

import ast
import dataclasses
import difflib
import pkgutil
import re
import sys
import traceback
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from absl import flags
from ml_collections import config_flags

from flaxvid.command import find_config
from flaxvid.models.registry import SPECS, list_options
from flaxvid.models.spec import Common
from flaxvid.train.fields import meanings, walk
from flaxvid.train.recipe import FILLED, OLD_NAMES, ModelRecipe, Recipe

FIELD = re.compile(r"--?(?P<no>no)?config\.(?P<path>[^=]+)(?P<equals>=(?P<value>.*))?", re.DOTALL)


class _OrNone(flags.ArgumentParser):
    """Reads "None" too: an empty field."""

    def __init__(self, parser: flags.ArgumentParser):
        self._parser = parser

    def parse(self, argument: Any) -> Any:
        return None if argument == "None" else self._parser.parse(argument)


class _Entries(flags.ArgumentParser):
    """Reads a whole dict."""

    def parse(self, argument: Any) -> Any:
        value = ast.literal_eval(argument) if isinstance(argument, str) else argument
        if not isinstance(value, dict):
            raise ValueError("expected a dict such as {'width': 8}")
        return value


def register_types() -> None:
    """Teaches ml_collections the types of fields that it does not know."""
    config_flags.register_flag_parser_for_type(int, _OrNone(flags.IntegerParser()))
    config_flags.register_flag_parser_for_type(float, _OrNone(flags.FloatParser()))
    parsers = {Literal: flags.ArgumentParser(), dict: _Entries()}
    for field in walk(Recipe()):
        if parser := parsers.get(typing.get_origin(field.hint)):
            config_flags.register_flag_parser_for_type(field.hint, parser)


def last_of_each(argv: Sequence[str]) -> list[str]:
    """The command line with the last of each field's flags; ml_collections would join tuples.

    Raises:
        ValueError: a flag has an old name, and the message says the new one; or it names a part and not a field.
    """
    kept: dict[Any, list[str]] = {}
    paths = [field.path for field in walk(Recipe())]
    word, position = "", 0
    while position < len(argv):
        word, position, key = argv[position], position + 1, position
        words = [word]
        if field := FIELD.fullmatch(word):
            key = field["path"]
            if key in OLD_NAMES:
                raise ValueError(f"--config.{key} is --config.{OLD_NAMES[key]} now")
            if key in ("task", "task.name"):
                raise ValueError(
                    f"--config.{key}: each task has options of its own: take its config file, such as configs/ffn.py "
                    "or configs/tsm.py"
                )
            if inner := [path for path in paths if path.startswith(f"{key}.")]:
                raise ValueError(
                    f"--config.{key} is a part of the recipe: give its fields, such as --config.{inner[0]}"
                )
            kept.pop(key, None)
            if not (field["equals"] or field["no"]) and position < len(argv) and not argv[position].startswith("--"):
                words, position = [word, argv[position]], position + 1
        kept[key] = words
    return [word for words in kept.values() for word in words]


def parse_recipe(argv: Sequence[str]) -> list[str]:
    """Parses the command line of a script and loads the recipe, ``flags.FLAGS.config``; --list prints its fields.

    An error ends the script with one line that says how to correct it.

    Returns:
        The name of the script.
    """
    register_types()
    flags.DEFINE_bool("list", False, "Print every field of the recipe, its value and its meaning; so does --help.")
    try:
        argv = find_config(last_of_each(argv))
        if any(word.startswith("--config") for word in argv):
            argv = ["--list" if word in ("--help", "-help", "-h") else word for word in argv]
        meaning = "Recipe: FILE or flaxvid:NAME, with :ARGUMENT or without."
        config_flags.DEFINE_config_file("config", None, meaning, sys_argv=argv)
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
    if flags.FLAGS.list:
        print(*describe(recipe), sep="\n")
        sys.exit()
    return rest


def explain(error: Exception, argv: Sequence[str]) -> str:
    """What is wrong with a command line, and how to correct it, in one line."""
    text = str(error.args[0] if isinstance(error, KeyError) else error).strip()
    if isinstance(error, flags.UnrecognizedFlagError):
        name = error.flagname
        paths = {old.rpartition(".")[2]: new for old, new in OLD_NAMES.items()}
        paths |= {field.path.rpartition(".")[2]: field.path for field in walk(Recipe())}
        near = [name] if name in paths else difflib.get_close_matches(name, paths, n=1)
        if near:
            given = next((word.partition("=")[2] for word in argv if word.lstrip("-").startswith(f"{name}=")), "...")
            return f"unknown flag --{name}: did you mean --config.{paths[near[0]]}={given}?"
        return text
    field = re.match(r"(?:Field|Attribute) (?P<field>\w+) .*<class '(?P<place>.+)\.(?P<name>\w+)'>", text) or re.match(
        r"Attribute <class '(?P<place>.+)\.(?P<name>\w+)'>\.(?P<field>\w+) does not exist", text
    )
    if field:
        owner = pkgutil.resolve_name(f"{field['place']}:{field['name']}")
        known = [one.name for one in dataclasses.fields(owner)]
        near = difflib.get_close_matches(field["field"], known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"{field['name']} has no field {field['field']!r}: valid ones are {', '.join(known)}{hint}"
    if isinstance(error, KeyError):
        return (
            f"the recipe has no entry {text!r}: give the whole dict, such as --config.model.options=\"{{'width': 8}}\""
        )
    *before, last = text.splitlines()
    return last.strip() if re.match(r"\s*(ValueError:|\[Errno)", last) or not before else text


def describe(recipe: Recipe) -> Iterator[str]:
    """A line for every field: flag, value and meaning.

    The options that a dict may hold come below it: flags for those that it has, dict entries for the others.
    """
    shared = meanings(Common)
    for field in walk(recipe):
        if field.path in FILLED:
            continue
        meaning = meanings(type(field.owner))[field.name]
        if isinstance(field.owner, ModelRecipe) and field.name in shared:
            meaning = shared[field.name] + " None is the network's own value." * (field.value is None)
        yield _line(f"--config.{field.path}={field.value!r}", meaning)
        for name, (default, meaning) in _entries(recipe, field.path).items():
            given = f"--config.{field.path}.{name}={field.value[name]!r}" if name in field.value else ""
            default = dict(default) if isinstance(default, Mapping) else default  # as it is written on a command line
            yield _line(given or f"    {name!r}: {default!r}", meaning)


def _entries(recipe: Recipe, path: str) -> dict[str, tuple[Any, str]]:
    """Defaults and meanings of the options that a dict may hold, if they are known."""
    if path == "model.options" and recipe.model.name in SPECS:
        spec = SPECS[recipe.model.name]
        known = meanings(Common) | meanings(spec.build, "Args")
        defaults = list_options(recipe.model.name)
        own = {"num_classes", "cameras"} | {field.name for field in dataclasses.fields(ModelRecipe)}
        return {name: (defaults[name], known[name]) for name in known if name in defaults and name not in own}
    if path == "data.motion" and recipe.data.name == "motion":
        from flaxvid.data.motion.build import MotionConfig  # tensorflow-datasets takes half a second to import

        defaults = dataclasses.asdict(MotionConfig())
        return {name: (defaults[name], meaning) for name, meaning in meanings(MotionConfig).items() if name != "camera"}
    return {}


def _line(setting: str, meaning: str) -> str:
    return f"{setting:<56}  {meaning}"
