"""Runs exported ONNX programs, in onnxruntime or OpenVINO."""

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

Program = Callable[[Any], dict[str, Float[np.ndarray, "b k"]]]
"""uint8 video (b, t, h, w, 3), or one for each camera, to the logits of each target; a single target is called ""."""


def open_program(file: str | Path, runtime: str, threads: int | None = None) -> Program:
    """Makes a function of an ONNX file.

    Args:
        file: one that `flaxvid.export_onnx` wrote.
        runtime: one of `RUNTIMES`.
        threads: how many it may use; None leaves that to the runtime.

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
    names, run = RUNTIMES[runtime](Path(file), threads)

    def program(video: Any) -> dict[str, Float[np.ndarray, "b k"]]:
        given = video if isinstance(video, Mapping) else {"video": video}
        if sorted(given) != sorted(names):
            raise ValueError(f"expected {', '.join(names)}, all of them, got {', '.join(given)}")
        logits = run({name: np.asarray(given[name]) for name in names})
        return {"" if name == "logits" else name: value for name, value in logits.items()}

    return program


def is_installed(runtime: str) -> bool:
    """Whether a runtime can be imported."""
    return importlib.util.find_spec(runtime) is not None


def _onnxruntime(file: Path, threads: int | None) -> tuple[list[str], Callable[[Any], dict[str, Any]]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    session = onnxruntime.InferenceSession(file.read_bytes(), options, providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]
    names = [node.name for node in session.get_inputs()]
    return names, lambda video: dict(zip(outputs, session.run(outputs, video), strict=True))


def _openvino(file: Path, threads: int | None) -> tuple[list[str], Callable[[Any], dict[str, Any]]]:
    import openvino

    # Where a processor has bfloat16, OpenVINO would compute in that: an error of half a percent.
    config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads:
        config["INFERENCE_NUM_THREADS"] = threads
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model=file.read_bytes()), "CPU", config)
    names = [node.get_any_name() for node in compiled.inputs]
    return names, lambda video: {output.get_any_name(): np.array(value) for output, value in compiled(video).items()}


RUNTIMES = {"onnxruntime": _onnxruntime, "openvino": _openvino}
"""How each opens a file: the names of its inputs, and what runs it."""
