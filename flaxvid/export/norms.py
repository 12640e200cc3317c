"""Folds the norms behind convolutions into their kernels, and leaves out what no output needs."""

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np

from flaxvid.export.graph import Node


def fold_norms(nodes: Sequence[Node], outputs: Sequence[str]) -> list[Node]:
    """The nodes, without those that scale and shift the channels of a convolution: its kernel and bias do it.

    This is exact but for rounding; kernels are computed in float64.
    """
    nodes = needed(nodes, outputs)
    made = {node.output: node for node in nodes}
    users = collections.Counter([*outputs, *(name for node in nodes for name in node.inputs if isinstance(name, str))])
    affine: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    kept = []
    for node in nodes:
        step = _step(node)
        conv = made.get(step[0]) if step else None
        if step is None or conv is None or conv.op != "Conv" or users[step[0]] > 1 or isinstance(conv.inputs[1], str):
            kept.append(node)
            continue
        _, gain, shift = step
        channels, rank = conv.inputs[1].shape[0], conv.inputs[1].ndim
        per_channel = [_per_channel(number, channels, rank) for number in (gain, shift)]
        if any(number is None for number in per_channel):
            kept.append(node)
            continue
        old_gain, old_shift = affine.pop(conv.output, (np.ones(channels), np.zeros(channels)))
        conv.output = node.output
        made[conv.output] = conv
        affine[conv.output] = (old_gain * per_channel[0], old_shift * per_channel[0] + per_channel[1])
    for name, (gain, shift) in affine.items():
        _, kernel, *bias = made[name].inputs
        shift = shift + gain * bias[0] if bias else shift
        scaled = (kernel * gain.reshape(-1, *(1,) * (kernel.ndim - 1))).astype(kernel.dtype)
        made[name].inputs[1:] = [scaled, shift.astype(kernel.dtype)]
    return kept


def needed(nodes: Sequence[Node], outputs: Sequence[str]) -> list[Node]:
    """The nodes that the outputs depend on."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if node.output in wanted:
            kept.append(node)
            wanted.update(name for name in node.inputs if isinstance(name, str))
    return kept[::-1]


def _step(node: Node) -> tuple[str, Any, Any] | None:
    """``x * gain + shift`` of a node that does that by constants: the name of x, gain and shift."""
    if node.op not in ("Add", "Sub", "Mul", "Div") or len({type(x) for x in node.inputs}) != 2:
        return None
    x, number = sorted(node.inputs, key=lambda value: isinstance(value, np.ndarray))
    one, zero, number = np.float64(1), np.float64(0), number.astype(np.float64)
    if node.op == "Add":
        return x, one, number
    if node.op == "Mul":
        return x, number, zero
    if node.op == "Sub":
        return (x, one, -number) if node.inputs[0] is x else (x, -one, number)
    return (x, 1 / number, zero) if node.inputs[0] is x else None


def _per_channel(number: np.ndarray, channels: int, rank: int) -> np.ndarray | None:
    """A constant as one number a channel of a convolution's output (b, c, ...); None if it varies elsewhere."""
    shape = (1,) * (rank - number.ndim) + number.shape
    if len(shape) != rank or any(size != 1 for axis, size in enumerate(shape) if axis != 1):
        return None
    return np.broadcast_to(number.ravel(), channels)
