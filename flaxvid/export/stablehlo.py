"""StableHLO: a network and its weights as one program that JAX runs without flaxvid, on any of its platforms."""

import importlib.util
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from flaxvid.export.bundle import write_programs
from flaxvid.export.programs import compare
from flaxvid.models.video_model import VideoModel
from flaxvid.train.network import Trained
from flaxvid.types import Variables

PLATFORMS = ("cpu", "cuda", "tpu")


def export_stablehlo(trained: Trained, folder: str | Path, frames: tuple[int, ...] = ()) -> dict[int, Path]:
    """Writes a network as StableHLO, one program for each frame count, with its weights in it: ``8_frames.stablehlo``.

    A program takes uint8 video (b, t, h, w, 3) with any batch b, or a dict of cameras, and gives logits (b, k), or a
    dict of targets. It runs on a CPU, on NVIDIA GPUs and on TPUs, where convolutions have the form that is fast there.
    Python needs jax and flatbuffers::

        program = jax.export.deserialize(bytearray(pathlib.Path("8_frames.stablehlo").read_bytes()))
        logits = program.call(video)

    Args:
        trained: the network.
        folder: of the bundle; it may hold other programs of the same network.
        frames: the frame counts; () is those that it was trained at.

    Returns:
        The file of each count.

    Raises:
        ImportError: flatbuffers, which JAX writes programs with, is not installed.
        ValueError: the network has no head; the program, read back, gives other logits; or the folder holds another
            network.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise ImportError('JAX writes programs with flatbuffers, which is not installed: pip install "flaxvid[export]"')
    return write_programs(trained, folder, frames, "stablehlo", _write)


def _write(file: Path, model: VideoModel, variables: Variables, num_frames: int, size: int) -> dict[str, float]:
    (batch,) = jax.export.symbolic_shape("batch")
    clip: Any = jax.ShapeDtypeStruct((batch, num_frames, size, size, 3), jnp.uint8)
    network = jax.jit(lambda video: model.apply(variables, video))
    program = jax.export.export(network, platforms=PLATFORMS)(model.for_cameras(clip))
    file.write_bytes(program.serialize())
    again = jax.export.deserialize(bytearray(file.read_bytes()))
    return compare({"jax": jax.jit(again.call)}, model, variables, num_frames, size)
