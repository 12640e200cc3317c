"""Parameters that are divided over devices: FSDP for every network, tensor parallelism for transformers.

Both are rules that give each array its place on the mesh (`make_mesh`); XLA divides the program by them. No model knows
of it.

FSDP (ZeRO, arXiv 1910.02054) saves memory. Between steps a device keeps a part of each parameter, with its average and
its optimizer state; in a step it gets the parameters whole, and the gradients in parts. Tensor parallelism (arXiv
1909.08053) divides the work on a clip: a device computes some heads of each attention and some channels inside each
mlp.
"""

import functools
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flaxvid import trees
from flaxvid.train.mesh import replicated

TENSOR_RULES = (
    (r".*/attention\w*/qkv/(kernel|bias)|.*/mlp/fc1/(kernel|bias)", -1),
    (r".*/attention\w*/project/kernel|.*/mlp/fc2/kernel", -2),
)
"""The axis of a parameter that tensor parallelism divides: heads and inner channels where they are made, and the same
ones where they are added up. So an attention and an mlp each need one sum over the devices in each direction."""


def place(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Where an array of the training state lies.

    FSDP divides the longest axis that it can of every array with two axes or more. Norms, biases and counters are whole
    on every device: they are few.

    Args:
        path: of the array. Averages and the optimizer's copies have a parameter's path at their end.
        shape: of the array.
        mesh: of `make_mesh`.

    Raises:
        ValueError: the mesh's "tensor" does not divide the axis that the rules name.
    """
    axes: list[str | None] = [None] * len(shape)
    tensor, fsdp = mesh.shape.get("tensor", 1), mesh.shape.get("fsdp", 1)
    axis = trees.first_match(TENSOR_RULES, path, None) if tensor > 1 else None
    if axis is not None:
        if shape[axis] % tensor:
            raise ValueError(f"expected tensor to divide axis {axis} of {path} {shape}, got {tensor}: lower it")
        axes[axis] = "tensor"
    free = [i for i, length in enumerate(shape) if axes[i] is None and length % fsdp == 0]
    if fsdp > 1 and len(shape) > 1 and free:
        axes[max(free, key=lambda i: shape[i])] = "fsdp"
    return PartitionSpec(*axes)


def place_state(state: Any, mesh: Mesh) -> Any:
    """The sharding of every array of a training state, or of a part of it."""

    def sharding(path: Any, leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, place(jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(sharding, state)


def is_divided(mesh: Mesh | None) -> bool:
    """Whether parameters are divided over the mesh."""
    return mesh is not None and max(mesh.shape.get(axis, 1) for axis in ("fsdp", "tensor")) > 1


def check_tensor(variables: Any, tensor: int) -> None:
    """Refuses tensor parallelism for a network without attention: each device would compute all of it."""
    if tensor > 1 and not any(trees.first_match(TENSOR_RULES, path, None) for path in trees.flatten(variables)):
        raise ValueError(
            f"expected a transformer for tensor={tensor}, got a network without an attention or mlp to divide: use fsdp"
        )


def make_whole(variables: Any, mesh: Mesh) -> Any:
    """The variables whole on every device."""
    if not is_divided(mesh):
        return variables
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(variables)


def gather(variables: Any, mesh: Mesh | None) -> Any:
    """Divided variables, inside a loss: whole on every device, with gradients that are divided again.

    Only FSDP needs it. Tensor parallelism follows from where the kernels lie.
    """
    if mesh is None or mesh.shape.get("fsdp", 1) == 1:
        return variables
    return jax.tree.map(functools.partial(_gather, mesh), variables, place_state(variables, mesh))


def _gather(mesh: Mesh, leaf: jax.Array, own: NamedSharding) -> jax.Array:
    if "fsdp" not in own.spec:
        return leaf
    without = PartitionSpec(*(None if axis == "fsdp" else axis for axis in own.spec))
    constrain = jax.lax.with_sharding_constraint

    @jax.custom_vjp
    def gathered(x: jax.Array) -> jax.Array:
        return constrain(x, NamedSharding(mesh, without))

    # By itself the gradient would be summed whole on every device, before each takes its part.
    gathered.defvjp(lambda x: (gathered(x), None), lambda _, gradient: (constrain(gradient, own),))
    return gathered(leaf)
