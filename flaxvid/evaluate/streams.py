"""Causal networks on streams: they see one frame after the other, and remember what they need of those before."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8
from scipy.special import softmax

from flaxvid import trees
from flaxvid.evaluate.predictor import Prediction
from flaxvid.evaluate.runtimes import Run, Shapes, by_name, open_file
from flaxvid.models.video_model import VideoModel
from flaxvid.types import Variables, by_target

BEFORE, AFTER = "before/", "after/"
"""What the names of a stream's memories begin with, as inputs and as outputs of its program."""


class Stream:
    """A network that sees one frame after the other; `open_stream` and `make_stream` make it.

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
            raise ValueError(
                f"expected frames of uint8 {wanted}, got {frame.dtype} {frame.shape}: resize them, and call reset() "
                "before another video"
            )
        memories = self._memories or {name: np.zeros((batch, *self._shapes[name]), np.float32) for name in names}
        outputs = dict(self._run({"frame": frame[:, None], **memories}))
        self._memories = {name: outputs.pop(AFTER + name.removeprefix(BEFORE)) for name in names}
        return by_name(outputs)


def open_stream(file: str | Path, runtime: str, threads: int | None = None) -> Stream:
    """Makes a stream of a file of `flaxvid.export_stream`; arguments and errors as in `open_program`."""
    shapes, run = open_file(file, runtime, threads)
    if "frame" not in shapes:
        raise ValueError(
            f"expected a program for streams, got {file}, which takes clips: flaxvid.export_stream writes one"
        )
    return Stream(shapes, run)


def make_stream(model: VideoModel, variables: Variables, size: int) -> Stream:
    """The stream of a causal model in JAX, for frames of (size, size); errors as in `stream_function`."""
    function, inputs = stream_function(model, variables, size)
    shapes = {name: tuple(shape[1:]) for name, (shape, _) in inputs.items()}
    step = jax.jit(lambda given: function(**given))
    return Stream(shapes, lambda given: jax.device_get(step(given)))


def stream_function(
    model: VideoModel, variables: Variables, size: int
) -> tuple[Callable[..., dict[str, Any]], dict[str, tuple[tuple[Any, ...], Any]]]:
    """A causal model as a function of the next frame and its memories.

    Returns:
        The function, arrays by keywords to a dict of arrays; and shape and type of each input. "frame" is uint8
        (batch, 1, size, size, 3); a memory has the same name as input and as output, but for `BEFORE` and `AFTER`.

    Raises:
        ValueError: the network is not causal, or one of several cameras.
    """
    if model.cameras:
        raise ValueError("expected a network of one video, got one of several cameras: it cannot run on a stream")

    def step(frame: Any, cache: Any) -> Any:
        given = {**variables, "cache": cache} if cache else variables
        return model.apply(given, frame, mutable=["cache"])

    frame = (1, 1, size, size, 3)
    _, state = jax.eval_shape(lambda frame: step(frame, {}), jax.ShapeDtypeStruct(frame, np.uint8))
    memories = trees.flatten(state.get("cache", {}))
    if not memories:
        raise ValueError(
            'expected a network that sees no frames to come, got another: make it with shift="causal" and train it so'
        )

    def function(**inputs: Any) -> dict[str, Any]:
        cache = {name.removeprefix(BEFORE): value for name, value in inputs.items() if name.startswith(BEFORE)}
        logits, state = step(inputs["frame"], trees.unflatten(cache))
        named = {target or "logits": value for target, value in by_target(logits).items()}
        return named | {AFTER + path: value for path, value in trees.flatten(state["cache"]).items()}

    inputs: dict[str, Any] = {"frame": (("batch", *frame[1:]), np.uint8)}
    inputs |= {BEFORE + path: (("batch", *leaf.shape[1:]), leaf.dtype) for path, leaf in memories.items()}
    return function, inputs


def answer_stream(
    stream: Stream, frames: Iterable[tuple[float, UInt8[np.ndarray, "h w 3"]]], seconds: float
) -> Iterator[Prediction]:
    """Yields an answer for each `seconds` of a stream: the mean of its frames' logits, as probabilities.

    What was before is remembered. Seconds without a frame get no answer.

    Args:
        stream: the network.
        frames: the time of each frame, in seconds, and the frame.
        seconds: from one answer to the next.
    """
    number, logits, last = 0, [], 0.0
    for time, frame in frames:
        if logits and time >= (number + 1) * seconds:
            yield _answer(number * seconds, (number + 1) * seconds, logits)
            logits = []
        number, last = int(time // seconds), time
        logits.append(stream(frame[None]))
    if logits:
        yield _answer(number * seconds, last, logits)


def _answer(start: float, end: float, logits: list[Mapping[str, Float[np.ndarray, "1 k"]]]) -> Prediction:
    means = jax.tree.map(lambda *frames: np.mean(frames, axis=0)[0], *logits)
    return Prediction(start, end, {target: softmax(own) for target, own in means.items()})
