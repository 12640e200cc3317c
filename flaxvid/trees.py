"""Variable trees as flat ``{"stem/conv1/kernel": leaf}`` mappings: rules by path, split and merge."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from flax import traverse_util

T = TypeVar("T")


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts to ``{"a/b/c": leaf}``."""
    return traverse_util.flatten_dict(tree, sep="/")


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    return traverse_util.unflatten_dict(dict(flat), sep="/")


def split(tree: Mapping[str, Any], belongs: Callable[[str], bool]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two trees: the leaves whose path `belongs`, and the others."""
    flat = flatten(tree)
    inside = {path: leaf for path, leaf in flat.items() if belongs(path)}
    outside = {path: leaf for path, leaf in flat.items() if path not in inside}
    return unflatten(inside), unflatten(outside)


def merge(*trees: Mapping[str, Any]) -> dict[str, Any]:
    """One tree with the leaves of all; a later tree wins where two have the same path."""
    flat: dict[str, Any] = {}
    for tree in trees:
        flat.update(flatten(tree))
    return unflatten(flat)


def first_match(rules: Iterable[tuple[str, T]], path: str, default: T) -> T:
    """The value of the first ``(pattern, value)`` whose regular expression matches the whole `path`."""
    return next((value for pattern, value in rules if re.fullmatch(pattern, path)), default)


def map_paths(function: Callable[[str, Any], Any], tree: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of ``function(path, leaf)``."""
    return unflatten({path: function(path, leaf) for path, leaf in flatten(tree).items()})
