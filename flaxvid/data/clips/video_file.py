"""Opens an encoded video with the demuxers listed here, and picks its best stream.

It does not trust the file: no text in it opens another file, and no size in it allocates memory.
"""

import io
import os
import re
import stat
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Disposition
from av.video.stream import VideoStream

Video = bytes | str | Path
"""The bytes or path of an encoded file, the path of a folder of numbered images, or as str a stream's URL or
a camera's device, such as "/dev/video0"."""

MAX_PIXELS = 2**26
"""Most pixels of a frame, 8192 x 8192, twice as many as 8K video has. A header of a few bytes may claim any size."""

_FORMATS = (
    *("apng", "asf", "av1", "avi", "dirac", "dv", "flic", "flv", "gif", "gxf", "h261", "h263", "h264", "hevc", "ivf"),
    *("m4v", "matroska", "mjpeg", "mov", "mpeg", "mpegts", "mpegvideo", "mxf", "nut", "obu", "ogg", "rm", "smjpeg"),
    *("swf", "vc1", "vvc", "wtv", "yuv4mpegpipe"),
    *("bmp_pipe", "jpeg_pipe", "jpegxl_pipe", "png_pipe", "ppm_pipe", "tiff_pipe", "webp_pipe"),
    *("aac", "flac", "mp3", "wav"),  # only to say that they are audio
)
"""Demuxers that read only the file itself. Those of playlists (concat, hls, dash, sdp) open others."""
_COMPRESSED = re.compile(rb"cmov.{4}dcom", re.DOTALL)
"""How a compressed header of QuickTime begins."""
_URL = re.compile(r"(https?|rtsps?|rtmps?|rtp|udp|srt|tcp)://", re.IGNORECASE)
_URL_FORMATS = (*_FORMATS, "hls", "mpjpeg", "rtp", "rtsp", "sdp")
_URL_PROTOCOLS = "http,https,httpproxy,tcp,tls,crypto,rtp,srtp,udp,rtmp,rtmps,rtmpt,ffrtmphttp,srt"
_CAMERA = re.compile(r"/dev/video\d+")
"""What Linux calls cameras."""
_WAIT = (30.0, 60.0)
"""Seconds within which a URL must open, and answer."""
_PICTURES = Disposition.attached_pic | Disposition.timed_thumbnails
"""Marks of streams that are covers or previews."""
_PICTURE_CODECS = {"bmp", "gif", "mjpeg", "png", "tiff", "webp"}
"""Codecs of covers, which files may leave unmarked. Real videos use them, too."""
_READING: Any = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
"""Accepts titles that are not UTF-8. PyAV 19 does so by itself."""


class VideoError(ValueError):
    """A video cannot be read as asked. The message names it and says what to do."""


def video_name(video: Video) -> str:
    """What errors call a video that has no other name."""
    return f"video of {len(video)} bytes" if isinstance(video, bytes) else printable(video)


def printable(path: str | Path) -> str:
    """A path as text that can be printed and written, whatever bytes are in it."""
    return os.fsencode(path).decode(errors="backslashreplace")


@contextmanager
def open_container(video: Video, name: str = "") -> Iterator[InputContainer]:
    """Opens PyAV's container of an encoded file.

    A path is always a local file, whatever colons and patterns are in it. Only a str such as ``rtsp://...`` is a URL,
    and only one such as ``/dev/video0`` a camera.

    Args:
        video: The file's bytes or path.
        name: What errors call it.

    Raises:
        VideoError: The file is missing, empty, damaged, or of a format that is not read.
    """
    name = name or video_name(video)
    with _open_bytes(video, name) as source:
        url, camera = isinstance(source, str), isinstance(source, str) and _CAMERA.fullmatch(source)
        options = {
            "format_whitelist": "video4linux2,v4l2" if camera else ",".join(_URL_FORMATS if url else _FORMATS),
            "protocol_whitelist": _URL_PROTOCOLS if url else "none",
            "max_pixels": str(MAX_PIXELS),
        }
        try:
            kind, wait = "v4l2" if camera else None, _WAIT if url else None
            container: Any = av.open(source, mode="r", format=kind, options=options, timeout=wait, **_READING)
        except (FFmpegError, OSError, ValueError) as error:
            raise VideoError(
                f"{name}: expected a video, got an empty or damaged file or one of a format that is not read "
                f"({_reason(error)}): fetch it again or drop it"
            ) from error
        with container:
            try:
                yield container
            except FFmpegError as error:
                raise VideoError(
                    f"{name}: expected a video, got broken data ({_reason(error)}): fetch the file again or drop it"
                ) from error


@contextmanager
def _open_bytes(video: Video, name: str) -> Iterator[Any]:
    """Gives PyAV an open file, so that a colon in its name means nothing; or a URL or a device as it is."""
    if isinstance(video, str) and (_URL.match(video) or _CAMERA.fullmatch(video)):
        yield video
        return
    if isinstance(video, bytes):
        yield _Nameless(io.BytesIO(video))
        return
    try:
        # A pipe would block, and a device never end.
        regular = stat.S_ISREG(os.stat(video).st_mode)
        file = open(video, "rb", buffering=0) if regular else None  # noqa: SIM115
    except FileNotFoundError as error:
        raise VideoError(f"{name}: no such file: check its path") from error
    except (OSError, ValueError) as error:
        raise VideoError(f"{name}: expected a video, got a file that cannot be opened ({error}): check it") from error
    if file is None:
        raise VideoError(f"{name}: expected a video, got no regular file (a folder, a pipe or a device): drop it")
    with file:
        yield _Nameless(file)


