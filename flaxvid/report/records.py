"""Reads a run's JSON files. An error of one line names a damaged file."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flaxvid.writing import read_json

NUMBER = (int, float)
ROW = {"frames": int, "top1": NUMBER, "top5": NUMBER, "gflops": NUMBER, "clips": int}
COUNTS = dict.fromkeys(("videos", "evaluated", "missing", "unreadable"), int)
SCORES = {
    **ROW,
    **dict.fromkeys(("mean_class", "calibration_error"), NUMBER),
    "confusion": [[int]],
    "reliability": dict.fromkeys(("count", "confidence", "accuracy"), list),
}
EVALUATION = {
    "protocol": {"name": str, "views": str, "size": int},
    "data": {"name": str, **COUNTS, "faults": [{"id": str, "missing": bool}]},
    "device": str,
    "classes": (list, dict),
    "frames": [SCORES],
    "examples": [{"id": str, "label": int, "guesses": dict}],
}
"""Types of the values in evaluation.json; `ROW` has those of any_frame.json. A list gives the type of its entries."""
RECONSTRUCTION = {
    "mask_ratio": NUMBER,
    "data": {"name": str, "videos": int},
    "frames": [{"frames": int, "error": NUMBER, "clips": int}],
    "pictures": [{"id": str, "frames": int, "picture": str}],
}
"""Types of the values in reconstruction.json."""
OPTIONAL = {"checkpoint": {"name": str, "step": int}, "look_fault": str, "by_cube": bool}
"""Types of what not every record has: older ones have no "by_cube", which is true then, and no checkpoint."""


def read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object; {} if there is no file.

    Raises:
        ValueError: It is no UTF-8, no JSON or no object.
    """
    return read_json(path, dict) if path.exists() else {}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Reads any_frame.json; [] if there is no file.

    Raises:
        ValueError: It is damaged.
    """
    rows = read_json(path, list) if path.exists() else []
    _check(path, rows, [ROW])
    _rename(rows)
    return rows


def read_evaluation(path: Path) -> dict[str, Any]:
    """Reads evaluation.json; {} if there is no file.

    Raises:
        ValueError: It is damaged.
    """
    record = read_object(path)
    if path.exists():
        _check(path, record, EVALUATION | {key: kind for key, kind in OPTIONAL.items() if key in record})
        _rename([*record["frames"], *record["examples"]])
        try:
            fault = next(_outside(record), None)
        except (TypeError, ValueError) as error:
            fault = f"expected [label, guess, videos] and [guess, confidence], got something else ({error})"
        if fault:
            raise _damaged(path, fault)
    return record


def read_reconstruction(path: Path) -> dict[str, Any]:
    """Reads reconstruction.json; {} if there is no file.

    Raises:
        ValueError: it is damaged.
    """
    record = read_object(path)
    if path.exists():
        _check(path, record, RECONSTRUCTION | {key: kind for key, kind in OPTIONAL.items() if key in record})
    return record


def read_metrics(path: str | Path) -> tuple[dict[str, Any], ...]:
    """Reads metrics.jsonl; () if there is no file. It skips half a last line, which a killed process leaves.

    Raises:
        ValueError: Another line is no JSON object with a step.
    """
    path = Path(path)
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and isinstance(row.get("step"), NUMBER):
            rows.append(row)
        elif number < len(lines):  # the last line was being written, or is empty
            raise ValueError(
                f"expected a JSON object with its step in line {number} of {path}, got {line[:60]!r}: remove that line"
            )
    return tuple(rows)


def _rename(entries: list[dict[str, Any]]) -> None:
    """Reads older records, in which targets were called tasks."""
    for entry in entries:
        if "task" in entry:
            entry["target"] = entry.pop("task")


def _check(path: Path, value: Any, wanted: Any) -> None:
    if fault := next(_faults(value, wanted, ""), None):
        raise _damaged(path, fault)


def _damaged(path: Path, fault: str) -> ValueError:
    return ValueError(f"{path} is damaged: {fault}; move the file away or restore it")


def _faults(value: Any, wanted: Any, where: str) -> Iterator[str]:
    """Finds what differs from `wanted`: a type, or a list or dict of types."""
    kinds = wanted if isinstance(wanted, tuple) else (type(wanted) if isinstance(wanted, list | dict) else wanted,)
    if type(value) not in kinds:
        names = " or ".join(kind.__name__ for kind in kinds)
        yield f"expected {names}{f' as {where}' * bool(where)}, got {type(value).__name__}"
    elif isinstance(wanted, list):
        for number, entry in enumerate(value):
            yield from _faults(entry, wanted[0], f"{where}[{number}]")
    elif isinstance(wanted, dict):
        for key, inner in wanted.items():
            name = f"{where}.{key}".lstrip(".")
            if key in value:
                yield from _faults(value[key], inner, name)
            else:
                yield f"expected {name}, got none"


def _outside(record: Mapping[str, Any]) -> Iterator[str]:
    """Finds missing rows, guesses and class names, and class numbers out of range."""
    classes, counts = record["classes"], {str(row["frames"]) for row in record["frames"]}
    if not counts:
        yield "expected a row for each frame count, got none"
    for key in ("frames", "examples"):
        for entry in record[key]:
            target = entry.get("target", "")
            names = classes.get(target) if isinstance(classes, dict) else classes
            if key == "frames":
                numbers = [number for label, guess, _ in entry["confusion"] for number in (label, guess)]
            else:
                numbers = [entry["label"], *(guess for guess, _ in entry["guesses"].values())]
                if not all(isinstance(entry.get(picture, ""), str) for picture in ("strip", "look")):
                    yield f"expected names of pictures of {entry['id']}, got something else"
                if missing := counts - entry["guesses"].keys():
                    yield f"expected guesses at {', '.join(sorted(missing))} frames of {entry['id']}, got none"
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                yield f"expected class names{f' of {target}' * bool(target)}, got none"
            elif wrong := [number for number in numbers if not 0 <= number < len(names)]:
                yield f"expected numbers of {len(names)} classes in {key}, got {wrong[0]}"
