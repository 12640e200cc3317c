"""Convolution and its CPU formulations, chosen where the program is lowered; and `direct_form`, which chooses none.

XLA's CPU backend runs 3-D, grouped, depthwise and 1x1 convolutions and their gradients many times slower than equal
programs of 2-D convolutions, dots and multiply-adds. `convolve` lowers to those on CPU and to the one convolution
everywhere else, a strided 1x1 one to that of a slice; only patches that do not overlap are one dot on every platform.
`direct_convolve` is always the one convolution.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

Pairs = tuple[tuple[int, int], ...]
Padding = int | Sequence[int] | Sequence[tuple[int, int]] | None

_direct_form = ContextVar("direct form", default=False)

_STRIPS = 16
"""How many strips of rows the gradient of a depthwise kernel adds up before it reduces them."""


@contextmanager
def direct_form() -> Iterator[None]:
    """Make every `Conv` traced inside one plain convolution, as ONNX export, int8 and cost counting must see it.

    Attention becomes its plain products, too. It acts while tracing: a function that was jitted and called before keeps
    its form, so trace a fresh one.
    """
    before = _direct_form.set(True)
    try:
        yield
    finally:
        _direct_form.reset(before)


def is_direct() -> bool:
    """Whether this is inside `direct_form`."""
    return _direct_form.get()


def per_axis(value: int | Sequence[Any], rank: int, what: str) -> tuple[Any, ...]:
    """One entry for each of `rank` spatial axes, from one integer for all or from a sequence.

    Raises:
        ValueError: the sequence has another length.
    """
    values = (value,) * rank if isinstance(value, int) else tuple(value)
    if len(values) != rank:
        raise ValueError(f"{what}: expected one integer or {rank} entries, one for each spatial axis, got {value!r}.")
    return values


def padding_pairs(padding: Padding, window: Sequence[int]) -> Pairs:
    """(before, after) for each spatial axis; None is torch's (k - 1) // 2 on both sides, which flax's 'SAME' is not.

    With an even input and stride 2, 'SAME' pads only after, so weights trained elsewhere see every pixel shifted.

    Raises:
        ValueError: a sequence of another length than the window, or a string.
    """
    entries = [(k - 1) // 2 for k in window] if padding is None else padding
    return tuple((p, p) if isinstance(p, int) else (p[0], p[1]) for p in per_axis(entries, len(window), "padding"))


def over_leading(f: Callable[[Array], Array], x: Float[Array, "*batch"], rank: int) -> Float[Array, "*batch"]:
    """Apply `f`, which wants one batch axis before `rank` trailing axes, to an array with any number of them."""
    lead = x.shape[: x.ndim - rank]
    y = f(x.reshape(-1, *x.shape[x.ndim - rank :]) if len(lead) != 1 else x)
    return y.reshape(*lead, *y.shape[1:]) if len(lead) != 1 else y


def direct_convolve(
    x: Float[Array, "*batch cin"],
    kernel: Float[Array, "*window cin_group cout"],
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = None,
    groups: int = 1,
) -> Float[Array, "*batch cout"]:
    """Channels-last convolution as one `lax.conv_general_dilated`, what `convolve` is in `direct_form`.

    Raises:
        ValueError: strides or padding do not fit the kernel.
    """
    return _apply(_direct, x, kernel, strides, padding, groups)


def convolve(
    x: Float[Array, "*batch cin"],
    kernel: Float[Array, "*window cin_group cout"],
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = None,
    groups: int = 1,
) -> Float[Array, "*batch cout"]:
    """`direct_convolve` in values and gradients, lowered to the fastest equal program of each platform.

    The rank of the kernel says how many axes before the channels are spatial; all axes before those are batch.

    Raises:
        ValueError: strides or padding do not fit the kernel.
    """
    return _apply(_direct if is_direct() else _by_platform, x, kernel, strides, padding, groups)


def _apply(form, x, kernel, strides, padding, groups):
    window = kernel.shape[:-2]
    strides, pads = per_axis(strides, len(window), "strides"), padding_pairs(padding, window)
    return over_leading(lambda x: form(x, kernel, strides, pads, groups), x, len(window) + 1)


def _direct(x, kernel, strides, pads, groups):
    spatial = "THW"[-len(strides) :]
    layout = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=layout, feature_group_count=groups)


def _by_platform(x, kernel, strides, pads, groups):
    form = _cpu_form(x.shape, kernel.shape, strides, pads, groups)
    if form in (_direct, _cells):  # cells are the one matrix product that is fast everywhere
        return form(x, kernel, strides, pads, groups)

    def fast(x, kernel):
        # Sums of products are float32 on every platform; the parts of a CPU form would round each of theirs to
        # bfloat16.
        exact = jnp.promote_types(x.dtype, jnp.float32)
        return form(x.astype(exact), kernel.astype(exact), strides, pads, groups).astype(x.dtype)

    def direct(x, kernel):
        return (_pointwise if form is _dot else _direct)(x, kernel, strides, pads, groups)

    # Without the checkpoints, each platform would save the other one's residuals, too (as zeros).
    fast, direct = (jax.checkpoint(branch, prevent_cse=False) for branch in (fast, direct))
    return lax.platform_dependent(x, kernel, cpu=fast, default=direct)


def _cpu_form(shape, kernel_shape, strides, pads, groups):
    *window, fan_in, features = kernel_shape
    if groups > 1:
        return _depthwise if fan_in == 1 and features == groups else _grouped
    if max(window) == 1:
        return _dot
    if tuple(strides) == tuple(window) and not any(map(any, pads)):
        return _cells
    if len(window) == 2:
        # XLA has no fast program, forward or backward, for maps smaller than the kernel: 10 to 30 times slower.
        sizes = zip(shape[1:], window, strides, pads, strict=False)
        return _patches if any((n + sum(p) - k) // s + 1 < k for n, k, s, p in sizes) else _direct
    if max(window[1:]) == 1:
        return _patches
    if window[0] == 1:
        return _frames
    return _joined if window[0] * fan_in <= features else _taps


def _on_cpu(x, kernel, strides, pads, groups):
    return _cpu_form(x.shape, kernel.shape, strides, pads, groups)(x, kernel, strides, pads, groups)


def _pad(x, pads):
    """Zero-pad the axes after the batch axis."""
    pads = ((0, 0), *pads, *((0, 0),) * (x.ndim - 1 - len(pads)))
    return jnp.pad(x, pads) if any(map(any, pads)) else x


def tap(x, offsets, window, strides):
    """What a kernel's tap at `offsets` sees of padded `x`: one strided slice, of the output's size."""
    ends = [o + n - k + 1 for o, n, k in zip(offsets, x.shape[1:], window, strict=False)]
    rest = x.shape[1 + len(ends) :]
    steps = (1, *strides[: len(ends)], *(1,) * len(rest))
    # Indexing would be a gather where the batch has no size yet, as in an export.
    return lax.slice(x, (0, *offsets[: len(ends)], *(0,) * len(rest)), (x.shape[0], *ends, *rest), steps)


def _product(x, kernel):
    """Channels times kernel as one plain matrix product: with batch axes, its kernel gradient takes twice the time."""
    flat = x.reshape(-1, x.shape[-1]) @ kernel.reshape(-1, kernel.shape[-1])
    return flat.reshape(*x.shape[:-1], -1)


def _dot(x, kernel, strides, pads, groups):
    """1x1: slice by the strides, then one matrix product."""
    x = tap(_pad(x, pads), (0,) * len(strides), kernel.shape[:-2], strides)
    return _product(x, kernel)


def _pointwise(x, kernel, strides, pads, groups):
    """1x1 as a convolution: slice by the strides first, for a strided one's gradient is mostly zeros, in memory."""
    ones = (1,) * len(strides)
    x = tap(_pad(x, pads), (0,) * len(strides), ones, strides)
    return _direct(x, kernel, ones, ((0, 0),) * len(strides), groups)


