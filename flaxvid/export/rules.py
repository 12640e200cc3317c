"""Turns a jaxpr into the nodes of a graph, primitive by primitive.

A rule gets the graph, the equation and its inputs, and gives the outputs. What depends on no input of the program is
computed at once.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend import core
from onnx import helper

from flaxvid.export.graph import Graph, Value, result
from flaxvid.export.int8 import ROUND
from flaxvid.export.operators import OPERATORS, concatenate, cut
from flaxvid.export.tensors import Tensor, axis_of

INLINED = {"jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "checkpoint", "remat2"}
"""Primitives that call a jaxpr once."""


def run(graph: Graph, jaxpr: core.ClosedJaxpr, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Adds the nodes of a jaxpr to the graph and returns its outputs.

    Raises:
        ValueError: a primitive has no rule.
    """
    constants = [Tensor.constant(np.asarray(constant)) for constant in jaxpr.consts]
    known = dict(zip((*jaxpr.jaxpr.constvars, *jaxpr.jaxpr.invars), (*constants, *inputs), strict=True))
    outer = graph.scope

    def read(variable: Any) -> Tensor:
        if isinstance(variable, core.Literal):
            return Tensor.constant(np.asarray(variable.val, variable.aval.dtype))  # pyright: ignore
        return known[variable]

    for equation in jaxpr.jaxpr.eqns:
        graph.scope = "/".join(filter(None, (outer, str(equation.source_info.name_stack))))
        outputs = _apply(graph, equation, [read(variable) for variable in equation.invars])
        known.update(zip(equation.outvars, outputs, strict=True))
    graph.scope = outer
    return [read(variable) for variable in jaxpr.jaxpr.outvars]


def _apply(graph: Graph, equation: Any, inputs: list[Tensor]) -> list[Tensor]:
    name, params = equation.primitive.name, equation.params
    if name in ON_PAPER:
        return [ON_PAPER[name](graph, equation, *inputs)]
    if name in ELEMENTWISE:
        return [_elementwise(graph, equation, inputs)]
    if name == "scan":
        return _unroll(graph, params, inputs)
    if name in INLINED:
        if params.get("name") in CALLS and not inputs[0].is_constant:
            return [CALLS[params["name"]](graph, *inputs)]
        inner = params.get("jaxpr", params.get("call_jaxpr"))
        return run(graph, inner if hasattr(inner, "consts") else core.ClosedJaxpr(inner, ()), inputs)
    if name not in OPERATORS:
        return _compute(graph, equation, inputs)
    outputs = OPERATORS[name](graph, equation, *inputs)
    return outputs if isinstance(outputs, list) else [outputs]


def _compute(graph: Graph, equation: Any, inputs: list[Tensor]) -> list[Tensor]:
    """What JAX gives for known inputs."""
    name, sizes = equation.primitive.name, [size for variable in equation.outvars for size in variable.aval.shape]
    if not all(x.is_constant for x in inputs) or not all(isinstance(size, int) for size in sizes):
        raise ValueError(
            f"expected operations that have a rule for ONNX, got {name} in {graph.scope or 'the model'}: write the "
            "layer with other operations, or add a rule to flaxvid/export/operators.py"
        )
    arrays = [jnp.asarray(graph.in_memory(x).value) for x in inputs]
    outputs = equation.primitive.bind(*arrays, **equation.params)
    outputs = outputs if equation.primitive.multiple_results else [outputs]
    return [Tensor.constant(np.asarray(output)) for output in outputs]


def _unroll(graph: Graph, params: Any, inputs: list[Tensor]) -> list[Tensor]:
    """A loop of known length, step after step; the weights are shared."""
    length, consts, carried = params["length"], params["num_consts"], params["num_carry"]
    fixed, carry, given = inputs[:consts], inputs[consts : consts + carried], inputs[consts + carried :]
    steps = range(length)
    rows: list[list[Tensor]] = []
    for step in reversed(steps) if params["reverse"] else steps:
        now = [_without(cut(graph, x, {0: (step, step + 1, 1)}), 0) for x in given]
        outputs = run(graph, params["jaxpr"], [*fixed, *carry, *now])
        carry = outputs[:carried]
        rows.append(outputs[carried:])
    rows = rows[::-1] if params["reverse"] else rows
    return [*carry, *(concatenate(graph, [_with(y, 0) for y in column], 0) for column in zip(*rows, strict=True))]


