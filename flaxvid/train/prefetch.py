"""Puts training batches on the devices before the step that needs them."""

import collections
import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any

import grain
import jax

from flaxvid.data.buckets import Buckets
from flaxvid.data.features import KeptFeatures
from flaxvid.data.pairs import PairedBatches
from flaxvid.data.pipeline import next_batch, train_batches
from flaxvid.data.sources.open import Source
from flaxvid.tasks.task import Task
from flaxvid.train.recipe import Recipe
from flaxvid.train.setup import clip_config
from flaxvid.train.splits import Splits
from flaxvid.types import Batch

AHEAD = 2
"""Batches that wait on the devices."""

TARGET_SEED = 0x5EED
"""Makes another seed of a run's for its target domain."""


class Prefetch:
    """Fetches batches ahead. Its position is the one after the last batch taken, so a resume misses no batch.

    Args:
        data: the iterator of `train_batches`, or two of them.
        put: moves a batch to the devices.
    """

    def __init__(self, data: grain.DatasetIterator | PairedBatches, put: Callable[[Batch], Batch]):
        self._data, self._put = data, put
        self._queue: collections.deque[tuple[Batch, Batch, str]] = collections.deque()  # with the position after each
        self._position = json.dumps(data.get_state())

    def take(self) -> tuple[Batch, Batch]:
        """The next batch on the devices, and "index" and "broken" of its clips on the host, those of "target" too.

        Raises:
            WorkerKilled: a worker process was killed; the position stays.
        """
        while len(self._queue) < AHEAD:
            clips = next_batch(self._data)
            noted: dict[str, Any] = {name: clips[name] for name in ("index", "broken")}
            if "target" in clips:
                noted["target"] = {name: clips["target"][name] for name in noted}
            self._queue.append((self._put(clips), noted, json.dumps(self._data.get_state())))
        batch, account, self._position = self._queue.popleft()
        return batch, account

    def get_state(self) -> bytes:
        """The position; Grain's checkpoints call this."""
        return self._position.encode()

    def set_state(self, state: bytes) -> None:
        """Moves to a position."""
        self._queue.clear()
        self._position = state.decode()
        self._data.set_state(json.loads(self._position))

    def start_prefetch(self) -> None:
        """Does nothing. Grain calls it after `set_state`; the first `take` fetches."""

    def close(self) -> None:
        """Ends the worker processes."""
        self._queue.clear()
        self._data.close()


def make_batches(
    recipe: Recipe, task: Task, splits: Splits, features: KeptFeatures | None = None
) -> grain.DatasetIterator | PairedBatches:
    """The training batches of this process; with a target domain its clips come beside the others.

    Args:
        recipe: the run's.
        task: the run's.
        splits: the run's.
        features: of the training videos; they come in their place, if they are given.
    """
    batches = functools.partial(_make_batches, recipe, task)
    source = batches(splits.train, recipe.seed, splits.buckets, features)
    return source if splits.target is None else PairedBatches(source, batches(splits.target, recipe.seed ^ TARGET_SEED))


def _make_batches(
    recipe: Recipe,
    task: Task,
    source: Source,
    seed: int,
    buckets: Buckets | None = None,
    features: KeptFeatures | None = None,
) -> grain.DatasetIterator:
    hosts = jax.process_count()
    # The size of a test's frames plays no part, and might be below that of a teacher's clips.
    clips = dataclasses.replace(clip_config(recipe, task.frames), image_size=task.image_size, test_size=None)
    return train_batches(
        source,
        clips,
        recipe.batch_size // hosts,
        seed=seed,
        shard_index=jax.process_index(),
        shard_count=hosts,
        num_threads=recipe.data.num_threads,
        num_workers=recipe.data.num_workers,
        buckets=buckets,
        features=features,
    )
