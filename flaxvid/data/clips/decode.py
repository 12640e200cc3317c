"""Video files to uint8 frames, with PyAV.

The full decode in the order of presentation is the truth. Where the bits of a stream prove that some frames can be had
without the others, only those are decoded (`sparse`); every other video is decoded from its beginning, and to its end
where frames are chosen by their count. Only the frames asked for are resized and converted, by two reformatters a clip.
"""

import itertools
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeGuard

import av
import numpy as np
from av.error import FFmpegError
from av.format import Flags
from av.packet import Packet
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import Float, Int, UInt8

from flaxvid.data.clips.images import IMAGE_SUFFIXES, list_images
from flaxvid.data.clips.seek import InexactError, Survey, plan_runs, presentation, read_runs, survey
from flaxvid.data.clips.upright import orientation
from flaxvid.data.clips.video_file import (
    Video,
    VideoError,
    open_stream,
    printable,
    read_packets,
    video_name,
)

__all__ = (
    "IMAGE_SUFFIXES",
    "MAX_BYTES",
    "MAX_SIDE",
    "Video",
    "VideoError",
    "count_frames",
    "count_packets",
    "decode",
    "decode_on",
    "frame_times",
)

MAX_BYTES = 2**32
"""Bytes of a decoded clip, 4 GiB: more is an error before it is made."""
MAX_SIDE = 2**14
"""Pixels of a side of a resized picture; a short side of 2 pixels makes the other one as long as one likes."""

Size = int | Callable[[int, int], tuple[int, int]] | None
Indices = Sequence[int] | Int[np.ndarray, " t"]
Choice = Indices | Callable[[int], Indices]
Frames = Iterator[tuple[int, av.VideoFrame]]
"""Frames and their positions."""


def decode(
    video: Video, indices: Choice, *, size: Size = None, name: str | None = None
) -> UInt8[np.ndarray, "t h w 3"]:
    """Decodes chosen frames of a video as RGB, turned and mirrored upright as its metadata says.

    Args:
        video: Bytes or a path.
        indices: Positions in presentation order, in any order, repeats allowed; or a function from the frame count to
            such positions, which spares opening the file twice. The function is called a second time where there turn
            out to be more frames than packets, or fewer.
        size: Resize bilinearly (area-weighted when shrinking) to this short side, or to what a function makes of the
            upright height and width, in pixels; None keeps the size. Part of the colour conversion, hence nearly free.
            The first frame decides where others have another size.
        name: What errors call the video; by default its path.

    Raises:
        VideoError: Missing, empty or corrupt file, no video stream, an index outside the video, or a clip of more than
            `MAX_BYTES`.
    """
    name = name or video_name(video)
    if _is_folder(video):
        images = list_images(video, name)
        clip = _Clip(indices, len(images), size, name)
        _read_images(images, clip)
        return clip.video()
    with open_stream(video, name) as stream:
        known = survey(stream)
        if known.pictures:
            with suppress(InexactError):
                return _decode_sparse(video, stream, known, indices, size, name)
            known = known._replace(packets=None)  # the decoder was used
        return _decode_all(video, stream, known, indices, size, name)


def _decode_sparse(
    video: Video, stream: VideoStream, known: Survey, indices: Choice, size: Size, name: str
) -> UInt8[np.ndarray, "t h w 3"]:
    pictures: Any = known.pictures
    clip, order = _Clip(indices, len(pictures), size, name), presentation(pictures)
    positions = {order[position]: position for position in clip.wanted}
    with _packets(video, stream, known, name) as (stream, packets):
        for number, frame in read_runs(stream, packets, pictures, plan_runs(pictures, positions)):
            if number in positions:
                clip.add(positions[number], frame)
    return clip.video()


def _decode_all(
    video: Video, stream: VideoStream, known: Survey, indices: Choice, size: Size, name: str
) -> UInt8[np.ndarray, "t h w 3"]:
    """Takes the packets for frames, and looks whether that was right."""
    count, is_sure = known.count, False
    while True:
        try:
            clip = _Clip(indices, count, size, name)
        except VideoError:
            if is_sure:
                raise
            clip = None
        stops, total = is_sure or not callable(indices), 0
        with _packets(video, stream, known, name) as (stream, packets):
            for frame in _read(stream, packets, name):
                total += 1
                if clip is not None:
                    clip.add(total - 1, frame)
                    if stops and clip.is_full:
                        return clip.video()
        if clip is not None and clip.is_full and total == count:
            return clip.video()
        if not total:
            raise VideoError(f"{name}: expected frames, got none that decode: fetch the file again or drop it")
        if is_sure:
            raise VideoError(f"{name}: its frames cannot be told apart: fetch it again, or drop it")
        count, is_sure, known = total, True, known._replace(packets=None)


