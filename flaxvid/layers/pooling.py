"""Max-pooling over the trailing spatial axes with torch's numbers: symmetric padding, never 'SAME'."""

from collections.abc import Sequence
from functools import partial, reduce

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

    XLA's own gradient (select-and-scatter) is eight times slower on CPU, so there it goes through strided slices.

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


def _sliced(x, window, strides, pads):
    """The same maximum over strided slices; a later slice wins only if greater, so that the first maximum does."""
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-jnp.inf)
    return reduce(lambda a, b: jnp.where(b > a, b, a), [tap(x, i, window, strides) for i in np.ndindex(window)])


def _forward(x, window, strides, pads):
    return _windowed(x, window, strides, pads), x


def _backward(window, strides, pads, x, cotangent):
    def through(form):
        return lambda x, cotangent: jax.vjp(lambda x: form(x, window, strides, pads), x)[1](cotangent)

    return lax.platform_dependent(x, cotangent, cpu=through(_sliced), default=through(_windowed))


_max_pool.defvjp(_forward, _backward)
