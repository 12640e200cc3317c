"""Builds an ONNX graph node by node, in the layouts that its operators want."""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from onnx import helper
from onnx.reference import ReferenceEvaluator

from flaxvid.export.tensors import Axis, Factor, Tensor, axis_of, flat, match_factors, merge_axes, reshape_axes

MOST_DIMS = 6
"""Dims of a tensor to calculate with, element by element. OpenVINO 2026.4 adds tensors of 7 wrongly."""

Value = str | np.ndarray
"""The name of a tensor, or a constant."""


@dataclasses.dataclass(eq=False)
class Node:
    """One operator with one output; its name tells the layer that it belongs to."""

    op: str
    inputs: list[Any]
    output: str
    attributes: dict[str, Any]
    name: str


class Graph:
    """The nodes so far. Equal nodes are made once.

    Attributes:
        nodes: each behind those that it needs.
        scope: the layer that the next nodes belong to; their names begin with it.
        cuts: of a cut along one axis the tensor before it, and the axis with the part, by name.
        counts: how many numbers each number of a reduction is made of, by name.
    """

    def __init__(self, batch: Any, batch_of: str):
        """Starts an empty graph.

        Args:
            batch: the size of the batch, which JAX does not know.
            batch_of: name of an input; its first axis is the batch.
        """
        self.nodes: list[Node] = []
        self.scope = ""
        self.counts: dict[str, int] = {}
        self.cuts: dict[Any, tuple[Tensor, tuple[int, tuple[int, int, int]]]] = {}
        self._batch, self._batch_of = batch, batch_of
        self._made: dict[Any, Node] = {}
        self._by_output: dict[str, Node] = {}

    def node(self, op: str, *inputs: Value, **attributes: Any) -> Any:
        """Adds a node and returns the name of its output; if all inputs are known, no node but what it gives."""
        if not any(isinstance(value, str) for value in inputs):
            return _compute(op, inputs, attributes)
        key = (op, *map(_identity, inputs), *sorted(attributes.items()))
        if key not in self._made:
            layer = re.sub("[^0-9A-Za-z_/]", "_", self.scope) or "main"
            name = f"{layer}/{op}_{len(self.nodes)}"
            node = Node(op, list(inputs), name, attributes, name)
            self.nodes.append(node)
            self._made[key] = self._by_output[node.output] = node
        return self._made[key].output

    def inputs_of(self, value: Value, op: str) -> list[Value]:
        """The inputs of the node that made a value; [] if that is no `op`."""
        node = self._by_output.get(value) if isinstance(value, str) else None
        return node.inputs if node is not None and node.op == op else []

    def axes_of(self, shape: Sequence[Any]) -> tuple[Axis, ...]:
        """New axes of these sizes."""
        whole = [isinstance(size, int) for size in shape]
        return tuple(
            axis_of(size) if known else axis_of(size // self._batch, batch=True)
            for size, known in zip(shape, whole, strict=True)
        )

    # --- layouts ----------------------------------------------------------------------------------------------------

    def arrange(self, x: Tensor, dims: Sequence[Axis], full: bool = False) -> Tensor:
        """The same tensor with these dims; all that it has in memory must be in them.

        A dim of which it has nothing in memory gets size 1. Where it has a part, or with `full`, the rest is repeated.
        """
        held = set(x.held)
        for dim in dims:
            missing = [factor for factor in dim if factor not in held and (factor.batch or factor.size > 1)]
            if missing and (full or held & set(dim)):
                x = self._repeat(x, missing)
        held = set(x.held)
        dims = tuple(tuple(factor for factor in dim if factor in held) for dim in dims)
        value, now, order = x.value, x.dims, flat(dims)
        if x.held != order:
            units = _runs(now, order)
            if len(now) == 4 and any(factor.batch for factor in units[1]):
                # OpenVINO 2026.4 takes a part of the first of four dims for shuffled channels, and fails at the batch.
                units = [(), *units]
            value, now = self._reshape(value, now, units), units
            first = {unit[:1]: place for place, unit in enumerate(units)}
            places = [first[part] for part in ((), *((factor,) for factor in order)) if part in first]
            value, now = self._transpose(value, places), [units[place] for place in places]
        return dataclasses.replace(x, value=self._reshape(value, now, dims), dims=dims)

    def in_memory(self, x: Tensor) -> Tensor:
        """The same tensor as JAX has it: its dims are its axes, and nothing is broadcast."""
        return self.arrange(x, x.axes, full=True)

    def own_dims(self, x: Tensor, axes: Iterable[int]) -> Tensor:
        """The same tensor, in which each of these axes (unless of size 1) is a dim."""
        wanted = [x.axes[axis] for axis in axes]
        x = self._repeat(x, [factor for factor in flat(wanted) if factor not in x.held])
        axis_with = {factor: axis for axis in wanted for factor in axis}
        dims: list[Axis] = []
        for dim in x.dims:
            run: list[Factor] = []
            for factor in dim:
                if factor in axis_with:
                    dims += [tuple(run)] * bool(run) + [axis_with[factor]] * (axis_with[factor] not in dims)
                    run = []
                else:
                    run.append(factor)
            dims += [tuple(run)] * bool(run or not dim)
        return self.arrange(x, dims)

    def match(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors in the same factors. Their axes have the same sizes, or size 1."""
        place_of: dict[Factor, int] = {}
        apart = []
        for x in tensors:  # a tensor may meet itself turned, as in x[:, None] - x
            places = [(factor, place) for place, axis in enumerate(x.axes) for factor in axis]
            elsewhere = [factor for factor, place in places if place_of.setdefault(factor, place) != place]
            apart.append(x.substitute({factor: (Factor(factor.size, factor.batch),) for factor in elsewhere}))
        first, *others = apart
        for index in [*range(len(others))] * 2:  # twice, for a later one may split factors of the first
            while True:
                first, others[index], clash = match_factors(first, others[index])
                if clash is None:
                    break
                first, others[index] = self._fuse(first, clash), self._fuse(others[index], clash)
        return [first, *others]

    def align(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors in the same factors and with dims that broadcast against each other; scalars get their rank."""
        rank = max(len(x.axes) for x in tensors)
        tensors = self.match([x if x.axes else Tensor(x.value, ((),) * rank, x.dims) for x in tensors])
        dims = common_dims(tensors)
        dims = _joined(dims, tensors) if len(dims) > MOST_DIMS else dims
        return [self.arrange(x, dims) for x in tensors]

    def reshape(self, x: Tensor, shape: Sequence[Axis]) -> Tensor:
        """The tensor with axes of other sizes, the same numbers in the same order."""
        on_paper = reshape_axes(x, shape)
        if on_paper is None:  # sizes without a common factor: lay it out as one row
            row = self.arrange(x, [flat(x.axes)], full=True)
            axis = _as_one(row.held)
            on_paper = reshape_axes(Tensor(row.value, (axis,), (axis,)), shape)
        assert on_paper is not None
        return on_paper

    def extent(self, axis: Axis) -> Value:
        """The size of an axis, as a tensor of one number."""
        size = np.array([math.prod(factor.size for factor in axis)])
        batch = self.node("Shape", self._batch_of, start=0, end=1)
        return self.node("Mul", batch, size) if any(factor.batch for factor in axis) else size

    def _fuse(self, x: Tensor, index: int) -> Tensor:
        """The tensor with one of its axes as one factor."""
        x = self.own_dims(x, [index])
        old = x.axes[index]
        new = _as_one(old)
        axes = (*x.axes[:index], new, *x.axes[index + 1 :])
        return Tensor(x.value, axes, tuple(new if dim == old else dim for dim in x.dims))

    def _repeat(self, x: Tensor, factors: Sequence[Factor]) -> Tensor:
        """The tensor with these factors in memory, too, as its last dims."""
        if not factors:
            return x
        before = [extent(dim) for dim in x.dims]
        dims = (*x.dims, *((factor,) for factor in factors))
        value = self._reshape(x.value, x.dims, (*x.dims, *((),) * len(factors)))
        if isinstance(value, np.ndarray) and not any(factor.batch for factor in factors):
            value = np.broadcast_to(value, [*before, *(factor.size for factor in factors)])
        else:
            ones = np.ones(len(before), np.int64)
            sizes = np.array([factor.size for factor in factors])
            fixed = np.array([0 if factor.batch else factor.size for factor in factors])
            shape: Value = np.concatenate([ones, fixed])
            if (fixed == 0).any():
                times = np.concatenate([0 * ones, np.where(fixed, 0, sizes)])
                batch = self.node("Shape", self._batch_of, start=0, end=1)
                shape = self.node("Add", self.node("Mul", batch, times), shape)
            value = self.node("Expand", value, shape)
        return Tensor(value, x.axes, dims)

    def _transpose(self, value: Value, places: Sequence[int]) -> Value:
        if list(places) == sorted(places):
            return value
        return (
            value.transpose(places) if isinstance(value, np.ndarray) else self.node("Transpose", value, perm=(*places,))
        )

    def _reshape(self, value: Value, before: Sequence[Axis], after: Sequence[Axis]) -> Value:
        shape = [extent(axis) for axis in after]
        if shape == [extent(axis) for axis in before]:
            return value
        return value.reshape(shape) if isinstance(value, np.ndarray) else self.node("Reshape", value, np.array(shape))


def extent(axis: Axis) -> int:
    """The size of an axis; -1 if the batch is in it."""
    return -1 if any(factor.batch for factor in axis) else math.prod(factor.size for factor in axis)


def common_dims(tensors: Sequence[Tensor]) -> tuple[Axis, ...]:
    """Dims for tensors in the same factors: those of one that has all in memory, in JAX's order if they disagree."""
    axes = merge_axes([x.axes for x in tensors])
    union = {factor for x in tensors for factor in x.held}
    whole = [x for x in tensors if set(x.held) == union]
    if len({x.dims for x in whole}) > 1:
        order = tuple(factor for factor in flat(axes) if factor in union)
        whole = [x for x in whole if x.held == order] or whole
    in_order = tuple(tuple(factor for factor in axis if factor in union) for axis in axes)
    dims = min((x.dims for x in whole), key=len, default=in_order)
    torn = {dim for dim in dims for x in tensors if 0 < len(set(dim) & set(x.held)) < len(dim)}
    return tuple(part for dim in dims for part in (((factor,) for factor in dim) if dim in torn else (dim,)))


def _joined(dims: Sequence[Axis], tensors: Sequence[Tensor]) -> tuple[Axis, ...]:
    """The dims, neighbours in one where each tensor has both in memory or neither."""
    joined = [dims[0]]
    for dim in dims[1:]:
        if all(len({factor in x.held for factor in (*joined[-1], *dim)}) < 2 for x in tensors):
            joined[-1] = (*joined[-1], *dim)
        else:
            joined.append(dim)
    return tuple(joined)


def result(value: Value, operands: Sequence[Tensor]) -> Tensor:
    """What an operator gives, element by element, on aligned tensors."""
    return Tensor(value, merge_axes([x.axes for x in operands]), merge_axes([x.dims for x in operands]))


def _compute(op: str, inputs: Sequence[Value], attributes: Any) -> np.ndarray:
    names = [str(place) for place in range(len(inputs))]
    node = helper.make_node(op, names, ["output"], **attributes)
    outputs: Any = ReferenceEvaluator(node).run(None, dict(zip(names, inputs, strict=True)))
    return np.asarray(outputs[0])


def _as_one(axis: Axis) -> Axis:
    return axis_of(math.prod(factor.size for factor in axis), any(factor.batch for factor in axis))


def _identity(value: Value) -> Any:
    """What makes two inputs of nodes the same."""
    if isinstance(value, str):
        return value
    return (value.dtype.str, value.shape, value.tobytes()) if value.size <= 16 else id(value)


def _runs(dims: Sequence[Axis], order: Axis) -> list[Axis]:
    """The dims, cut where their factors do not stand side by side in `order`."""
    follows = dict(itertools.pairwise(order))
    runs: list[Axis] = []
    for dim in dims:
        for index, factor in enumerate(dim):
            if index and follows.get(dim[index - 1]) is factor:
                runs[-1] = (*runs[-1], factor)
            else:
                runs.append((factor,))
    return runs
