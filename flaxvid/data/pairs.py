"""Batches of two domains beside each other."""

from typing import Any

import grain

from flaxvid.types import Batch


class PairedBatches:
    """Gives the batches of a labelled source with those of a target domain: ``{"video", "label", ..., "target"}``.

    "target" has "video", "index" and "broken", and no label. It is an iterator such as Grain's: `get_state` and
    `set_state` move both.

    Args:
        source: Batches of the labelled source.
        target: Batches of the target domain, without end.
    """

    def __init__(self, source: grain.DatasetIterator, target: grain.DatasetIterator):
        self._source, self._target = source, target

    def __iter__(self) -> "PairedBatches":
        return self

    def __next__(self) -> Batch:
        batch, other = next(self._source), next(self._target)
        return {**batch, "target": {name: other[name] for name in ("video", "index", "broken")}}

    def get_state(self) -> dict[str, Any]:
        """The positions in both."""
        return {"source": self._source.get_state(), "target": self._target.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Moves both to their positions."""
        self._source.set_state(state["source"])
        self._target.set_state(state["target"])

    def close(self) -> None:
        """Ends the worker processes of both."""
        self._source.close()
        self._target.close()
