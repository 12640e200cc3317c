"""A part of a source."""

import dataclasses
from typing import Any

import numpy as np

from flaxvid.data.mirror import FlipLabels
from flaxvid.data.sources.open import Source
from flaxvid.types import Classes


@dataclasses.dataclass(frozen=True)
class Subset:
    """The videos of a source at some positions, in this order."""

    source: Source
    positions: tuple[int, ...]

    @property
    def name(self) -> str:
        """The source's name and the size of the part."""
        return f"{self.source.name}, {len(self)} of {len(self.source)}"

    @property
    def classes(self) -> Classes:
        """The source's."""
        return self.source.classes

    @property
    def flip_labels(self) -> FlipLabels:
        """The source's."""
        return self.source.flip_labels

    @property
    def cameras(self) -> tuple[str, ...]:
        """The source's cameras, if it has scenes."""
        return getattr(self.source, "cameras", ())

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[self.positions[index]]


def random_subset(source: Source, count: int) -> Subset:
    """`count` videos of a source in its order, drawn at random but always the same.

    The first videos would not do, because lists are often sorted by class.

    Raises:
        ValueError: The source does not have so many.
    """
    if not 1 <= count <= len(source):
        raise ValueError(f"expected 1 to {len(source)} videos of {source.name}, got {count}: take another number")
    drawn = np.random.default_rng(0).permutation(len(source))[:count]
    return Subset(source, tuple(np.sort(drawn).tolist()))
