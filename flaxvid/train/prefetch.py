"""Puts training batches on the devices before the step that needs them."""

import collections
import json
from collections.abc import Callable

import grain
import jax

from flaxvid.data.features import KeptFeatures
from flaxvid.data.pipeline import next_batch, train_batches
from flaxvid.data.sources.open import Source
from flaxvid.train.recipe import Recipe
from flaxvid.train.setup import clip_config
from flaxvid.types import Batch

AHEAD = 2
"""Batches that wait on the devices."""


class Prefetch:
    """Fetches batches ahead. Its position is the one after the last batch taken, so a resume misses no batch.

    Args:
        data: the iterator of `train_batches`.
        put: moves a batch to the devices.
    """

    def __init__(self, data: grain.DatasetIterator, put: Callable[[Batch], Batch]):
        self._data, self._put = data, put
        self._queue: collections.deque[tuple[Batch, Batch, str]] = collections.deque()  # with the position after each
        self._position = json.dumps(data.get_state())

    def take(self) -> tuple[Batch, Batch]:
        """The next batch on the devices, and "index" and "broken" of its clips on the host.

        Raises:
            WorkerKilled: a worker process was killed; the position stays.
        """
        while len(self._queue) < AHEAD:
            clips = next_batch(self._data)
            account = {name: clips[name] for name in ("index", "broken")}
            self._queue.append((self._put(clips), account, json.dumps(self._data.get_state())))
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


def make_batches(recipe: Recipe, source: Source, features: KeptFeatures | None = None) -> grain.DatasetIterator:
    """The training batches of this process; with `features` in the place of the videos, if they are given."""
    hosts = jax.process_count()
    return train_batches(
        source,
        clip_config(recipe, recipe.task.frames),
        recipe.batch_size // hosts,
        seed=recipe.seed,
        shard_index=jax.process_index(),
        shard_count=hosts,
        num_threads=recipe.data.num_threads,
        num_workers=recipe.data.num_workers,
        features=features,
    )
