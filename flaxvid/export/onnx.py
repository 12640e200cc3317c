"""ONNX: a network and its weights as one program for onnxruntime, OpenVINO and others."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
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
from flaxvid.export.bundle import write_programs
from flaxvid.export.graph import Graph, Node
from flaxvid.export.int8 import in_whole_numbers
from flaxvid.export.norms import fold_norms
from flaxvid.export.programs import compare
from flaxvid.export.rules import run
from flaxvid.export.tensors import Tensor
from flaxvid.layers.lowering import direct_form
from flaxvid.models.video_model import VideoModel
from flaxvid.train.network import Trained
from flaxvid.types import Variables, by_target

OPSET, FORMAT = 20, 9
"""The first version of the operators that has Gelu, and the version of the file format that goes with it."""

LARGEST = 2**31 - 1
"""Bytes that a file of protobuf may have."""


def export_onnx(trained: Trained, folder: str | Path, frames: tuple[int, ...] = ()) -> dict[int, Path]:
    """Writes a network as ONNX, one program for each frame count, with its weights in it: ``8_frames.onnx``.

    A program takes uint8 video (b, t, h, w, 3) with any batch b, and gives logits (b, k). It has an input "video", or
    one for each camera, and an output "logits", or one for each target. Before its file gets its name it is compared
    with JAX, at two batch sizes, in every runtime that is installed. `flaxvid.load` opens the folder.

    Args:
        trained: the network.
        folder: of the bundle; it may hold other programs of the same network.
        frames: the frame counts; () is those that it was trained at.

    Returns:
        The file of each count.

    Raises:
        ImportError: onnxruntime is not installed.
        ValueError: the network has no head, more than 2 GB, or an operation that there is no rule for; a runtime gives
            other logits than JAX; or the folder holds another network.
    """
    if not is_installed("onnxruntime"):
        raise ImportError('export is checked in onnxruntime, which is not installed: pip install "flaxvid[export]"')
    return write_programs(trained, folder, frames, "onnx", _write)


def _write(file: Path, model: VideoModel, variables: Variables, num_frames: int, size: int) -> dict[str, float]:
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
    if weights > LARGEST:
        raise ValueError(
            f"expected a network of at most 2 GB, as an ONNX file holds, got {weights / 1e9:.1f} GB: load its "
            "weights in JAX instead"
        )
    file.write_bytes(onnx_program(model, variables, num_frames, size).SerializeToString())
    programs = {runtime: open_program(file, runtime) for runtime in RUNTIMES if is_installed(runtime)}
    return compare(programs, model, variables, num_frames, size)


def onnx_program(model: VideoModel, variables: Variables, num_frames: int, size: int) -> onnx.ModelProto:
    """The program of a model that computes in float32, for clips of (num_frames, size, size, 3)."""

    def logits(**video: Any) -> dict[str, Any]:
        named = by_target(model.apply(variables, video if model.cameras else video["video"]))
        return {target or "logits": value for target, value in named.items()}

    clip = (("batch", num_frames, size, size, 3), np.uint8)
    return onnx_function(logits, dict.fromkeys(model.cameras or ("video",), clip))


def onnx_function(
    function: Callable[..., Mapping[str, Any]], inputs: Mapping[str, tuple[Sequence[Any], Any]]
) -> onnx.ModelProto:
    """A function of JAX as an ONNX program; what it closes over becomes part of that.

    Args:
        function: arrays by keywords to a dict of arrays.
        inputs: shape and type of each input; the size "batch", in some or all of them, is any size.

    Raises:
        ValueError: the function does something that has no rule.
    """
    (batch,) = jax.export.symbolic_shape("batch")
    shapes = {
        name: jax.ShapeDtypeStruct(tuple(batch if size == "batch" else size for size in shape), kind)
        for name, (shape, kind) in sorted(inputs.items())  # in the order in which JAX takes a dict apart
    }
    with direct_form(), nn.intercept_methods(_whole_norms):
        trace = jax.make_jaxpr(lambda arrays: dict(function(**arrays)), return_shape=True)
        jaxpr, results = trace(shapes)
    graph = Graph(batch, next((name for name, x in shapes.items() if x.shape[:1] == (batch,)), ""))
    starts = []
    for name, x in shapes.items():
        axes = graph.axes_of(x.shape)
        starts.append(Tensor(name, axes, axes))
    if clash := sorted(shapes.keys() & results.keys()):
        raise ValueError(f"expected inputs and outputs of different names, got {', '.join(clash)} for both: rename one")
    ends = dict(zip(sorted(results), run(graph, jaxpr, starts), strict=True))
    nodes = _with_outputs(graph.nodes, {name: graph.in_memory(end).value for name, end in ends.items()})
    nodes = in_whole_numbers(fold_norms(nodes, list(ends)), list(ends))
    return _assemble(nodes, shapes, {name: results[name] for name in ends})


def _with_outputs(nodes: Sequence[Node], ends: Mapping[str, str | np.ndarray]) -> list[Node]:
    """The nodes, which give the ends by their names."""
    made = {node.output for node in nodes}
    new = {value: name for name, value in ends.items() if isinstance(value, str) and value in made}
    for node in nodes:
        node.output = new.get(node.output, node.output)
        node.inputs = [new.get(value, value) if isinstance(value, str) else value for value in node.inputs]
    # What is an input, a constant, or another output, too, is copied.
    rest = {name: value for name, value in ends.items() if name not in new.values()}
    named = {name: new.get(value, value) if isinstance(value, str) else value for name, value in rest.items()}
    return [*nodes, *(Node("Identity", [value], name, {}, name) for name, value in named.items())]


def _assemble(nodes: Sequence[Node], inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> onnx.ModelProto:
    """The nodes as ONNX has them; equal constants are stored once, but for vectors.

    OpenVINO adds a bias inside the convolution only if it is of that convolution alone.
    """
    stored: dict[Any, onnx.TensorProto] = {}

    def name_of(value: str | np.ndarray, name: str) -> str:
        if isinstance(value, str):
            return value
        content = name if value.ndim < 2 else (value.dtype.str, value.shape, hashlib.sha256(value.tobytes()).digest())
        return stored.setdefault(content, numpy_helper.from_array(value, name)).name

    def describe(arrays: Mapping[str, Any]) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(
                name,
                helper.np_dtype_to_tensor_dtype(x.dtype),
                [size if isinstance(size, int) else str(size) for size in x.shape],
            )
            for name, x in arrays.items()
        ]

    made = [
        helper.make_node(
            node.op,
            [name_of(value, f"{node.name}.{place}") for place, value in enumerate(node.inputs)],
            [node.output],
            node.name,
            **node.attributes,
        )
        for node in nodes
    ]
    graph = helper.make_graph(made, "flaxvid", describe(inputs), describe(outputs), list(stored.values()))
    versions = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, opset_imports=versions, ir_version=FORMAT, producer_name="flaxvid")


# --- layer norms ----------------------------------------------------------------------------------------------------

_layer_norm = core.Primitive("layer_norm")
_layer_norm.def_abstract_eval(lambda x, scale, bias, epsilon: x)


def _whole_norms(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
    """Makes every ordinary LayerNorm one operation, for which runtimes have a program."""
    norm = context.module
    plain = isinstance(norm, nn.LayerNorm) and context.method_name == "__call__" and len(args) == 1 and not kwargs
    if not plain or (norm.reduction_axes, norm.feature_axes, norm.axis_name) != (-1, -1, None):
        return call(*args, **kwargs)
    (x,) = args
    scale = norm.get_variable("params", "scale") if norm.use_scale else jnp.ones(x.shape[-1])
    bias = norm.get_variable("params", "bias") if norm.use_bias else jnp.zeros(x.shape[-1])
    return _layer_norm.bind(x, scale, bias, epsilon=norm.epsilon)
