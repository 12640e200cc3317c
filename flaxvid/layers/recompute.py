"""What the backward pass computes again, so that the forward pass need not keep it."""

from collections.abc import Callable
from typing import Any

import jax


def recomputed(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function; for its backward pass it keeps its arguments alone, and computes the rest again.

    The arguments pass a barrier there, or XLA would find that it has computed all this before, and keep it.
    `jax.checkpoint` has a barrier for the gradient, too, which XLA then writes to memory before the first use.

    Args:
        function: of arrays, without keywords; it must not close over what is differentiated.
    """

    @jax.custom_vjp
    def run(*arguments: Any) -> Any:
        return function(*arguments)

    def forward(*arguments: Any) -> Any:
        return function(*arguments), arguments

    def backward(arguments: Any, gradient: Any) -> Any:
        return jax.vjp(function, *jax.lax.optimization_barrier(arguments))[1](gradient)

    run.defvjp(forward, backward)
    return run
