"""ONNX: a network with its weights as a program for onnxruntime, OpenVINO and other runtimes."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from flax import linen as nn
from jax.extend import core
from onnx import helper, numpy_helper

from flaxvid.export.graph import Graph, Node
from flaxvid.export.norms import fold_norms
from flaxvid.export.rules import run
from flaxvid.export.tensors import Tensor
from flaxvid.layers.conv import direct_form
from flaxvid.models.video_model import VideoModel
from flaxvid.types import Variables, by_target

OPSET = 20
"""The first with Gelu. The format's version that goes with it is 9."""


def onnx_program(model: VideoModel, variables: Variables, num_frames: int, size: int) -> onnx.ModelProto:
    """uint8 video (b, t, h, w, 3), any b, to logits.

    Inputs are "video" or the names of the cameras, outputs "logits" or the names of the targets.

    Args:
        model: computes in float32.
        variables: ordinary ones.
        num_frames: t.
        size: h and w.

    Raises:
        ValueError: the model does something that has no rule.
    """
    (batch,) = jax.export.symbolic_shape("b")
    clip: Any = jax.ShapeDtypeStruct((batch, num_frames, size, size, 3), jnp.uint8)
    video = model.for_cameras(clip)
    with direct_form(), nn.intercept_methods(_whole_norms):
        jaxpr, logits = jax.make_jaxpr(lambda video: model.apply(variables, video), return_shape=True)(video)
    names = list(video) if model.cameras else ["video"]
    names = sorted(names)  # as JAX orders a dict
    graph = Graph(batch, names[0])
    axes = graph.axes_of(clip.shape)
    results = run(graph, jaxpr, [Tensor(name, axes, axes) for name in names])
    targets = sorted(by_target(logits))
    outputs = [target or "logits" for target in targets]
    ends = [graph.in_memory(result).value for result in results]
    nodes = [*graph.nodes, *(Node("Identity", [end], name, {}) for end, name in zip(ends, outputs, strict=True))]
    nodes = fold_norms(nodes, outputs)
    inputs = [_described(name, onnx.TensorProto.UINT8, clip.shape) for name in names]
    results_described = [
        _described(name, onnx.TensorProto.FLOAT, result.shape)
        for name, result in zip(outputs, jax.tree.leaves(logits), strict=True)
    ]
    return _assemble(nodes, inputs, results_described)


def _described(name: str, kind: int, shape: tuple[Any, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, [size if isinstance(size, int) else "batch" for size in shape])


def _assemble(nodes: list[Node], inputs: list[Any], outputs: list[Any]) -> onnx.ModelProto:
    """The nodes as ONNX has them; equal constants are stored once."""
    stored: dict[Any, onnx.TensorProto] = {}
    made = []
    for node in nodes:
        names = []
        for index, value in enumerate(node.inputs):
            if isinstance(value, np.ndarray):
                value = np.ascontiguousarray(value).reshape(value.shape)
                content = (value.dtype.str, value.shape, hashlib.sha256(value.data).digest())
                if content not in stored:
                    stored[content] = numpy_helper.from_array(value, f"{node.output}.{index}")
                value = stored[content].name
            names.append(value)
        made.append(helper.make_node(node.op, names, [node.output], node.output, **node.attributes))
    graph = helper.make_graph(made, "flaxvid", inputs, outputs, list(stored.values()))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9, producer_name="flaxvid")


# --- layer norms, whole ---------------------------------------------------------------------------------------------

_layer_norm = core.Primitive("layer_norm")
_layer_norm.def_abstract_eval(lambda x, scale, bias, epsilon: x)


def _whole_norms(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
    """Makes every ordinary LayerNorm one operation, for which runtimes have a program."""
    norm = context.module
    plain = isinstance(norm, nn.LayerNorm) and context.method_name == "__call__" and len(args) == 1 and not kwargs
    if not plain or (norm.reduction_axes, norm.feature_axes, norm.axis_name) != (-1, -1, None):
        return call(*args, **kwargs)
    x = args[0]
    scale = norm.get_variable("params", "scale") if norm.use_scale else jnp.ones(x.shape[-1])
    bias = norm.get_variable("params", "bias") if norm.use_bias else jnp.zeros(x.shape[-1])
    return _layer_norm.bind(x, scale, bias, epsilon=norm.epsilon)
