"""Makes the table of divided parameters: VideoMAE-S on eight fake devices of a CPU, against one device.

    python scripts/reproduce/sharding.py [--steps 3]

Every layout takes the same steps of SGD with momentum on the same 16 clips. The network has its full size, the clips
are small: 4 frames of 64 pixels. Bytes are of the full network with AdamW, whatever the clips.
"""

import argparse
import collections
import functools
import math
import os
import re
import sys
from typing import Any

LAYOUTS = {"data": (1, 1), "fsdp": (8, 1), "tensor": (1, 2), "fsdp and tensor": (4, 2)}
"""Name: `fsdp` and `tensor` of the recipe. What they leave of the eight devices divides the batch."""

COLLECTIVES = r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("


def count_bytes(tree: Any, mesh: Any) -> int:
    """The bytes of a tree that one device keeps."""
    import jax

    from flaxvid.train.sharding import place_state

    def own(leaf: Any, sharding: Any) -> int:
        return math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize

    return sum(jax.tree.leaves(jax.tree.map(own, tree, place_state(tree, mesh))))


def train(mesh: Any, steps: int) -> dict[str, Any]:
    """Trains on a mesh: losses, parameters before and after, bytes a device, and the program's collectives."""
    import jax
    import numpy as np

    from flaxvid.models.registry import create_model
    from flaxvid.tasks.supervised import SupervisedRecipe
    from flaxvid.train.mesh import put_batch
    from flaxvid.train.optimizer import make_optimizer
    from flaxvid.train.recipe import OptimizerRecipe
    from flaxvid.train.sharding import place_state
    from flaxvid.train.state import create_state
    from flaxvid.train.step import jit_step, train_step

    model = create_model("videomae_small", num_frames=4, image_size=64)
    task = SupervisedRecipe((4,)).make(model)
    optimizer = make_optimizer(OptimizerRecipe("sgd", momentum=0.9))
    key, rng = jax.random.key(0), np.random.default_rng(0)
    video = rng.integers(0, 256, (16, 4, 64, 64, 3), np.uint8)
    batch = put_batch({"video": {4: video}, "label": rng.integers(0, 400, 16, np.int32)}, mesh)
    state = create_state(task.init(key), optimizer)
    start = jax.device_get(state.variables["params"])
    state = jax.device_put(state, place_state(state, mesh))
    step = jit_step(functools.partial(train_step, task=task, optimizer=optimizer, mesh=mesh), mesh, state)
    rate, losses = np.float32(0.01), []
    compiled = step.lower(state, batch, key, rate).compile()
    for _ in range(steps):
        state, metrics = compiled(state, batch, key, rate)
        losses.append(float(metrics["loss"]))
    adam = jax.eval_shape(make_optimizer(OptimizerRecipe("adamw")).init, state.variables)
    return {
        "losses": losses,
        "start": start,
        "params": jax.device_get(state.variables["params"]),
        "parameter bytes": count_bytes(state.variables, mesh),
        "optimizer bytes": count_bytes(adam, mesh),
        "collectives": collections.Counter(re.findall(COLLECTIVES, compiled.as_text())),
    }


def compare(many: dict[str, Any], one: dict[str, Any]) -> tuple[float, float]:
    """The largest differences: of a loss, over the loss; of a parameter, over the furthest that its array has moved."""
    import jax
    import numpy as np

    loss = max(abs(a - b) / abs(b) for a, b in zip(many["losses"], one["losses"], strict=True))
    moved = jax.tree.map(
        lambda a, b, c: np.abs(a - b).max() / np.abs(b - c).max(), *(many["params"], one["params"], one["start"])
    )
    return loss, float(max(jax.tree.leaves(moved)))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3, help="training steps (default 3)")
    steps = parser.parse_args().steps
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    import jax
    import numpy as np
    from jax.sharding import Mesh

    from flaxvid.train.mesh import make_mesh
    from flaxvid.train.step import enable_compilation_cache

    enable_compilation_cache()
    print("one device", file=sys.stderr)
    one = train(Mesh(np.asarray(jax.devices()[:1]), ("data",)), steps)
    print("| layout | loss | parameters | parameters, MB | AdamW's state, MB | collectives of a step |")
    print("|---|---:|---:|---:|---:|---|")
    for name, (fsdp, tensor) in LAYOUTS.items():
        many = train(make_mesh(fsdp, tensor), steps)
        loss, moved = compare(many, one)
        sizes = " | ".join(f"{many[kind] / 1e6:.1f}" for kind in ("parameter bytes", "optimizer bytes"))
        told = ", ".join(f"{count} {kind}" for kind, count in sorted(many["collectives"].items()))
        print(f"| {name}: fsdp={fsdp}, tensor={tensor} | {loss:.1e} | {moved:.1e} | {sizes} | {told} |", flush=True)


if __name__ == "__main__":
    main()
