"""Examines one video of a data set: decodes all of it, describes it, and gives the bytes to store."""

import dataclasses
import hashlib
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np

from flaxvid.data.clips.decode import VideoError, count_frames, open_video
from flaxvid.data.clips.images import list_images
from flaxvid.data.clips.video_file import open_stream
from flaxvid.data.prepare.report import Finding

_SIDE, _PICTURES = 8, 4  # of a signature
_WHOLE = 0.9  # least share of the frames that the header promises, because healthy files may lack a few
_FOLDER_RATE = 12  # frames a second of data sets that are published as folders of frames


@dataclass(frozen=True)
class Encoding:
    """How videos are encoded anew, as h264.

    Attributes:
        short_side: Pixels of the shorter side, even. Smaller videos keep their size, but sides become even.
        key_frames: Distance of key frames. A small one makes jumps within a video fast, and files larger.
        crf: x264's constant rate factor. 18 looks like the original, 23 is usual, more is smaller and worse.
    """

    short_side: int = 256
    key_frames: int = 12
    crf: int = 20

    def __post_init__(self):
        if self.short_side < 2 or self.short_side % 2 or self.key_frames < 1 or not 0 <= self.crf <= 51:
            raise ValueError(
                f"expected an even short_side, key_frames of at least 1 and crf from 0 to 51, got {self}: correct it"
            )


def examine(item: Mapping[str, Any], min_frames: int, encoding: Encoding | None) -> tuple[Finding, bytes]:
    """Decodes all frames of one video.

    Args:
        item: An item of a source.
        min_frames: A video with fewer frames is too short.
        encoding: How to encode it anew; None keeps its bytes.

    Returns:
        The finding, and the bytes to store, which are empty for a bad video.
    """
    video = item["video"]
    finding = Finding(item["id"], item["label"], stamp=stamp(video))
    if not isinstance(video, bytes) and not os.path.exists(video):
        return dataclasses.replace(finding, problem="missing", reason=f"no file {video}"), b""
    try:
        content = video if isinstance(video, bytes) else _read_bytes(Path(video))
        finding = dataclasses.replace(finding, digest=hashlib.sha256(content).hexdigest())
        with open_video(video, item["id"]) as opened:
            small = np.stack(list(opened.stream(size=(_SIDE, _SIDE))))
            promised, found = opened.packets
        count = len(small)
        if found < _WHOLE * promised:
            raise VideoError(f"expected {promised} frames, got {count}: cut off, fetch it again")
        chosen = small[[(2 * i + 1) * count // (2 * _PICTURES) for i in range(_PICTURES)]]
        signature = np.rint(chosen.mean(axis=-1)).astype(np.uint8).tobytes().hex()
        finding = dataclasses.replace(finding, frames=count, signature=signature)
        if count < min_frames:
            reason = f"{count} frames, fewer than {min_frames}"
            return dataclasses.replace(finding, problem="short", reason=reason), b""
        if not isinstance(video, bytes) and os.path.isdir(video) and not encoding and count_frames(content) != count:
            raise VideoError("expected images of one picture each, got some of several: encode them anew")
        if encoding:
            content = encode(video, encoding, item["id"])
    except Exception as error:  # a broken file is a finding, whatever the decoder raises
        reason = str(error) if isinstance(error, VideoError) else f"{type(error).__name__}: {error}"
        reason = reason.removeprefix(f"{item['id']}: ")
        return dataclasses.replace(finding, problem="unreadable", reason=reason), b""
    return finding, content


def stamp(video: bytes | str | Path) -> str:
    """Size and time of a file, to find out whether it changed. Bytes and missing files have an empty stamp."""
    if isinstance(video, bytes) or not os.path.exists(video):
        return ""
    status = os.stat(video)
    return f"{status.st_size} {status.st_mtime_ns}"


def encode(video: bytes | str | Path, encoding: Encoding, name: str) -> bytes:
    """Encodes a video, upright, as an h264 file (mp4) of the same frame rate."""
    options = {"crf": str(encoding.crf), "g": str(encoding.key_frames), "preset": "fast", "threads": "1"}
    file = io.BytesIO()
    with open_video(video, name) as opened, av.open(file, "w", format="mp4") as container:
        scale = min(1.0, encoding.short_side / min(opened.shape))
        height, width = (max(2, round(side * scale / 2) * 2) for side in opened.shape)  # yuv420p wants even sides
        stream = container.add_stream("libx264", rate=_rate(video), options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for picture in opened.stream(size=(height, width)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def _rate(video: bytes | str | Path) -> Any:
    if not isinstance(video, bytes) and Path(video).is_dir():
        return _FOLDER_RATE
    with open_stream(video) as stream:
        return stream.average_rate or 25


def _read_bytes(path: Path) -> bytes:
    """The bytes of a file, or those of a folder's frames one after the other, which FFmpeg reads as a video."""
    files = list_images(path) if path.is_dir() else [path]
    if odd := [file for file in files if not file.is_file()]:
        raise VideoError(f"{odd[0]}: expected a video, got no regular file (a pipe or a device): drop it")
    if not path.is_dir():
        return path.read_bytes()
    images = {file: file.read_bytes() for file in files}
    kinds = {path.suffix.lower() == ".png" for path in images} | {
        content.startswith(b"\x89PNG")
        for content in images.values()  # whatever they are named
    }
    if len(kinds) > 1:
        raise VideoError(f"{path}: expected frames of one kind, got PNG and JPEG: encode them anew")
    return b"".join(images.values())
