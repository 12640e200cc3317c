"""int8 in ONNX: what a layer reads is quantised where it is made, and dequantised right before the layer.

Runtimes know this form, QDQ, and compute such layers with whole numbers; weights are dequantised, too. What only moves
numbers, such as TSM's shift, lies between the two and moves whole ones.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from flaxvid.export.graph import Node, Value
from flaxvid.export.norms import needed

ROUND = "Round to steps"
"""In a graph at work: rounds a tensor, given the size of a step and the whole number that stands for 0."""

LAYOUT = {"Expand", "Reshape", "Transpose"}
"""Operators behind which numbers are quantised. OpenVINO would move such a one behind the dequantisation, and then
compute the layer in float."""

MOVES = {"Concat", "Gather", "MaxPool", "Pad", "Slice"}
"""Operators before which numbers are quantised: they choose among them, and it is the same before and behind."""

OUTPUTS = {"Conv": 0, "MatMul": -1}
"""The axis of the channels out of a kernel, the second input."""


def in_whole_numbers(nodes: Sequence[Node], outputs: Sequence[str]) -> list[Node]:
    """The nodes with one pair of QuantizeLinear and DequantizeLinear for each tensor that is rounded."""
    made = {node.output: node for node in nodes}
    whole: dict[Any, Value] = {}
    pairs: dict[Any, str] = {}
    kept: list[Node] = []

    def add(op: str, name: str, *inputs: Value, **attributes: Any) -> str:
        kept.append(Node(op, list(inputs), name, attributes, name))
        return name

    def rounding_of(value: Value) -> Node | None:
        """What has rounded a value, if anything has."""
        node = made.get(value) if isinstance(value, str) else None
        if node is not None and node.op in LAYOUT:
            return rounding_of(node.inputs[0])
        return node if node is not None and node.op == ROUND else None

    def in_steps(value: Value, step: np.ndarray, zero: np.ndarray) -> Value:
        """A value in whole numbers, quantised before all that only moves it."""
        if not isinstance(value, str):
            return np.clip(np.rint(value / step) + zero, 0, 255).astype(np.uint8)
        key = value, float(step), int(zero)
        if key not in whole:
            node, name = made.get(value), f"{value}/whole_{len(whole)}"
            if node is not None and node.op in MOVES:
                moved = {"Concat": range(len(node.inputs)), "Pad": (0, 2)}.get(node.op, (0,))
                inputs = [in_steps(x, step, zero) if place in moved else x for place, x in enumerate(node.inputs)]
                whole[key] = add(node.op, name, *inputs, **node.attributes)
            elif node is not None and node.op == ROUND and _steps(node) == (step, zero):
                whole[key] = in_steps(node.inputs[0], step, zero)
            else:
                rounding = rounding_of(value)
                alike = rounding is not None and _steps(rounding) == (step, zero)
                whole[key] = add("QuantizeLinear", name, value if alike else read(value), step, zero)
        return whole[key]

    def read(value: Value, user: Node | None = None) -> Value:
        """What a node reads instead of a value."""
        rounding = rounding_of(value)
        if rounding is None:
            return value
        steps = _steps(rounding)
        key = in_steps(value, *steps)
        if user is not None and _skips(user):
            key = add("Slice", f"{user.name}/places", key, *_places(user))
        if key not in pairs:
            pairs[key] = add("DequantizeLinear", f"{key}/read", key, *steps)
        return pairs[key]

    for node in nodes:
        if node.op == ROUND:
            continue
        first, *others = node.inputs
        inputs, attributes = [read(first, node), *map(read, others)], node.attributes
        if node.op in LAYOUT and (rounding := rounding_of(first)):
            inputs[0] = read(rounding.inputs[0]) if rounding.output == first else first
        if node.op in OUTPUTS and inputs[0] is not first:
            if isinstance(inputs[1], np.ndarray):
                kept.append(_packed(inputs[1], OUTPUTS[node.op], f"{node.name}/kernel"))
                inputs[1] = kept[-1].output
            if _skips(node):
                attributes = {**attributes, "strides": (1,) * len(attributes["strides"])}
        kept.append(dataclasses.replace(node, inputs=inputs, attributes=attributes))
    return needed(kept, outputs)


def _skips(node: Node) -> bool:
    """Whether a convolution reads only some places, each of them alone.

    OpenVINO would choose them before the rounding, and then not compute in whole numbers.
    """
    known = node.attributes
    return node.op == "Conv" and {*known["kernel_shape"]} == {1} != {*known["strides"]} and not any(known["pads"])


def _places(convolution: Node) -> tuple[np.ndarray, ...]:
    """The inputs of a Slice that chooses what a convolution with a kernel of one place reads."""
    strides = np.array(convolution.attributes["strides"])
    return 0 * strides, np.full_like(strides, np.iinfo(np.int64).max), np.arange(2, 2 + len(strides)), strides


def _steps(rounding: Node) -> tuple[np.ndarray, np.ndarray]:
    """The size of a step, and the number that stands for 0, without a sign: processors multiply that by int8."""
    _, step, zero = rounding.inputs
    return np.asarray(step, np.float32), np.asarray(zero + 128, np.uint8)


def _packed(kernel: np.ndarray, axis: int, name: str) -> Node:
    """Weights that were rounded for each channel out, as whole numbers. A norm may have scaled them since."""
    axis %= kernel.ndim
    others = tuple(other for other in range(kernel.ndim) if other != axis)
    largest = np.abs(kernel).max(axis=others, keepdims=True)
    steps = (np.where(largest, largest, 127) / 127).astype(np.float32)
    whole = np.rint(kernel / steps).astype(np.int8)
    inputs = [whole, steps.ravel(), np.zeros(steps.size, np.int8)]
    return Node("DequantizeLinear", inputs, name, {"axis": axis}, name)
