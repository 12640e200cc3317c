"""Which frames of a video make a clip: segment sampling (TSN, arXiv 1608.00859; as in TSM and FFN)."""

from typing import Literal

import numpy as np
from jaxtyping import Int


def segment_indices(
    length: int, n: int, rng: np.random.Generator | None = None, *, short: Literal["error", "repeat"] = "error"
) -> Int[np.ndarray, " {n}"]:
    """Draws one frame from each of n equal segments of a video.

    In training segment i is `[i * d, (i + 1) * d)` with `d = length // n`, so the last `length % n` frames are never
    drawn: that is the FFN authors' rule, as is `int(d / 2 + d * i)` with `d = length / n` in the test.

    Args:
        length: Frames of the video.
        n: Frames of the clip.
        rng: Draws within the segments; None takes their centres, as in the test.
        short: What to do where `length < n`: "error", or "repeat" frames, in order (the FFN authors' code repeats the
            first one n times in training; here segments shorter than a frame are drawn from as the longer ones are).

    Raises:
        ValueError: The video is empty, or shorter than the clip and `short` is "error".
    """
    if length < 1 or n < 1:
        raise ValueError(f"expected at least one frame of a video of at least one, got {n} of {length}")
    if length < n and short == "error":
        raise ValueError(
            f"clip shorter than the frame count: expected at least {n} frames, got {length}: "
            'train with fewer frames, drop the clip from the list, or repeat frames with short="repeat"'
        )
    if rng is None:
        return (length / n / 2 + length / n * np.arange(n)).astype(np.int64)
    if length < n:
        return ((np.arange(n) + rng.random(n)) * length / n).astype(np.int64)
    segment = length // n
    return np.arange(n) * segment + rng.integers(segment, size=n)
