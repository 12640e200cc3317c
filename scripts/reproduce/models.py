"""Makes the table of docs/models.md: what every model of the zoo costs at its own clip.

    python scripts/reproduce/models.py > docs/models.md

Everything is counted, nothing is timed. Working memory is that of the compiled forward pass of one clip in float32, on
the machine at hand.
"""

import sys
from typing import Any

HEAD = """# Which model

`python scripts/reproduce/models.py > docs/models.md` makes this page: every model at its own clip, with 400 classes and
in float32. GMACs are what papers call GFLOPs. Weights and working memory are those of the forward pass of one clip, as
compiled for a CPU; cameras come first in the clip of `ts_cva`.

GMACs do not tell milliseconds: depthwise convolutions (X3D) and thin layers (SlowFast's fast pathway) take longer than
theirs. `python scripts/benchmark families` measures milliseconds on your machine. For a trained network,
`python scripts/evaluate.py RUN` gives milliseconds and accuracy at each frame count, and
`python scripts/predict.py --run RUN --budget-ms 20 VIDEO` takes the most frames that fit.

| model | clip | parameters, M | GMACs | weights, MB | working memory, MB |
|---|---:|---:|---:|---:|---:|
"""


def measure(name: str) -> tuple[str, float, float, float, float]:
    """Clip, millions of parameters, GMACs, megabytes of weights, and those that a forward pass works in."""
    import jax
    import jax.numpy as jnp

    import flaxvid
    from flaxvid.evaluate.cost import model_cost

    cameras = {"cameras": ("front", "left", "right")} if name == "ts_cva" else {}
    model = flaxvid.create_model(name, num_classes=400, **cameras)
    n, size = model.clip.num_frames, model.clip.image_size
    cost = model_cost(model, (1, n, size, size, 3))
    video: Any = model.for_cameras(jax.ShapeDtypeStruct((1, n, size, size, 3), jnp.uint8))
    shapes: Any = jax.eval_shape(model.init, jax.random.key(0), video)
    memory: Any = jax.jit(model.apply).lower(shapes, video).compile().memory_analysis()
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    clip = f"{len(model.cameras) or 1} x {n} x {size}" if model.cameras else f"{n} x {size}"
    return clip, cost.parameters / 1e6, cost.gflops, weights / 1e6, memory.temp_size_in_bytes / 1e6


def main() -> None:
    """Prints the page."""
    import flaxvid

    print(HEAD, end="")
    for name in flaxvid.list_models():
        print(name, file=sys.stderr)
        clip, parameters, gmacs, weights, memory = measure(name)
        print(f"| `{name}` | {clip} | {parameters:.2f} | {gmacs:.2f} | {weights:.0f} | {memory:.0f} |", flush=True)


if __name__ == "__main__":
    main()
