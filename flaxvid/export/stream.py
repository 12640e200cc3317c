"""ONNX for streams: a program that takes one frame after the other, and remembers what it needs of those before."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flaxvid.evaluate.runtimes import RUNTIMES, is_installed
from flaxvid.evaluate.streams import Stream, open_stream, stream_function
from flaxvid.export.bundle import write_programs
from flaxvid.export.onnx import onnx_function
from flaxvid.export.programs import compare
from flaxvid.models.video_model import VideoModel
from flaxvid.train.network import Trained
from flaxvid.types import Variables


def export_stream(trained: Trained, folder: str | Path, frames: tuple[int, ...] = ()) -> dict[int, Path]:
    """Writes a causal network as ONNX for streams: ``8_frames.stream.onnx`` with the weights of 8 frames.

    The program takes one uint8 frame, "frame" (b, 1, h, w, 3), and for each layer with a memory what the layer
    remembers, "before/...", at first zeros. It gives the logits of the frame and the new memories, "after/...".
    `flaxvid.evaluate.streams.open_stream` keeps them. The mean of the frames' logits is compared with the logits that
    JAX gives for the clip, as in `flaxvid.export_onnx`.

    Args:
        trained: the network, such as a TSM with shift="causal".
        folder: of the bundle; it may hold other programs of the same network.
        frames: the frame counts; () is those that it was trained at.

    Returns:
        The file of each count.

    Raises:
        ImportError: onnxruntime is not installed.
        ValueError: the network is not causal; and as `flaxvid.export_onnx`.
    """
    if not is_installed("onnxruntime"):
        raise ImportError('export is checked in onnxruntime, which is not installed: pip install "flaxvid[export]"')
    return write_programs(trained, folder, frames, "stream.onnx", _write)


def _write(file: Path, model: VideoModel, variables: Variables, num_frames: int, size: int) -> dict[str, float]:
    file.write_bytes(onnx_function(*stream_function(model, variables, size)).SerializeToString())
    streams = {runtime: _whole(open_stream(file, runtime)) for runtime in RUNTIMES if is_installed(runtime)}
    return compare(streams, model, variables, num_frames, size)


def _whole(stream: Stream) -> Callable[[Any], Any]:
    """A function of clips: the mean of the frames' logits."""

    def clip(video: Any) -> Any:
        stream.reset()
        logits = [stream(video[:, index]) for index in range(video.shape[1])]
        return jax.tree.map(lambda *frames: np.mean(frames, axis=0), *logits)

    return clip