def decode_on(
    video: Video, indices: Indices, count: int, *, size: Size = None, name: str | None = None
) -> Generator[UInt8[np.ndarray, "h w 3"], None, None]:
    """Decodes chosen frames of an encoded video one after the other, in one pass over it: memory holds one of them.

    For more frames than a clip may have. The pictures are those of `decode`.

    Args:
        video: Bytes or a path.
        indices: Positions in presentation order, ascending and distinct.
        count: Frames of the video, as of `count_frames` or `frame_times`; the end shows whether there are so many.
        size: As of `decode`.
        name: As of `decode`.

    Raises:
        VideoError: While iterating, to the very end: as of `decode`; or the video has another number of frames.
    """
    name, total = name or video_name(video), 0
    painter, positions = _Painter(size, name), iter(indices)
    wanted = next(positions, None)
    with open_stream(video, name) as stream:
        for position, frame in enumerate(_read(stream, read_packets(stream), name)):
            total += 1
            if position == wanted:
                yield painter.picture(frame)
                wanted = next(positions, None)
    if total != count:
        raise VideoError(f"{name}: expected {count} frames, got {total}: it is damaged, or was changed meanwhile")


def count_frames(video: Video, *, name: str | None = None) -> int:
    """Counts the frames of a video: by its bits where they prove it, otherwise by decoding it.

    Raises:
        VideoError: Missing, empty or corrupt file, no video stream, or no frames in it.
    """
    name = name or video_name(video)
    if _is_folder(video):
        return len(list_images(video, name))
    with open_stream(video, name) as stream:
        known = survey(stream)
        return len(known.pictures) if known.pictures else len(_times(video, stream, known, name))


def frame_times(video: Video, *, name: str | None = None) -> Float[np.ndarray, " t1"]:
    """When the frames of a video are shown, in seconds from the first of them: one time more than there are frames.

    Frame i is shown from the i-th time to the one after it. The frames are those of `decode`, in its order. The last
    time is the last frame's end: by its own duration, else by the median of the others.

    Raises:
        VideoError: As of `count_frames`; or the file has no times, as a folder of images and a bare stream have none.
    """
    name = name or video_name(video)
    missing = f"{name}: expected a video whose frames have times, got none: take it as one clip, without a window"
    if _is_folder(video):
        raise VideoError(missing)
    with open_stream(video, name) as stream:
        kind = stream.container.format  # of bare streams FFmpeg makes the times up
        if kind.name.endswith("_pipe") or Flags.no_timestamps in Flags(kind.flags) or stream.time_base is None:
            raise VideoError(missing)
        known = survey(stream)
        pictures = known.pictures
        times = [known.times[i] for i in presentation(pictures)] if pictures else _times(video, stream, known, name)
        if kind.name == "avi" and len(times) == len(known.times):
            times = known.times  # one packet after the other; FFmpeg guesses times of pictures that are sorted
        if None in (starts := [start for start, _ in times]):
            raise VideoError(missing)
        # Where times step back, frames are shown in their order all the same.
        shown = np.maximum.accumulate(np.asarray(starts, np.float64)) * float(stream.time_base)
        rate, own = stream.average_rate or stream.guessed_rate, (times[-1][1] or 0) * float(stream.time_base)
        last = own if own > 0 else np.median(np.diff(shown)) if len(shown) > 1 else 1 / float(rate) if rate else 0.0
        if last <= 0:
            raise VideoError(missing)
        return np.append(shown, shown[-1] + last) - shown[0]


def _times(video: Video, stream: VideoStream, known: Survey, name: str) -> Sequence[tuple[int | None, int | None]]:
    """When each frame of a full decode begins, and how long it is shown."""
    with _packets(video, stream, known, name) as (stream, packets):
        times = [(frame.pts, frame.duration) for frame in _read(stream, packets, name)]
    if not times:
        raise VideoError(f"{name}: expected frames, got none that decode: fetch the file again or drop it")
    return times


def count_packets(video: Video, *, name: str | None = None) -> tuple[int, int]:
    """How many packets a file's header or index promises, 0 where it promises none, and how many there are."""
    name = name or video_name(video)
    if _is_folder(video):
        return 0, len(list_images(video, name))
    with open_stream(video, name) as stream:
        times, kind = survey(stream).times, stream.container.format.name
        if kind.startswith("mov"):  # its header counts what its edit list leaves out, too
            return len(stream.index_entries), len(times)
        if kind == "avi":  # its header counts empty packets, which repeat a frame; times are numbers of packets
            return stream.frames, max([len(times), *(start + 1 for start, _ in times if start is not None)])
        return stream.frames, len(times)


