"""Makes batches of sources with Grain: `train_batches` (infinite, resumable) and `eval_batches` (finite, in order).

A training batch is `{"video": {4: uint8 (b, 4, h, w, 3), 16: ...}, "label": int32 (b,), "index": int32 (b,), "broken":
int32 (b,)}`. `index` is the video's position in the source. `broken` is the position of an unreadable video that it
replaces, otherwise -1. Labels of several targets are `{target: int32 (b,)}`. In evaluation videos have an axis of
views, `(b, v, 4, h, w, 3)`, and `"mask": bool (b,)` is False for the padding of the last batch and for broken videos.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import grain
import numpy as np
from absl import flags

from flaxvid.data.buckets import Buckets, bucket_sizes
from flaxvid.data.clips.cut import UNREADABLE, ClipConfig, cut_views, draw_clips
from flaxvid.data.clips.decode import VideoError
from flaxvid.data.features import KeptFeatures
from flaxvid.data.sources.open import Source
from flaxvid.data.workers import WorkerKilled, begin_worker, started_deaf
from flaxvid.types import Batch

ATTEMPTS = 100
"""So many unreadable videos in a row end a run."""


def train_batches(
    source: Source,
    clips: ClipConfig,
    batch_size: int,
    *,
    seed: int = 0,
    shard_index: int = 0,
    shard_count: int = 1,
    num_threads: int = 2,
    num_workers: int = 0,
    buckets: Buckets | None = None,
    features: KeptFeatures | None = None,
) -> grain.DatasetIterator:
    """Shuffled, augmented training batches without end.

    Another video, which the seed determines, replaces an unreadable one. All shards of a step together hold the same
    videos and augmentations as a single shard would. An epoch is `steps_per_epoch` steps. It leaves out videos that do
    not fill a last batch, others in each epoch. The iterator's `get_state`, `set_state` and `grain.checkpoint` resume
    exactly, also in mid-epoch, with the same `num_workers`. The number of threads may change.

    Args:
        source: Where the videos come from.
        clips: How clips are cut from them.
        batch_size: Clips of one batch of this shard, `clips.repeats` of each video.
        seed: Determines order and augmentation.
        shard_index: Which shard, usually `jax.process_index()`.
        shard_count: Into how many shards, usually `jax.process_count()`.
        num_threads: Threads that decode, in each worker process if there are any.
        num_workers: Worker processes. 0 decodes in threads of this process, as fast unless Python itself is the limit.
        buckets: The videos of each frame count, by `sort_by_length`. A batch then has clips of one count, as many as
            `bucket_sizes` says. Batches of all counts alternate, each as often as its videos ask for.
        features: Come in the place of the videos, if they are given; all else is the same.

    Raises:
        ValueError: There are fewer videos than one batch of all shards, or the repeats do not divide the batch.
        VideoError: While iterating, if `ATTEMPTS` videos in a row are unreadable.
    """
    if batch_size % clips.repeats:
        raise ValueError(f"expected repeats to divide the batch size, got {clips.repeats} and {batch_size}: change one")
    batches, steps = [], []
    for count, (positions, size) in _parts(source, batch_size // clips.repeats, shard_count, buckets).items():
        elements = (
            grain.MapDataset.source(positions)
            .seed(seed + count)
            .shuffle()[: len(positions) - len(positions) % (size * shard_count)]
            .repeat()
            .random_map(_TrainClips(source, replace(clips, frames=(count,)) if count else clips, positions, features))
        )
        batches.append(_batched(elements[shard_index::shard_count], size, num_threads).map(_mix_repeats))
        steps.append(len(positions) // (size * shard_count))
    return iter(_in_workers(grain.IterDataset.mix(batches, steps) if buckets else batches[0], num_workers))


def next_batch(data: Iterator[Batch]) -> Batch:
    """The next batch of `train_batches`, or of `PairedBatches`. The first call starts their worker processes.

    Raises:
        WorkerKilled: One of them was killed. The iterator still stands after the batch before.
    """
    try:
        with started_deaf():
            return next(data)
    except RuntimeError as error:
        if "process was terminated" not in str(error):
            raise
        raise WorkerKilled(
            "a worker process that decodes was killed, mostly by the system for lack of memory: run the same command "
            "to go on, and lower data.num_workers if it happens again"
        ) from error


def eval_batches(
    source: Source,
    clips: ClipConfig,
    batch_size: int,
    *,
    shard_index: int = 0,
    shard_count: int = 1,
    num_threads: int = 2,
    num_workers: int = 0,
) -> grain.IterDataset:
    """Every video once, in order, with all its views. It can be iterated again and again.

    All shards have the same number of steps. Black clips (label 0, index -1) pad the last batch; their `mask` is False.
    An unreadable video also has black clips and a False `mask`. Arguments are those of `train_batches`.

    Raises:
        ValueError: There are ten crops, half of them mirrored, but labels tell left from right.
    """
    if clips.crops == 10 and source.flip_labels is not None:
        raise ValueError(
            f"{source.name}: expected at most 5 crops, because its labels tell left from right, got 10, half of them "
            "mirrored: use 5"
        )
    steps = -(-len(source) // (batch_size * shard_count))
    elements = grain.MapDataset.range(steps * batch_size * shard_count).map(_EvalClips(source, clips))
    return _in_workers(_batched(elements[shard_index::shard_count], batch_size, num_threads), num_workers)


def steps_per_epoch(source: Source, batch_size: int, shard_count: int = 1, buckets: Buckets | None = None) -> int:
    """Training steps of one pass over the source.

    Args:
        source, shard_count, buckets: As in `train_batches`.
        batch_size: Videos in a batch of each shard; with buckets in a batch of the longest clips.

    Raises:
        ValueError: Fewer videos than one batch of all shards.
    """
    parts = _parts(source, batch_size, shard_count, buckets).values()
    return sum(len(positions) // (size * shard_count) for positions, size in parts)


def _parts(
    source: Source, batch_size: int, shard_count: int, buckets: Buckets | None
) -> dict[int, tuple[Sequence[int], int]]:
    """The positions of the videos of each bucket and the videos of its batches; without buckets all at count 0."""
    parts: dict[int, tuple[Sequence[int], int]] = {0: (range(len(source)), batch_size)}
    if buckets:
        sizes = bucket_sizes(buckets, batch_size)
        parts = {count: (positions, sizes[count]) for count, positions in buckets.items()}
    for positions, size in parts.values():
        if not 1 <= size * shard_count <= len(positions):
            raise ValueError(
                f"expected at least one batch of videos, got {len(positions)} in {source.name} for {shard_count} x "
                f"{size}: lower batch_size or add videos"
            )
    return parts


def _batched(elements: grain.MapDataset, batch_size: int, num_threads: int) -> grain.IterDataset:
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=max(2 * batch_size, num_threads))
    return elements.to_iter_dataset(options).batch(batch_size, drop_remainder=True)


def _in_workers(batches: grain.IterDataset, num_workers: int) -> grain.IterDataset:
    if not num_workers:
        return batches
    if not flags.FLAGS.is_parsed():  # Grain sends parsed flags to its workers
        flags.FLAGS.mark_as_parsed()
    options = grain.multiprocessing.MultiprocessingOptions(num_workers, per_worker_buffer_size=2)
    return batches.mp_prefetch(options, worker_init_fn=begin_worker)


@dataclass(frozen=True)
class _TrainClips:
    source: Source
    clips: ClipConfig
    positions: Sequence[int]
    features: KeptFeatures | None = None

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """The clips of a video, on an axis of repeats."""
        return _stacked([self.draw(index, rng) for _ in range(self.clips.repeats)])

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """The clips of a video, or of the one that replaces it."""
        broken, reason = -1, None
        for _ in range(ATTEMPTS):
            try:
                if self.features is not None:
                    video, label = self.features[index]
                else:
                    video, label = draw_clips(self.source[index], self.clips, self.source.flip_labels, rng)
                return {"video": video, "label": label, "index": index, "broken": broken}
            except UNREADABLE as error:
                broken, reason = (index if broken < 0 else broken), error
                index = self.positions[int(rng.integers(len(self.positions)))]
        raise VideoError(
            f"{self.source.name}: {ATTEMPTS} videos in a row cannot be read, the last because {reason}: check "
            "the root and its files"
        )


def _stacked(elements: Sequence[Any]) -> Any:
    """Stacks nested dicts of arrays and numbers on a new first axis. Numbers become int32."""
    if isinstance(elements[0], Mapping):
        return {key: _stacked([element[key] for element in elements]) for key in elements[0]}
    return np.stack(elements) if isinstance(elements[0], np.ndarray) else np.array(elements, np.int32)


def _mix_repeats(batch: Any) -> Any:
    """Puts all first repeats before all second ones, because mixup mixes neighbours, which must be other videos."""
    if isinstance(batch, Mapping):
        return {key: _mix_repeats(value) for key, value in batch.items()}
    return batch.swapaxes(0, 1).reshape(-1, *batch.shape[2:])


@dataclass(frozen=True)
class _EvalClips:
    source: Source
    clips: ClipConfig

    def __call__(self, index: int) -> dict[str, Any]:
        size = self.clips.image_size
        cameras = getattr(self.source, "cameras", ())
        black = {n: np.zeros((self.clips.views, n, size, size, 3), np.uint8) for n in self.clips.frames}
        video = {n: dict.fromkeys(cameras, clip) if cameras else clip for n, clip in black.items()}
        classes, broken, real = self.source.classes, -1, False
        label = dict.fromkeys(classes, 0) if isinstance(classes, Mapping) else 0
        if index < len(self.source):
            try:
                item = self.source[index]
                label = item["label"]
                video, real = cut_views(item, self.clips, np.random.default_rng(index)), True
            except UNREADABLE:
                broken = index
        else:
            index = -1
        return {
            "video": video,
            "label": {t: np.int32(own) for t, own in label.items()} if isinstance(label, Mapping) else np.int32(label),
            "index": np.int32(index),
            "broken": np.int32(broken),
            "mask": np.bool_(real),
        }
