"""Sources to batches, with Grain: `train_batches` (infinite, resumable) and `eval_batches` (finite, in order).

A batch is `{"video": {4: uint8 (b, 4, h, w, 3), 16: ...}, "label": int32 (b,), "index": int32 (b,)}`, `index` being the
position in the source, and at evaluation `"mask": bool (b,)`, False for the padding of the last batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import grain
import numpy as np
from absl import flags
from jaxtyping import UInt8

from flaxvid.data.decode import VideoError, decode
from flaxvid.data.sampling import segment_indices
from flaxvid.data.sources import Source
from flaxvid.data.transforms import Crop, centre_crop, multiscale_crop


@dataclass(frozen=True)
class ClipConfig:
    """How clips are cut from videos.

    Attributes:
        frames: Frame counts; every video yields one clip of each, drawn independently.
        image_size: Side of the square clips, pixels.
        test_size: Short side of a test video before its centre crop; None is `image_size * 256 / 224`.
        scales: Sides of the training crops, as parts of the short side.
        flip: Whether to mirror half of the training videos, as far as the source's `flip_labels` allow it.
        short: What to do with a video that has fewer frames than asked for: "error", or "repeat" frames.
        shuffle_frames: Whether every clip's frames come in random order: shows what a model owes to their order.
    """

    frames: tuple[int, ...] = (16,)
    image_size: int = 224
    test_size: int | None = None
    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
    flip: bool = True
    short: Literal["error", "repeat"] = "error"
    shuffle_frames: bool = False
    clips: int = 1
    crops: int = 1
    sampling: Literal["segment", "dense"] = "segment"
    interval: int = 1

    def __post_init__(self):
        if not self.frames or min(self.frames) < 1 or len(set(self.frames)) < len(self.frames):
            raise ValueError(f"expected distinct frame counts such as (4, 8, 16), got frames={self.frames}")
        if not self.scales or not all(0 < scale <= 1 for scale in self.scales):
            raise ValueError(f"expected crop scales in (0, 1] such as (1.0, 0.75), got scales={self.scales}")
        if self.image_size < 1 or (self.test_size is not None and self.test_size < self.image_size):
            raise ValueError(
                f"expected 1 <= image_size <= test_size, got image_size={self.image_size}, test_size={self.test_size}"
            )
        if self.short not in ("error", "repeat"):
            raise ValueError(f'expected short="error" or "repeat", got {self.short!r}')


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
) -> grain.DatasetIterator:
    """Shuffled, augmented training batches without end.

    The shards of one step together hold the videos and augmentations that a single shard would. An epoch is
    `steps_per_epoch` steps; the videos that do not fill its last batch are left out, others in each epoch. The
    iterator's `get_state`, `set_state` and `grain.checkpoint` resume exactly, in mid-epoch too, with the same
    `num_workers`; the number of threads may change.

    Args:
        source: Where the videos come from.
        clips: How clips are cut from them.
        batch_size: Videos of one batch of this shard.
        seed: Determines order and augmentation.
        shard_index: Which shard, usually `jax.process_index()`.
        shard_count: Into how many shards, usually `jax.process_count()`.
        num_threads: Threads that decode (in each worker process, if any).
        num_workers: Worker processes; 0 decodes in threads of this one, as fast unless Python itself is the limit.

    Raises:
        ValueError: Fewer videos than one batch of all shards.
    """
    steps = steps_per_epoch(source, batch_size, shard_count)
    elements = (
        grain.MapDataset.range(len(source))
        .seed(seed)
        .shuffle()[: steps * batch_size * shard_count]
        .repeat()
        .random_map(_TrainClips(source, clips))[shard_index::shard_count]
    )
    return iter(_batched(elements, batch_size, num_threads, num_workers))


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
    """Every video once, in order, centre frames and centre crop; may be iterated again and again.

    All shards have the same number of steps: the last batch is padded with black clips (label 0, index -1) whose
    `mask` is False. Arguments as in `train_batches`.
    """
    if (clips.clips, clips.crops, clips.sampling) != (1, 1, "segment"):
        raise ValueError(f"expected one view, got {clips.clips} x {clips.crops}, {clips.sampling} sampling")
    steps = -(-len(source) // (batch_size * shard_count))
    elements = grain.MapDataset.range(steps * batch_size * shard_count).map(_EvalClips(source, clips))
    return _batched(elements[shard_index::shard_count], batch_size, num_threads, num_workers)


def steps_per_epoch(source: Source, batch_size: int, shard_count: int = 1) -> int:
    """Training steps of one pass over the source with `batch_size` videos on each of `shard_count` shards.

    Raises:
        ValueError: Fewer videos than one batch of all shards.
    """
    if not 1 <= batch_size * shard_count <= len(source):
        raise ValueError(
            f"expected at least one batch of videos, got {len(source)} in {source.name} for {shard_count} x "
            f"{batch_size}: lower the batch size or add videos"
        )
    return len(source) // (batch_size * shard_count)


def _batched(elements: grain.MapDataset, batch_size: int, num_threads: int, num_workers: int) -> grain.IterDataset:
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=max(2 * batch_size, num_threads))
    batches = elements.to_iter_dataset(options).batch(batch_size, drop_remainder=True)
    if not num_workers:
        return batches
    if not flags.FLAGS.is_parsed():  # Grain sends the flags to its workers and may not where nobody parsed any
        flags.FLAGS.mark_as_parsed()
    return batches.mp_prefetch(grain.multiprocessing.MultiprocessingOptions(num_workers, per_worker_buffer_size=2))


@dataclass(frozen=True)
class _TrainClips:
    source: Source
    clips: ClipConfig

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        item, clips, mirrored = self.source[index], self.clips, self.source.flip_labels
        video = _read(item, clips, lambda h, w: multiscale_crop(h, w, clips.image_size, clips.scales, rng), rng)
        label = item["label"]
        mirror_label = label if mirrored is None else mirrored[label]
        if clips.flip and rng.random() < 0.5 and mirror_label is not None:
            video, label = video[:, :, ::-1], mirror_label
        return {"video": _split(video, clips, rng), "label": np.int32(label), "index": np.int32(index)}


@dataclass(frozen=True)
class _EvalClips:
    source: Source
    clips: ClipConfig

    def __call__(self, index: int) -> dict[str, Any]:
        clips, size, broken = self.clips, self.clips.image_size, -1
        short_side = clips.test_size or round(size * 256 / 224)
        video, label, real = np.zeros((sum(clips.frames), size, size, 3), np.uint8), 0, index < len(self.source)
        if real:
            item = self.source[index]
            label = item["label"]
            try:
                video = _read(item, clips, lambda h, w: centre_crop(h, w, size, short_side))
            except (VideoError, FileNotFoundError):
                broken, real = index, False
        else:
            index = -1
        views = _split(video, clips, np.random.default_rng(max(index, 0)))
        return {
            "video": {n: view[None] for n, view in views.items()},
            "label": np.int32(label),
            "index": np.int32(index),
            "mask": np.bool_(real),
            "broken": np.int32(broken),
        }


def _read(
    item: dict[str, Any],
    clips: ClipConfig,
    choose: Callable[[int, int], Crop],
    rng: np.random.Generator | None = None,
) -> UInt8[np.ndarray, "t h w 3"]:
    """The frames of all counts, one count after the other, from one pass over the video and with one crop."""
    crop = Crop(0, 0, 0, 0)

    def indices(length: int) -> np.ndarray:
        return np.concatenate([segment_indices(length, n, rng, short=clips.short) for n in clips.frames])

    def size(height: int, width: int) -> tuple[int, int]:
        nonlocal crop
        crop = choose(height, width)
        return crop.height, crop.width

    name = item["id"] if isinstance(item["video"], bytes) else None
    video = decode(item["video"], indices, size=size, name=name)
    return crop.cut(video, clips.image_size)


def _split(video: UInt8[np.ndarray, "t h w 3"], clips: ClipConfig, rng: np.random.Generator) -> dict[int, np.ndarray]:
    parts = np.split(video, np.cumsum(clips.frames)[:-1])
    return {
        n: rng.permutation(part) if clips.shuffle_frames else part for n, part in zip(clips.frames, parts, strict=True)
    }
