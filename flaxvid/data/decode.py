"""Video files to uint8 frames, with PyAV.

Only the frames asked for are converted, by one reformatter a clip that also resizes, and decoding stops at the last of
them. Frames are read on from the start: with the key-frame distances of real files that is faster than seeking to each.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter
from jaxtyping import Int, UInt8

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")

Video = bytes | str | Path
"""An encoded file's bytes, its path, or the path of a folder of numbered images."""

Indices = Sequence[int] | Int[np.ndarray, " t"]
Frames = Callable[[set[int]], Iterator[av.VideoFrame | None]]


class VideoError(ValueError):
    """A video that cannot be read as asked; the message names it and says what to do."""


def decode(
    video: Video,
    indices: Indices | Callable[[int], Indices],
    *,
    size: int | Callable[[int, int], tuple[int, int]] | None = None,
    name: str | None = None,
) -> UInt8[np.ndarray, "t h w 3"]:
    """Decodes chosen frames of a video as RGB, turned upright as its rotation metadata says.

    Args:
        video: Bytes or a path.
        indices: Positions in presentation order, in any order, repeats allowed; or a function from the frame count to
            such positions, which spares opening the file twice. The function is called a second time where the header
            turns out to promise more frames than there are.
        size: Resize bilinearly (area-weighted when shrinking) to this short side, or to what a function makes of the
            upright height and width, in pixels; None keeps the size. Part of the colour conversion, hence nearly free.
        name: What errors call the video; by default its path.

    Raises:
        VideoError: Missing, empty or corrupt file, no video stream, or an index outside the video.
    """
    name = name or _name(video)
    count = 0
    while True:
        with _open(video, name) as (header_count, frames):
            count = count or header_count or count_frames(video, name=name)
            wanted = _positions(indices, count, name)
            unique, inverse = np.unique(wanted, return_inverse=True)
            pictures = _convert(frames(set(unique.tolist())), unique, size)
        if len(pictures) == len(unique):
            return np.stack(pictures)[inverse]
        count = _decodable(video, name)  # the header promised more than the file holds


def count_frames(video: Video, *, name: str | None = None) -> int:
    """Counts the frames of a video without decoding it: by its header, or by its packets where that is silent.

    The count may be too high where a file was cut off; `decode` finds out and copes.

    Raises:
        VideoError: Missing, empty or corrupt file, no video stream, or no frames in it.
    """
    name = name or _name(video)
    with _open(video, name) as (count, _):
        if count:
            return count
    with _container(video, name) as container:
        count = sum(packet.size > 0 for packet in container.demux(video=0))
    if not count:
        raise VideoError(f"{name}: expected frames, got a video stream without any: fetch it again or drop it")
    return count


def _positions(indices: Indices | Callable[[int], Indices], count: int, name: str) -> Int[np.ndarray, " t"]:
    try:
        wanted = np.asarray(indices(count) if callable(indices) else indices, np.int64)
    except ValueError as error:  # of a sampling rule: it does not know the video's name
        raise VideoError(f"{name}: {error}") from error
    if wanted.size == 0 or wanted.min() < 0 or wanted.max() >= count:
        span = f"{wanted.min()} to {wanted.max()}" if wanted.size else "none at all"
        raise VideoError(f"{name}: expected frame indices within its {count} frames, got {span}: choose others")
    return wanted


def _convert(
    frames: Iterator[av.VideoFrame | None],
    wanted: Int[np.ndarray, " t"],
    size: int | Callable[[int, int], tuple[int, int]] | None,
) -> list[UInt8[np.ndarray, "h w 3"]]:
    """The frames at sorted, distinct positions; fewer where the video ends before the last of them."""
    reformatter, positions, pictures, height, width, turns = VideoReformatter(), set(wanted.tolist()), [], 0, 0, 0
    for position, frame in enumerate(frames):
        if frame is None or position not in positions:
            continue
        if not pictures:  # a stream may change its size midway: its first wanted frame decides
            turns = round(frame.rotation / 90) % 4
            height, width = _stored_size(frame, size, sideways=turns % 2 == 1)
        # One thread: clips are read in parallel, and for small frames more threads cost more than they save.
        picture = reformatter.reformat(frame, width, height, "rgb24", interpolation="BILINEAR", threads=1).to_ndarray()
        pictures.append(np.rot90(picture, turns) if turns else picture)
        if position == wanted[-1]:
            break
    return pictures


def _stored_size(
    frame: av.VideoFrame, size: int | Callable[[int, int], tuple[int, int]] | None, sideways: bool
) -> tuple[int, int]:
    """Height and width to convert to, before the picture is turned upright."""
    height, width = frame.height, frame.width
    if size is None:
        return height, width
    if sideways:
        height, width = width, height
    if callable(size):
        height, width = size(height, width)
    else:
        short = min(height, width)
        height, width = height * size // short, width * size // short
    return (width, height) if sideways else (height, width)


def _decodable(video: Video, name: str) -> int:
    with _open(video, name) as (_, frames):
        count = sum(1 for _ in frames(set()))
    if not count:
        raise VideoError(f"{name}: expected frames, got none that decode: fetch the file again or drop it")
    return count


@contextmanager
def _open(video: Video, name: str) -> Iterator[tuple[int, Frames]]:
    """The frame count that the header tells (0: none), and a function that reads the frames.

    The function yields every frame in presentation order; of an image folder only those at the positions it is given,
    None for the others.
    """
    if not isinstance(video, bytes) and Path(video).is_dir():
        images = sorted(path for path in Path(video).iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        if not images:
            raise VideoError(f"{name}: expected a video or a folder of {'/'.join(IMAGE_SUFFIXES)} frames, got neither")

        def read_images(keep: set[int]) -> Iterator[av.VideoFrame | None]:
            for position, path in enumerate(images):
                if position not in keep:
                    yield None
                    continue
                with _open(path, str(path)) as (_, frames):
                    yield next(frames(set()))

        yield len(images), read_images
        return
    with _container(video, name) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"  # clips are decoded in parallel, frames within a clip are not

        def read(keep: set[int]) -> Iterator[av.VideoFrame]:
            count = 0
            try:
                for frame in container.decode(stream):
                    yield frame
                    count += 1
            except (FFmpegError, OSError) as error:
                raise VideoError(
                    f"{name}: expected {stream.frames or 'more'} frames, got {count} and then broken data ({error}): "
                    "fetch the file again, cut it there, or drop it from the list"
                ) from error

        yield stream.frames, read


@contextmanager
def _container(video: Video, name: str) -> Iterator[InputContainer]:
    try:
        container = av.open(io.BytesIO(video) if isinstance(video, bytes) else str(video), mode="r")
    except FileNotFoundError as error:
        raise VideoError(f"{name}: no such file: check the data set's root and list") from error
    except (FFmpegError, OSError) as error:
        raise VideoError(
            f"{name}: expected a video, got an empty or damaged file or one of a format that FFmpeg does not know "
            f"({error}): fetch it again or drop it from the list"
        ) from error
    with container:
        if not container.streams.video:
            kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
            raise VideoError(f"{name}: expected a video stream, got {kinds}: drop the file from the list")
        try:
            yield container
        except FFmpegError as error:
            raise VideoError(f"{name}: broken data ({error}): fetch the file again or drop it from the list") from error


def _name(video: Video) -> str:
    return f"video of {len(video)} bytes" if isinstance(video, bytes) else str(video)