# --- on paper: axes move, no node is made ---------------------------------------------------------------------------


def _same(graph: Graph, equation: Any, x: Tensor) -> Tensor:
    return x


def _reshape(graph: Graph, equation: Any, x: Tensor) -> Tensor:
    return graph.reshape(x, graph.axes_of(equation.outvars[0].aval.shape))


def _broadcast(graph: Graph, equation: Any, x: Tensor, *sizes: Tensor) -> Tensor:
    axes = list(graph.axes_of(equation.outvars[0].aval.shape))
    for own, place in zip(x.axes, equation.params["broadcast_dimensions"], strict=True):
        axes[place] = own or axes[place]
    return dataclasses.replace(x, axes=tuple(axes))


def _transpose(graph: Graph, equation: Any, x: Tensor) -> Tensor:
    return dataclasses.replace(x, axes=tuple(x.axes[axis] for axis in equation.params["permutation"]))


def _squeeze(graph: Graph, equation: Any, x: Tensor) -> Tensor:
    return _without(x, *equation.params["dimensions"])


def _without(x: Tensor, *axes: int) -> Tensor:
    return dataclasses.replace(x, axes=tuple(axis for index, axis in enumerate(x.axes) if index not in axes))


def _with(x: Tensor, place: int) -> Tensor:
    return dataclasses.replace(x, axes=(*x.axes[:place], (), *x.axes[place:]))


def _tile(graph: Graph, equation: Any, x: Tensor) -> Tensor:
    times = zip(equation.params["reps"], x.axes, strict=True)
    return dataclasses.replace(x, axes=tuple((*axis_of(number), *axis) for number, axis in times))


def _stack(graph: Graph, equation: Any, *inputs: Tensor) -> Tensor:
    axis = equation.params["axis"]
    return concatenate(graph, [_with(x, axis) for x in inputs], axis)


ON_PAPER: dict[str, Callable[..., Tensor]] = {
    "broadcast_in_dim": _broadcast,
    "copy": _same,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "stack": _stack,
    "stop_gradient": _same,
    "tile": _tile,
    "transpose": _transpose,
}


# --- element by element ---------------------------------------------------------------------------------------------


def _elementwise(graph: Graph, equation: Any, inputs: list[Tensor]) -> Tensor:
    aligned = graph.align(inputs)
    values = [x.value for x in aligned]
    rule = ELEMENTWISE[equation.primitive.name]
    value = graph.node(rule, *values) if isinstance(rule, str) else rule(graph, equation, *values)
    return result(value, aligned)


def _is(value: Value, number: float) -> bool:
    return isinstance(value, np.ndarray) and bool((value == number).all())


def _max(graph: Graph, equation: Any, x: Value, y: Value) -> Value:
    for bound, other in ((x, y), (y, x)):
        if _is(bound, -np.inf):
            return other
        if _is(bound, 0):
            return graph.node("Relu", other)
    return graph.node("Max", x, y)


def _div(graph: Graph, equation: Any, x: Value, y: Value) -> Value:
    """A sum over a count is a mean; exponentials over their sum are a softmax. Runtimes have programs for both."""
    if isinstance(x, str) and isinstance(y, np.ndarray):
        total = graph.inputs_of(x, "ReduceSum")
        if total and _is(y, graph.counts[x]):
            return graph.node("ReduceMean", *total, keepdims=1)
    exponents, total = graph.inputs_of(x, "Exp"), graph.inputs_of(y, "ReduceSum")
    if exponents and total and total[0] is x and len(total[1]) == 1:
        (logits,) = exponents
        less = graph.inputs_of(logits, "Sub")
        if less and graph.inputs_of(less[1], "ReduceMax")[:1] == [less[0]]:
            (logits, _) = less
        return graph.node("Softmax", logits, axis=int(total[1][0]))
    return graph.node("Div", x, y)


