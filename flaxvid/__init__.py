"""flaxvid: video understanding in JAX and Flax. Public names are loaded when first used."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from flaxvid import layers, losses
    from flaxvid.data.clips.cut import read_video
    from flaxvid.export.onnx import export_onnx
    from flaxvid.export.stablehlo import export_stablehlo
    from flaxvid.export.stream import export_stream
    from flaxvid.frames import FrameFlexible
    from flaxvid.models.registry import create_model, list_models
    from flaxvid.train.loop import run
    from flaxvid.train.network import Trained, save
    from flaxvid.train.trained import load
    from flaxvid.types import ClipSpec
    from flaxvid.weights.known import find_weights, list_weights
    from flaxvid.weights.torch import load_model, load_torch, to_torch

_PUBLIC = {
    "ClipSpec": "flaxvid.types",
    "FrameFlexible": "flaxvid.frames",
    "Trained": "flaxvid.train.network",
    "create_model": "flaxvid.models.registry",
    "export_onnx": "flaxvid.export.onnx",
    "export_stablehlo": "flaxvid.export.stablehlo",
    "export_stream": "flaxvid.export.stream",
    "find_weights": "flaxvid.weights.known",
    "list_models": "flaxvid.models.registry",
    "list_weights": "flaxvid.weights.known",
    "load": "flaxvid.train.trained",
    "load_model": "flaxvid.weights.torch",
    "load_torch": "flaxvid.weights.torch",
    "read_video": "flaxvid.data.clips.cut",
    "run": "flaxvid.train.loop",
    "save": "flaxvid.train.network",
    "to_torch": "flaxvid.weights.torch",
}
_ROOMS = ("layers", "losses")

__all__ = [
    "ClipSpec",
    "FrameFlexible",
    "Trained",
    "create_model",
    "export_onnx",
    "export_stablehlo",
    "export_stream",
    "find_weights",
    "layers",
    "list_models",
    "list_weights",
    "load",
    "load_model",
    "load_torch",
    "losses",
    "read_video",
    "run",
    "save",
    "to_torch",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        try:
            return getattr(importlib.import_module(_PUBLIC[name]), name)
        except ModuleNotFoundError as error:
            if error.name != "onnx":
                raise
            raise ImportError(f'{name} needs onnx, which is not installed: pip install "flaxvid[export]"') from error
    if name in _ROOMS:
        return importlib.import_module(f"flaxvid.{name}")
    raise AttributeError(f"module 'flaxvid' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
