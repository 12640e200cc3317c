"""Lists the images of a video that is a folder of numbered images."""

import os
import re
from decimal import Decimal
from pathlib import Path

from flaxvid.data.clips.video_file import VideoError, printable

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


def list_images(folder: str | Path, name: str = "") -> list[Path]:
    """The images of a folder in the order of their numbers, 2 before 10, without hidden files such as `._1.jpg`.

    Args:
        folder: The folder.
        name: What errors call it.

    Raises:
        VideoError: There are no images, or two have the same number (`1.jpg` and `01.png`).
    """
    name, found = name or printable(folder), {}
    try:
        with os.scandir(folder) as entries:
            files = sorted(entry.name for entry in entries if not entry.name.startswith(".") and not entry.is_dir())
    except OSError as error:
        raise VideoError(f"{name}: expected a folder of images, got an unreadable one ({error}): check it") from error
    images = [(*os.path.splitext(file), file) for file in files]
    images = [(stem, file) for stem, suffix, file in images if suffix.lower() in IMAGE_SUFFIXES]
    # Names such as 0.04, 0.12, 0.2 are seconds: digits after the point vary in number and may begin with 0.
    ends = [end for stem, _ in images for end in re.findall(r"\d\.(\d+)$", stem)]
    decimal = len(set(map(len, ends))) > 1 and any(re.match(r"0\d", end) for end in ends)
    for stem, file in images:
        if (other := found.setdefault(number_key(stem, decimal=decimal), file)) != file:
            raise VideoError(
                f"{name}: expected one image of each number, got {printable(other)} and {printable(file)}: remove one"
            )
    if not found:
        kinds = "/".join(IMAGE_SUFFIXES)
        raise VideoError(f"{name}: expected a video or a folder of {kinds} frames, got neither: name another path")
    return [Path(folder, found[key]) for key in sorted(found)]


def number_key(text: str, *, decimal: bool = False) -> tuple[str | Decimal, ...]:
    """A key that sorts names by the numbers in them, `a2` before `a10`. Texts and numbers alternate in it.

    Capitals, and spaces before a number, make no difference. A name that is only a number may have a sign.

    Args:
        text: The name.
        decimal: Whether `1.5` is one number, not two.
    """
    parts = re.split(r"(\d+\.\d+|\d+)" if decimal else r"(\d+)", text)
    texts, numbers = [part.casefold().rstrip() for part in parts[::2]], [Decimal(part) for part in parts[1::2]]
    if texts == ["-", ""]:
        texts, numbers = ["", ""], [numbers[0].copy_negate()]
    return tuple(part for pair in zip(texts, [*numbers, Decimal()], strict=True) for part in pair)
