"""The key and layout in torch of each variable of ours. One table serves import and export."""

import re

import numpy as np

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


def torch_key(path: str, table: KeyTable) -> str | None:
    """The reference's key of a variable such as "params_4f/stem/norm1/scale"; None if the table has no place for it."""
    collection, _, path = path.partition("/")
    known = re.fullmatch(r"(?:params|batch_stats)(?:_(\d+f))?", collection)
    module, _, leaf = path.rpartition("/")
    # A leaf that no layer makes is a parameter of the model itself: the table names it whole.
    module, suffix = (module, f".{_LEAVES[leaf]}") if leaf in _LEAVES else (path, "")
    if known is None:
        return None
    prefix = f"{known[1]}/" if known[1] else ""
    # An entry with the leaf in it comes before one for the module, and says the whole key.
    for whole, end in ((prefix + path, ""), (prefix + module, suffix)):
        for pattern, replacement in table:
            if match := re.fullmatch(pattern, whole):
                return match.expand(replacement) + end
    return None


def source_key(path: str, table: KeyTable) -> str:
    """The `unwrapped` key of a variable, to look it up in a file; a key that no file has if the table has none."""
    return unwrapped(torch_key(path, table) or f"<no key for {path}>")


def to_torch_layout(path: str, array: np.ndarray) -> np.ndarray:
    """Kernels (*window, in, out) to (out, in, *window), gains to depthwise 1x1 kernels."""
    leaf = path.rpartition("/")[-1]
    if leaf == "gain":
        return array.reshape(-1, 1, 1, 1)
    return array.transpose(-1, -2, *range(array.ndim - 2)) if leaf == "kernel" else array


def from_torch_layout(path: str, array: np.ndarray) -> np.ndarray:
    """The inverse of `to_torch_layout`."""
    leaf = path.rpartition("/")[-1]
    if leaf == "gain":
        return array.reshape(-1)
    return array.transpose(*range(2, array.ndim), 1, 0) if leaf == "kernel" else array
