"""Tensors out of the files that others write, without running any code in them."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model")
_WRAPPERS = {"module", "_orig_mod", "model", "backbone", "base_model", "net"}


def read_tensors(source: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of a file or mapping by their own keys, without the batch counters that only torch's norms keep.

    Args:
        source: a .pth, .pt, .pth.tar (needs torch) or .safetensors file, or a mapping of torch tensors or arrays; both
            may hold the tensors under "state_dict", "model_state_dict", "model_state" or "model".

    Raises:
        ValueError: the file would run code, is damaged, or holds no tensors.
        FileNotFoundError: no such file.
        ImportError: a torch file, and torch is not installed.
    """
    mapping: Any = source if isinstance(source, Mapping) else _read_file(Path(source))
    while inner := next((key for key in _CONTAINERS if isinstance(mapping.get(key), Mapping)), None):
        mapping = mapping[inner]
    others = [key for key, tensor in mapping.items() if not hasattr(tensor, "shape")]
    if others or not mapping:
        raise ValueError(
            f"expected tensors by name, at the top or under {', '.join(_CONTAINERS)}, got "
            f"{', '.join(map(repr, others[:10])) or 'an empty mapping'}: pass the part of it that is the state_dict"
        )
    return {key: tensor for key, tensor in mapping.items() if not key.endswith("num_batches_tracked")}


def _read_file(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no weights file at {path}")
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return load_file(path)
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"{path.name} is a torch file: pip install torch to read it, or convert it to .safetensors where torch is"
        ) from error
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        reason = next(
            (line.strip() for line in str(error).splitlines() if "GLOBAL" in line), str(error).splitlines()[0]
        )
        raise ValueError(
            f"{path} is not a file of plain tensors, and reading it could run code, so it was not read ({reason}). "
            "If you trust it, load it with torch yourself and pass its state_dict"
        ) from error
    except (EOFError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged or no torch file ({error}): fetch it again") from error
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{path} must hold a mapping of tensors, got {type(loaded).__name__}: save model.state_dict()")
    return loaded


def unwrapped(key: str) -> str:
    """A key without the parts that only say that one module is wrapped in another, such as "module." or ".net".

    Files of one model differ in them ("module.base_model.conv1.weight", "conv1.weight"), tensors of one file do not.
    """
    return ".".join(part for part in key.split(".") if part not in _WRAPPERS)


def to_numpy(tensor: Any) -> np.ndarray:
    """A torch tensor (of any floating type, on any device) or array as float32."""
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu().float().numpy()
    return np.asarray(tensor, np.float32)