class _Painter:
    """Makes pictures of frames, upright and resized, all of one size, which the first of them decides."""

    def __init__(self, size: Size, name: str, count: int = 1):
        self._size, self._name, self._count = size, name, count
        self._scaler, self._painter, self._tiny = VideoReformatter(), VideoReformatter(), VideoReformatter()
        self._shape: tuple[int, int] | None = None

    def picture(self, frame: av.VideoFrame) -> UInt8[np.ndarray, "h w 3"]:
        """The picture of a frame."""
        upright = orientation(frame, self._tiny)
        if self._shape is None:
            sides = (frame.width, frame.height) if upright.transpose else (frame.height, frame.width)
            self._shape = self._checked(*sides)
        height, width = reversed(self._shape) if upright.transpose else self._shape
        # One thread: clips are read in parallel, and for small frames more threads cost more than they save. Scaling
        # first and then converting takes FFmpeg a third of the time of both at once.
        if frame.format.name.startswith("yuv4") and (frame.height, frame.width) != (height, width):
            frame = self._scaler.reformat(frame, width, height, "yuv422p", interpolation="BILINEAR", threads=1)
        picture = self._painter.reformat(frame, width, height, "rgb24", interpolation="BILINEAR", threads=1)
        return upright.turn(picture.to_ndarray())

    def _checked(self, height: int, width: int) -> tuple[int, int]:
        """The size of all pictures, of which the first is upright of so many pixels."""
        if callable(self._size):
            height, width = self._size(height, width)
        elif self._size is not None:
            short = min(height, width)
            height, width = height * self._size // short, width * self._size // short
        if max(height, width) > MAX_SIDE or height * width * 3 * self._count > MAX_BYTES:
            raise VideoError(
                f"{self._name}: expected at most {MAX_SIDE} pixels a side and {MAX_BYTES >> 30} GiB a clip, got "
                f"{self._count} frames of {height} x {width}: take fewer frames, a smaller size, or drop it"
            )
        return height, width


class _Clip:
    """The frames that were asked for, as they come."""

    def __init__(self, indices: Choice, count: int, size: Size, name: str):
        try:
            chosen = np.asarray(indices(count) if callable(indices) else indices, np.int64)
        except ValueError as error:  # of a sampling rule: it does not know the video's name
            raise VideoError(f"{name}: {error}") from error
        if chosen.size == 0 or chosen.min() < 0 or chosen.max() >= count:
            span = f"{chosen.min()} to {chosen.max()}" if chosen.size else "none at all"
            raise VideoError(f"{name}: expected frame indices within its {count} frames, got {span}: choose others")
        unique, self._inverse = np.unique(chosen, return_inverse=True)
        self.wanted: list[int] = unique.tolist()
        self._slots = {position: slot for slot, position in enumerate(self.wanted)}
        self._painter = _Painter(size, name, len(self._inverse))
        self._pictures: np.ndarray = np.empty((0, 0, 0, 3), np.uint8)

    @property
    def is_full(self) -> bool:
        """Whether all frames came."""
        return not self._slots

    def add(self, position: int, frame: av.VideoFrame) -> None:
        """Takes the frame at a position, if it was asked for and has not come yet."""
        slot = self._slots.pop(position, None)
        if slot is None:
            return
        picture = self._painter.picture(frame)
        if not self._pictures.size:
            self._pictures = np.empty((len(self.wanted), *picture.shape), np.uint8)
        self._pictures[slot] = picture

    def video(self) -> UInt8[np.ndarray, "t h w 3"]:
        """All frames in the order in which they were asked for."""
        if np.array_equal(self._inverse, np.arange(len(self.wanted))):
            return self._pictures
        return self._pictures[self._inverse]


@contextmanager
def _packets(
    video: Video, stream: VideoStream, known: Survey, name: str
) -> Iterator[tuple[VideoStream, Iterable[Packet]]]:
    """A stream of which nothing was decoded yet, and its packets.

    The file is opened anew unless the packets were kept: rewound, it would lack what comes once, such as a palette.
    """
    if known.packets is not None:
        yield stream, known.packets
        return
    with open_stream(video, name) as fresh:
        yield fresh, read_packets(fresh)


def _read(stream: VideoStream, packets: Iterable[Packet], name: str) -> Iterator[av.VideoFrame]:
    """All frames."""
    count = 0
    try:
        for packet in itertools.chain(packets, (None,)):
            for frame in stream.decode(packet):
                yield frame
                count += 1
    except (FFmpegError, OSError) as error:
        raise VideoError(
            f"{name}: expected {stream.frames or 'more'} frames, got {count} and then broken data ({error}): "
            "fetch the file again, cut it there, or drop it"
        ) from error


def _is_folder(video: Video) -> TypeGuard[str | Path]:
    return not isinstance(video, bytes) and os.path.isdir(video)


def _read_images(images: Sequence[Path], clip: _Clip) -> None:
    for position in clip.wanted:
        name = printable(images[position])
        with open_stream(images[position], name) as stream:
            frame = next(_read(stream, read_packets(stream), name), None)
            if frame is None:
                raise VideoError(f"{name}: expected an image, got none: fetch it again or drop the video")
            clip.add(position, frame)
