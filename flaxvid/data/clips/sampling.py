"""Chooses the frames of a clip: spread over the video (segment, even), or an interval apart (dense)."""

from typing import Literal

import numpy as np
from jaxtyping import Int


def segment_indices(
    length: int,
    n: int,
    rng: np.random.Generator | None = None,
    *,
    short: Literal["error", "repeat"] = "error",
    clips: int = 1,
) -> Int[np.ndarray, "{clips} {n}"]:
    """Draws one frame from each of n equal segments of a video (TSN, arXiv 1608.00859; also TSM and FFN).

    In training, segment i is `[i * d, (i + 1) * d)` with `d = length // n`. The last `length % n` frames are never
    drawn. The test takes `int(d / 2 + d * i)` with `d = length / n`. Both are the FFN authors' rules. Several test
    clips divide each segment evenly: two of them take its centre and its beginning, as TSM's "twice sample" does.

    Args:
        length: Frames of the video.
        n: Frames of a clip.
        rng: Draws within the segments; None takes the test's frames.
        short: What to do if `length < n`: "error", or "repeat" frames, in order. (The FFN authors' code repeats the
            first frame n times in training. Here segments below one frame are drawn from like longer ones.)
        clips: How many clips.

    Raises:
        ValueError: The video is empty, or shorter than the clip and `short` is "error".
    """
    _check_length(length, n, n, short)
    if rng is None:
        starts = length / n * ((0.5 + np.arange(clips) / clips) % 1)
        return (starts[:, None] + length / n * np.arange(n)).astype(np.int64)
    if length < n:
        return ((np.arange(n) + rng.random((clips, n))) * length / n).astype(np.int64)
    segment = length // n
    return np.arange(n) * segment + rng.integers(segment, size=(clips, n))


def dense_indices(
    length: int,
    n: int,
    rng: np.random.Generator | None = None,
    *,
    interval: int,
    short: Literal["error", "repeat"] = "error",
    clips: int = 1,
) -> Int[np.ndarray, "{clips} {n}"]:
    """Takes n frames, `interval` apart, from a window of `n * interval` frames somewhere in a video.

    It is the usual sampling of Kinetics. With interval 8 and 8 frames it is TSM's dense sampling. The windows of a test
    lie evenly from the video's beginning to its end; a single one lies in the middle.

    Args:
        length: Frames of the video.
        n: Frames of a clip.
        rng: Draws the windows; None takes the test's.
        interval: Distance of two frames, in frames.
        short: What to do if the video ends before the last frame: "error", or "repeat" it from its beginning.
        clips: How many clips.

    Raises:
        ValueError: The video is empty, or too short and `short` is "error".
    """
    _check_length(length, n, (n - 1) * interval + 1, short)
    free = max(length - n * interval, 0)
    if rng is not None:
        starts = rng.integers(free + 1, size=clips)
    else:
        starts = np.linspace(0, free, clips).astype(np.int64) if clips > 1 else np.array([free // 2])
    return (starts[:, None] + interval * np.arange(n)) % length


def even_indices(length: int, n: int, *, short: Literal["error", "repeat"] = "error") -> Int[np.ndarray, "1 {n}"]:
    """Takes n frames evenly from the first to the last, `floor(linspace(0, length - 1, n))`. It draws nothing.

    R3D-18 with squeeze-and-excitation uses it to recognise emotions. The same rule repeats frames of a shorter video,
    and keeps its last frame. Others repeat every frame and cut the rest, which drops the end.

    Args:
        length: Frames of the video.
        n: Frames of a clip.
        short: What to do if `length < n`: "error", or "repeat" frames, in order.

    Raises:
        ValueError: The video is empty, or shorter than the clip and `short` is "error".
    """
    _check_length(length, n, n, short)
    return np.arange(n)[None] * (length - 1) // max(n - 1, 1)  # integers: linspace may fall just below one


def _check_length(length: int, n: int, needed: int, short: str) -> None:
    if length < 1 or n < 1:
        raise ValueError(f"expected a clip and a video of at least one frame, got {n} and {length}: drop the clip")
    if length < needed and short == "error":
        raise ValueError(
            f"clip shorter than the frame count: expected at least {needed} frames, got {length}: "
            'train with fewer frames, drop the clip from the list, or repeat frames with short="repeat"'
        )
