"""LSTM (Hochreiter and Schmidhuber, 1997) and GRU (arXiv 1406.1078) over time, with torch's weights and numbers.

The product with the input is one matrix product for all frames and both directions. The loop over time holds the rest,
the product with the state; both directions run in one loop, the backward one from the last frame to the first.
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

State = tuple[Float[Array, "d b h"], ...]
"""What a cell hands on to the next frame: its output, and an LSTM's memory; `d` are the directions."""


def lstm_step(state: State, inputs: Float[Array, "d b 4*h"], hidden: Float[Array, "d b 4*h"]) -> State:
    """One step of an LSTM. `inputs` and `hidden` are the products of input and state, in torch's order of gates."""
    write, forget, new, show = jnp.split(inputs + hidden, 4, axis=-1)
    memory = nn.sigmoid(forget) * state[1] + nn.sigmoid(write) * jnp.tanh(new)
    return nn.sigmoid(show) * jnp.tanh(memory), memory


def gru_step(state: State, inputs: Float[Array, "d b 3*h"], hidden: Float[Array, "d b 3*h"]) -> State:
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
        directions = ("forward", "backward") if self.bidirectional else ("forward",)
        mask = fit_mask(frame_mask, x.shape[1])
        if mask is not None:
            mask = _turn(jnp.stack([mask.T] * len(directions), axis=1))[..., None]  # (t, d, b, 1)
        x = rearrange(x, "b t c -> t b c")
        for layer in range(self.num_layers):
            if layer:
                x = nn.Dropout(self.dropout)(x, deterministic=not train)
            make = functools.partial(Gates, self.hidden, CELLS[self.cell].gates)
            inputs = [make(name=f"{direction}_{layer}_input")(x.shape[-1]) for direction in directions]
            hidden = [make(name=f"{direction}_{layer}_hidden")(self.hidden) for direction in directions]
            kernel, bias = (jnp.concatenate(parts, axis=-1) for parts in zip(*inputs, strict=True))
            x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
            products = jnp.matmul(x, kernel, preferred_element_type=jnp.float32) + bias
            products = _turn(rearrange(products, "t b (d g) -> t d b g", d=len(directions)))
            kernel, bias = (jnp.stack(parts) for parts in zip(*hidden, strict=True))
            x = _turn(_run(self.cell, kernel.astype(self.dtype), bias, products, mask))
            x = rearrange(x, "t d b h -> t b (d h)")
        return rearrange(x, "t b h -> b t h")


def _turn(x: Array) -> Array:
    """(t, d, ...) with the second direction, if there is one, in the order of its steps; its own inverse."""
    return jnp.concatenate([x[:, :1], x[::-1, 1:]], axis=1)


def _scan(
    cell: str,
    kernel: Float[Array, "d h g"],
    bias: Float[Array, "d g"],
    inputs: Float[Array, "t d b g"],
    mask: Bool[Array, "t d b 1"] | None,
    extra: Float[Array, "t d b g"] | None = None,
) -> Float[Array, "t d b h"]:
    """The outputs of all steps, directions in the order of their steps; `extra` is added to the state's product."""

    def step(state: State, now: tuple[Array, Array | None, Array | None]) -> tuple[State, Array]:
        inputs, mask, extra = now
        product = jnp.einsum("dbh,dhg->dbg", state[0].astype(kernel.dtype), kernel, preferred_element_type=jnp.float32)
        product = product + bias[:, None] + (0 if extra is None else extra)
        new = CELLS[cell].step(state, inputs, product)
        if mask is not None:
            new = tuple(jnp.where(mask, after, before) for after, before in zip(new, state, strict=True))
        return new, new[0]

    start = jnp.zeros((*inputs.shape[1:3], kernel.shape[1]), jnp.float32)
    return jax.lax.scan(step, (start,) * CELLS[cell].states, (inputs, mask, extra))[1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(
    cell: str,
    kernel: Float[Array, "d h g"],
    bias: Float[Array, "d g"],
    inputs: Float[Array, "t d b g"],
    mask: Bool[Array, "t d b 1"] | None,
) -> Float[Array, "t d b h"]:
    """`_scan`, whose kernel's gradient is one matrix product behind the loop; JAX's own adds one to it in every step,
    which on a CPU takes a third of the backward pass."""
    return _scan(cell, kernel, bias, inputs, mask)


def _forward(cell: str, kernel: Array, bias: Array, inputs: Array, mask: Array | None) -> tuple[Array, Any]:
    scan = functools.partial(_scan, cell, kernel, bias, mask=mask)
    outputs, backward = jax.vjp(lambda inputs, extra: scan(inputs, extra=extra), inputs, jnp.zeros_like(inputs))
    return outputs, (kernel, outputs, backward)


def _backward(cell: str, residuals: Any, gradient: Array) -> tuple[Array, Array, Array, None]:
    kernel, outputs, backward = residuals
    inputs, products = backward(gradient)
    before = jnp.pad(outputs[:-1], ((1, 0), (0, 0), (0, 0), (0, 0)))
    kernel = jnp.einsum("tdbh,tdbg->dhg", *promote_dtype(before, products, dtype=kernel.dtype))
    return kernel, products.sum(axis=(0, 2)), inputs, None


_run.defvjp(_forward, _backward)
