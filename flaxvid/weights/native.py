"""Our own weights as one .safetensors file: flat keys such as "params/stem/conv1/kernel", and what the model is."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from flaxvid import trees
from flaxvid.types import Classes, Variables, by_task
from flaxvid.writing import written_whole


@dataclasses.dataclass(frozen=True)
class WeightsInfo:
    """What weights belong to; ``create_model(info.model, **info.overrides)`` makes the model again.

    Attributes:
        model: its name.
        overrides: what `create_model` was given: num_classes, num_frames, mean, std, ..., as JSON values.
        frames: the counts of `FrameFlexible` variables; None for a plain model.
        classes: class names in the order of the logits, if known; of several tasks those of each.
    """

    model: str
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    frames: tuple[int, ...] | None = None
    classes: Classes | None = None


def save_variables(path: str | Path, variables: Variables, info: WeightsInfo) -> None:
    """Writes variables and what they belong to into one file, whole or not at all.

    Raises:
        ValueError: the path does not end in .safetensors.
    """
    from safetensors.numpy import save

    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"expected a path that ends in .safetensors, got {path}")
    flat = {key: np.ascontiguousarray(leaf) for key, leaf in trees.flatten(variables).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as part:
        part.write_bytes(save(flat, metadata={"flaxvid": json.dumps(dataclasses.asdict(info))}))


def is_native(path: str | Path) -> bool:
    """Whether a file was written by `save_variables`."""
    from safetensors import safe_open

    if Path(path).suffix != ".safetensors":
        return False
    with safe_open(path, framework="numpy") as file:
        return "flaxvid" in (file.metadata() or {})


def load_variables(path: str | Path) -> tuple[dict[str, Any], WeightsInfo]:
    """Reads what `save_variables` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a .safetensors file of others (`load_torch` reads those).
    """
    from safetensors import safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights file at {path}")
    with safe_open(path, framework="numpy") as file:
        metadata = (file.metadata() or {}).get("flaxvid")
        if metadata is None:
            raise ValueError(f"{path} was not written by flaxvid: read a file with torch's keys by flaxvid.load_torch")
        flat = {key: jnp.asarray(file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118
    info = json.loads(metadata)
    info["frames"] = info["frames"] and tuple(info["frames"])
    if info["classes"] is not None:
        classes = {task: tuple(names) for task, names in by_task(info["classes"]).items()}
        info["classes"] = classes.get("", classes)
    return trees.unflatten(flat), WeightsInfo(**info)
