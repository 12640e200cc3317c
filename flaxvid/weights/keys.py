"""The keys and axes in a reference's files of each variable of ours. One table serves import and export."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from einops import EinopsError, rearrange

from flaxvid.models.spec import KeyTable
from flaxvid.weights.tensors import unwrapped

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "gain": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
_AXES = {"kernel": "... i o -> o i ...", "gain": "c -> c 1 1 1"}
"""Ours to torch's: kernels (*window, in, out) to (out, in, *window), gains to depthwise 1x1 kernels."""
_TWO_PARTS = re.compile(r"\((\d+) \+ (\d+)\)")


def torch_key(path: str, table: KeyTable) -> str | None:
    """The reference's key of a variable such as "params_4f/stem/norm1/scale"; None if the table has no place for it.

    Of several tensors that make one variable it is one text, "blocks.0.{q,k,v}.weight".
    """
    return _find(path, table)[0]


def torch_keys(path: str, table: KeyTable) -> tuple[str, ...]:
    """The keys of the tensors that make a variable, in their order in it; () if the table has no place for it."""
    key = torch_key(path, table)
    if key is None:
        return ()
    several = re.fullmatch(r"(.*)\{(.*)\}(.*)", key)
    return tuple(several[1] + part + several[3] for part in several[2].split(",")) if several else (key,)


def source_keys(path: str, table: KeyTable) -> tuple[str, ...]:
    """`torch_keys` as they are looked up in a file: `unwrapped`."""
    return tuple(map(unwrapped, torch_keys(path, table)))


def to_tensors(path: str, array: np.ndarray, table: KeyTable, options: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A variable as the reference's tensors, by their keys.

    Args:
        path: of the variable.
        array: its numbers.
        table: has a place for it.
        options: of the model. An axis of the table may have the name of one.

    Raises:
        ValueError: the array has not the axes that the table says.
    """
    keys, axes = torch_keys(path, table), _find(path, table)[1]
    lengths = {name: value for name, value in options.items() if name in re.findall(r"\w+", axes)}
    try:
        parts = np.split(array, len(keys), axis=-1) if len(keys) > 1 else [array]
        return {key: _rearrange(part, axes, lengths) for key, part in zip(keys, parts, strict=True)}
    except (ValueError, EinopsError) as error:
        said = f" with {', '.join(f'{name}={value}' for name, value in lengths.items())}" if lengths else ""
        raise ValueError(
            f"{path} must split into {len(keys)} tensors of axes {axes.partition(' -> ')[0]!r}{said}, got "
            f"{array.shape}: pass the overrides with which the model was made"
        ) from error


def from_tensors(path: str, tensors: Sequence[np.ndarray], table: KeyTable) -> np.ndarray:
    """The inverse of `to_tensors`: a variable out of the tensors of its keys, in their order."""
    ours, _, theirs = _find(path, table)[1].partition(" -> ")
    parts = [_rearrange(tensor, f"{theirs} -> {ours}", {}) for tensor in tensors]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)


def _rearrange(array: np.ndarray, axes: str, lengths: Mapping[str, Any]) -> np.ndarray:
    """einops' `rearrange`, but for an axis of two parts that change places, "(8 + 1)" to "(1 + 8)"."""
    if parts := _TWO_PARTS.search(axes):
        axis, (first, second) = axes[: parts.start()].count(" "), map(int, parts.groups())
        unit, rest = divmod(array.shape[axis], first + second)
        if rest:
            raise ValueError(f"axis {axis} of {array.shape} has no parts of {first} to {second}")
        array, axes = np.roll(array, second * unit, axis), _TWO_PARTS.sub("parts", axes)
    return rearrange(array, axes, **lengths)


def _find(path: str, table: KeyTable) -> tuple[str | None, str]:
    """The key, and how our axes become the reference's."""
    collection, _, path = path.partition("/")
    known = re.fullmatch(r"(?:params|batch_stats)(?:_(\w+))?", collection)
    module, _, leaf = path.rpartition("/")
    # A leaf that no layer makes is a parameter of the model itself: the table names it whole.
    module, suffix = (module, f".{_LEAVES[leaf]}") if leaf in _LEAVES else (path, "")
    if known is not None:
        prefix = f"{known[1]}/" if known[1] else ""
        # An entry with the leaf in it comes before one for the module, and says the whole key.
        for whole, end in ((prefix + path, ""), (prefix + module, suffix)):
            for pattern, replacement, *axes in table:
                if match := re.fullmatch(pattern, whole):
                    return match.expand(replacement) + end, axes[0] if axes else _AXES.get(leaf, "... -> ...")
    return None, ""
