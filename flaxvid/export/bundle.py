"""The folder that exports write: programs, the weights as a file of flaxvid, and bundle.json, which describes them.

`flaxvid.load` opens it. Who has no flaxvid finds in bundle.json how clips are cut, what the classes are called and how
accurate the network was.
"""

import contextlib
import importlib.metadata
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from flaxvid.evaluate.record import any_frame_rows
from flaxvid.export.programs import each_count
from flaxvid.layers.int8 import DYNAMIC
from flaxvid.report.records import read_evaluation
from flaxvid.train.bundle import DESCRIPTION, FORMAT, WEIGHTS, digests
from flaxvid.train.network import Trained, save
from flaxvid.train.setup import clip_config
from flaxvid.writing import read_json, written_whole

Write = Callable[..., Mapping[str, float]]
"""Writes a program, given a path, the model, its ordinary variables, the frame count and the size of a frame; returns
its difference from JAX in each runtime."""


def write_programs(
    trained: Trained, folder: str | Path, frames: tuple[int, ...], kind: str, write: Write
) -> dict[int, Path]:
    """Writes a program for each frame count into a bundle; a file gets its name when its program was checked.

    Args:
        trained: the network.
        folder: of the bundle, which may hold other programs of the same network.
        frames: the frame counts; () is those that it was trained at.
        kind: the ending of the files.
        write: see `Write`.

    Raises:
        ValueError: the folder holds another network, or is a run's; or ONNX is asked of a network that rounds each clip
            by a range of its own.
    """
    if (Path(folder) / "recipe.json").exists():
        raise ValueError(f"expected a folder of its own for exports, got the run {folder}: give another")
    if trained.model.int8 == DYNAMIC and kind.endswith("onnx"):
        raise ValueError(
            "this network was trained for int8 and has no ranges yet: give it to scripts/quantise.py, and export what "
            "that writes"
        )
    programs, folder, files = list(each_count(trained, frames)), Path(folder), {}
    folder.mkdir(parents=True, exist_ok=True)
    with _weights_kept(trained, folder):
        for count, model, variables, size in programs:
            file = files[count] = folder / f"{count}_frames.{kind}"
            with written_whole(file) as part:
                differences = write(part, model, variables, count, size)
            _describe(trained, folder, {"file": file.name, "frames": count, "size": size, "difference": differences})
    return files


@contextlib.contextmanager
def _weights_kept(trained: Trained, folder: Path) -> Iterator[None]:
    """Writes the weights, and removes them again if no program follows. A model made by hand has no file of them."""
    old, new = folder / WEIGHTS, folder / f"new.{WEIGHTS}"
    before = old.read_bytes() if old.exists() else None
    try:
        if trained.model.zoo_name:
            save(trained, new)
            if before not in (None, new.read_bytes()):
                raise ValueError(f"expected a folder for this network, got {folder}, which holds another: give another")
            new.replace(old)
        yield
    finally:
        new.unlink(missing_ok=True)
        if before is None and not (folder / DESCRIPTION).exists():
            old.unlink(missing_ok=True)


def _describe(trained: Trained, folder: Path, program: Mapping[str, Any]) -> None:
    """Writes the description, with one program more."""
    file, model, clips = folder / DESCRIPTION, trained.model, clip_config(trained.recipe, trained.frames)
    others = read_json(file, dict).get("programs", []) if file.exists() else []
    programs = [*(other for other in others if other["file"] != program["file"]), program]
    description = {
        "format": FORMAT,
        "flaxvid": importlib.metadata.version("flaxvid"),
        "network": model.zoo_name,
        "weights": WEIGHTS if model.zoo_name else None,
        "frames": trained.frames,
        "input": {
            "names": list(model.cameras) or ["video"],
            "type": "uint8",
            "axes": ["batch", "frames", "height", "width", "RGB"],
            "normalised": "inside the programs",
        },
        "clips": {
            "sampling": clips.sampling,
            "short_side": clips.test_size or round(program["size"] * 256 / 224),
            "centre_crop": program["size"],
            **({"interval": clips.interval} if clips.sampling == "dense" else {}),
            "clips": clips.clips,
            "crops": clips.crops,
        },
        "classes": trained.classes if trained.named else None,
        "accuracy": _accuracy(trained),
        "programs": sorted(programs, key=lambda one: one["file"]),
        "files": digests(folder, (WEIGHTS, *(program["file"] for program in programs))),
    }
    with written_whole(file) as part:
        part.write_text(json.dumps(description, indent=1, ensure_ascii=False), encoding="utf-8")


def _accuracy(trained: Trained) -> list[dict[str, Any]] | None:
    """What the run measured of these very weights; None if nothing."""
    record = read_evaluation(trained.folder / "evaluation.json") if trained.folder else {}
    if not record or record.get("checkpoint", {}).get("step") != (trained.checkpoint or {}).get("step"):
        return None
    return [{"data": record["data"]["name"], **row} for row in any_frame_rows(record)]
