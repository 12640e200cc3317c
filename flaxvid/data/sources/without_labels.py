"""A source without its labels."""

import dataclasses
from typing import Any

from flaxvid.data.mirror import FlipLabels
from flaxvid.data.sources.open import Source
from flaxvid.types import Classes


@dataclasses.dataclass(frozen=True)
class WithoutLabels:
    """The videos of a source, all with label 0: whoever learns from it cannot learn from labels."""

    source: Source

    @property
    def name(self) -> str:
        """The source's, and what it lacks."""
        return f"{self.source.name} without labels"

    @property
    def classes(self) -> Classes:
        """The source's."""
        return self.source.classes

    @property
    def flip_labels(self) -> FlipLabels:
        """None: in a mirror, too, the label is 0."""
        return None

    @property
    def cameras(self) -> tuple[str, ...]:
        """The source's cameras, if it has scenes."""
        return getattr(self.source, "cameras", ())

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.source[index], "label": 0}
