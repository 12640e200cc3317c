"""Asks a video for its length, then for frames: `len(video)`, `video.frames(indices)`.

`video.choose(indices)` gives the shape of frames before their pictures, and decodes them once.

The full decode, in the order in which frames are shown, is the truth. Where the bits of a stream prove which frames the
wanted ones need, only these are decoded (`seek`). Every other video is decoded from its beginning. Only wanted frames
are resized and converted.
"""

import abc
import itertools
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from av.format import Flags
from av.packet import Packet
from av.video.stream import VideoStream
from jaxtyping import Float, Int, UInt8

from flaxvid.data.clips.bitstream import Picture
from flaxvid.data.clips.images import list_images
from flaxvid.data.clips.pictures import Painter, Size
from flaxvid.data.clips.seek import InexactError, plan_runs, presentation, read_runs, survey
from flaxvid.data.clips.video_file import Video, VideoError, open_stream, printable, read_packets, video_name

__all__ = ("Chosen", "OpenVideo", "Video", "VideoError", "count_frames", "decode", "open_video", "read_frames")

KEPT = 2**26
"""Most pixels of decoded frames to keep, mostly 100 MB. Other frames are decoded again."""

Indices = Sequence[int] | Int[np.ndarray, " t"]


@contextmanager
def open_video(video: Video, name: str | None = None) -> "Iterator[OpenVideo]":
    """Opens a video to be asked for frames.

    Args:
        video: An encoded file's bytes or path, or the path of a folder of numbered images.
        name: What errors call it; by default its path.

    Raises:
        VideoError: It is missing, empty or corrupt, or has no video stream. Asking for frames raises it, too.
    """
    name = name or video_name(video)
    if not isinstance(video, bytes) and os.path.isdir(video):
        yield _Images(list_images(video, name), name)
        return
    with open_stream(video, name) as stream:
        yield _Stream(video, stream, name)


def decode(
    video: Video, indices: Indices, *, size: Size = None, name: str | None = None
) -> UInt8[np.ndarray, "t h w 3"]:
    """The frames of a video at some positions; see `OpenVideo.frames`."""
    with open_video(video, name) as opened:
        return opened.frames(indices, size=size)


def count_frames(video: Video, *, name: str | None = None) -> int:
    """Counts the frames of a video, by its bits where they prove the number, otherwise by decoding it."""
    with open_video(video, name) as opened:
        return len(opened)


class OpenVideo(abc.ABC):
    """An open video: ask for its length, `len(video)`, then for frames, which are upright RGB pictures.

    Positions count frames in the order in which they are shown.
    """

    def __init__(self, name: str):
        self.name, self._likely = name, frozenset[int]()

    @abc.abstractmethod
    def __len__(self) -> int:
        """The number of frames. A video that does not prove it is decoded whole."""

    @property
    def guess(self) -> int | None:
        """The likely number of frames if `len` must decode the whole video, otherwise None."""
        return None

    def keep(self, indices: Indices) -> None:
        """Says which frames will likely be chosen. If `len` decodes the video, it keeps them."""
        self._likely = frozenset(np.asarray(indices).tolist())

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Height and width of the first frame, upright, in pixels."""
        return self.choose([0]).shape

    @property
    @abc.abstractmethod
    def times(self) -> Float[np.ndarray, " t1"]:
        """When the frames are shown, in seconds from the first: one time more than there are frames.

        Frame i is shown from the i-th time to the next one. The last time is the last frame's end, by its own duration
        or by the median of the others.

        Raises:
            VideoError: The file has no times. A folder of images and a bare stream have none.
        """

    @property
    @abc.abstractmethod
    def packets(self) -> tuple[int, int]:
        """How many packets the header or index promises (0 if it says nothing), and how many there are."""

    def frames(self, indices: Indices, *, size: Size = None) -> UInt8[np.ndarray, "t h w 3"]:
        """The frames at some positions.

        Args:
            indices: Positions in any order; repeats are allowed.
            size: Short side, or (height, width), to resize to. The first of these frames decides the size of all.

        Raises:
            VideoError: A position is outside the video, its data is broken there, or the clip is larger than
                `MAX_BYTES`.
        """
        return self.choose(indices).pictures(size)

    def choose(self, indices: Indices) -> "Chosen":
        """Like `frames`, for a caller that needs the frames' shape to choose a size."""
        chosen = np.asarray(indices, np.int64)
        if not chosen.size or chosen.min() < 0:
            raise self._outside(chosen, len(self))
        unique, inverse = np.unique(chosen, return_inverse=True)
        return Chosen(self.name, unique, inverse, self._chosen(unique))

    def stream(self, indices: Indices | None = None, *, size: Size = None) -> Generator[UInt8[np.ndarray, "h w 3"]]:
        """Yields the frames at some positions. Memory holds one of them at a time.

        Args:
            indices: Ascending and distinct positions; None is all of them.
            size: As of `frames`.

        Raises:
            VideoError: While iterating, up to the very end, where frames may turn out to be missing.
        """
        painter = Painter(size, self.name)
        wanted = itertools.count() if indices is None else iter(indices)
        following, total = next(wanted, None), 0
        for position, frame in enumerate(self._all()):
            total += 1
            if position == following:
                yield painter.picture(frame)
                following = next(wanted, None)
        if not total or (indices is not None and total != len(self)):
            raise VideoError(
                f"{self.name}: expected {len(self)} frames, got {total}: fetch the file again, and do not change it "
                "while it is read"
            )

    @abc.abstractmethod
    def _all(self) -> Iterator[av.VideoFrame]:
        """All frames of the full decode."""

    def _chosen(self, wanted: Int[np.ndarray, " t"]) -> Iterator[tuple[int, av.VideoFrame]]:
        """Pairs of a position and its frame, ascending. If they start again with the first, forget those before."""
        count, chosen = 0, set(wanted.tolist())
        for count, frame in enumerate(itertools.islice(self._all(), int(wanted[-1]) + 1), 1):
            if count - 1 in chosen:
                yield count - 1, frame
        if count <= wanted[-1]:
            raise self._outside(wanted, count)

    def _outside(self, chosen: Int[np.ndarray, " t"], count: int) -> VideoError:
        if not count:
            return VideoError(f"{self.name}: expected frames, got none that decode: fetch the file again or drop it")
        span = f"{chosen.min()} to {chosen.max()}" if chosen.size else "none at all"
        return VideoError(f"{self.name}: expected frame indices within its {count} frames, got {span}: choose others")


