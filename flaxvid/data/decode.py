"""Video files to uint8 frames, with PyAV.

Only the frames asked for are resized and converted, by two reformatters a clip, and decoding stops at the last of them.
Frames are read on from the start, or where key frames are close from the key frames before those asked for.
"""

import functools
import io
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeGuard

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.format import Flags
from av.video.reformatter import VideoReformatter
from jaxtyping import Float, Int, UInt8

from flaxvid.data.sparse import InexactError, Packet, plan_runs, read_packets, read_runs

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")

_READING: Any = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
"""A title that is no UTF-8 is no reason to refuse a video; PyAV 19 sees to that by itself."""

Video = bytes | str | Path
"""An encoded file's bytes, its path, or the path of a folder of numbered images."""

Size = int | Callable[[int, int], tuple[int, int]] | None
Indices = Sequence[int] | Int[np.ndarray, " t"]
Frames = Iterator[tuple[int, av.VideoFrame]]
"""Frames and their positions."""
Pictures = list[UInt8[np.ndarray, "h w 3"]]
Start = Callable[[], AbstractContextManager[InputContainer]]


class VideoError(ValueError):
    """A video that cannot be read as asked; the message names it and says what to do."""


def decode(
    video: Video,
    indices: Indices | Callable[[int], Indices],
    *,
    size: Size = None,
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
    if _is_folder(video):
        images = _images(video, name)
        wanted, inverse = _positions(indices, len(images), name)
        return np.stack(_convert(_read_images(images, wanted), wanted, size))[inverse]
    with open_video(video, name) as container:
        packets = _packets(container)
        count = _count(container, packets, name)
        start = functools.partial(_from_start, container, packets, video, name)
        while True:
            wanted, inverse = _positions(indices, count, name)
            pictures = _pictures(start, packets, wanted, size, name)
            if len(pictures) == len(wanted):
                return np.stack(pictures)[inverse]
            promised, count = count, _decodable(start, name)
            if count >= promised:
                raise VideoError(f"{name}: its frames cannot be told apart: fetch it again, or drop it from the list")


def decode_on(
    video: bytes | str | Path, positions: Iterable[int], *, size: Size = None, name: str | None = None
) -> Generator[UInt8[np.ndarray, "h w 3"], None, None]:
    """Decodes chosen frames of an encoded video one after the other, in one pass over it: memory holds one of them.

    For more frames than `decode` could hold. The pictures are the same.

    Args:
        video: Bytes or a path.
        positions: Ascending and distinct; each is asked for when the frame before it was taken.
        size: As of `decode`.
        name: As of `decode`.

    Yields:
        Pictures; fewer than positions where the video ends before.

    Raises:
        VideoError: While iterating: as of `decode`.
    """
    name = name or _name(video)
    with open_video(video, name) as container:
        for _, picture in _upright(_chosen(_read(container, None, name), positions), size):
            yield picture


def _chosen(frames: Frames, positions: Iterable[int]) -> Frames:
    for wanted in positions:
        frame = next((frame for position, frame in frames if position == wanted), None)
        if frame is None:
            return
        yield wanted, frame


def count_frames(video: Video, *, name: str | None = None) -> int:
    """Counts the frames of a video without decoding it, by its header and its packets.

    The count may be too high where a file was cut off; `decode` finds out and copes.

    Raises:
        VideoError: Missing, empty or corrupt file, no video stream, or no frames in it.
    """
    name = name or _name(video)
    if _is_folder(video):
        return len(_images(video, name))
    with open_video(video, name) as container:
        return _count(container, _packets(container), name)


def frame_times(video: Video, *, name: str | None = None) -> Float[np.ndarray, " t1"]:
    """When the frames of a video are shown, in seconds from the first of them: one time more than there are frames.

    Frame i is shown from the i-th time to the one after it. The frames are those of `decode`, in its order. The last
    time is the last frame's end: by its own duration, else by the median of the others.

    Raises:
        VideoError: As of `count_frames`; or the file has no times, as a folder of images and a bare stream have none.
    """
    name = name or _name(video)
    missing = f"{name}: expected a video whose frames have times, got none: take it as one clip, without a window"
    if _is_folder(video):
        raise VideoError(missing)
    with open_video(video, name) as container:
        if Flags(container.format.flags) & (Flags.no_timestamps | Flags.no_file):
            raise VideoError(missing)
        frames = [(frame.pts, frame.duration) for _, frame in _read(container, None, name)]
        stream = container.streams.video[0]
        if not frames:
            raise VideoError(f"{name}: expected frames, got none that decode: fetch the file again or drop it")
        if None in (times := [time for time, _ in frames]) or stream.time_base is None:
            raise VideoError(missing)
        # A damaged file's times may step back: then its frames are shown in their order all the same.
        shown = np.maximum.accumulate(np.asarray(times, np.float64)) * float(stream.time_base)
        steps = np.diff(shown)
        rate = stream.average_rate or stream.guessed_rate
        last = frames[-1][1] * float(stream.time_base) or (np.median(steps) if steps.size else rate and 1 / float(rate))
        if not last:
            raise VideoError(missing)
        return np.append(shown, shown[-1] + float(last)) - shown[0]


def _count(container: InputContainer, packets: Sequence[Packet], name: str) -> int:
    # The header of a file written in fragments counts those of the first only.
    if not (count := max(container.streams.video[0].frames, len(packets))):
        raise VideoError(f"{name}: expected frames, got a video stream without any: fetch it again or drop it")
    return count


def _positions(
    indices: Indices | Callable[[int], Indices], count: int, name: str
) -> tuple[list[int], Int[np.ndarray, " t"]]:
    """The positions asked for, ascending and distinct, and which of them each index is."""
    try:
        wanted = np.asarray(indices(count) if callable(indices) else indices, np.int64)
    except ValueError as error:  # of a sampling rule: it does not know the video's name
        raise VideoError(f"{name}: {error}") from error
    if wanted.size == 0 or wanted.min() < 0 or wanted.max() >= count:
        span = f"{wanted.min()} to {wanted.max()}" if wanted.size else "none at all"
        raise VideoError(f"{name}: expected frame indices within its {count} frames, got {span}: choose others")
    unique, inverse = np.unique(wanted, return_inverse=True)
    return unique.tolist(), inverse


def _pictures(start: Start, packets: Sequence[Packet], wanted: list[int], size: Size, name: str) -> Pictures:
    """The frames at the wanted positions; fewer where the video ends before the last of them."""
    with start() as container:
        if runs := plan_runs(container, packets, wanted):
            with suppress(InexactError):
                return _convert(read_runs(container, packets, runs, wanted), wanted, size)
    with start() as container:
        return _convert(_read(container, wanted[-1] + 1, name), wanted, size)


def _convert(frames: Frames, wanted: list[int], size: Size) -> Pictures:
    """Pictures of the frames at the wanted positions; fewer where the video ends before."""
    positions = set(wanted)
    pictures = dict(_upright(((position, frame) for position, frame in frames if position in positions), size))
    return [pictures[position] for position in wanted if position in pictures]


def _upright(frames: Frames, size: Size) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"]]]:
    """Pictures of frames, upright and resized; the first of them decides how."""
    scaler, painter = VideoReformatter(), VideoReformatter()
    height, width, turns = 0, 0, 0
    for position, frame in frames:
        if not height:  # a stream may change its size midway
            turns = round(frame.rotation / 90) % 4
            height, width = _stored_size(frame, size, sideways=turns % 2 == 1)
        # One thread: clips are read in parallel, and for small frames more threads cost more than they save. Scaling
        # first and then converting takes FFmpeg a third of the time of both at once.
        if frame.format.name.startswith("yuv4") and (frame.height, frame.width) != (height, width):
            frame = scaler.reformat(frame, width, height, "yuv422p", interpolation="BILINEAR", threads=1)
        picture = painter.reformat(frame, width, height, "rgb24", interpolation="BILINEAR", threads=1)
        yield position, np.rot90(picture.to_ndarray(), turns)


def _stored_size(frame: av.VideoFrame, size: Size, sideways: bool) -> tuple[int, int]:
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


def _decodable(start: Start, name: str) -> int:
    with start() as container:
        count = sum(1 for _ in _read(container, None, name))
    if not count:
        raise VideoError(f"{name}: expected frames, got none that decode: fetch the file again or drop it")
    return count


def _read(container: InputContainer, stop: int | None, name: str) -> Frames:
    """The first `stop` frames, or all."""
    stream, count = container.streams.video[0], 0
    try:
        packets = itertools.chain((packet for _, packet in read_packets(container)), (None,))
        for frame in itertools.islice((frame for packet in packets for frame in stream.decode(packet)), stop):
            yield count, frame
            count += 1
    except (FFmpegError, OSError) as error:
        raise VideoError(
            f"{name}: expected {stream.frames or 'more'} frames, got {count} and then broken data ({error}): "
            "fetch the file again, cut it there, or drop it from the list"
        ) from error


def _packets(container: InputContainer) -> list[Packet]:
    packets: list[Packet] = []
    with suppress(FFmpegError, OSError):  # said when a frame is wanted that lies beyond
        packets.extend(packet for packet, _ in read_packets(container))
    return packets


def _is_folder(video: Video) -> TypeGuard[str | Path]:
    return not isinstance(video, bytes) and Path(video).is_dir()


def _images(folder: str | Path, name: str) -> list[Path]:
    images = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise VideoError(f"{name}: expected a video or a folder of {'/'.join(IMAGE_SUFFIXES)} frames, got neither")
    return images


def _read_images(images: Sequence[Path], wanted: list[int]) -> Frames:
    for position in wanted:
        with open_video(images[position], str(images[position])) as container:
            frames = [frame for _, frame in _read(container, 1, str(images[position]))]
        if not frames:
            raise VideoError(f"{images[position]}: expected an image, got none: fetch it again or drop the video")
        yield position, frames[0]


@contextmanager
def _from_start(
    container: InputContainer, packets: Sequence[Packet], video: Video, name: str
) -> Iterator[InputContainer]:
    """The container before its first packet: rewound, which takes no time, or opened anew where that fails."""
    rewound = False
    with suppress(FFmpegError, OSError):
        container.seek(0)
        rewound = [packet for packet, _ in itertools.islice(read_packets(container), 1)] == packets[:1]
        container.seek(0)
    if rewound:
        yield container
    else:
        with open_video(video, name) as other:
            yield other


@contextmanager
def open_video(video: Video, name: str = "") -> Iterator[InputContainer]:
    """PyAV's container of an encoded file, which has a video stream; whatever is wrong with it is a `VideoError`.

    Args:
        video: the file's bytes or path.
        name: what errors call it.
    """
    name = name or _name(video)
    try:
        container = av.open(io.BytesIO(video) if isinstance(video, bytes) else str(video), mode="r", **_READING)
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
        container.streams.video[0].thread_type = "NONE"  # clips are decoded in parallel, frames within a clip are not
        try:
            yield container
        except FFmpegError as error:
            raise VideoError(f"{name}: broken data ({error}): fetch the file again or drop it from the list") from error


def _name(video: Video) -> str:
    return f"video of {len(video)} bytes" if isinstance(video, bytes) else str(video)
