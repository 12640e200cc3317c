"""Reads the folder that exports write; a file is opened only if it is the one that was written."""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from flaxvid.data.sources.class_names import as_classes
from flaxvid.types import Classes
from flaxvid.writing import read_json

DESCRIPTION = "bundle.json"
"""The file that says what is in a bundle."""

WEIGHTS = "weights.safetensors"
"""The file of a bundle with the weights."""

FORMAT = 1
"""The version of what `DESCRIPTION` says."""

AGAIN = "copy the whole folder again, or export it again"


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A folder of exports.

    Attributes:
        folder: where it is.
        files: the digest of each of its files.
        programs: of each kind, "onnx", "stablehlo" or "stream.onnx", the file of each frame count.
        classes: names of the classes; None if they are unknown.
    """

    folder: Path
    files: Mapping[str, str]
    programs: Mapping[str, Mapping[int, str]]
    classes: Classes | None

    def path(self, name: str) -> Path:
        """The path of one of its files.

        Raises:
            FileNotFoundError: it is missing.
            ValueError: it is not in the bundle, or it was changed.
        """
        file = self.folder / name
        if name not in self.files:
            raise ValueError(f"expected a bundle with {name}, got {self.folder} with {', '.join(self.files)}: {AGAIN}")
        if not file.is_file():
            raise FileNotFoundError(f"expected {file}, of which {DESCRIPTION} speaks, got no such file: {AGAIN}")
        if digest(file) != self.files[name]:
            raise ValueError(f"expected {file} as it was exported, got other bytes: {AGAIN}")
        return file


def is_bundle(path: Path) -> bool:
    """Whether a path is a folder of exports. A run's folder never is, even if a file of weights was saved there."""
    described = (path / DESCRIPTION).is_file() or (path / WEIGHTS).is_file()
    return described and not (path / "recipe.json").exists()


def read_bundle(folder: Path) -> Bundle:
    """Reads what a folder of exports says of itself. Its files are looked at when they are asked for.

    Raises:
        FileNotFoundError: it says nothing.
        ValueError: it is of another version, damaged, or speaks of files elsewhere.
    """
    file = folder / DESCRIPTION
    if not file.is_file():
        raise FileNotFoundError(f"expected {DESCRIPTION} in {folder}, got none: {AGAIN}")
    said = read_json(file, dict)
    if said.get("format") != FORMAT:
        raise ValueError(
            f"expected a bundle of format {FORMAT}, got {file} of format {said.get('format')!r}: export it again by "
            "this version of flaxvid, or use the version that wrote it"
        )
    try:
        files = {str(name): str(value) for name, value in said["files"].items()}
        programs = [(str(one["file"]), int(one["frames"])) for one in said["programs"]]
        classes = None if said["classes"] is None else as_classes(said["classes"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"expected files, programs and classes in {file}, got {error!r}: {AGAIN}") from error
    names = (*files, *(name for name, _ in programs))
    if outside := [name for name in names if name in ("", ".", "..") or {*name} & {*"/\\\0"}]:
        raise ValueError(f"expected files of the folder itself in {file}, got {outside[0]!r}: do not trust this bundle")
    kinds: dict[str, dict[int, str]] = {}
    for name, count in programs:
        kinds.setdefault(name.partition(".")[2], {})[count] = name
    return Bundle(folder, files, kinds, classes)


def digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """The digest of each file that is there."""
    return {name: digest(folder / name) for name in sorted(names) if (folder / name).is_file()}


def digest(file: Path) -> str:
    """The SHA-256 of a file, as hexadecimal digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
