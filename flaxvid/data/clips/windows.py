"""Windows in time: what is seen of a long video from second to second, by one pass over it."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from math import ceil
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from flaxvid.data.clips.cut import ClipConfig, crops_of, frame_indices
from flaxvid.data.clips.decode import OpenVideo, open_video

SHORTEST = 0.001
"""Seconds of a window; many files know no shorter times."""
_EDGE = 1e-6  # seconds by which a time may miss a multiple of the window, as 3 * 0.1 misses 0.3
_END = 2e-3  # seconds by which a file's end may be late: Matroska rounds the last frame's time and its duration


def cut_windows(
    video: bytes | str | Path, seconds: float, clips: ClipConfig
) -> Iterator[tuple[float, float, UInt8[np.ndarray, "n s s 3"]]]:
    """Goes through a video window by window; memory holds the clip of one.

    Windows begin at 0, `seconds`, 2 * `seconds`, ... from the first frame on, and the last ends with the video. A
    window's frames are those whose times lie in it; where none does, as in a pause of a screen recording, it is the
    frame that is shown then. One with fewer frames than the clip repeats them, or is an error, as `clips.short` says.

    Args:
        video: an encoded file's bytes or path.
        seconds: of a window.
        clips: how each window is seen, as a video of its own with one view; it has one frame count.

    Yields:
        Where the window begins and ends, in seconds, and its clip; the same array again while its frames are the same.

    Raises:
        VideoError: the video cannot be read, or its frames have no times; or a window is too short.
        ValueError: the window is.
    """
    if not seconds >= SHORTEST:
        raise ValueError(f"expected a window of more than 0 seconds, {SHORTEST} at least, got {seconds}")
    clips = replace(clips, clips=1)
    with open_video(video) as opened:
        (crop,) = crops_of(opened, clips, crops=1)
        wanted = np.zeros(len(opened.times) - 1, bool)
        for _, _, positions in _windows(opened, seconds, clips):
            wanted[positions] = True
        before, clip = None, np.empty(0, np.uint8)
        pictures: dict[int, UInt8[np.ndarray, "h w 3"]] = {}
        with closing(opened.stream(np.flatnonzero(wanted), size=(crop.height, crop.width))) as decoded:
            for start, end, positions in _windows(opened, seconds, clips):
                if positions is not before:
                    before = positions
                    pictures = {i: pictures[i] if i in pictures else next(decoded) for i in np.unique(positions)}
                    clip = crop.cut(np.stack([pictures[i] for i in positions]), clips.image_size)
                yield start, end, clip
            next(decoded, None)  # tells whether these were all frames


def _windows(
    video: OpenVideo, seconds: float, clips: ClipConfig
) -> Iterator[tuple[float, float, Int[np.ndarray, " n"]]]:
    """Where each window begins and ends, and its clip's frames; the same array again while its frames are the same."""
    times, total = video.times[:-1], float(video.times[-1])
    seconds = min(seconds, total)
    count = max(1, ceil((total - _END) / seconds))
    before, positions = None, np.empty(0, np.int64)
    for number in range(count):
        last = number == count - 1
        start, end = number * seconds, total if last else (number + 1) * seconds
        first = times.searchsorted(start - _EDGE)
        stop = len(times) if last else times.searchsorted(end - _EDGE)
        first -= first == stop  # none of its own: the one that is shown
        if (first, stop) != before:
            before, positions = (first, stop), first + frame_indices(video, stop - first, clips, None)
        yield start, end, positions
