"""What a clip costs: multiply-adds and parameters, counted from the jaxpr; and time, measured.

Video papers call multiply-adds "GFLOPs", and so do our tables: ResNet-50 at 4, 8 and 16 frames has 16.4, 32.8 and 65.5
(arXiv 2303.14817).
"""

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxvid.evaluate.runtimes import Program
from flaxvid.layers.lowering import direct_form
from flaxvid.models.video_model import VideoModel
from flaxvid.types import Variables


@dataclasses.dataclass(frozen=True)
class Cost:
    """Multiply-adds (`macs`) of one forward pass for the whole batch, and the number of trainable `parameters`."""

    macs: int
    parameters: int

    @property
    def gflops(self) -> float:
        """Giga multiply-adds, the unit that video papers print as GFLOPs."""
        return self.macs / 1e9


def count_macs(fn: Callable[..., Any], *args: Any) -> int:
    """Counts the multiply-adds of the convolutions and dot products of `fn(*args)`.

    Norms, activations, pooling and element-wise products do not count, as in the papers' tables; work on padding does.
    Convolutions are traced in their direct form: in shifted multiply-adds a depthwise one would count as nothing. Trap:
    a `jax.jit` that was traced before may answer from its cache; pass a fresh function.

    Args:
        fn: any traceable function.
        *args: its arguments, arrays or `jax.ShapeDtypeStruct`s; nothing is computed.

    Returns:
        Multiply-adds of one call. A `scan` counts length times, a `cond` by its dearest branch.

    Raises:
        ValueError: a `while_loop` of unknown length holds convolutions or dots.
    """
    with direct_form():
        jaxpr = jax.make_jaxpr(lambda *a: fn(*a))(*args)
    return _jaxpr_macs(jaxpr.jaxpr)


def model_cost(model: nn.Module, video_shape: tuple[int, ...], variables: Variables | None = None) -> Cost:
    """Counts what `model.apply(variables, video)` costs; it evaluates shapes only, so it takes no memory.

    Args:
        model: a video model, with all of its cameras; of `FrameFlexible` the model inside.
        video_shape: (b, t, h, w, c); b = 1 for the cost of a clip.
        variables: arrays or shapes, if they differ from those of `model.init`, as of a pruned model.
    """
    video: Any = jax.ShapeDtypeStruct(video_shape, jnp.float32)
    if isinstance(model, VideoModel):
        video = model.for_cameras(video)
    shapes: Any = jax.eval_shape(model.init, jax.random.key(0), video) if variables is None else variables
    trainable = [tree for name, tree in shapes.items() if name.startswith("params")]
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(trainable))
    return Cost(count_macs(model.apply, shapes, video), parameters)


def clip_milliseconds(
    model: VideoModel, variables: Variables | Program, num_frames: int, image_size: int, repeats: int = 9
) -> float:
    """Measures the time from one uint8 clip in host memory to its logits: the median of `repeats` runs.

    Decoding, compilation and a first run are not in it.

    Args:
        model: the ordinary model.
        variables: its ordinary variables for this frame count, or its exported program.
        num_frames: frames of the clip.
        image_size: height and width of the clip, pixels.
        repeats: the number of runs; on a busy machine some are slow.
    """
    clip = np.random.default_rng(0).integers(0, 256, (1, num_frames, image_size, image_size, 3), np.uint8)
    video = model.for_cameras(clip)
    if callable(variables):
        run = functools.partial(variables, video)
    else:
        variables = jax.device_put(variables)
        run = functools.partial(jax.jit(model.apply).lower(variables, video).compile(), variables, video)
    jax.block_until_ready(run())
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - begin)
    return 1000 * statistics.median(times)


def largest_within(
    budget: float, frames: Sequence[int], milliseconds: Callable[[int], float]
) -> tuple[int, dict[int, float]]:
    """Finds the largest frame count within a budget, by bisection.

    Args:
        budget: milliseconds a clip.
        frames: the counts to choose from.
        milliseconds: measures a count; must grow with it.

    Returns:
        The count, and what was measured.

    Raises:
        ValueError: the smallest count takes longer.
    """
    counts, measured = sorted(set(frames)), {}
    low, high = 0, len(counts)  # counts[:low] fit, counts[high:] do not
    while low < high:
        middle = (low + high) // 2
        measured[counts[middle]] = milliseconds(counts[middle])
        if measured[counts[middle]] <= budget:
            low = middle + 1
        else:
            high = middle
    if not low:
        raise ValueError(
            f"expected a frame count of {', '.join(map(str, counts))} within {budget:g} ms a clip, got "
            f"{measured[counts[0]]:.3g} ms at {counts[0]}: allow more, or offer fewer frames"
        )
    return counts[low - 1], measured


def _jaxpr_macs(jaxpr: Any) -> int:
    return sum(_equation_macs(equation) for equation in jaxpr.eqns)


def _equation_macs(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        lhs, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
        return math.prod(out) * math.prod(lhs[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel, out = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
        features = kernel[params["dimension_numbers"].rhs_spec[0]]
        # A transposed convolution puts zeros between its inputs, which cost nothing.
        return math.prod(out) * math.prod(kernel) // features // math.prod(params["lhs_dilation"])
    inner = [_jaxpr_macs(jaxpr) for jaxpr in _inner_jaxprs(params)]
    if name == "cond":
        return max(inner)
    if name == "scan":
        return params["length"] * sum(inner)
    if name == "while" and sum(inner):
        raise ValueError(
            "expected loops of known length, got a while_loop with convolutions or dots inside: use jax.lax.scan, or "
            "jax.lax.fori_loop with constant bounds"
        )
    return sum(inner)


def _inner_jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    """Yields the jaxprs among an equation's parameters, whatever the primitive calls them."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                yield item
