"""Rules of the primitives that mix numbers of different places: convolutions, products, pools, sums, cuts and joins."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from flaxvid.export.graph import Graph, common_dims
from flaxvid.export.tensors import Axis, Factor, Tensor, axis_of, flat, merge_axes

Cut = tuple[int, int, int]
"""Start, end and step along an axis; with a step of -1 the end -1 means that the first place is in it."""


# --- layers ---------------------------------------------------------------------------------------------------------


def _convolution(graph: Graph, equation: Any, x: Tensor, kernel: Tensor) -> Tensor:
    params, layout = equation.params, equation.params["dimension_numbers"]
    if set(params["lhs_dilation"]) != {1} or params["batch_group_count"] != 1:
        raise ValueError(f"expected a plain convolution, got a transposed one in {graph.scope}: it has no rule")
    x = graph.arrange(x, [_clips_last(x.axes[axis]) for axis in layout.lhs_spec], full=True)
    kernel = graph.arrange(kernel, [kernel.axes[axis] for axis in layout.rhs_spec], full=True)
    before, after = zip(*params["padding"], strict=True)
    value = graph.node(
        "Conv",
        x.value,
        kernel.value,
        dilations=tuple(params["rhs_dilation"]),
        group=params["feature_group_count"],
        kernel_shape=tuple(equation.invars[1].aval.shape[axis] for axis in layout.rhs_spec[2:]),
        pads=(*before, *after),
        strides=tuple(params["window_strides"]),
    )
    axes = list(graph.axes_of(equation.outvars[0].aval.shape))
    axes[layout.out_spec[0]] = x.axes[layout.lhs_spec[0]]
    return Tensor(value, tuple(axes), (x.dims[0], *(axes[axis] for axis in layout.out_spec[1:])))


def _clips_last(axis: Axis) -> Axis:
    """The factors of an axis, the batch last: where frames are batch, a shift in time then is one in memory."""
    return tuple(sorted(axis, key=lambda factor: factor.batch))


def _max_pool(graph: Graph, equation: Any, x: Tensor) -> Tensor:
    params = equation.params
    window, strides, pads = params["window_dimensions"], params["window_strides"], params["padding"]
    inner = range(1, len(window) - 1)
    plain = {*params["base_dilation"], *params["window_dilation"]} == {1}
    if not plain or len(window) not in (3, 4, 5) or {window[0], window[-1], strides[0], strides[-1]} != {1}:
        raise ValueError(f"expected a max-pool between the first and the last axis, got {window} in {graph.scope}")
    order = (0, len(window) - 1, *inner)
    x = graph.arrange(x, [_clips_last(x.axes[axis]) for axis in order], full=True)
    value = graph.node(
        "MaxPool",
        x.value,
        kernel_shape=tuple(window[axis] for axis in inner),
        pads=tuple(pads[axis][side] for side in (0, 1) for axis in inner),
        strides=tuple(strides[axis] for axis in inner),
    )
    axes = (x.axes[0], *graph.axes_of(equation.outvars[0].aval.shape)[1:-1], x.axes[-1])
    return Tensor(value, axes, (x.dims[0], x.dims[1], *axes[1:-1]))


def _layer_norm(graph: Graph, equation: Any, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    last = x.axes[-1]
    x = graph.own_dims(x, [len(x.axes) - 1])
    x = graph.arrange(x, [*(dim for dim in x.dims if dim != last), last])
    epsilon = equation.params["epsilon"]
    return dataclasses.replace(
        x, value=graph.node("LayerNormalization", x.value, scale.value, bias.value, axis=-1, epsilon=epsilon)
    )


def _product(graph: Graph, equation: Any, left: Tensor, right: Tensor) -> Tensor:
    """`MatMul`: what is summed stands last on the left and last but one on the right, the batch in front of both."""
    (left_sum, right_sum), (left_batch, right_batch) = equation.params["dimension_numbers"]
    sides = [_Side(graph, left, left_sum, left_batch), _Side(graph, right, right_sum, right_batch)]
    first, second = sides[::-1] if left.is_constant and not right.is_constant else sides  # weights stand on the right
    # Rows and columns may be the same places, as in attention, but they are different axes now.
    renamed = {factor: (Factor(factor.size, factor.batch),) for factor in flat(second.free)}
    second.x, second.free[:] = second.x.substitute(renamed), [flat(renamed[f] for f in axis) for axis in second.free]
    if first.batch:
        rows = [flat(first.free)]
    else:  # as they lie
        rows = [dim for dim in first.x.dims if dim and not set(dim) <= set(flat(first.summed))]
    a = graph.arrange(first.x, [*first.batch, *rows, flat(first.summed)])
    b = graph.arrange(second.x, [*second.batch, flat(second.summed), flat(second.free)])
    count = len(first.batch)
    shared = [one or other for one, other in zip(a.dims[:count], b.dims[:count], strict=True)]
    batch = [held or axis for held, axis in zip(shared, first.batch, strict=True)]
    value = graph.node("MatMul", a.value, b.value)
    return Tensor(value, (*batch, *sides[0].free, *sides[1].free), (*shared, *a.dims[count:-1], b.dims[-1]))


class _Side:
    """One side of a product: the tensor, and its axes by what they do."""

    def __init__(self, graph: Graph, x: Tensor, summed: Sequence[int], batch: Sequence[int]):
        self.x = x = graph.own_dims(x, summed)
        self.summed, self.batch = [x.axes[axis] for axis in summed], [x.axes[axis] for axis in batch]
        self.free = [axis for index, axis in enumerate(x.axes) if index not in (*summed, *batch)]


def _reduction(op: str) -> Callable[..., Tensor]:
    def reduce(graph: Graph, equation: Any, x: Tensor) -> Tensor:
        gone = equation.params["axes"]
        x = graph.own_dims(x, gone)
        places = [x.dims.index(x.axes[axis]) for axis in gone if x.axes[axis]]
        axes = tuple(axis for index, axis in enumerate(x.axes) if index not in gone)
        if not places:
            return dataclasses.replace(x, axes=axes)
        dims = tuple(() if place in places else dim for place, dim in enumerate(x.dims))
        value = graph.node(op, x.value, np.array(sorted(places)), keepdims=1)
        if isinstance(value, str):
            graph.counts[value] = math.prod(_size(x.dims[place]) for place in places)
        return Tensor(value, axes, dims)

    return reduce


# --- cuts and joins -------------------------------------------------------------------------------------------------


def cut(graph: Graph, x: Tensor, cuts: Mapping[int, Cut]) -> Tensor:
    """A part of the tensor, along axes of JAX."""
    cuts = {axis: part for axis, part in cuts.items() if x.axes[axis] and part != (0, _size(x.axes[axis]), 1)}
    if not cuts:
        return x
    inside = {axis: part for axis, part in cuts.items() if x.axes[axis] not in x.dims}
    if 0 < len(inside) < len(cuts):  # first what needs no other dims
        return cut(graph, cut(graph, x, {axis: part for axis, part in cuts.items() if axis not in inside}), inside)
    whole, x = x, graph.own_dims(x, cuts)
    new = {x.axes[axis]: axis_of(len(range(*part))) for axis, part in cuts.items()}
    by_place = {x.dims.index(x.axes[axis]): part for axis, part in cuts.items()}
    starts, ends, steps = np.array([*by_place.values()]).T
    ends = np.where(ends < 0, np.iinfo(np.int64).min, ends)
    value = graph.node("Slice", x.value, starts, ends, np.array([*by_place]), steps)
    if len(cuts) == 1 and isinstance(value, str):
        graph.cuts[value] = whole, next(iter(cuts.items()))
    return Tensor(value, *(tuple(new.get(axis, axis) for axis in axes) for axes in (x.axes, x.dims)))


def pad(graph: Graph, x: Tensor, axis: int, before: int, after: int, filling: np.ndarray) -> Tensor:
    """The tensor with a constant in front of it and behind it, along an axis of JAX."""
    x = _apart(graph, x, axis)
    own = x.axes[axis]
    dims = x.dims if own in x.dims else (*x.dims, own)
    place = dims.index(own)
    edges = np.zeros((2, len(dims)), np.int64)
    edges[:, place] = before, after
    value = graph.node("Pad", graph.arrange(x, dims).value, edges.ravel(), filling, mode="constant")
    new = axis_of(_size(own) + before + after)
    return _with_axis(Tensor(value, x.axes, (*dims[:place], new, *dims[place + 1 :])), axis, new)


def concatenate(graph: Graph, parts: Sequence[Tensor], axis: int) -> Tensor:
    """The parts one behind the other along an axis of JAX; zeros at either end become padding."""
    inside = [index for index, part in enumerate(parts) if not (part.is_constant and not part.value.any())]
    if not inside or all(part.is_constant for part in parts):
        return _join(graph, parts, axis)
    before, after = parts[: inside[0]], parts[inside[-1] + 1 :]
    x = _join(graph, parts[inside[0] : inside[-1] + 1], axis)
    if not before and not after:
        return x
    low, high = (sum(_size(part.axes[axis]) for part in edge) for edge in (before, after))
    if (shifted := _shift(graph, x, axis, low, high)) is not None:
        return shifted
    return pad(graph, x, axis, low, high, np.zeros((), (*before, *after)[0].value.dtype))


def _shift(graph: Graph, x: Tensor, axis: int, low: int, high: int) -> Tensor | None:
    """A cut at one end and as many zeros at the other, where the axis lies in one dim before the batch; else None.

    The dim stays whole, which spares two changes of layout.
    """
    whole, (at, part) = graph.cuts.get(x.value, (x, (-1, ())))
    own = x.axes[axis] if at != axis else whole.axes[axis]
    dim = next((dim for dim in whole.dims if len(dim) > len(own) > 0 and dim[: len(own)] == own), ())
    shifts = part in ((high, _size(own), 1), (0, _size(own) - low, 1)) and min(low, high) == 0
    if not dim or not shifts or _with_axis(x, axis, own).axes != whole.axes:
        return None
    place, step = whole.dims.index(dim), graph.extent(dim[len(own) :])
    edges, most = np.zeros((2, len(whole.dims)), np.int64), np.array([np.iinfo(np.int64).max])
    edges[:, place] = low, high
    start = graph.node("Mul", step, np.array([high]))
    end = graph.node("Mul", step, np.array([-low])) if low else most
    value = graph.node("Slice", whole.value, start, end, np.array([place]), np.array([1]))
    pads = graph.node("Mul", step, edges.ravel())
    value = graph.node("Pad", value, pads, np.zeros((), np.float32), mode="constant")
    return Tensor(value, whole.axes, whole.dims)


def _join(graph: Graph, parts: Sequence[Tensor], axis: int) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    apart = [_apart(graph, part, axis) for part in parts]
    own = [x.axes[axis] for x in apart]
    # Along the axis sizes differ, so it is hidden while the others are brought into the same factors.
    hidden = graph.match([_with_axis(x, axis, ()) for x in apart])
    whole = axis_of(sum(map(_size, own)))
    dims = common_dims(
        [_with_axis(x, axis, mine).substitute({mine[0]: whole}) for x, mine in zip(hidden, own, strict=True)]
    )
    if whole not in dims:  # all parts have size 1 there
        behind = {factor for x in hidden for factor in flat(x.axes[axis + 1 :])}
        place = next((place for place, dim in enumerate(dims) if behind & set(dim)), len(dims))
        dims = (*dims[:place], whole, *dims[place:])
    values = [
        graph.arrange(x, [mine if dim == whole else dim for dim in dims], full=True).value
        for x, mine in zip(hidden, own, strict=True)
    ]
    place = dims.index(whole)
    value = graph.node("Concat", *values, axis=place)
    return _with_axis(Tensor(value, merge_axes([x.axes for x in hidden]), dims), axis, whole)


def _apart(graph: Graph, x: Tensor, axis: int) -> Tensor:
    """The tensor with an axis of JAX as one factor, also where it has size 1, and as one dim, except there."""
    x = graph.own_dims(x, [axis])
    old, new = x.axes[axis], (Factor(_size(x.axes[axis])),)
    return _with_axis(Tensor(x.value, x.axes, tuple(new if dim and dim == old else dim for dim in x.dims)), axis, new)


def _with_axis(x: Tensor, axis: int, new: Axis) -> Tensor:
    return dataclasses.replace(x, axes=(*x.axes[:axis], new, *x.axes[axis + 1 :]))


def _size(axis: Axis) -> int:
    return math.prod(factor.size for factor in axis)


def _slice(graph: Graph, equation: Any, x: Tensor) -> Tensor:
    params, shape = equation.params, equation.invars[0].aval.shape
    steps = params["strides"] or (1,) * len(shape)
    parts = enumerate(zip(params["start_indices"], params["limit_indices"], steps, strict=True))
    return cut(graph, x, {axis: part for axis, part in parts if part != (0, shape[axis], 1)})


def _split(graph: Graph, equation: Any, x: Tensor) -> list[Tensor]:
    axis, sizes = equation.params["axis"], equation.params["sizes"]
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return [cut(graph, x, {axis: (start, start + size, 1)}) for start, size in zip(starts, sizes, strict=True)]


def _reverse(graph: Graph, equation: Any, x: Tensor) -> Tensor:
    shape = equation.invars[0].aval.shape
    return cut(graph, x, {axis: (shape[axis] - 1, -1, -1) for axis in equation.params["dimensions"]})


def _pad(graph: Graph, equation: Any, x: Tensor, filling: Tensor) -> Tensor:
    for axis, (before, after, between) in enumerate(equation.params["padding_config"]):
        if between or not filling.is_constant:
            raise ValueError(f"expected a constant around a tensor, got another padding in {graph.scope}")
        if before < 0 or after < 0:
            x = cut(graph, x, {axis: (max(0, -before), _size(x.axes[axis]) + min(0, after), 1)})
        if before > 0 or after > 0:
            x = pad(graph, x, axis, max(0, before), max(0, after), filling.value)
    return x


def _gather(graph: Graph, equation: Any, x: Tensor, indices: Tensor) -> Tensor:
    """Places known now: a part of the tensor, or any rows along axes that do not depend on each other."""
    sizes, numbers = equation.params["slice_sizes"], equation.params["dimension_numbers"]
    if not indices.is_constant or numbers.operand_batching_dims:
        raise ValueError(f"expected indices that are known before the video, got others in {graph.scope}")
    shape, gone = equation.invars[0].aval.shape, numbers.collapsed_slice_dims
    table = graph.in_memory(indices).value.reshape(equation.invars[1].aval.shape)
    lead = graph.axes_of(table.shape[:-1])
    columns = {axis: table[..., column] for column, axis in enumerate(numbers.start_index_map)}
    if any(((starts < 0) | (starts > shape[axis] - sizes[axis])).any() for axis, starts in columns.items()):
        raise ValueError(f"expected indices inside the tensor, got others in {graph.scope}")
    fixed = {axis: int(starts.flat[0]) for axis, starts in columns.items() if (starts == starts.flat[0]).all()}
    x = cut(graph, x, {axis: (start, start + sizes[axis], 1) for axis, start in fixed.items()})
    taken: set[int] = set()
    for axis, starts in columns.items():
        along = [place for place in range(len(lead)) if (starts != starts.take([0], place)).any()]
        if along and (axis not in gone or taken & set(along)):
            raise ValueError(f"expected indices along one axis each, got others in {graph.scope}")
        if along:
            taken.update(along)
            starts = starts[tuple(slice(None) if place in along else 0 for place in range(len(lead)))].ravel()
            x = graph.own_dims(x, [axis])
            place, new = x.dims.index(x.axes[axis]), flat(lead[index] for index in along)
            value = graph.node("Gather", x.value, starts.astype(np.int64), axis=place)
            x = Tensor(value, x.axes, (*x.dims[:place], new, *x.dims[place + 1 :]))
    rest, rows = iter([axis for index, axis in enumerate(x.axes) if index not in gone]), iter(lead)
    places = range(len(equation.outvars[0].aval.shape))
    return dataclasses.replace(x, axes=tuple(next(rest if i in numbers.offset_dims else rows) for i in places))


def _concatenate(graph: Graph, equation: Any, *parts: Tensor) -> Tensor:
    return concatenate(graph, parts, equation.params["dimension"])


OPERATORS: dict[str, Callable[..., Any]] = {
    "concatenate": _concatenate,
    "conv_general_dilated": _convolution,
    "dot_general": _product,
    "gather": _gather,
    "layer_norm": _layer_norm,
    "pad": _pad,
    "reduce_max": _reduction("ReduceMax"),
    "reduce_min": _reduction("ReduceMin"),
    "reduce_sum": _reduction("ReduceSum"),
    "reduce_window_max": _max_pool,
    "rev": _reverse,
    "slice": _slice,
    "split": _split,
}
