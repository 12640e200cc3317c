"""Cuts a long video into windows of some seconds, in one pass over it."""

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from flaxvid.data.clips.cut import ClipConfig, crops_of, cut_views, frame_indices
from flaxvid.data.clips.decode import OpenVideo, Video, open_video

SHORTEST = 0.001
"""Least seconds of a window. Many files store no shorter times."""
_EDGE = 1e-6  # seconds by which a time may miss a multiple of the window, as 3 * 0.1 misses 0.3
_END = 2e-3  # seconds by which a file may end late, because Matroska rounds the last frame's time and duration


def cut_windows(
    video: bytes | str | Path, seconds: float, clips: ClipConfig
) -> Iterator[tuple[float, float, UInt8[np.ndarray, "n s s 3"]]]:
    """Goes through a video window by window. Memory holds the clip of one window.

    Windows begin at 0, `seconds`, 2 * `seconds`, ... after the first frame; the last ends with the video. A window has
    the frames whose times lie in it. Without any, as in a pause of a screen recording, it has the frame shown at that
    time. If a window has fewer frames than the clip, `clips.short` says what happens.

    Args:
        video: An encoded file's bytes or path.
        seconds: Length of a window.
        clips: How to cut a clip from a window, with one frame count. Each window gives one view.

    Yields:
        The window's begin and end, in seconds, and its clip, which is the same array while the frames stay the same.

    Raises:
        VideoError: The video cannot be read, its frames have no times, or a window has too few frames.
        ValueError: `seconds` is below `SHORTEST`.
    """
    if not seconds >= SHORTEST:
        raise ValueError(f"expected a window of at least {SHORTEST} seconds, got {seconds}: make it longer")
    clips = replace(clips, clips=1)
    with open_video(video) as opened:
        wanted = np.zeros(len(opened.times) - 1, bool)
        for _, _, positions in _windows(opened, seconds, clips):
            wanted[positions] = True
        (crop,) = crops_of(opened.shape, clips, crops=1)
        before, clip = None, np.empty(0, np.uint8)
        pictures: dict[int, UInt8[np.ndarray, "h w 3"]] = {}
        with closing(opened.stream(np.flatnonzero(wanted), size=(crop.height, crop.width))) as decoded:
            for start, end, positions in _windows(opened, seconds, clips):
                if positions is not before:
                    before = positions
                    pictures = {i: pictures[i] if i in pictures else next(decoded) for i in np.unique(positions)}
                    clip = crop.cut(np.stack([pictures[i] for i in positions]), clips.image_size)
                yield start, end, clip
            next(decoded, None)  # checks the number of frames


def cut_stretches(
    video: Video | Mapping[str, Video], clips: ClipConfig, window: float | None = None
) -> Iterator[tuple[float | None, float | None, Any]]:
    """Yields the views of a whole video, or of one window of it after the other.

    Args:
        video: An encoded file's bytes or path, or the path of a folder of numbered images. A scene is a dict of those
            of its cameras.
        clips: How to cut it, with one frame count.
        window: Seconds of a window; see `cut_windows`. None takes the video whole, with all views of `clips`.

    Yields:
        The begin and end in seconds, None for a whole video, and the views. A scene has views of each camera. They are
        the same array while the frames stay the same.

    Raises:
        VideoError: The video cannot be read, or has no times to tell windows by.
        ValueError: The window is too short, or given for a scene of several cameras.
    """
    if window is None:
        yield None, None, cut_views({"video": video, "id": "video"}, clips, np.random.default_rng(0))[clips.frames[0]]
        return
    if isinstance(video, Mapping):
        raise ValueError("expected one video to cut into windows, got several cameras: take the scene whole")
    before, views = None, None
    for start, end, clip in cut_windows(video, window, clips):
        if clip is not before:
            before, views = clip, clip[None]
        yield start, end, views


def _windows(
    video: OpenVideo, seconds: float, clips: ClipConfig
) -> Iterator[tuple[float, float, Int[np.ndarray, " n"]]]:
    """Begin, end and positions of each window. The array is the same while the positions stay the same."""
    times, total = video.times[:-1], float(video.times[-1])
    seconds = min(seconds, total)
    count = max(1, ceil((total - _END) / seconds))
    before, positions = None, np.empty(0, np.int64)
    for number in range(count):
        last = number == count - 1
        start, end = number * seconds, total if last else (number + 1) * seconds
        first = times.searchsorted(start - _EDGE)
        stop = len(times) if last else times.searchsorted(end - _EDGE)
        first -= first == stop  # no frame of its own: the one shown at that time
        if (first, stop) != before:
            before, positions = (first, stop), first + frame_indices(video, stop - first, clips, None)
        yield start, end, positions
