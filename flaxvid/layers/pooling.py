"""Max-pooling over the trailing spatial axes with torch's numbers: symmetric padding, never 'SAME'."""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from flaxvid.layers.lowering import Padding, over_leading, padding_pairs, per_axis, tap


def max_pool(
    x: Float[Array, "*batch c"], window: Sequence[int], strides: int | Sequence[int] | None = None, padding: Padding = 0
) -> Float[Array, "*batch c"]:
    """Maximum over windows, padded with -inf; of equal maxima the first gets the whole gradient, as in torch.

    XLA's own gradient (select-and-scatter) is eight times slower on CPU, and a scatter on GPU: there it is a sum of
    strided slices.

    Args:
        x: channels last, any number of batch axes first.
        window: one size for each spatial axis, 2-D or 3-D.
        strides: one for all axes or one an axis; None is the window's sizes.
        padding: one for all axes, one an axis, or (before, after) pairs; None is (k - 1) // 2.

    Raises:
        ValueError: strides or padding do not fit the window.
    """
    window = tuple(window)
    strides = per_axis(window if strides is None else strides, len(window), "strides")
    pads = padding_pairs(padding, window)
    return over_leading(lambda x: _max_pool(x, window, strides, pads), x, len(window) + 1)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(x, window, strides, pads):
    return _windowed(x, window, strides, pads)


def _windowed(x, window, strides, pads):
    return nn.max_pool(x, window_shape=window, strides=strides, padding=pads)


def _forward(x, window, strides, pads):
    return _windowed(x, window, strides, pads), x


def _backward(window, strides, pads, x, gradient):
    def by_xla(x, gradient):
        return jax.vjp(lambda x: _windowed(x, window, strides, pads), x)[1](gradient)

    def by_taps(x, gradient):
        return (_spread(x.shape, gradient, _find_first(x, window, strides, pads), window, strides, pads),)

    return lax.platform_dependent(x, gradient, tpu=by_xla, default=by_taps)


def _find_first(x, window, strides, pads):
    """The number of the tap at which each window has its maximum; of equal ones the first."""
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-jnp.inf)
    taps = [tap(x, at, window, strides) for at in np.ndindex(window)]
    best, first = taps[0], jnp.zeros(taps[0].shape, np.min_scalar_type(len(taps)))
    for number, value in enumerate(taps[1:], start=1):
        first, best = jnp.where(value > best, first.dtype.type(number), first), jnp.maximum(value, best)
    return first


def _spread(shape, gradient, first, window, strides, pads):
    """The gradient at each input: the sum of what the taps that see it were given."""
    axes = list(zip(shape[1:], gradient.shape[1:], strides, pads, strict=False))
    total, zero = jnp.zeros(shape, gradient.dtype), jnp.zeros((), gradient.dtype)
    for number, at in enumerate(np.ndindex(window)):
        places = []
        for offset, (size, count, stride, (before, _)) in zip(at, axes, strict=True):
            start = offset - before
            places.append((start, size - start - (count - 1) * stride - 1, stride - 1))
        total += lax.pad(jnp.where(first == number, gradient, zero), zero, ((0, 0, 0), *places, (0, 0, 0)))
    return total


_max_pool.defvjp(_forward, _backward)
