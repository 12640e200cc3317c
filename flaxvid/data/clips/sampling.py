"""Which frames of a video make a clip: spread over it (segments, or evenly), or an interval apart (dense)."""

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
    """Draws one frame from each of n equal segments of a video (TSN, arXiv 1608.00859; as in TSM and FFN).

    In training segment i is `[i * d, (i + 1) * d)` with `d = length // n`, so the last `length % n` frames are never
    drawn: that is the FFN authors' rule, as is `int(d / 2 + d * i)` with `d = length / n` in the test. Several test
    clips start from there and divide the segments evenly: two are TSM's "twice sample", centres and beginnings.

    Args:
        length: Frames of the video.
        n: Frames of a clip.
        rng: Draws within the segments; None takes the test's frames.
        short: What to do where `length < n`: "error", or "repeat" frames, in order (the FFN authors' code repeats the
            first one n times in training; here segments shorter than a frame are drawn from as the longer ones are).
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

    The usual sampling of Kinetics. With interval 8 at 8 frames it is TSM's dense sampling: windows of 64 frames,
    those of a test evenly from the video's beginning to its end; one alone lies in the middle.

    Args:
        length: Frames of the video.
        n: Frames of a clip.
        rng: Draws the windows; None takes the test's.
        interval: Frames from one to the next.
        short: What to do with a video that ends before the last frame: "error", or "repeat" it from its beginning.
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
    """Takes n frames evenly from the first to the last, `floor(linspace(0, length - 1, n))`, nothing drawn at random.

    It is what R3D-18 with squeeze-and-excitation is given for recognising emotions. A shorter video has frames
    repeated by the same rule, so that its last frame stays; to repeat every frame and cut what is too much, as is also
    done, drops the end: of 10 frames for 16 the last two.

    Args:
        length: Frames of the video.
        n: Frames of a clip.
        short: What to do where `length < n`: "error", or "repeat" frames, in order.

    Raises:
        ValueError: The video is empty, or shorter than the clip and `short` is "error".
    """
    _check_length(length, n, n, short)
    return np.arange(n)[None] * (length - 1) // max(n - 1, 1)  # in integers: linspace may end just below one


def _check_length(length: int, n: int, needed: int, short: str) -> None:
    if length < 1 or n < 1:
        raise ValueError(f"expected at least one frame of a video of at least one, got {n} of {length}")
    if length < needed and short == "error":
        raise ValueError(
            f"clip shorter than the frame count: expected at least {needed} frames, got {length}: "
            'train with fewer frames, drop the clip from the list, or repeat frames with short="repeat"'
        )
