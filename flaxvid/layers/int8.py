"""int8: convolutions and dense layers see their inputs and kernels rounded to 256 steps, as integer arithmetic does.

So are the shortcuts of residual sums, which programs would keep in float32 otherwise.

The steps of inputs are qwix's; those of kernels are our own, for a kernel that was written and read must be rounded as
before, to the last bit. The arithmetic behind it stays floating-point, so that it runs on any platform and trains: the
gradient passes through as if nothing was rounded (arXiv 1712.05877). Integer arithmetic is for exported networks.
"""

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float, Int8

KEPT = ("head", r".*/se", r".*/pool_\w+")
"""What stays in floating point where nobody says otherwise, as patterns of paths: the head, squeeze-and-excitation, and
pools that are convolutions. Norms, other pools and attention's products always do."""

DYNAMIC = "dynamic"
"""Instead of ranges: each clip has its own, its smallest and largest value, in all layers but those of `KEPT`. It is
for training, when ranges still move."""

Ranges = Mapping[str, tuple[float, float]]
"""The smallest and the largest input of each layer that is rounded, by its path: ``{"body/layer1_0/conv1": (0, 4.2)}``.
The shortcut of a residual sum goes by the path of the sum. They include 0."""


def is_kept(path: str, kept: Sequence[str] = KEPT) -> bool:
    """Whether a layer stays in floating point: one of the patterns matches its path, or that of what it lies in."""
    return any(re.fullmatch(f"(?:{pattern})(?:/.*)?", path) for pattern in kept)


def int8_form(ranges: Ranges | str | None) -> Any:
    """Rounds inputs and kernels inside; ranges of None round nothing.

    It acts while JAX traces.
    """
    if ranges is None:
        return nullcontext()

    def round_operands(path: str, x: Array, kernel: Array | None) -> tuple[Array, Array | None]:
        if is_kept(path) if isinstance(ranges, str) else path not in ranges:
            return x, kernel
        x = round_input(x, None if isinstance(ranges, str) else ranges[path])
        return x, None if kernel is None else round_kernel(kernel)

    return at_operands(round_operands)


@contextmanager
def at_operands(change: Any) -> Iterator[None]:
    """Inside, ``change(path, x, kernel)`` gives input and kernel of each `nn.Dense` and of what has `operands`.

    So it does for the shortcut of a `Sum`, with None for the kernel.
    """

    def intercept(call, args, kwargs, context):
        layer, path = context.module, "/".join(context.module.path)
        if context.method_name == "operands":
            return change(path, *call(*args, **kwargs))
        if context.method_name == "shortcut":
            return change(path, call(*args, **kwargs), None)[0]
        if type(layer) is nn.Dense and context.method_name == "__call__" and not layer.is_initializing():
            (x,) = args
            parameters = (layer.get_variable("params", name) for name in ("kernel", "bias"))
            x, kernel, bias = promote_dtype(x, *parameters, dtype=layer.dtype)
            x, kernel = change(path, x, kernel)
            y = x @ kernel
            return y if bias is None else y + bias
        return call(*args, **kwargs)

    with nn.intercept_methods(intercept):
        yield


def round_input(x: Float[Array, "b ..."], limits: tuple[float, float] | None = None) -> Float[Array, "b ..."]:
    """Rounds activations to 256 steps between two limits; what lies outside becomes a limit.

    Args:
        x: activations of clips.
        limits: the smallest and the largest value; None takes each clip's own.
    """
    if limits is None:
        qwix, exact = find_qwix(), x.astype(jnp.float32)  # a step in bfloat16 would be off by 0.4 %
        packed = qwix.quantize(exact, jnp.int8, channelwise_axes=(0,), calibration_method="minmax")
        return _straight(x, qwix.dequantize(packed))
    return round_to_steps(x, *find_steps(*limits))


@jax.jit
def round_to_steps(x: Float[Array, "b ..."], step: float, zero: float) -> Float[Array, "b ..."]:
    """Rounds to whole numbers of steps, from -128 to 127; `zero` stands for 0. Exports know this by its name."""
    whole = jnp.clip(jnp.rint(x.astype(jnp.float32) / step) + zero, -128, 127)
    return _straight(x, (whole - zero) * step)


@functools.cache
def find_steps(low: float, high: float) -> tuple[float, float]:
    """The size of a step between two limits, and which whole number stands for 0."""
    with jax.ensure_compile_time_eval():
        packed = find_qwix().quantize(jnp.zeros(1), jnp.int8, calibration_method=f"fixed,{low},{high}")
        return float(packed.scale[0]), 0.0 if packed.zero_point is None else float(packed.zero_point[0])


def round_kernel(kernel: Float[Array, "... c"]) -> Float[Array, "... c"]:
    """Rounds a kernel to 255 steps about 0, which each channel out has of its own. To do it again changes no bit."""
    whole, step = _in_steps(kernel)
    return _straight(kernel, whole * step)


def pack_kernel(kernel: Float[np.ndarray, "... c"]) -> tuple[Int8[np.ndarray, "... c"], Float[np.ndarray, " c"]]:
    """A kernel in whole numbers, and the size of a step for each channel out; their product is the rounded kernel."""
    whole, step = _in_steps(kernel)
    return np.asarray(whole, np.int8), np.asarray(step)


def _in_steps(kernel: Any) -> tuple[Float[Array, "... c"], Float[Array, " c"]]:
    """A kernel as whole numbers from -127 to 127, and the size of a step for each channel out.

    A step has 17 bits, so that its products with whole numbers are exact in float32, and the largest gives it back.
    """
    exact = jnp.asarray(kernel, jnp.float32)
    largest = jnp.abs(exact).max(axis=tuple(range(exact.ndim - 1)))
    step = jax.lax.reduce_precision(largest * np.float32(1 / 127), exponent_bits=8, mantissa_bits=16)
    step = jnp.where(step > 0, step, 1)
    return jnp.clip(jnp.rint(exact / step), -127, 127), step


def _straight(x: Array, rounded: Array) -> Array:
    """What was rounded, to the last bit; the gradient passes as if it was not."""
    return jax.lax.stop_gradient(rounded.astype(x.dtype)) + (x - jax.lax.stop_gradient(x))


@functools.cache
def find_qwix() -> Any:
    """The package qwix.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import qwix
    except ImportError as error:
        raise ImportError("int8 needs qwix, which is not installed: pip install 'flaxvid[int8]'") from error
    return qwix
