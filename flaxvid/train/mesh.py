"""The mesh: all devices on one axis. Parameters are replicated, batches are divided."""

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
    """Refuses a batch that cannot be divided evenly over devices and parts."""
    parts = mesh.size * accumulate
    if batch_size % parts:
        raise ValueError(
            f"{name}={batch_size} must divide evenly over {mesh.size} devices x {accumulate} accumulated parts: "
            f"use {max(parts, batch_size - batch_size % parts)}"
        )


def check_norm_groups(norm_groups: int, mesh: Mesh) -> None:
    """Refuses groups of rows that would lie on two devices."""
    if norm_groups > 1 and norm_groups % mesh.size:
        raise ValueError(
            f"expected norm_groups=1 or a multiple of the {mesh.size} devices, got {norm_groups}: use 1 or {mesh.size}"
        )


@jax.transfer_guard("allow")
def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Puts this process's NumPy arrays on its devices, as its part of global arrays that are divided over the mesh."""
    sharding = divided(mesh)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), batch)
