"""Makes the table of docs/models.md: what every model of the zoo costs at its own clip.

    python scripts/reproduce/models.py > docs/models.md

Working memory is that of the compiled forward pass of one clip in float32, on the machine at hand; the rest is counted.
With --times and files of `scripts/benchmark runtimes --json FILE` the table has their milliseconds, too.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

RUNTIMES = ("torch", "JAX", "onnxruntime", "openvino", "openvino int8")

HEAD = """# Choose a model

| you want | take |
|---|---|
| a first network on your own videos | `tsm_resnet50`, as `configs/ffn.py:folder` and `configs/tsm.py:folder` do |
| few multiply-adds | the X3Ds |
| [few or many frames, as it comes](frames.md) | any, as an FFN |
| [answers while a camera goes on](streams.md) | a TSM, trained as a causal one |
| [to learn from video without labels](pretrain.md) | a VideoMAE |
| [several cameras](cameras.md) | `ts_cva` |
| to start from Kinetics' weights | one that has [published weights](import.md#published-weights-by-name) |

`flaxvid.list_models()` gives the names, and `--list` the options of the network that a recipe has.

## What each costs

`scripts/reproduce/models.py` makes this page: every model at its own clip, with 400 classes and in float32. GMACs are
what papers call GFLOPs. Weights and working memory are those of the forward pass of one clip, as compiled for a CPU;
cameras come first in the clip of `ts_cva`.

GMACs do not tell milliseconds: depthwise convolutions (X3D) and thin layers (SlowFast's fast pathway) take longer than
theirs. `python scripts/benchmark runtimes MODEL` measures them on your machine, and [Speed](speed.md) has some.

{setup}| model | clip | parameters, M | GMACs | weights, MB | working memory, MB |{columns}
|---|---:|---:|---:|---:|---:|{lines}
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
    clip = f"{f'{len(model.cameras)} x ' * bool(model.cameras)}{n} x {size}"
    return clip, cost.parameters / 1e6, cost.gflops, weights / 1e6, memory.temp_size_in_bytes / 1e6


def describe(setup: dict[str, str], runtimes: list[str]) -> str:
    """The page's head."""
    packages = ", ".join(
        f"{name} {setup[name]}" for name in ("torch", "jax", "onnxruntime", "openvino") if name in setup
    )
    told = (
        f"Milliseconds for one clip on {setup['threads']} threads ({setup['processor']}; {packages}); models without "
        "them were not measured.\n\n"
        if runtimes
        else ""
    )
    columns = "".join(f" {runtime}, ms |" for runtime in runtimes)
    return HEAD.format(setup=told, columns=columns, lines="---:|" * len(runtimes))


def main() -> None:
    """Prints the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=Path, nargs="+", default=[], help="files of scripts/benchmark runtimes --json")
    args = parser.parse_args()
    import flaxvid

    times: list[dict[str, Any]] = [json.loads(file.read_text()) for file in args.times]
    setup = times[0]["setup"] if times else {}
    if strange := [str(file) for file, part in zip(args.times, times, strict=True) if part["setup"] != setup]:
        parser.error(f"expected files of one machine and its packages, got others in {', '.join(strange)}")
    rows = {name: row for part in times for name, row in part["rows"].items()}
    runtimes = [runtime for runtime in RUNTIMES if any(runtime in row for row in rows.values())]
    print(describe(setup, runtimes), end="")
    for name in flaxvid.list_models():
        print(name, file=sys.stderr)
        clip, parameters, gmacs, weights, memory = measure(name)
        spent = rows.get(f"{name}, {clip}", {})
        cells = "".join(
            f" {spent[runtime]:,.{int(spent[runtime] < 100)}f} |" if runtime in spent else " |" for runtime in runtimes
        )
        print(
            f"| `{name}` | {clip} | {parameters:.2f} | {gmacs:.2f} | {weights:.0f} | {memory:.0f} |{cells}", flush=True
        )


if __name__ == "__main__":
    main()
