"""Runs exported ONNX programs in onnxruntime or OpenVINO, which on a CPU are faster than JAX."""

import importlib.util
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
        ValueError: an unknown runtime.
        ImportError: the runtime is not installed.
    """
    if runtime not in RUNTIMES:
        raise ValueError(f"runtime: expected {' or '.join(RUNTIMES)}, got {runtime!r}")
    if not is_installed(runtime):
        extra = "cpu" if runtime == "openvino" else "export"
        raise ImportError(f'{runtime} is not installed: pip install "flaxvid[{extra}]"')
    if not Path(file).is_file():
        raise FileNotFoundError(f"expected an ONNX file, got none at {file}: flaxvid.export_onnx writes one")
    shapes, run = RUNTIMES[runtime](Path(file), threads)

    def program(video: Any) -> dict[str, Float[np.ndarray, "b k"]]:
        given = {name: np.asarray(clips) for name, clips in _by_camera(video).items()}
        wrong = given.keys() ^ shapes.keys() or [name for name in shapes if given[name].shape[1:] != shapes[name]]
        if wrong:
            wanted = ", ".join(f"{name} (batch, {', '.join(map(str, shape))})" for name, shape in shapes.items())
            got = ", ".join(f"{name} {clips.shape}" for name, clips in given.items())
            raise ValueError(f"expected {wanted}, got {got}: an exported program takes clips of its own size alone")
        return {"" if name == "logits" else name: logits for name, logits in run(given).items()}

    return program


def _by_camera(video: Any) -> Mapping[str, Any]:
    return video if isinstance(video, Mapping) else {"video": video}


def is_installed(runtime: str) -> bool:
    """Whether a runtime can be imported."""
    return importlib.util.find_spec(runtime) is not None


def _onnxruntime(file: Path, threads: int | None) -> tuple[Shapes, Run]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    session = onnxruntime.InferenceSession(file.read_bytes(), options, providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]
    shapes = {node.name: tuple(node.shape[1:]) for node in session.get_inputs()}
    return shapes, lambda video: _named(outputs, session.run(outputs, video))


def _openvino(file: Path, threads: int | None) -> tuple[Shapes, Run]:
    import openvino

    # Where a processor has bfloat16, OpenVINO would compute in that: an error of half a percent.
    config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads:
        config["INFERENCE_NUM_THREADS"] = threads
    core = openvino.Core()
    model = core.compile_model(core.read_model(model=file.read_bytes()), "CPU", config)
    shapes = {
        node.get_any_name(): tuple(size.get_length() for size in list(node.partial_shape)[1:]) for node in model.inputs
    }
    return shapes, lambda video: {node.get_any_name(): np.array(value) for node, value in model(video).items()}


def _named(names: list[str], arrays: Any) -> dict[str, np.ndarray]:
    return dict(zip(names, arrays, strict=True))


RUNTIMES = {"onnxruntime": _onnxruntime, "openvino": _openvino}
"""How each opens a file: the shapes of its inputs without the batch, and what runs it."""
