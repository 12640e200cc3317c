"""ONNX: a network and its weights as one program for onnxruntime, OpenVINO and others."""

import hashlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from flax import linen as nn
from jax.extend import core
from onnx import helper, numpy_helper

from flaxvid.evaluate.runtimes import RUNTIMES, is_installed, open_program
from flaxvid.export.graph import Graph, Node
from flaxvid.export.norms import fold_norms
from flaxvid.export.programs import check_same, each_count
from flaxvid.export.rules import run
from flaxvid.export.tensors import Tensor
from flaxvid.layers.conv import direct_form
from flaxvid.models.video_model import VideoModel
from flaxvid.train.network import Trained
from flaxvid.types import Variables, by_target
from flaxvid.writing import written_whole

OPSET, FORMAT = 20, 9
"""The first version of the operators that has Gelu, and that of the file format that goes with it."""

LARGEST = 2**31 - 1
"""Bytes that a file of protobuf may have."""


def export_onnx(trained: Trained, folder: str | Path, frames: tuple[int, ...] = ()) -> dict[int, Path]:
    """Writes a network as ONNX, one program for each frame count, with its weights in it: ``8_frames.onnx``.

    A program takes uint8 video (b, t, h, w, 3) with any batch b, and gives logits (b, k). It has an input "video", or
    one for each camera, and an output "logits", or one for each target. Before its file gets its name it is compared
    with JAX, at two batch sizes, in every runtime that is installed.

    Args:
        trained: the network.
        folder: where the files go.
        frames: the frame counts; () is those that it was trained at.

    Returns:
        The file of each count.

    Raises:
        ImportError: onnxruntime is not installed.
        ValueError: the network has no head, more than 2 GB, or an operation that there is no rule for; or a runtime
            gives other logits than JAX.
    """
    if not is_installed("onnxruntime"):
        raise ImportError('export is checked in onnxruntime, which is not installed: pip install "flaxvid[export]"')
    files = {}
    for count, model, variables, size in each_count(trained, frames):
        weights = sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
        if weights > LARGEST:
            raise ValueError(
                f"expected a network of at most 2 GB, which an ONNX file can hold, got {weights / 1e9:.1f} GB: load its "
                "weights in JAX instead"
            )
        program = onnx_program(model, variables, count, size)
        file = files[count] = Path(folder) / f"{count}_frames.onnx"
        file.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(file) as part:
            part.write_bytes(program.SerializeToString())
            for runtime in filter(is_installed, RUNTIMES):
                check_same(open_program(part, runtime), model, variables, count, size, runtime)
    return files


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
    with direct_form(), nn.intercept_methods(_whole_norms):
        trace = jax.make_jaxpr(lambda video: model.apply(variables, video), return_shape=True)
        jaxpr, logits = trace(model.for_cameras(clip))
    names = sorted(model.cameras) or ["video"]  # in JAX's order of a dict
    graph = Graph(batch, names[0])
    axes = graph.axes_of(clip.shape)
    ends = run(graph, jaxpr, [Tensor(name, axes, axes) for name in names])
    shapes = {target or "logits": shape for target, shape in sorted(by_target(logits).items())}
    last = [Node("Identity", [graph.in_memory(end).value], name, {}) for name, end in zip(shapes, ends, strict=True)]
    nodes = fold_norms([*graph.nodes, *last], list(shapes))
    return _assemble(
        nodes,
        [_described(name, onnx.TensorProto.UINT8, clip.shape) for name in names],
        [_described(name, onnx.TensorProto.FLOAT, shape.shape) for name, shape in shapes.items()],
    )


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
    versions = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, opset_imports=versions, ir_version=FORMAT, producer_name="flaxvid")


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
