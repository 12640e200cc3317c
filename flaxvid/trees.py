"""Trees of variables as flat mappings ``{"stem/conv1/kernel": leaf}``."""

import collections
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
from flax import traverse_util

T = TypeVar("T")


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Turns nested dicts into ``{"a/b/c": leaf}``."""
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
    """The value of the first ``(pattern, value)`` whose pattern matches the whole `path`."""
    return next((value for pattern, value in rules if re.fullmatch(pattern, path)), default)


def lies_in(path: str, parts: Iterable[str]) -> bool:
    """Whether a variable lies in one of some parts of a network.

    Args:
        path: of the variable, with its collection: "params_4f/body/layer1_0/norm1/scale".
        parts: regular expressions of paths without the collection, so they hold for all collections. Each names all
            that lies below it: "body", "body/layer[12]_.*", "body/.*/kernel".
    """
    below = path.partition("/")[2]
    return any(re.fullmatch(f"(?:{part})(?:/.*)?", below) for part in parts)


def norm_modules(variables: Mapping[str, Any]) -> frozenset[str]:
    """The paths, without the collection, of all norms: ``{"stem/norm1", "body/layer1_0/norm2", ...}``.

    The names of modules do not count. A norm owns a `scale` with an axis of channels, and no other parameter than a
    `bias`; or it keeps the batch statistics `mean` and `var`. A learned temperature is no norm: its `scale` is one
    number. Trap: a LayerScale looks like an RMSNorm, so it must call its parameter otherwise, such as `gamma`.

    Args:
        variables: ``{"params": ..., "batch_stats": ...}``, further collections, or their shapes.
    """
    owned: dict[tuple[str, str], dict[str, Any]] = collections.defaultdict(dict)
    for path, leaf in flatten(variables).items():
        collection, _, below = path.partition("/")
        module, _, name = below.rpartition("/")
        owned[collection, module][name] = leaf

    def is_norm(collection: str, own: dict[str, Any]) -> bool:
        if collection.startswith("batch_stats"):
            return {"mean", "var"} <= own.keys()
        return {"scale"} <= own.keys() <= {"scale", "bias"} and np.ndim(own["scale"]) > 0

    return frozenset(module for (collection, module), own in owned.items() if is_norm(collection, own))
