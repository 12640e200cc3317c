"""Videos of a run that could not be read: counted, named, and too many of them an error."""

import dataclasses

from flaxvid.data.clips.cut import UNREADABLE, ClipConfig, find_fault
from flaxvid.data.sources.open import Source
from flaxvid.types import Batch

LEAST = 1000
"""The share of broken videos is taken of at least so many (or all there are): the first few are no sample."""


class BrokenVideosError(ValueError):
    """More videos of a data set cannot be read than the run was told to put up with; lists them."""


@dataclasses.dataclass
class Tally:
    """Keeps account of the videos that batches were made from, on the host.

    Attributes:
        source: The batches' source.
        clips: How clips were cut: what is too short depends on it.
        limit: Largest share of broken ones among the distinct videos seen, in [0, 1].
        seen: Positions of the videos whose turn it was so far, broken ones too.
        broken: What is wrong with the broken ones, by position.
    """

    source: Source
    clips: ClipConfig
    limit: float = 1.0
    seen: set[int] = dataclasses.field(default_factory=set)
    broken: dict[int, str] = dataclasses.field(default_factory=dict)

    def add(self, batch: Batch) -> list[str]:
        """Counts a batch, of NumPy arrays, and returns what is wrong with the broken videos that are new, a line each.

        A new broken video is decoded once more to learn that.

        Raises:
            BrokenVideosError: Their share is above the limit.
        """
        drawn = {int(was if was >= 0 else now) for now, was in zip(batch["index"], batch["broken"], strict=True)}
        found = sorted({int(position) for position in batch["broken"]} - self.broken.keys() - {-1})
        self.seen |= drawn - {-1}  # without replacements: good by selection, they would make the share look smaller
        self.broken.update((position, why_broken(self.source, position, self.clips)) for position in found)
        if found and len(self.broken) > self.limit * max(len(self.seen), min(len(self.source), LEAST)):
            raise BrokenVideosError(
                f"{self.source.name}: expected at most {self.limit:.0%} broken videos, got {len(self.broken)} among "
                f"the first {len(self.seen)} of {len(self.source)}: fetch them again, drop them from the list, or "
                "allow more with data.max_broken:\n  " + "\n  ".join(self.broken.values())
            )
        return [self.broken[position] for position in found]


def why_broken(source: Source, position: int, clips: ClipConfig) -> str:
    """What is wrong with a video, in a line that begins with its name; it is decoded from end to end."""
    try:
        item = source[position]
    except UNREADABLE as error:
        return f"video {position}: {error}"
    fault = find_fault(item, clips)
    return fault or f"{item['id']}: could be read this time: is the disk or the network at fault?"
