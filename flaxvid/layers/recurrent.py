"""LSTM (Hochreiter and Schmidhuber, 1997) and GRU (arXiv 1406.1078) over time, with torch's weights and numbers.

The product with the input is one matrix product for all frames. The loop over time, one for each direction, holds the
rest: the product with the state.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Bool, Float

from flaxvid.layers.blocks import FrameMask, fit_mask

State = tuple[Float[Array, "b h"], ...]
"""What a cell hands on to the next frame: its output, and an LSTM's memory."""


def lstm_step(state: State, inputs: Float[Array, "b 4*h"], hidden: Float[Array, "b 4*h"]) -> State:
    """One step of an LSTM. `inputs` and `hidden` are the products of input and state, in torch's order of gates."""
    write, forget, new, show = jnp.split(inputs + hidden, 4, axis=-1)
    memory = nn.sigmoid(forget) * state[1] + nn.sigmoid(write) * jnp.tanh(new)
    return nn.sigmoid(show) * jnp.tanh(memory), memory


def gru_step(state: State, inputs: Float[Array, "b 3*h"], hidden: Float[Array, "b 3*h"]) -> State:
    """One step of a GRU. As in torch, the reset gate multiplies the state's product, its bias included; in the paper
    it multiplies the state before the product."""
    reset, update, new = jnp.split(inputs, 3, axis=-1)
    hidden_reset, hidden_update, hidden_new = jnp.split(hidden, 3, axis=-1)
    new = jnp.tanh(new + nn.sigmoid(reset + hidden_reset) * hidden_new)
    return (new + nn.sigmoid(update + hidden_update) * (state[0] - new),)


class Cell(NamedTuple):
    """A kind of cell."""

    gates: int
    states: int
    step: Callable[[State, Array, Array], State]


CELLS = {"lstm": Cell(4, 2, lstm_step), "gru": Cell(3, 1, gru_step)}


class Gates(nn.Module):
    """The weights of one product of a cell, gates side by side as torch packs them; they start as torch's do.

    Attributes:
        hidden: size of the cell's output.
        count: number of gates.
    """

    hidden: int
    count: int

    @nn.compact
    def __call__(self, channels: int) -> tuple[Float[Array, "c g"], Float[Array, "g"]]:
        """Kernel and bias for so many input channels."""
        bound = self.hidden**-0.5
        init = functools.partial(jax.random.uniform, minval=-bound, maxval=bound)
        features = self.count * self.hidden
        return self.param("kernel", init, (channels, features)), self.param("bias", init, (features,))


class Recurrent(nn.Module):
    """Layers of LSTM or GRU cells over time, torch's `nn.LSTM` and `nn.GRU`.

    A padded frame leaves the state as it is, so the backward direction starts at each clip's own last frame. The output
    of a padded frame is the state at that time, where torch's packed sequences have zeros: "forward" at the last frame
    and "backward" at the first one have seen the whole clip, whatever the padding.

    Attributes:
        cell: "lstm" or "gru".
        hidden: size of the output of each direction.
        num_layers: of cells; each sees what the one before gives.
        bidirectional: run from both ends; the outputs stand side by side, forward first.
        dropout: rate between layers in training; needs a "dropout" key.
        dtype: of the matrix products; gates and states are float32.
    """

    cell: str
    hidden: int
    num_layers: int = 1
    bidirectional: bool = True
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t c"], train: bool = False, frame_mask: FrameMask = None
    ) -> Float[Array, "b t h"]:
        """Features of frames to outputs, in float32; `frame_mask` is the clip's."""
        mask = fit_mask(frame_mask, x.shape[1])
        mask = None if mask is None else mask.T[..., None]  # (t, b, 1)
        x = rearrange(x, "b t c -> t b c")
        make = functools.partial(Gates, self.hidden, CELLS[self.cell].gates)
        for layer in range(self.num_layers):
            if layer:
                x = nn.Dropout(self.dropout)(x, deterministic=not train)
            outputs = []
            for direction in ("forward", "backward") if self.bidirectional else ("forward",):
                kernel, bias = make(name=f"{direction}_{layer}_input")(x.shape[-1])
                inputs = jnp.matmul(*promote_dtype(x, kernel, dtype=self.dtype), preferred_element_type=jnp.float32)
                kernel, hidden_bias = make(name=f"{direction}_{layer}_hidden")(self.hidden)
                kernel = kernel.astype(self.dtype)
                outputs.append(_run(self.cell, direction == "backward", kernel, hidden_bias, inputs + bias, mask))
            x = jnp.concatenate(outputs, axis=-1)
        return rearrange(x, "t b h -> b t h")


def _step(
    cell: str, mask: Bool[Array, "b 1"] | None, state: State, inputs: Float[Array, "b g"], hidden: Float[Array, "b g"]
) -> State:
    """One step of a cell; where `mask` is False the state stays."""
    new = CELLS[cell].step(state, inputs, hidden)
    if mask is None:
        return new
    return tuple(jnp.where(mask, after, before) for after, before in zip(new, state, strict=True))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _run(
    cell: str,
    reverse: bool,
    kernel: Float[Array, "h g"],
    bias: Float[Array, "g"],
    inputs: Float[Array, "t b g"],
    mask: Bool[Array, "t b 1"] | None,
) -> Float[Array, "t b h"]:
    """The outputs of all steps; `reverse` starts at the last.

    JAX's own gradient adds a product to the kernel's in every step, and reads the kernel against its layout. This one
    has a single product behind the loop and a transposed kernel in front of it. On a CPU that saves a third.
    """
    return _forward(cell, reverse, kernel, bias, inputs, mask)[0]


def _forward(
    cell: str, reverse: bool, kernel: Array, bias: Array, inputs: Array, mask: Array | None
) -> tuple[Array, Any]:
    def step(state: State, now: tuple[Array, Array | None]) -> tuple[State, Any]:
        inputs, mask = now
        hidden = jnp.matmul(state[0].astype(kernel.dtype), kernel, preferred_element_type=jnp.float32) + bias
        new = _step(cell, mask, state, inputs, hidden)
        return new, (new[0], state, hidden)

    start = jnp.zeros((inputs.shape[1], kernel.shape[0]), jnp.float32)
    _, (outputs, states, hidden) = jax.lax.scan(step, (start,) * CELLS[cell].states, (inputs, mask), reverse=reverse)
    return outputs, (kernel, mask, states, inputs, hidden)


def _backward(cell: str, reverse: bool, residuals: Any, gradient: Array) -> tuple[Array, Array, Array, None]:
    kernel, mask, states, inputs, hidden = residuals
    transposed = kernel.T

    def step(after: State, now: Any) -> tuple[State, tuple[Array, Array]]:
        gradient, mask, *arguments = now
        _, pull = jax.vjp(functools.partial(_step, cell, mask), *arguments)
        before, inputs, hidden = pull((after[0] + gradient, *after[1:]))
        product = jnp.matmul(hidden.astype(kernel.dtype), transposed, preferred_element_type=jnp.float32)
        return (before[0] + product, *before[1:]), (inputs, hidden)

    end = tuple(jnp.zeros_like(state[0]) for state in states)
    _, (inputs, hidden) = jax.lax.scan(step, end, (gradient, mask, states, inputs, hidden), reverse=not reverse)
    kernel = jnp.einsum("tbh,tbg->hg", *promote_dtype(states[0], hidden, dtype=kernel.dtype))
    return kernel, hidden.sum(axis=(0, 1)), inputs, None


_run.defvjp(_forward, _backward)
