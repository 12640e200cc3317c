"""Decodes from the start before each wanted frame and skips the rest, where the bits prove that this changes nothing.

It also decodes the first packet, which may hold what no other repeats, and skips pictures that no other needs.
`bitstream` says which pictures are starts, and which are needed.
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
"""Bytes of packets that are kept from the first reading. The packets of larger videos are read again."""


PROVERS: dict[tuple[str, str], Any] = {
    # In these containers a packet is a whole picture, and H.264's parameters stand by themselves.
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
"""The prover of a stream, by its codec and its container. Other streams are decoded whole."""


class InexactError(Exception):
    """The decoder gave other frames than expected: decode the whole video."""


class Survey(NamedTuple):
    """What is known of a video before anything of it is decoded.

    Attributes:
        packets: All packets, if they are small enough to keep.
        pictures: The picture of each packet, if it is proven that each packet shows one.
        times: When each packet is shown (in AVI: decoded) and how long, in the stream's time base.
    """

    packets: list[Packet] | None
    pictures: list[Picture] | None
    times: list[tuple[int | None, int | None]]


def survey(stream: VideoStream) -> Survey:
    """Reads all packets of a stream, and the headers in them."""
    reader, packets, kept = _prover(stream), [], 0
    pictures, times = [], []
    has_times = stream.container.format.name != "avi"  # AVI knows only the order of decoding
    try:
        for packet in read_packets(stream):
            times.append((packet.pts if has_times else packet.dts, packet.duration))
            if (kept := kept + packet.size) <= KEPT:
                packets.append(packet)
            else:
                packets.clear()
            if reader is None:
                continue
            try:
                # Side data are new parameters or palettes. Hidden and damaged packets shift all positions.
                if packet.is_discard or packet.is_corrupt or any(True for _ in packet.iter_sidedata()):
                    raise StrangeError
                pictures.append(reader.add(packet))
            except StrangeError:
                reader = None
    except (FFmpegError, OSError):  # whoever wants a frame beyond will get the error
        reader, kept = None, KEPT + 1
    proven = reader is not None and len({picture.order for picture in pictures}) == len(times) > 0
    return Survey(packets if kept <= KEPT else None, pictures if proven else None, times)


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
    """The packets to decode for the wanted ones, in runs. No run needs an earlier one."""
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
    """Decodes runs of packets. It yields pairs of a packet's number and its frame.

    Raises:
        InexactError: While iterating, up to the very end. Then the frames before it cannot be trusted either.
    """
    decoder, numbered = stream.codec_context, iter(enumerate(packets))
    # Otherwise a damaged packet may show an older picture, of another run.
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
