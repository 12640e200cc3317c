"""Some frames of a video without all those before them, where the bits of the stream prove that they are the same.

Decoded are the first packet, for it may say what none repeats, and for each frame that is wanted those from the start
before it on that others need; `bitstream` says which these are.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import av
from av.error import FFmpegError
from av.packet import Packet
from av.video.stream import VideoStream

from flaxvid.data.clips.bitstream import H264, MPEG4, Picture, StrangeError
from flaxvid.data.clips.keyed import AV1, MJPEG, VP9
from flaxvid.data.clips.video_file import read_packets

KEPT = 2**25
"""Bytes of packets that are kept from the first reading for the decoding; of larger videos they are read again."""


PROVERS: dict[tuple[str, str], Any] = {
    # Containers that keep packets apart, each a whole picture, and H.264's parameters by themselves.
    ("h264", "mov"): H264,
    ("h264", "matroska"): H264,
    ("mpeg4", "mov"): MPEG4,
    ("mpeg4", "matroska"): MPEG4,
    ("mpeg4", "avi"): MPEG4,
    ("vp9", "mov"): VP9,
    ("vp9", "matroska"): VP9,
    ("av1", "mov"): AV1,
    ("av1", "matroska"): AV1,
    ("mjpeg", "mov"): MJPEG,
    ("mjpeg", "matroska"): MJPEG,
    ("mjpeg", "avi"): MJPEG,
}
"""What can prove something about a stream, by its codec and its container; about others nothing is proven."""


class InexactError(Exception):
    """The frames that came were not those expected: decode the whole video."""


class Survey(NamedTuple):
    """What is known of a video before anything of it is decoded.

    Attributes:
        packets: All packets, if they are few.
        count: Packets that are to be shown, mostly the number of frames.
        pictures: The one picture of each packet, if that is proven; then all of them are shown.
        times: When each packet is shown, of AVI decoded, and how long, in the stream's time base.
    """

    packets: list[Packet] | None
    count: int
    pictures: list[Picture] | None
    times: list[tuple[int | None, int | None]]


def survey(stream: VideoStream) -> Survey:
    """Reads all packets of a stream, and the headers in them."""
    reader, packets, kept = _prover(stream), [], 0
    pictures, times, hidden = [], [], 0
    has_times = stream.container.format.name != "avi"  # which knows the order of decoding, one picture after the other
    try:
        for packet in read_packets(stream):
            times.append((packet.pts if has_times else packet.dts, packet.duration))
            hidden += packet.is_discard
            if (kept := kept + packet.size) <= KEPT:
                packets.append(packet)
            else:
                packets.clear()
            if reader is None:
                continue
            try:
                # Side data are new parameters or palettes; what is hidden or damaged shifts all positions.
                if packet.is_discard or packet.is_corrupt or any(True for _ in packet.iter_sidedata()):
                    raise StrangeError
                pictures.append(reader.add(packet))
            except StrangeError:
                reader = None
    except (FFmpegError, OSError):  # said when a frame is wanted that lies beyond
        reader, kept = None, KEPT + 1
    proven = reader is not None and len({picture.order for picture in pictures}) == len(times) > 0
    return Survey(packets if kept <= KEPT else None, len(times) - hidden, pictures if proven else None, times)


def _prover(stream: Any) -> Any:
    codec = stream.codec_context
    kind = PROVERS.get((codec.codec.canonical_name, stream.container.format.name.split(",")[0]))
    try:
        return kind and kind(codec)
    except StrangeError:
        return None


def presentation(pictures: Sequence[Picture]) -> list[int]:
    """The packets' numbers in the order in which their pictures are shown."""
    return sorted(range(len(pictures)), key=lambda number: pictures[number].order)


def plan_runs(pictures: Sequence[Picture], wanted: Iterable[int]) -> list[list[int]]:
    """Which packets to decode for those that are wanted: runs, each of which needs nothing of the one before."""
    starts = [number for number, picture in enumerate(pictures) if picture.is_start]
    chosen = {0, *wanted}
    stops: dict[int, int] = {}
    for number in sorted(chosen):
        stops[starts[bisect_right(starts, number) - 1]] = number + 1
    return [
        [number for number in range(start, stop) if pictures[number].is_needed or number in chosen]
        for start, stop in sorted(stops.items())
    ]


def read_runs(
    stream: VideoStream, packets: Iterable[Packet], pictures: Sequence[Picture], runs: Sequence[Sequence[int]]
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decodes runs of packets: pairs of a packet's number and its frame.

    Raises:
        InexactError: While iterating, to the very end: what came before is then not to be trusted either.
    """
    decoder, numbered = stream.codec_context, iter(enumerate(packets))
    # What is damaged may show what was decoded before, wherever that came from.
    decoder.options = {**decoder.options, "err_detect": "explode"}
    for run in runs:
        inside, came = set(run), []
        for number, packet in numbered:
            if number not in inside:
                continue
            packet.pts = number  # comes out again with its frame
            try:
                frames = decoder.decode(packet)
                if number == run[-1]:
                    frames += decoder.decode(None)
                    decoder.flush_buffers()
            except FFmpegError as error:
                raise InexactError from error
            for frame in frames:
                if frame.is_corrupt or frame.pts is None:
                    raise InexactError
                came.append(frame.pts)
                yield frame.pts, frame
            if number == run[-1]:
                break
        if came != sorted(run, key=lambda number: pictures[number].order):
            raise InexactError
