"""Counts and names the unreadable videos of a run. Too many are an error."""

import dataclasses

from flaxvid.data.clips.cut import UNREADABLE, ClipConfig, find_fault
from flaxvid.data.sources.open import Source
from flaxvid.types import Batch

LEAST = 1000
"""Least videos to take the share of broken ones of, because the first few are no sample."""


class BrokenVideosError(ValueError):
    """More videos are unreadable than the run allows. The message lists them."""


@dataclasses.dataclass
class Tally:
    """Counts the videos of batches, on the host.

    Attributes:
        source: The batches' source.
        clips: How clips were cut, which decides what videos are too short.
        limit: Largest share of broken videos among the distinct videos seen, in [0, 1].
        seen: Positions of the videos drawn so far, broken ones too.
        broken: What is wrong with each broken video, by position.
    """

    source: Source
    clips: ClipConfig
    limit: float = 1.0
    seen: set[int] = dataclasses.field(default_factory=set)
    broken: dict[int, str] = dataclasses.field(default_factory=dict)

    def add(self, batch: Batch) -> list[str]:
        """Counts a batch of NumPy arrays. Returns what is wrong with newly broken videos, a line each.

        To find that out, it decodes such a video again.

        Raises:
            BrokenVideosError: Their share is above the limit.
        """
        drawn = {int(was if was >= 0 else now) for now, was in zip(batch["index"], batch["broken"], strict=True)}
        found = sorted({int(position) for position in batch["broken"]} - self.broken.keys() - {-1})
        self.seen |= drawn - {-1}  # without replacements: they are chosen to be good and would lower the share
        self.broken.update((position, why_broken(self.source, position, self.clips)) for position in found)
        if found and len(self.broken) > self.limit * max(len(self.seen), min(len(self.source), LEAST)):
            raise BrokenVideosError(
                f"{self.source.name}: expected at most {self.limit:.0%} broken videos, got {len(self.broken)} among "
                f"the first {len(self.seen)} of {len(self.source)}: fetch them again, drop them from the list, or "
                "allow more with data.max_broken:\n  " + "\n  ".join(self.broken.values())
            )
        return [self.broken[position] for position in found]


def why_broken(source: Source, position: int, clips: ClipConfig) -> str:
    """Says in a line what is wrong with a video. It decodes the whole video."""
    try:
        item = source[position]
    except UNREADABLE as error:
        return f"video {position}: {error}"
    fault = find_fault(item, clips)
    return fault or f"{item['id']}: could be read this time: check the disk or the network"
