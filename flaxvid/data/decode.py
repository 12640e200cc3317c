"""Video files to uint8 frames, with PyAV.

Only the frames asked for are converted, by one reformatter a clip, and decoding stops at the last of them. Frames are
read on from the start: with the key-frame distances of real files that is faster than seeking to each.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import VideoReformatter
from jaxtyping import Int, UInt8

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")

Indices = Sequence[int] | Int[np.ndarray, " t"]


class VideoError(ValueError):
    """A video that cannot be read as asked; the message names it and says what to do."""


def decode(
    video: bytes | str | Path,
    indices: Indices | Callable[[int], Indices],
    *,
    short_side: int | None = None,
    name: str | None = None,
) -> UInt8[np.ndarray, "t h w 3"]:
    """Decodes chosen frames of a video as RGB, turned upright as its rotation metadata says.

    Args:
        video: An encoded file's bytes, its path, or the path of a folder of numbered images.
        indices: Positions in presentation order, in any order, repeats allowed; or a function from the frame count to
            such positions, which spares opening the file twice. The function is called a second time where the header
            turns out to promise more frames than there are.
        short_side: Resize so that the shorter side has this many pixels; None keeps the size.
        name: What errors call the video; by default its path.

    Raises:
        VideoError: Missing, empty or corrupt file, no video stream, or an index outside the video.
    """
    name = name or _name(video)
    choose = indices if callable(indices) else lambda count: indices
    count = count_frames(video, name=name)
    while True:
        try:
            wanted = np.asarray(choose(count), np.int64)
        except ValueError as error:
            raise VideoError(f"{name}: {error}") from error
        if wanted.size == 0 or wanted.min() < 0 or wanted.max() >= count:
            span = f"{wanted.min()} to {wanted.max()}" if wanted.size else "none at all"
            raise VideoError(f"{name}: expected frame indices within its {count} frames, got {span}: choose others")
        unique, inverse = np.unique(wanted, return_inverse=True)
        frames = _read(video, unique, short_side, name)
        if len(frames) == len(unique):
            return np.stack(frames)[inverse]
        count = _decodable(video, name)  # the header promised more than the file holds


def count_frames(video: bytes | str | Path, *, name: str | None = None) -> int:
    """Counts the frames of a video without decoding it: by its header, or by its packets where that is silent.

    The count may be too high where a file was cut off; `decode` finds out and copes.

    Raises:
        VideoError: Missing, empty or corrupt file, or no video stream.
    """
    name = name or _name(video)
    if _is_folder(video):
        return len(_images(video, name))
    with _open(video, name) as container:
        stream = container.streams.video[0]
        count = stream.frames or sum(packet.size > 0 for packet in container.demux(stream))
    if not count:
        raise VideoError(f"{name}: expected frames, got a video stream without any: fetch it again or drop it")
    return count


def _read(video: bytes | str | Path, wanted: np.ndarray, short_side: int | None, name: str) -> list[np.ndarray]:
    """The frames at sorted, distinct positions; fewer where the video ends before the last of them."""
    reformatter, positions, frames, height, width, turns = VideoReformatter(), set(wanted.tolist()), [], 0, 0, 0
    for position, frame in enumerate(_frames(video, name, keep=positions)):
        if position not in positions or frame is None:
            continue
        if not frames:  # a stream may change its size midway: its first wanted frame decides
            scale = short_side / min(frame.height, frame.width) if short_side else 1.0
            height, width = int(frame.height * scale + 1e-6), int(frame.width * scale + 1e-6)
            turns = round(frame.rotation / 90)
        # A single thread: clips are read in parallel, and for small frames more threads cost more than they save.
        rgb = reformatter.reformat(frame, width=width, height=height, format="rgb24", threads=1).to_ndarray()
        frames.append(np.rot90(rgb, turns) if turns else rgb)
        if position == wanted[-1]:
            break
    return frames


def _frames(video: bytes | str | Path, name: str, keep: set[int]) -> Iterator[av.VideoFrame | None]:
    """Yields decoded frames in presentation order; of an image folder only those in `keep`, None for the others."""
    if _is_folder(video):
        for position, path in enumerate(_images(video, name)):
            yield next(_frames(path, str(path), keep)) if position in keep else None
        return
    with _open(video, name) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"  # clips are decoded in parallel, frames within a clip are not
        count = 0
        try:
            for frame in container.decode(stream):
                yield frame
                count += 1
        except (av.FFmpegError, OSError) as error:
            raise VideoError(
                f"{name}: expected {stream.frames or 'more'} frames, got {count} and then broken data ({error}): "
                "fetch the file again, cut it there, or drop it from the list"
            ) from error


def _decodable(video: bytes | str | Path, name: str) -> int:
    count = sum(1 for _ in _frames(video, name, keep=set()))
    if not count:
        raise VideoError(f"{name}: expected frames, got none that decode: fetch the file again or drop it")
    return count


@contextmanager
def _open(video: bytes | str | Path, name: str) -> Iterator[InputContainer]:
    try:
        container = av.open(io.BytesIO(video) if isinstance(video, bytes) else str(video))
    except FileNotFoundError as error:
        raise VideoError(f"{name}: no such file: check the data set's root and list") from error
    except (av.FFmpegError, OSError) as error:
        raise VideoError(
            f"{name}: expected a video, got an empty or damaged file or one of a format that FFmpeg does not know "
            f"({error}): fetch it again or drop it from the list"
        ) from error
    with container:
        if not container.streams.video:
            kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
            raise VideoError(f"{name}: expected a video stream, got {kinds}: drop the file from the list")
        yield container


def _name(video: bytes | str | Path) -> str:
    return f"video of {len(video)} bytes" if isinstance(video, bytes) else str(video)


def _is_folder(video: bytes | str | Path) -> bool:
    return not isinstance(video, bytes) and Path(video).is_dir()


def _images(folder: bytes | str | Path, name: str) -> list[Path]:
    images = sorted(path for path in Path(str(folder)).iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise VideoError(f"{name}: expected a video or a folder of {'/'.join(IMAGE_SUFFIXES)} frames, got neither")
    return images
