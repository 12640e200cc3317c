"""Recurrent layers for scripts/benchmark: LSTM against GRU, and each against torch's, bi-directional, one layer."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from timing import Rows, Timing, interleaved, print_rows, random, ready

from flaxvid.layers.recurrent import CELLS, Recurrent

try:
    import torch
except ModuleNotFoundError:
    torch = None


def compare_recurrent(batch: int, frames: int, hidden: int, timing: Timing) -> Rows:
    """Seconds, and MiB that XLA needs beside arguments and results."""
    rows: Rows = {}
    for channels in (512, 2048):
        x, memory = random(batch, frames, channels), {"forward": {}, "forward+backward": {}}
        runs = {"forward": {}, "forward+backward": {}}
        for cell in reversed(CELLS):
            layer = Recurrent(cell, hidden)
            variables = layer.init(jax.random.key(0), x)

            def loss(variables, x, layer=layer):
                outputs: Any = layer.apply(variables, x)
                return jnp.square(outputs).sum()

            for direction, run in (("forward", layer.apply), ("forward+backward", jax.grad(loss, argnums=(0, 1)))):
                compiled = jax.jit(run).lower(variables, x).compile()
                runs[direction][cell] = ready(compiled, variables, x)
                analysis: Any = compiled.memory_analysis()
                memory[direction][cell] = analysis.temp_size_in_bytes / 2**20
            if torch is not None:
                net = getattr(torch.nn, cell.upper())(channels, hidden, bidirectional=True, batch_first=True)
                video = torch.from_numpy(x).requires_grad_()
                runs["forward"][f"torch {cell}"] = functools.partial(_torch_forward, net, video)
                runs["forward+backward"][f"torch {cell}"] = functools.partial(_torch_backward, net, video)
        for direction, peers in runs.items():
            name = f"{frames} frames of {channels}, hidden {hidden}, batch {batch}, {direction}"
            seconds = interleaved(peers, timing, seconds=20)
            rows[f"{name}, seconds"] = {cell: seconds[cell] for cell in memory[direction]}
            rows[f"{name}, MiB"] = memory[direction]
            for cell in CELLS if torch is not None else ():
                rows[f"{name}, {cell}, seconds"] = {"flaxvid": seconds[cell], "torch": seconds[f"torch {cell}"]}
    print_rows(rows)
    return rows


def _torch_forward(net: Any, x: Any) -> None:
    with torch.inference_mode():  # pyright: ignore[reportOptionalMemberAccess]
        net(x)


def _torch_backward(net: Any, x: Any) -> None:
    net.zero_grad(set_to_none=True)
    net(x)[0].square().sum().backward()
