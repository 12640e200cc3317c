"""The fields of a recipe: path, type, value, and meaning as the docstring says it."""

import dataclasses
import inspect
import math
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class Field:
    """One option.

    Attributes:
        path: as in flags: "data.clips.interval".
        owner: the dataclass object that has the field.
        name: its name there.
        hint: its type.
    """

    path: str
    owner: Any
    name: str
    hint: Any

    @property
    def value(self) -> Any:
        """Its value."""
        return getattr(self.owner, self.name)


def walk(owner: Any, prefix: str = "") -> Iterator[Field]:
    """The fields of a dataclass object, with those of its parts."""
    hints = typing.get_type_hints(type(owner))
    for field in dataclasses.fields(owner):
        value, path = getattr(owner, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            yield from walk(value, f"{path}.")
        else:
            yield Field(path, owner, field.name, hints[field.name])


def choices(hint: Any) -> tuple[Any, ...]:
    """The members of a union; another type is its only member."""
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def misfit(value: Any, hint: Any) -> str:
    """What a value should be instead; "" if it is of the type. Numbers must be finite."""
    parts, origin = typing.get_args(hint), typing.get_origin(hint)
    if isinstance(hint, types.UnionType):
        wrong = [misfit(value, one) for one in parts]
        return "" if "" in wrong else " or ".join(wrong)
    if origin is Literal:
        return "" if value in parts else either(parts)
    if origin is tuple:
        inner = parts if parts[-1] is not ... else (parts[0],) * (len(value) if isinstance(value, tuple | list) else 0)
        if not isinstance(value, tuple | list) or len(value) != len(inner):
            return f"a tuple of {len(parts)}" if parts[-1] is not ... else "a tuple"
        return next((f"a tuple, each {wrong}" for wrong in map(misfit, value, inner) if wrong), "")
    if origin is dict:
        if not isinstance(value, Mapping):
            return "a dict"
        return next((f"a dict, each value {wrong}" for one in value.values() if (wrong := misfit(one, parts[1]))), "")
    if hint is Any:
        number = isinstance(value, float) and not math.isfinite(value)
        nested = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
        return "finite" if number or any(misfit(one, Any) for one in nested) else ""
    if hint is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
        return "" if fits else "a finite number"
    if hint is int:
        fits = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 31
        return "" if fits else "a whole number of 31 bits"
    names = {str: "text", bool: "True or False", types.NoneType: "None"}
    return "" if isinstance(value, hint) else names.get(hint, f"a {hint.__name__}")


def either(values: tuple[Any, ...]) -> str:
    """Values as text: `"a", "b" or "c"`."""
    quoted = [f'"{value}"' for value in values]
    return " or ".join(filter(None, (", ".join(quoted[:-1]), quoted[-1])))


def meanings(described: Any, section: str = "Attributes") -> dict[str, str]:
    """The meaning of each name in a section of a docstring, as one line.

    Args:
        described: a dataclass, with its bases, or a function.
        section: the heading.
    """
    found: dict[str, str] = {}
    for owner in reversed(described.__mro__) if isinstance(described, type) else (described,):
        # Python 3.13 removes the indentation itself.
        _, _, text = inspect.cleandoc(owner.__doc__ or "").partition(f"\n{section}:\n")
        block = re.split(r"\n\s*\n|\n\w+:\n", text)[0]
        indent = block[: len(block) - len(block.lstrip())]
        for entry in re.split(rf"\n{indent}(?=\S)", "\n" + block)[1:]:
            names, _, meaning = entry.partition(":")
            found |= dict.fromkeys(names.split(", "), " ".join(meaning.split()))
    return found
