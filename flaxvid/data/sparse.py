"""Some frames of a video without all those before them: what lies between them and their key frames is not decoded, and
what no other frame refers to is passed over.

Packets are read on and left out, which is exact where seeking is not: a packet's time tells which frame it holds.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import av
from av.container import InputContainer
from av.error import FFmpegError

CODECS = ("av1", "h264", "hevc", "mjpeg", "mpeg4", "vp9")
"""Those whose packets hold one frame each; VP8's, for one, may hold a frame that is never shown."""
FORMATS = ("avi", "matroska", "mov")
"""Files that keep a time for every packet; AVI does not, but of MPEG-4 FFmpeg's parser can tell."""
SKIPPING = ("h264", "mpeg4")
"""Codecs whose decoders pass over frames that no other refers to; HEVC's marks hold within a temporal layer only."""
WORTHWHILE = 0.8
"""The part of the packets up to the last frame above which leaving the others out does not pay."""
NOT_CODED = 20
"""MPEG-4 packets with less than so many bytes may stand for no frame at all."""


class InexactError(Exception):
    """The frames that came were not those expected: read the video from its beginning."""


class Packet(NamedTuple):
    """What is known of a packet without decoding it; `time` is when its frame is shown."""

    time: int | None
    size: int
    is_key: bool
    is_discard: bool


def read_packets(container: InputContainer) -> Iterator[tuple[Packet, av.Packet]]:
    """The packets of the first video stream in the order of decoding, without empty ones."""
    packets: Any = container.demux(video=0)
    with closing(packets):  # left half way, PyAV's generators leak unless closed
        for packet in packets:
            if packet.size:
                yield Packet(packet.pts, packet.size, packet.is_keyframe, packet.is_discard), packet


def plan_runs(container: InputContainer, packets: Sequence[Packet], wanted: Sequence[int]) -> list[range] | None:
    """Which packets to decode for chosen frames: runs that begin with a key frame and end with a frame that is wanted.

    Args:
        container: Only its kind matters.
        packets: All of its first video stream.
        wanted: Positions in presentation order.

    Returns:
        None where this would not be exact, or would not be faster than to decode all of them up to the last.
    """
    codec = container.streams.video[0].codec_context.codec.canonical_name
    kind = container.format.name.split(",")[0]
    if codec not in CODECS or kind not in FORMATS or (kind == "avi" and codec not in ("mjpeg", "mpeg4")):
        return None
    keys = [number for number, packet in enumerate(packets) if packet.is_key]
    times = [packet.time for packet in packets if packet.time is not None and not packet.is_discard]
    if not keys or keys[0] > 0 or len({*times}) < len(packets) or wanted[-1] >= len(times):
        return None
    if codec == "mpeg4" and min(packet.size for packet in packets) < NOT_CODED:
        return None
    order = sorted(range(len(times)), key=times.__getitem__)
    stops: dict[int, int] = {}
    for number in (order[position] for position in wanted):
        # A frame shown before the key frame that it follows in the file may need the key frame before that one.
        before = (keys[i] for i in reversed(range(bisect_right(keys, number))))
        start = next((key for key in before if times[key] <= times[number]), 0)
        stops[start] = max(number + 1, stops.get(start, 0))
    runs: list[range] = []
    for start, stop in sorted(stops.items()):
        if runs and start <= runs[-1].stop:
            runs[-1] = range(runs[-1].start, max(stop, runs[-1].stop))
        else:
            runs.append(range(start, stop))
    return runs if codec in SKIPPING or sum(map(len, runs)) <= WORTHWHILE * runs[-1].stop else None


def read_runs(
    container: InputContainer, packets: Sequence[Packet], runs: Sequence[range], wanted: Sequence[int]
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decodes runs of packets: pairs of a wanted position and its frame.

    Raises:
        InexactError: While iterating, to the very end: what came before is then not to be trusted either.
    """
    times = [packet.time or 0 for packet in packets]
    ordered = sorted(times)
    positions = {ordered[position]: position for position in wanted}
    ends = {run.stop: run for run in runs}
    inside = {number for run in runs for number in run}
    decoder = container.streams.video[0].codec_context
    skips = decoder.codec.canonical_name in SKIPPING
    shown: set[int] = set()
    try:
        for number, (known, packet) in enumerate(read_packets(container)):
            if number not in inside:
                continue
            run = ends.get(number + 1)
            decoder.skip_frame = "NONREF" if skips and known.time not in positions else "DEFAULT"
            try:
                frames = decoder.decode(packet) + (decoder.decode(None) if run else [])
            except FFmpegError as error:
                raise InexactError from error
            for frame in frames:
                if frame.is_corrupt or frame.interlaced_frame or frame.pts is None:
                    raise InexactError  # of two fields each may have a packet of its own
                shown.add(frame.pts)
                if frame.pts in positions:
                    yield positions.pop(frame.pts), frame
            if run:
                first = times[run.start]  # frames shown before it belong to the run before
                expected = {times[i] for i in run if times[i] >= first}
                came = {time for time in shown if time >= first}
                if first not in came or not (came <= expected if skips else came == expected):
                    raise InexactError
                decoder.flush_buffers()
                shown.clear()
                if run == runs[-1]:
                    break
    finally:
        decoder.skip_frame = "DEFAULT"
    if positions:
        raise InexactError
