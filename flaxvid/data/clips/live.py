"""Frames as they come: of a camera or a URL, or of a file from its begin to its end, cut as a test cuts them."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8

from flaxvid.data.clips.cut import ClipConfig, crops_of
from flaxvid.data.clips.decode import Video, VideoError, read_frames
from flaxvid.data.clips.pictures import Painter
from flaxvid.data.clips.video_file import open_stream, read_packets, video_name

_EDGE = 1e-6
"""Seconds by which a time may miss its due time, as 3 * 0.1 misses 0.3."""


def live_frames(
    video: Video, clips: ClipConfig, rate: float | None = None
) -> Iterator[tuple[float, UInt8[np.ndarray, "s s 3"]]]:
    """Yields each frame of a stream once it is there. Memory holds one of them, however long the stream is.

    Args:
        video: A URL such as "rtsp://...", a camera's device such as "/dev/video0", or an encoded file's bytes or path.
        clips: How frames are resized and cropped: the centre crop of a test.
        rate: Most frames a second; others are skipped. None takes all.

    Yields:
        Seconds since the first frame, and the picture.

    Raises:
        VideoError: The stream cannot be read, or breaks, or its frames have no times.
    """
    name, first, due, crop, painter = video_name(video), None, 0.0, None, None
    with open_stream(video, name) as stream:
        for frame in read_frames(stream, read_packets(stream), name):
            if frame.pts is None or stream.time_base is None:
                raise VideoError(f"{name}: expected frames with times, got one without: send it in another container")
            first = frame.pts if first is None else first
            time = float((frame.pts - first) * stream.time_base)  # the last frames of a file have no `frame.time`
            if time < due - _EDGE:
                continue
            if rate:
                due += 1 / rate
                due = due if due > time else time + 1 / rate  # after a pause it does not catch up
            if crop is None or painter is None:
                (crop,) = crops_of(Painter(None, name).shape(frame), clips, crops=1)
                painter = Painter((crop.height, crop.width), name)
            yield time, crop.cut(painter.picture(frame)[None], clips.image_size)[0]
    if first is None:
        raise VideoError(f"{name}: expected frames, got none that decode: check what sends it")