class Chosen:
    """Chosen frames: first their shape, which decodes the first of them, then, once, their pictures."""

    def __init__(
        self,
        name: str,
        wanted: Int[np.ndarray, " k"],
        inverse: Int[np.ndarray, " t"],
        frames: Iterator[tuple[int, av.VideoFrame]],
    ):
        self._name, self._wanted, self._inverse, self._frames = name, wanted, inverse, frames

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Height and width of the first frame, upright, in pixels."""
        first = next(self._frames)
        self._frames = itertools.chain((first,), self._frames)
        return Painter(None, self._name).shape(first[1])

    def pictures(self, size: Size = None) -> UInt8[np.ndarray, "t h w 3"]:
        """The pictures; see `OpenVideo.frames`."""
        slots = {position: slot for slot, position in enumerate(self._wanted.tolist())}
        painter: Any = None
        pictures: Any = None
        for position, frame in self._frames:
            slot = slots[position]
            painter = painter if slot else Painter(size, self._name, len(self._inverse))
            picture = painter.picture(frame)
            pictures = pictures if slot else np.empty((len(slots), *picture.shape), np.uint8)
            pictures[slot] = picture
            del frame  # a damaged frame shows old memory: free it when a full decode would, to get the same pixels
        return pictures if np.array_equal(self._inverse, np.arange(len(slots))) else pictures[self._inverse]


class _Images(OpenVideo):
    """A folder of images."""

    def __init__(self, paths: Sequence[Path], name: str):
        super().__init__(name)
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    @property
    def times(self) -> Float[np.ndarray, " t1"]:
        raise _no_times(self.name)

    @property
    def packets(self) -> tuple[int, int]:
        return 0, len(self._paths)

    def _all(self) -> Iterator[av.VideoFrame]:
        return map(self._read, range(len(self._paths)))

    def _chosen(self, wanted: Int[np.ndarray, " t"]) -> Iterator[tuple[int, av.VideoFrame]]:
        if wanted[-1] >= len(self._paths):
            raise self._outside(wanted, len(self._paths))
        return ((position, self._read(position)) for position in wanted.tolist())

    def _read(self, position: int) -> av.VideoFrame:
        name = printable(self._paths[position])
        with open_stream(self._paths[position], name) as stream:
            frame = next(read_frames(stream, read_packets(stream), name), None)
        if frame is None:
            raise VideoError(f"{name}: expected an image, got none: fetch it again or drop the video")
        return frame


class _Stream(OpenVideo):
    """The best stream of an encoded file."""

    def __init__(self, video: Video, stream: VideoStream, name: str):
        super().__init__(name)
        self._video, self._opened, self._used = video, stream, False
        known = survey(stream)
        self._packets, self._proof, self._packet_times = known.packets, known.pictures, known.times
        self._kept: dict[int, av.VideoFrame] = {}

    def __len__(self) -> int:
        return len(self._proof) if self._proof else len(self._decoded)

    @property
    def guess(self) -> int | None:
        return None if self._proof else len(self._packet_times)

    @cached_property
    def times(self) -> Float[np.ndarray, " t1"]:
        stream = self._opened
        kind = stream.container.format  # FFmpeg makes up the times of bare streams
        if kind.name.endswith("_pipe") or Flags.no_timestamps in Flags(kind.flags) or stream.time_base is None:
            raise _no_times(self.name)
        times = [self._packet_times[i] for i in self._order] if self._proof else self._decoded
        if kind.name == "avi" and len(times) == len(self._packet_times):
            times = self._packet_times  # one packet after the other: FFmpeg guesses the times of sorted pictures
        if None in (starts := [start for start, _ in times]):
            raise _no_times(self.name)
        # Where times step back, frames are shown in their order all the same.
        shown = np.maximum.accumulate(np.asarray(starts, np.float64)) * float(stream.time_base)
        rate, own = stream.average_rate or stream.guessed_rate, (times[-1][1] or 0) * float(stream.time_base)
        last = own if own > 0 else np.median(np.diff(shown)) if len(shown) > 1 else 1 / float(rate) if rate else 0.0
        if last <= 0:
            raise _no_times(self.name)
        return np.append(shown, shown[-1] + last) - shown[0]

    @property
    def packets(self) -> tuple[int, int]:
        times, kind = self._packet_times, self._opened.container.format.name
        if kind.startswith("mov"):  # its header also counts what its edit list leaves out
            return len(self._opened.index_entries), len(times)
        if kind == "avi":  # its header counts empty packets, which repeat a frame; times are numbers of packets
            return self._opened.frames, max([len(times), *(start + 1 for start, _ in times if start is not None)])
        return self._opened.frames, len(times)

    @cached_property
    def _order(self) -> list[int]:
        """The packets' numbers in the order in which their pictures are shown."""
        return presentation(self._proof or ())

    @cached_property
    def _decoded(self) -> list[tuple[int | None, int | None]]:
        """Start and duration of each frame of the full decode."""
        times, pixels = [], 0
        for position, frame in enumerate(self._all()):
            times.append((frame.pts, frame.duration))
            if position in self._likely and (pixels := pixels + frame.width * frame.height) <= KEPT:
                self._kept[position] = frame
        if not times:
            raise self._outside(np.empty(0), 0)
        return times

    def _all(self) -> Iterator[av.VideoFrame]:
        with self._unread() as (stream, packets):
            yield from read_frames(stream, packets, self.name)

    def _chosen(self, wanted: Int[np.ndarray, " t"]) -> Iterator[tuple[int, av.VideoFrame]]:
        if self._proof:
            if wanted[-1] >= len(self._proof):
                raise self._outside(wanted, len(self._proof))
            try:
                yield from self._sparse(self._proof, wanted.tolist())
                return
            except InexactError:
                self._proof = None
        if self._kept.keys() >= set(wanted.tolist()):
            yield from ((position, self._kept[position]) for position in wanted.tolist())
        else:
            yield from super()._chosen(wanted)

    def _sparse(self, pictures: Sequence[Picture], wanted: Sequence[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """`_chosen`, by decoding only what these frames need."""
        positions = {self._order[position]: position for position in wanted}
        with self._unread(again=True) as (stream, packets):  # each run begins anew
            for number, frame in read_runs(stream, packets, pictures, plan_runs(pictures, positions)):
                if number in positions:
                    yield positions[number], frame

    @contextmanager
    def _unread(self, *, again: bool = False) -> Iterator[tuple[VideoStream, Iterable[Packet]]]:
        """Gives a stream and its packets to decode: the opened stream if it is unused, otherwise a fresh one.

        A rewound stream would lack what comes only once, such as a palette. With `again` the opened stream may be used
        repeatedly, because each run of packets starts anew, but not after a run was left half way.
        """
        packets, self._packets = self._packets, None
        if packets is not None and (again or not self._used):
            self._used = True
            yield self._opened, packets
            self._packets = packets if again else None
            return
        with open_stream(self._video, self.name) as fresh:
            yield fresh, read_packets(fresh)


def _no_times(name: str) -> VideoError:
    return VideoError(
        f"{name}: expected a video whose frames have times, got none: take it as one clip, without a window"
    )


def read_frames(stream: VideoStream, packets: Iterable[Packet], name: str) -> Iterator[av.VideoFrame]:
    """All frames of an unused stream."""
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
