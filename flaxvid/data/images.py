"""A video that is a folder of numbered images: which files they are, and in which order."""

import os
import re
from pathlib import Path

from flaxvid.data.video_file import VideoError, printable

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


def list_images(folder: str | Path, name: str = "") -> list[Path]:
    """The images of a folder in the order of their numbers, 2 before 10; hidden files such as `._1.jpg` are none.

    Args:
        folder: where they are.
        name: what errors call it.

    Raises:
        VideoError: there are none, or two have the same number (`1.jpg` and `01.png`).
    """
    name, found = name or printable(folder), {}
    with os.scandir(folder) as entries:
        files = sorted(entry.name for entry in entries if not entry.name.startswith(".") and not entry.is_dir())
    for file in files:
        stem, suffix = os.path.splitext(file)
        if suffix.lower() not in IMAGE_SUFFIXES:
            continue
        if (other := found.setdefault(number_key(stem), file)) != file:
            raise VideoError(
                f"{name}: expected one image of each number, got {printable(other)} and {printable(file)}: remove one"
            )
    if not found:
        raise VideoError(f"{name}: expected a video or a folder of {'/'.join(IMAGE_SUFFIXES)} frames, got neither")
    return [Path(folder, found[key]) for key in sorted(found)]


def number_key(text: str) -> tuple[str | int, ...]:
    """Sorts names by the numbers in them: `a2` before `a10`; texts and numbers take turns."""
    parts: list[str | int] = list(re.split(r"([0-9]+)", text))
    parts[1::2] = map(int, parts[1::2])
    return tuple(parts)
