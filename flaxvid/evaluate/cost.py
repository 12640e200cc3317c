"""The cost of a model: multiply-adds and parameters, counted from its jaxpr without running or allocating it.

Our tables follow the papers' convention, in which "GFLOPs" are multiply-adds counted once (Frame Flexible Network,
arXiv 2303.14817: ResNet-50 at 4, 8 and 16 frames is 16.4, 32.8 and 65.5). Halve nothing, double nothing.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxvid.layers.conv import direct_form
from flaxvid.models.video_model import VideoModel
from flaxvid.types import Variables


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one forward pass takes: `macs` multiply-adds for the whole batch, and `parameters` trainable numbers."""

    macs: int
    parameters: int

    @property
    def gflops(self) -> float:
        """Giga multiply-adds, the unit that video papers print as GFLOPs."""
        return self.macs / 1e9


def count_macs(fn: Callable[..., Any], *args: Any) -> int:
    """Counts the multiply-adds of the convolutions and dot products that `fn(*args)` runs.

    Everything else (norms, activations, pooling, element-wise products) is left out, as in the papers' tables.
    Convolutions are traced in their direct form: the platform forms of `flaxvid.layers.Conv` are the same
    mathematics in other shapes, and a depthwise one made of shifted multiply-adds would count as nothing. Work on
    padding counts. Pass a fresh function: a `jax.jit` of an already traced one may answer from its cache.

    Args:
        fn: any traceable function.
        *args: its arguments, arrays or `jax.ShapeDtypeStruct`s; nothing is computed.

    Returns:
        Multiply-adds of one call. A `scan` counts length times, a `cond` by its dearest branch.

    Raises:
        ValueError: a `while_loop` whose number of turns the trace does not know holds convolutions or dots.
    """
    with direct_form():
        jaxpr = jax.make_jaxpr(lambda *a: fn(*a))(*args)
    return _jaxpr_macs(jaxpr.jaxpr)


def model_cost(model: nn.Module, video_shape: tuple[int, ...], variables: Variables | None = None) -> Cost:
    """Counts what `model.apply(variables, video)` costs at evaluation.

    Args:
        model: a video model; for a FrameFlexible one pass the plain model inside, whose cost it has at every count. One
            of several cameras is counted with all of them.
        video_shape: (b, t, h, w, c) of the clip; the count is for the whole batch, so use b = 1 for a clip.
        variables: arrays or shapes, where they differ from what `model.init` would make (a pruned model, say).

    Returns:
        The Cost; only shapes are evaluated, so the largest model costs no memory.
    """
    video: Any = jax.ShapeDtypeStruct(video_shape, jnp.float32)
    if isinstance(model, VideoModel):
        video = model.for_cameras(video)
    shapes: Any = jax.eval_shape(model.init, jax.random.key(0), video) if variables is None else variables
    trainable = [tree for name, tree in shapes.items() if name.startswith("params")]
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(trainable))
    return Cost(count_macs(model.apply, shapes, video), parameters)


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
        # The zeros that a transposed convolution puts between its inputs are not multiplied by anybody.
        return math.prod(out) * math.prod(kernel) // features // math.prod(params["lhs_dilation"])
    inner = [_jaxpr_macs(jaxpr) for jaxpr in _inner_jaxprs(params)]
    if name == "cond":
        return max(inner)
    if name == "scan":
        return params["length"] * sum(inner)
    if name == "while" and sum(inner):
        raise ValueError(
            "expected loops of known length, got a while_loop with convolutions or dots inside, whose turns cannot be "
            "counted: use jax.lax.scan, or jax.lax.fori_loop with constant bounds"
        )
    return sum(inner)


def _inner_jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    """Yields the jaxprs among an equation's parameters, whatever the primitive calls them."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                yield item