def _rsqrt(graph: Graph, equation: Any, x: Value) -> Value:
    return graph.node("Reciprocal", graph.node("Sqrt", x))


def _square(graph: Graph, equation: Any, x: Value) -> Value:
    return graph.node("Mul", x, x)


def _power(graph: Graph, equation: Any, x: Value) -> Value:
    return graph.node("Pow", x, np.asarray(equation.params["y"], equation.outvars[0].aval.dtype))


def _erfc(graph: Graph, equation: Any, x: Value) -> Value:
    return graph.node("Sub", np.ones((), equation.outvars[0].aval.dtype), graph.node("Erf", x))


def _unequal(graph: Graph, equation: Any, x: Value, y: Value) -> Value:
    return graph.node("Not", graph.node("Equal", x, y))


def _select(graph: Graph, equation: Any, which: Value, *cases: Value) -> Value:
    if equation.invars[0].aval.dtype != bool or len(cases) != 2:
        raise ValueError(f"expected a choice of two by a bool, got one of {len(cases)} in {graph.scope}")
    return graph.node("Where", which, cases[1], cases[0])


def _clamp(graph: Graph, equation: Any, least: Value, x: Value, most: Value) -> Value:
    return graph.node("Min", graph.node("Max", x, least), most)


def _cast(graph: Graph, equation: Any, x: Value) -> Value:
    old, new = equation.invars[0].aval.dtype, equation.outvars[0].aval.dtype
    if jnp.issubdtype(new, jnp.floating) and new != np.float32:
        raise ValueError(f"expected a network in float32, got {new} in {graph.scope}: make it with dtype=float32")
    return x if old == new else graph.node("Cast", x, to=helper.np_dtype_to_tensor_dtype(new))


ELEMENTWISE: dict[str, str | Callable[..., Value]] = {
    "abs": "Abs",
    "add": "Add",
    "and": "And",
    "ceil": "Ceil",
    "clamp": _clamp,
    "convert_element_type": _cast,
    "cos": "Cos",
    "div": _div,
    "eq": "Equal",
    "erf": "Erf",
    "erfc": _erfc,
    "exp": "Exp",
    "floor": "Floor",
    "ge": "GreaterOrEqual",
    "gt": "Greater",
    "integer_pow": _power,
    "le": "LessOrEqual",
    "log": "Log",
    "logistic": "Sigmoid",
    "lt": "Less",
    "max": _max,
    "min": "Min",
    "mul": "Mul",
    "ne": _unequal,
    "neg": "Neg",
    "not": "Not",
    "or": "Or",
    "pow": "Pow",
    "rsqrt": _rsqrt,
    "select_n": _select,
    "sign": "Sign",
    "sin": "Sin",
    "sqrt": "Sqrt",
    "square": _square,
    "sub": "Sub",
    "tanh": "Tanh",
}
"""The operator of each primitive, or a function that makes its nodes. Logic is that of bools."""

# --- functions that are one operator ---------------------------------------------------------------------------------


def _gelu(graph: Graph, x: Tensor, **attributes: str) -> Tensor:
    return dataclasses.replace(x, value=graph.node("Gelu", x.value, **attributes))


def _round(graph: Graph, x: Tensor, step: Tensor, zero: Tensor) -> Tensor:
    return dataclasses.replace(x, value=graph.node(ROUND, x.value, step.value, zero.value))


CALLS: dict[str, Callable[..., Tensor]] = {
    "gelu": _gelu,
    "gelu_tanh": functools.partial(_gelu, approximate="tanh"),
    "round_to_steps": _round,
}
"""Rules of jitted functions, by name."""
