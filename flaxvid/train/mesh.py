"""The mesh: all devices on one axis, "data"; parameters replicated, batches divided."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def make_mesh() -> Mesh:
    """A mesh over all devices of all processes."""
    return Mesh(np.asarray(jax.devices()), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def divided(mesh: Mesh) -> NamedSharding:
    """Axis 0 divided over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def check_batch_size(batch_size: int, mesh: Mesh, name: str = "batch_size", accumulate: int = 1) -> None:
    """Raises if a batch, in its parts, cannot be divided evenly."""
    parts = mesh.size * accumulate
    if batch_size % parts:
        raise ValueError(
            f"{name}={batch_size} must divide evenly over {mesh.size} devices x {accumulate} accumulated parts: "
            f"use {max(parts, batch_size - batch_size % parts)}"
        )


def check_norm_groups(rows: int, norm_groups: int, mesh: Mesh) -> None:
    """Raises if groups of rows would lie across devices in part; `train.recipe.check` has seen that they are alike."""
    if norm_groups > 1 and norm_groups % mesh.size:
        raise ValueError(
            f"norm_groups={norm_groups} must be 1 (statistics of the whole batch) or a multiple of the {mesh.size} "
            f"devices that divides the {rows} clips which are computed at once: use 1 or {mesh.size}"
        )


@jax.transfer_guard("allow")
def put_batch(batch: Any, mesh: Mesh) -> Any:
    """A batch of this process's NumPy arrays as global arrays divided over the mesh."""
    sharding = divided(mesh)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), batch)
