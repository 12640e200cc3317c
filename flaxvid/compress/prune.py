"""Unstructured pruning: training removes the weights of least magnitude, step by step (Zhu & Gupta, arXiv 1710.01878).

Removed weights are zeros; they take as much memory and time as before, but a file of them can be packed. To make a
network smaller and faster, see `compress.channels`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from flaxvid import trees
from flaxvid.types import Variables

MASKS = "masks"
"""The collection of masks: the tree of "params" with a mask for each kernel that is pruned, True for what is left."""


@dataclasses.dataclass(frozen=True)
class Pruning:
    """The schedule, and which weights are compared with each other.

    Attributes:
        sparsity: share of the weights that is removed in the end.
        begin, end: steps at which pruning begins, and at which the share is reached.
        every: steps between prunings.
        scope: "global" compares the weights of all kernels, "layer" removes the same share of each kernel.
    """

    sparsity: float
    begin: int
    end: int
    every: int
    scope: Literal["global", "layer"] = "global"

    def share(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
        """The share that is removed after so many steps: quickly at first, ``s * (1 - (1 - progress) ** 3)``."""
        progress = jnp.clip((step - self.begin) / (self.end - self.begin), 0, 1)
        return self.sparsity * (1 - (1 - progress) ** 3)

    def prune(self, variables: dict[str, Any], step: Int[Array, ""]) -> dict[str, Any]:
        """Removes weights if it is due after `step` steps, and keeps removed ones at zero.

        The averages of the parameters lose the same weights.
        """
        due = (step >= self.begin) & (step <= self.end) & (((step - self.begin) % self.every == 0) | (step == self.end))
        kernels = chosen(variables["params"], variables[MASKS])
        masks = jax.lax.cond(
            due,
            lambda: trees.unflatten(magnitude_masks(kernels, self.share(step), self.scope)),
            lambda: variables[MASKS],
        )
        pruned = {name: masked(variables[name], masks) for name in ("params", "ema_params") if name in variables}
        return {**variables, **pruned, MASKS: masks}


def first_masks(params: Variables, keep: Sequence[str] = ()) -> dict[str, Any]:
    """Masks that leave everything, for each kernel of "params" but those of the parts `keep`.

    Args:
        params: the collection "params", or its shapes.
        keep: patterns of paths, see `trees.lies_in`.

    Raises:
        ValueError: no kernel is left.
    """
    kernels = {
        path: jnp.ones(leaf.shape, bool)
        for path, leaf in trees.flatten(params).items()
        if path.rpartition("/")[2] == "kernel" and leaf.ndim > 1 and not trees.lies_in(f"params/{path}", keep)
    }
    if not kernels:
        raise ValueError(f"nothing is left to prune beside the parts {', '.join(keep)}: keep or freeze fewer")
    return trees.unflatten(kernels)


def magnitude_masks(
    kernels: Mapping[str, Float[Array, "..."]], share: Float[Array, ""] | float, scope: str
) -> dict[str, Bool[Array, "..."]]:
    """False for the `share` of the weights that have the least magnitude; of equal ones all go.

    Args:
        kernels: by path.
        share: in [0, 1).
        scope: see `Pruning`.
    """
    magnitudes = {path: jnp.abs(kernel) for path, kernel in kernels.items()}
    if scope == "layer":
        return {path: own > _threshold(own.ravel(), share) for path, own in magnitudes.items()}
    threshold = _threshold(jnp.concatenate([own.ravel() for own in magnitudes.values()]), share)
    return {path: own > threshold for path, own in magnitudes.items()}


def masked(params: Variables, masks: Variables) -> dict[str, Any]:
    """Parameters, or their gradients, with zeros where a mask is False."""
    flat = trees.flatten(masks)
    return trees.unflatten(
        {path: jnp.where(flat[path], leaf, 0) if path in flat else leaf for path, leaf in trees.flatten(params).items()}
    )


def chosen(params: Variables, masks: Variables) -> dict[str, Array]:
    """The kernels that have a mask, by path."""
    flat = trees.flatten(params)
    return {path: flat[path] for path in trees.flatten(masks)}


def sparsity(masks: Variables) -> Float[Array, ""]:
    """The share of the weights that is removed, of those that have a mask."""
    leaves = jax.tree.leaves(masks)
    left = jnp.stack([jnp.sum(mask, dtype=jnp.float32) for mask in leaves]).sum()
    return 1 - left / sum(np.size(mask) for mask in leaves)


def _threshold(magnitudes: Float[Array, " n"], share: Float[Array, ""] | float) -> Float[Array, ""]:
    """The largest magnitude that is removed; below all of them for a share of nothing."""
    count = jnp.round(share * magnitudes.size).astype(jnp.int32)
    return jnp.where(count > 0, jnp.sort(magnitudes)[jnp.maximum(count - 1, 0)], -1.0)
