"""int8 in ONNX: what a layer reads is quantised and dequantised before it, and so are its weights.

Runtimes know this form, QDQ, and compute such layers with whole numbers.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from flaxvid.export.graph import Node

ROUND = "Round to steps"
"""In a graph at work: rounds a tensor, given the size of a step and the whole number that stands for 0."""

LAYOUT = {"Expand", "Reshape", "Transpose"}
"""Operators that only move numbers, so that they can be rounded behind them."""

OUTPUTS = {"Conv": 0, "MatMul": -1}
"""The axis of the channels out of a kernel, the second input."""


def in_whole_numbers(nodes: Sequence[Node]) -> list[Node]:
    """The nodes with a pair of QuantizeLinear and DequantizeLinear for each rounding, right before what reads it."""
    roundings: dict[Any, Node] = {}
    pairs: dict[Any, str] = {}
    kept: list[Node] = []

    def read(value: Any, user: Node) -> Any:
        """What a node reads instead of a value."""
        rounding = roundings.get(value) if isinstance(value, str) else None
        if rounding is None:
            return value
        x, step, zero = rounding.inputs
        exact = x if value == rounding.output else value
        if user.op in LAYOUT:
            return exact
        if (exact, rounding.output) not in pairs:
            name = f"{user.name}/input"
            # Without a sign: processors multiply that by int8.
            how = np.float32(step), np.asarray(zero + 128, np.uint8)
            kept.append(Node("QuantizeLinear", [exact, *how], f"{name}/whole", {}, f"{name}/whole"))
            kept.append(Node("DequantizeLinear", [f"{name}/whole", *how], name, {}, name))
            pairs[exact, rounding.output] = name
        return pairs[exact, rounding.output]

    for node in nodes:
        if node.op == ROUND:
            roundings[node.output] = node
            continue
        first = node.inputs[0]
        if node.op in LAYOUT and isinstance(first, str) and first in roundings:
            roundings[node.output] = roundings[first]
        inputs = [read(value, node) for value in node.inputs]
        if node.op in OUTPUTS and inputs[0] != node.inputs[0] and isinstance(inputs[1], np.ndarray):
            kept.append(_packed(inputs[1], OUTPUTS[node.op], f"{node.name}/kernel"))
            inputs[1] = kept[-1].output
        node.inputs = inputs
        kept.append(node)
    return kept


def _packed(kernel: np.ndarray, axis: int, name: str) -> Node:
    """Weights that were rounded for each channel out, as whole numbers. A norm may have scaled them since."""
    axis %= kernel.ndim
    others = tuple(other for other in range(kernel.ndim) if other != axis)
    largest = np.abs(kernel).max(axis=others, keepdims=True)
    steps = (np.where(largest, largest, 127) / 127).astype(np.float32)
    whole = np.rint(kernel / steps).astype(np.int8)
    inputs = [whole, steps.ravel(), np.zeros(steps.size, np.int8)]
    return Node("DequantizeLinear", inputs, name, {"axis": axis}, name)