def _cells(x, kernel, strides, pads, groups):
    """Strides as wide as the kernel: the pixels of each cell on the channels, then one matrix product."""
    window = kernel.shape[:-2]
    counts = [n // k for n, k in zip(x.shape[1:], window, strict=False)]
    x = x[(slice(None), *(slice(count * k) for count, k in zip(counts, window, strict=True)))]
    x = x.reshape(-1, *(size for pair in zip(counts, window, strict=True) for size in pair), x.shape[-1])
    places, inside = range(1, 2 * len(window), 2), range(2, 2 * len(window) + 1, 2)
    x = x.transpose(0, *places, *inside, x.ndim - 1)
    return _product(x.reshape(-1, *counts, kernel[..., 0].size), kernel)


def _patches(x, kernel, strides, pads, groups):
    """kx1x1 and small maps: concatenate what each tap sees on the channels, then one matrix product."""
    x, window = _pad(x, pads), kernel.shape[:-2]
    return _product(jnp.concatenate([tap(x, at, window, strides) for at in np.ndindex(window)], -1), kernel)


def _frames(x, kernel, strides, pads, groups):
    """1xkxk: a 2-D convolution of every frame."""
    x = tap(_pad(x, pads[:1]), (0,), (1,), strides[:1])
    return over_leading(lambda x: _on_cpu(x, kernel[0], strides[1:], pads[1:], groups), x, 3)


def _joined(x, kernel, strides, pads, groups):
    """kxkxk on few channels, as in stems: the shifted frames side by side on them, then one 2-D convolution."""
    x, (depth, *plane, fan_in, features) = _pad(x, pads[:1]), kernel.shape
    x = jnp.concatenate([tap(x, (i,), (depth,), strides[:1]) for i in range(depth)], -1)
    kernel = jnp.moveaxis(kernel, 0, -3).reshape(1, *plane, depth * fan_in, features)
    return _frames(x, kernel, (1, *strides[1:]), ((0, 0), *pads[1:]), groups)


def _taps(x, kernel, strides, pads, groups):
    """kxkxk: the sum over the temporal taps of 2-D convolutions of the shifted frames."""
    x, window = _pad(x, pads[:1]), kernel.shape[:1]
    pads = ((0, 0), *pads[1:])
    return reduce(
        jnp.add,
        [
            _frames(tap(x, (i,), window, strides[:1]), kernel[i : i + 1], (1, *strides[1:]), pads, groups)
            for i in range(window[0])
        ],
    )


def _depthwise(x, kernel, strides, pads, groups):
    """Depthwise: the sum over all taps of the shifted input times the tap's weights."""
    return _sum_of_taps(_pad(x, pads), kernel, strides)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _sum_of_taps(x, kernel, strides):
    window = kernel.shape[:-2]
    return reduce(jnp.add, [tap(x, at, window, strides) * kernel[at][0] for at in np.ndindex(window)])


@_sum_of_taps.defjvp
def _sum_of_taps_jvp(strides, primals, tangents):
    """The tangents written so that their transposes are fast: a quarter of the time, a tenth of the memory."""
    (x, kernel), (dx, dkernel) = primals, tangents
    window, y = kernel.shape[:-2], _sum_of_taps(x, kernel, strides)
    taps = list(np.ndindex(window))

    # Every tap's product put in its place, then one strided slice: the transpose pads once, not for every tap.
    def place(product, at):
        edges = ((0, 0, 0), *((k - 1 - o, o, 0) for o, k in zip(at, window, strict=True)), (0, 0, 0))
        return lax.pad(product, jnp.zeros((), product.dtype), edges)

    cut = (slice(k - 1, k + (n - 1) * s, s) for k, n, s in zip(window, y.shape[1:], strides, strict=False))
    by_x = reduce(jnp.add, [place(dx * kernel[at][0], at) for at in taps])[(slice(None), *cut)]

    # One tap after the other, its weights spread over a strip of the rows, which is repeated: the transpose adds the
    # strips up, then reduces them by a dot. XLA would keep the whole products of all the taps for plain reductions.
    rows, columns = y.shape[-3:-1]
    ones = jnp.ones((*y.shape[:-3], -(-rows // _STRIPS), columns, 1), y.dtype)
    every = tuple(slice(None, None, s) for s in (1, *strides))
    size = (x.shape[0], *((n - 1) * s + 1 for n, s in zip(y.shape[1:], strides, strict=False)), x.shape[-1])

    @partial(jax.checkpoint, prevent_cse=False)
    def add(total, tap_of_kernel):
        at, weights = tap_of_kernel
        spread = jnp.concatenate([_product(ones, weights)] * _STRIPS, -3)[..., :rows, :, :]
        return total + lax.dynamic_slice(x, (0, *at, 0), size)[every] * spread, None

    by_kernel, _ = lax.scan(add, jnp.zeros_like(y), (jnp.array(taps), dkernel.reshape(-1, *dkernel.shape[-2:])))
    return y, by_x + by_kernel


def _grouped(x, kernel, strides, pads, groups):
    """Groups: one convolution each."""
    parts = zip(jnp.split(x, groups, -1), jnp.split(kernel, groups, -1), strict=True)
    return jnp.concatenate([_on_cpu(x, k, strides, pads, 1) for x, k in parts], -1)
