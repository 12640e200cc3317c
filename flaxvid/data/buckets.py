"""Videos of like length together: a batch has many clips of few frames, or few clips of many."""

import sys
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rich.console import Console
from rich.progress import track

from flaxvid.data.clips.cut import UNREADABLE, ClipConfig
from flaxvid.data.clips.decode import open_video
from flaxvid.data.sources.open import Source

Buckets = Mapping[int, tuple[int, ...]]
"""The positions of a source's videos at each frame count, ascending."""


def bucket_sizes(frames: Collection[int], batch_size: int) -> dict[int, int]:
    """Clips in a batch of each frame count: a multiple of `batch_size`, with no more frames than its longest clips."""
    return {count: batch_size * (max(frames) // count) for count in sorted(frames)}


def sort_by_length(source: Source, clips: ClipConfig, batch_size: int, num_threads: int = 2) -> Buckets:
    """Gives each video the most of the frame counts that it has the frames for, at the clips' interval.

    Videos that are shorter than all of them, or cannot be read, get the fewest. A frame count with fewer videos than a
    batch gives them to the next lower one. Every video is opened once; some files are decoded for that.

    Args:
        source: The videos.
        clips: How clips are cut, with the frame counts.
        batch_size: Videos in a batch of the longest clips, over all shards.
        num_threads: Threads that open videos.

    Raises:
        ValueError: The fewest frames have fewer videos than a batch.
    """
    steps = {count: (count - 1) * clips.interval + 1 if clips.sampling == "dense" else count for count in clips.frames}
    fewest = min(steps)
    found: dict[int, list[int]] = {count: [] for count in sorted(steps)}
    with ThreadPoolExecutor(num_threads) as pool:
        lengths = pool.map(lambda position: count_frames_of(source, position), range(len(source)))
        shown = track(lengths, "lengths of videos", len(source), console=Console(stderr=True), disable=not sys.stderr)
        for position, length in enumerate(shown):
            found[max((count for count, needed in steps.items() if needed <= length), default=fewest)].append(position)
    for count, lower in zip(sorted(found)[:0:-1], sorted(found)[-2::-1], strict=True):
        if len(found[count]) < bucket_sizes(found, batch_size)[count]:
            found[lower] += found.pop(count)
    least = bucket_sizes(found, batch_size)[fewest]
    if len(found[fewest]) < least:
        raise ValueError(
            f"{source.name}: expected at least one batch of {least} videos at {fewest} frames, got "
            f"{len(found[fewest])}: leave {fewest} out of the frame counts, or lower batch_size"
        )
    return {count: tuple(sorted(positions)) for count, positions in found.items()}


def describe_buckets(buckets: Buckets, batch_size: int) -> str:
    """The buckets in one sentence; `batch_size` is that of the longest clips."""
    sizes = bucket_sizes(buckets, batch_size)
    parts = (f"{len(own)} videos at {count} frames, {sizes[count]} a batch" for count, own in buckets.items())
    return f"by length: {'; '.join(parts)}"


def count_frames_of(source: Source, position: int) -> int:
    """The frames of a video, of a scene those of its shortest camera; 0 if it cannot be read."""
    try:
        item: dict[str, Any] = source[position]
        videos = item["video"].values() if isinstance(item["video"], Mapping) else [item["video"]]
        lengths = []
        for video in videos:
            with open_video(video, str(item["id"])) as opened:
                lengths.append(len(opened))
        return min(lengths)
    except UNREADABLE:
        return 0
