"""Runs exported ONNX programs in onnxruntime or OpenVINO, which on a CPU are faster than JAX."""

import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

Program = Callable[[Any], dict[str, Float[np.ndarray, "b k"]]]
"""uint8 video (b, t, h, w, 3), or one for each camera, to the logits of each target; a single target is called ""."""

Shapes = dict[str, tuple[int, ...]]
Run = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


def open_program(file: str | Path, runtime: str, threads: int | None = None) -> Program:
    """Makes a function of an ONNX file.

    Args:
        file: one that `flaxvid.export_onnx` wrote.
        runtime: one of `RUNTIMES`.
        threads: how many it may use; None leaves that to the runtime.

    Returns:
        The function. It raises ValueError for clips of another size, and where a camera is missing.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown runtime; or the file is damaged, or has what `find_foreign` finds.
        ImportError: the runtime is not installed.
    """
    shapes, run = open_file(file, runtime, threads)

    def program(video: Any) -> dict[str, Float[np.ndarray, "b k"]]:
        given = {name: np.asarray(clips) for name, clips in _by_camera(video).items()}
        fits = {name: given[name].dtype == np.uint8 and given[name].shape[1:] == shapes.get(name) for name in given}
        if given.keys() != shapes.keys() or not all(fits.values()):
            wanted = ", ".join(f"{name} uint8 (batch, {', '.join(map(str, shape))})" for name, shape in shapes.items())
            got = ", ".join(f"{name} {clips.dtype} {clips.shape}" for name, clips in given.items())
            raise ValueError(f"expected {wanted}, got {got}: an exported program takes clips of its own size alone")
        return by_name(run(given))

    return program


def open_file(file: str | Path, runtime: str, threads: int | None) -> tuple[Shapes, Run]:
    """The shapes of an ONNX program's inputs, without the batch, and what runs it; see `open_program`."""
    if runtime not in RUNTIMES:
        raise ValueError(f"runtime: expected {' or '.join(RUNTIMES)}, got {runtime!r}")
    if not is_installed(runtime):
        extra = "cpu" if runtime == "openvino" else "export"
        raise ImportError(f'{runtime} is not installed: pip install "flaxvid[{extra}]"')
    if not Path(file).is_file():
        raise FileNotFoundError(f"expected an ONNX file, got none at {file}: flaxvid.export_onnx writes one")
    content = Path(file).read_bytes()
    if not (fault := find_foreign(content)):
        try:
            return RUNTIMES[runtime](content, threads)
        except Exception as error:  # each runtime has its own
            fault = str(error)
    raise ValueError(f"expected an ONNX program of flaxvid, got {file} ({fault}): export it again")


def find_foreign(content: bytes) -> str:
    """What an ONNX file has that flaxvid never writes: other files, other operators, control flow; "" if nothing."""
    import onnx

    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # of protobuf
        return f"damaged: {error}"
    tensors = [*model.graph.initializer]
    for node in model.graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            return f"the operator {node.op_type} has a graph of its own"
        if node.domain not in ("", "ai.onnx"):
            return f"the operator {node.op_type} is of {node.domain}"
        tensors += [attribute.t for attribute in node.attribute if attribute.HasField("t")]
        tensors += [tensor for attribute in node.attribute for tensor in attribute.tensors]
    if model.functions or model.graph.sparse_initializer:
        return "it has functions or sparse tensors"
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors):
        return "its weights are in another file"
    return ""


def by_name(outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Logits by target."""
    return {"" if name == "logits" else name: logits for name, logits in outputs.items()}


def _by_camera(video: Any) -> Mapping[str, Any]:
    return video if isinstance(video, Mapping) else {"video": video}


def is_installed(runtime: str) -> bool:
    """Whether a runtime can be imported, and onnx, which looks at a file before."""
    return all(importlib.util.find_spec(package) is not None for package in ("onnx", runtime))


def _onnxruntime(content: bytes, threads: int | None) -> tuple[Shapes, Run]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]
    shapes = {node.name: tuple(node.shape[1:]) for node in session.get_inputs()}
    return shapes, lambda video: _named(outputs, session.run(outputs, video))


def _openvino(content: bytes, threads: int | None) -> tuple[Shapes, Run]:
    # Its telemetry would fork this process, which JAX's threads may not survive, to tell its maker of each file.
    sys.modules.setdefault("openvino_telemetry", None)  # pyright: ignore[reportArgumentType]
    import openvino  # pyright: ignore[reportMissingImports]  (of the extra [cpu])

    # Where a processor has bfloat16, OpenVINO would compute in that: an error of half a percent.
    config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads:
        config["INFERENCE_NUM_THREADS"] = threads
    core = openvino.Core()
    read = core.read_model(model=content)
    names = [node.get_any_name() for node in read.outputs]  # compiled, they may have others, too
    model = core.compile_model(read, "CPU", config)
    shapes = {
        node.get_any_name(): tuple(size.get_length() for size in list(node.partial_shape)[1:]) for node in model.inputs
    }
    return shapes, lambda video: _named(names, [np.array(value) for value in model(video).to_tuple()])


def _named(names: list[str], arrays: Any) -> dict[str, np.ndarray]:
    return dict(zip(names, arrays, strict=True))


RUNTIMES = {"onnxruntime": _onnxruntime, "openvino": _openvino}
"""How each opens a file: the shapes of its inputs without the batch, and what runs it."""