class _Nameless:
    """A file without a name, from which FFmpeg would guess a format. A seek to an impossible place does not crash it.

    It refuses QuickTime's compressed headers, because FFmpeg would unpack a megabyte of them to a gigabyte.
    """

    def __init__(self, file: io.RawIOBase | io.BytesIO):
        self._file, self.tell, self._end = file, file.tell, b""

    def read(self, size: int) -> bytes:
        """The next bytes."""
        content = self._file.read(size) or b""
        if _COMPRESSED.search(self._end + content):
            raise OSError("its header is compressed and may unpack to any size: copy it with ffmpeg -c copy")
        self._end = content[-11:]
        return content

    def seek(self, offset: int, whence: int = 0) -> int:
        """The new position, negative where there is none."""
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError):
            return -1


@contextmanager
def open_stream(video: Video, name: str = "") -> Iterator[VideoStream]:
    """Opens the stream of an encoded file that players show, never a cover.

    A single picture beside other streams is a cover, whatever the file calls it. Real video goes before a stream of
    pictures, unless only the pictures are marked as the default. The decoder is set up but not opened.

    Raises:
        VideoError: The file cannot be opened, or has no such stream, or there is no decoder for it.
    """
    with open_container(video, name) as container:
        stream = _best_stream(container, name)
        if len(container.streams) > 1 and _is_pictures(stream):
            stream = _best_stream(container, name, _lone_pictures(video, name))
        yield stream


def _is_pictures(stream: Any) -> bool:
    return stream.codec_context.codec.canonical_name in _PICTURE_CODECS


def _lone_pictures(video: Video, name: str) -> set[int]:
    """The streams that have only one picture. It opens the file again, because packets can be read only once."""
    with open_container(video, name) as container:
        streams: Any = [s for s in container.streams.video if s.codec_context is not None and _is_pictures(s)]
        lone, seen = {stream.index for stream in streams}, set()
        with closing(container.demux(streams)) as packets, suppress(IndexError):
            for packet in packets:
                if packet.size:
                    lone -= seen & {packet.stream_index}
                    seen.add(packet.stream_index)
                if not lone:
                    break
        return lone


def _best_stream(container: InputContainer, name: str, covers: Collection[int] = ()) -> VideoStream:
    streams = container.streams
    videos = [s for s in streams.video if not s.disposition & _PICTURES and s.index not in covers]
    readable = [stream for stream in videos if stream.codec_context is not None]
    best = streams.best("video")
    if best not in readable or _is_pictures(best):
        best = max(
            readable,
            key=lambda s: (bool(s.disposition & Disposition.default), not _is_pictures(s), s.width * s.height),
            default=None,
        )
    if best is None:
        if videos:
            raise VideoError(
                f"{name}: expected a video that can be decoded, got one that is cut off, or of an unknown or protected "
                "codec: fetch it again or drop it"
            )
        kinds = {"a cover" if stream.type == "video" else stream.type for stream in streams}
        got = ", ".join(sorted(kinds)) or "nothing"
        raise VideoError(f"{name}: expected a video stream, got {got}: drop the file")
    stream: Any = best
    if stream.width * stream.height > MAX_PIXELS:
        raise VideoError(
            f"{name}: expected frames of at most {MAX_PIXELS:,} pixels, got {stream.width} x {stream.height}: encode "
            "it smaller, or drop it"
        )
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    stream.thread_type = "NONE"  # clips are decoded in parallel, frames within a clip are not
    return stream


def read_packets(stream: VideoStream) -> Iterator[Packet]:
    """The packets of a stream in the order of decoding, without empty ones.

    Raises:
        OSError: While iterating, if packets cannot be read or are encrypted.
    """
    container: Any = stream.container
    packets = container.demux(stream)
    # PyAV's generators leak if they are left half way and not closed. After the last packet of a stream that began
    # midway PyAV raises IndexError.
    is_png = stream.codec_context.codec.canonical_name in ("apng", "png")
    with closing(packets), suppress(IndexError):
        for packet in packets:
            if not packet.size:
                continue
            if any(data.data_type == "encryption_info" for data in packet.iter_sidedata()):
                raise PermissionError("encrypted, which a decoder would not notice")
            if is_png:
                _hide_texts(packet)
            yield packet


def _hide_texts(packet: Packet) -> None:
    """Renames chunks of a PNG that no picture needs. FFmpeg would unpack a few bytes of them to gigabytes."""
    content = bytearray(packet)
    position = 8 if content.startswith(b"\x89PNG") else 0
    while position < len(content):
        if content[position + 4 : position + 8] in (b"iCCP", b"zTXt"):
            content[position + 4 : position + 8] = b"skip"
        position += 12 + int.from_bytes(content[position : position + 4])
    packet.update(bytes(content))


def _reason(error: Exception) -> str:
    return str(error).replace(": '<none>'", "")
