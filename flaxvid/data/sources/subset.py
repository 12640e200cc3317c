"""A random part of a source, for a quick test."""

import dataclasses
import functools
from typing import Any

import numpy as np

from flaxvid.data.mirror import FlipLabels
from flaxvid.data.sources.open import Source
from flaxvid.types import Classes


@dataclasses.dataclass(frozen=True)
class Subset:
    """`count` videos of a source in its order, drawn at random but always the same.

    The first videos would not do, because lists are often sorted by class.
    """

    source: Source
    count: int

    def __post_init__(self):
        if not 1 <= self.count <= len(self.source):
            raise ValueError(
                f"expected 1 to {len(self.source)} videos of {self.source.name}, got {self.count}: take another number"
            )

    @functools.cached_property
    def positions(self) -> tuple[int, ...]:
        """Positions of the videos in the source."""
        drawn = np.random.default_rng(0).permutation(len(self.source))[: self.count]
        return tuple(np.sort(drawn).tolist())

    @property
    def name(self) -> str:
        """The source's name and the size of the part."""
        return f"{self.source.name}, {self.count} of {len(self.source)}"

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
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[self.positions[index]]
