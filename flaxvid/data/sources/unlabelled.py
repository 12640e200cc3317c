"""Videos without labels, such as those of which only features are wanted."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from flaxvid.data.clips.decode import Video
from flaxvid.types import Classes


@dataclasses.dataclass(frozen=True)
class Unlabelled:
    """Videos, or scenes of several cameras, by name; all are of one class.

    Attributes:
        videos: Each video, or the video of each camera, by its name.
        cameras: Names of the cameras; () for single videos.
        name: What messages call them.
        classes: The one class.
        flip_labels: None: there are no words for left and right.
    """

    videos: Mapping[str, Video | Mapping[str, Video]]
    cameras: tuple[str, ...] = ()
    name: str = "videos"
    classes: Classes = ("none",)
    flip_labels: None = None

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """The name of each video, in their order."""
        return tuple(self.videos)

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name = self.names[index]
        return {"video": self.videos[name], "label": 0, "id": name}
