"""Runs exported ONNX programs in onnxruntime or OpenVINO, which on a CPU are faster than JAX."""

import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

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
    shapes, run = _open(file, runtime, threads)

    def program(video: Any) -> dict[str, Float[np.ndarray, "b k"]]:
        given = {name: np.asarray(clips) for name, clips in _by_camera(video).items()}
        fits = {name: given[name].dtype == np.uint8 and given[name].shape[1:] == shapes.get(name) for name in given}
        if given.keys() != shapes.keys() or not all(fits.values()):
            wanted = ", ".join(f"{name} uint8 (batch, {', '.join(map(str, shape))})" for name, shape in shapes.items())
            got = ", ".join(f"{name} {clips.dtype} {clips.shape}" for name, clips in given.items())
            raise ValueError(f"expected {wanted}, got {got}: an exported program takes clips of its own size alone")
        return _by_target(run(given))

    return program


BEFORE, AFTER = "before/", "after/"
"""What the names of a stream's memories begin with, as inputs and as outputs of its program."""


class Stream:
    """A network that sees one frame after the other; `open_stream` makes it.

    Its answer to a frame rests on that frame and, by its memories, on those before.
    """

    def __init__(self, shapes: Shapes, run: Run):
        self._shapes, self._run = shapes, run
        self.reset()

    def reset(self) -> None:
        """Forgets all frames, for another video."""
        self._memories: dict[str, np.ndarray] = {}

    def __call__(self, frame: UInt8[np.ndarray, "b h w 3"]) -> dict[str, Float[np.ndarray, "b k"]]:
        """The logits of the next frame, for each target.

        Raises:
            ValueError: a frame of another size, or of another batch than those before.
        """
        names = [name for name in self._shapes if name != "frame"]
        batch = next((len(memory) for memory in self._memories.values()), len(frame))
        wanted = (batch, *self._shapes["frame"][1:])
        if frame.dtype != np.uint8 or frame.shape != wanted:
            raise ValueError(f"expected frames of uint8 {wanted}, got {frame.dtype} {frame.shape}")
        memories = self._memories or {name: np.zeros((batch, *self._shapes[name]), np.float32) for name in names}
        outputs = self._run({"frame": frame[:, None], **memories})
        self._memories = {name: outputs.pop(AFTER + name.removeprefix(BEFORE)) for name in names}
        return _by_target(outputs)


def open_stream(file: str | Path, runtime: str, threads: int | None = None) -> Stream:
    """Makes a stream of a file of `flaxvid.export_stream`; arguments and errors as in `open_program`."""
    return Stream(*_open(file, runtime, threads))


def _open(file: str | Path, runtime: str, threads: int | None) -> tuple[Shapes, Run]:
    if runtime not in RUNTIMES:
        raise ValueError(f"runtime: expected {' or '.join(RUNTIMES)}, got {runtime!r}")
    if not is_installed(runtime):
        extra = "cpu" if runtime == "openvino" else "export"
        raise ImportError(f'{runtime} is not installed: pip install "flaxvid[{extra}]"')
    if not Path(file).is_file():
        raise FileNotFoundError(f"expected an ONNX file, got none at {file}: flaxvid.export_onnx writes one")
    return RUNTIMES[runtime](Path(file), threads)


def _by_target(outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"" if name == "logits" else name: logits for name, logits in outputs.items()}


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
    # Its telemetry would fork this process, which JAX's threads may not survive, to tell its maker of each file.
    sys.modules.setdefault("openvino_telemetry", None)  # pyright: ignore[reportArgumentType]
    import openvino

    # Where a processor has bfloat16, OpenVINO would compute in that: an error of half a percent.
    config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads:
        config["INFERENCE_NUM_THREADS"] = threads
    core = openvino.Core()
    read = core.read_model(model=file.read_bytes())
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
