"""Turns a decoded frame into a picture: upright, resized, RGB.

FFmpeg also turns EXIF orientations into display matrices.
"""

import struct
from fractions import Fraction
from typing import Any, NamedTuple

import av
from av.filter import Graph
from av.sidedata.sidedata import Type
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8
from numpy import ndarray

from flaxvid.data.clips.video_file import VideoError

MAX_BYTES = 2**32
"""Most bytes of a decoded clip, 4 GiB. More is an error before any memory is taken."""
MAX_SIDE = 2**14
"""Most pixels of a side of a resized picture. A short side of 2 pixels could give the other one any length."""

Size = int | tuple[int, int] | None
"""What to resize pictures to, in pixels: their short side, or (height, width); None keeps their size."""

_EXIF = 31
"""FFmpeg's number of a kind of side data that PyAV does not know. Where it occurs, PyAV gives no side data at all."""


class Orientation(NamedTuple):
    """One of the eight orientations: what makes a stored picture upright, in this order."""

    transpose: bool = False
    mirror: bool = False
    """Left to right."""
    flip: bool = False
    """Top to bottom."""

    def turn(self, picture: UInt8[ndarray, "h w 3"]) -> UInt8[ndarray, "h2 w2 3"]:
        """The picture upright, as a view."""
        if self.transpose:
            picture = picture.swapaxes(0, 1)
        return picture[:: -1 if self.flip else 1, :: -1 if self.mirror else 1]


def orientation(frame: av.VideoFrame, reformatter: VideoReformatter) -> Orientation:
    """The nearest of the eight orientations. Players also turn frames by other angles; this does not.

    Args:
        frame: Its side data is read from a tiny copy. PyAV would keep the frame itself until the next collection.
        reformatter: Makes the copy.
    """
    tiny = reformatter.reformat(frame, 2, 2, "gray", interpolation="POINT", threads=1)
    try:
        known: Any = tiny.side_data
    except ValueError:
        known = _without_exif(tiny).side_data
    matrix = known.get(Type.DISPLAYMATRIX)
    if matrix is None:
        return Orientation()
    a, b, _, c, d, *_ = struct.unpack("<9i", bytes(matrix))  # x' = ax + cy, y' = bx + dy
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(True, mirror=c < 0, flip=b < 0)
    return Orientation(False, mirror=a < 0, flip=d < 0)


def _without_exif(frame: av.VideoFrame) -> av.VideoFrame:
    graph = Graph()
    begin = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1))
    cut, end = graph.add("sidedata", f"mode=delete:type={_EXIF}"), graph.add("buffersink")
    begin.link_to(cut)
    cut.link_to(end)
    graph.configure()
    begin.push(frame)
    return end.pull()  # pyright: ignore[reportReturnType]


class Painter:
    """Makes `count` pictures of frames, all of one size, which the first frame decides. Errors name the video.

    Resizing is bilinear, area-weighted when shrinking. It is part of the colour conversion, hence nearly free.
    """

    def __init__(self, size: Size, name: str, count: int = 1):
        self._size, self._name, self._count = size, name, count
        self._scaler, self._painter, self._tiny = VideoReformatter(), VideoReformatter(), VideoReformatter()
        self._shape: tuple[int, int] | None = None

    def shape(self, frame: av.VideoFrame) -> tuple[int, int]:
        """Height and width of a frame, upright."""
        transpose = orientation(frame, self._tiny).transpose
        return (frame.width, frame.height) if transpose else (frame.height, frame.width)

    def picture(self, frame: av.VideoFrame) -> UInt8[ndarray, "h w 3"]:
        """The picture of a frame.

        Raises:
            VideoError: All pictures together would be larger than `MAX_BYTES`, or a side longer than `MAX_SIDE`.
        """
        upright = orientation(frame, self._tiny)
        if self._shape is None:
            self._shape = self._resized(*self.shape(frame))
        height, width = reversed(self._shape) if upright.transpose else self._shape
        # One thread, because clips are read in parallel and frames are small. FFmpeg scales first and converts then in
        # a third of the time that both at once take.
        if frame.format.name.startswith("yuv4") and (frame.height, frame.width) != (height, width):
            frame = self._scaler.reformat(frame, width, height, "yuv422p", interpolation="BILINEAR", threads=1)
        picture = self._painter.reformat(frame, width, height, "rgb24", interpolation="BILINEAR", threads=1)
        return upright.turn(picture.to_ndarray())

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """The size of all pictures, when the first frame has this one."""
        if isinstance(self._size, tuple):
            height, width = self._size
        elif self._size is not None:
            short = min(height, width)
            height, width = height * self._size // short, width * self._size // short
        if max(height, width) > MAX_SIDE or height * width * 3 * self._count > MAX_BYTES:
            raise VideoError(
                f"{self._name}: expected at most {MAX_SIDE} pixels a side and {MAX_BYTES >> 30} GiB a clip, got "
                f"{self._count} frames of {height} x {width}: take fewer frames, a smaller size, or drop it"
            )
        return height, width
