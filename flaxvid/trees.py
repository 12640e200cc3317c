"""Variable trees as flat ``{"stem/conv1/kernel": leaf}`` mappings: rules by path, split and merge, norms."""

import collections
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
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


def norm_modules(variables: Mapping[str, Any]) -> frozenset[str]:
    """The paths, below the collection, of all modules that are norms: ``{"stem/norm1", "body/layer1_0/norm2", ...}``.

    A norm is read off the tree, and no name of a module counts. It is a module that owns a `scale` with an axis of
    channels, and no other parameter than a `bias` beside it: Flax's LayerNorm, RMSNorm, GroupNorm, InstanceNorm and
    BatchNorm. So is a module that keeps batch statistics, a `mean` and a `var`: a batch norm without scale.

    A learned temperature is no norm: its `scale` is one number, or its module has other parameters. The tree cannot
    tell a LayerScale from an RMSNorm: a layer of that kind must call its parameter otherwise, such as `gamma`.

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
