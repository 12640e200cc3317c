"""Turns and mirrors a decoded picture as its display matrix says; FFmpeg makes one of EXIF orientations, too."""

import struct
from fractions import Fraction
from typing import Any, NamedTuple

import av
from av.filter import Graph
from av.sidedata.sidedata import Type
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8
from numpy import ndarray

_EXIF = 31
"""FFmpeg's number of a kind of side data that PyAV does not know, and then shows none at all."""


class Orientation(NamedTuple):
    """One of the eight: what to do to a stored picture, in this order."""

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
    """How a frame is to be turned: the nearest of eight orientations, for players turn odd angles and we do not.

    Args:
        frame: its side data is read off a tiny copy: PyAV keeps a frame whose own was read until the next collection.
        reformatter: makes the copy.
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
