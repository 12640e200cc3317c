"""The mesh: all devices, on the axes "data", "fsdp" and "tensor". It divides batches; `sharding` divides parameters."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def make_mesh(fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over all devices of all processes.

    Args:
        fsdp, tensor: see `Recipe`; what they leave of the devices is the axis "data".
        devices: others, all of one process.

    Raises:
        ValueError: they do not divide the devices.
    """
    local = jax.local_device_count() if devices is None else len(devices)
    grid = np.asarray(jax.devices() if devices is None else devices)
    if grid.size % (fsdp * tensor) or local % tensor:
        raise ValueError(
            f"expected fsdp x tensor to divide {grid.size} devices, and tensor those of a process "
            f"({local}), got fsdp={fsdp}, tensor={tensor}: lower them"
        )
    return Mesh(grid.reshape(-1, fsdp, tensor), ("data", "fsdp", "tensor"))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def divided(mesh: Mesh) -> NamedSharding:
    """Axis 0 divided over the devices; those of one place of "tensor" work on the same rows."""
    return NamedSharding(mesh, PartitionSpec(tuple(axis for axis in mesh.axis_names if axis != "tensor")))


def count_parts(mesh: Mesh) -> int:
    """The number of parts that a batch is divided into."""
    return math.prod(size for axis, size in mesh.shape.items() if axis != "tensor")


def check_batch_size(batch_size: int, mesh: Mesh, name: str = "batch_size", accumulate: int = 1) -> None:
    """Refuses a batch that cannot be divided evenly over devices and parts."""
    devices = count_parts(mesh)
    parts = devices * accumulate
    if batch_size % parts:
        raise ValueError(
            f"{name}={batch_size} must divide evenly over {devices} devices x {accumulate} accumulated parts: "
            f"use {max(parts, batch_size - batch_size % parts)}"
        )


def check_norm_groups(norm_groups: int, mesh: Mesh) -> None:
    """Refuses groups of rows that would lie on two devices."""
    devices = count_parts(mesh)
    if norm_groups > 1 and norm_groups % devices:
        raise ValueError(
            f"expected norm_groups=1 or a multiple of the {devices} devices, got {norm_groups}: use 1 or {devices}"
        )


@jax.transfer_guard("allow")
def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Puts this process's NumPy arrays on its devices, as its part of global arrays that are divided over the mesh."""
    sharding = divided(mesh)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), batch)
