"""Scenes that several cameras saw at once. Each camera has a data set of its own, of any kind."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from flaxvid.data.motion.build import MotionConfig
from flaxvid.data.sources.open import Source, open_source


@dataclasses.dataclass(frozen=True)
class Scenes:
    """The sources of several cameras as one. Its "video" is a dict, ``{"front": ..., "left": ...}``.

    Attributes:
        sources: A source for each camera. Position i is the same scene in all of them.

    Raises:
        ValueError: The sources differ in their number of videos or in their classes.
    """

    sources: Mapping[str, Source]

    def __post_init__(self):
        lengths = {camera: len(source) for camera, source in self.sources.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"expected the same scenes in every camera, got {lengths} videos: add the missing ones")
        if any(source.classes != self._first.classes for source in self.sources.values()):
            raise ValueError(
                f"expected the same classes in every camera, got others in one of {', '.join(self.sources)}: "
                "give every camera a folder for each class"
            )

    @property
    def _first(self) -> Source:
        return next(iter(self.sources.values()))

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras."""
        return tuple(self.sources)

    @property
    def name(self) -> str:
        """The name of the first camera's source, and the names of all cameras."""
        return f"{self._first.name} from {', '.join(self.sources)}"

    @property
    def classes(self) -> Any:
        """Those of every camera."""
        return self._first.classes

    @property
    def flip_labels(self) -> Any:
        """Those of every camera."""
        return self._first.flip_labels

    def __len__(self) -> int:
        return len(self._first)

    def __getitem__(self, index: int) -> dict[str, Any]:
        items = {camera: source[index] for camera, source in self.sources.items()}
        scene = {camera: (item["id"], item["label"]) for camera, item in items.items()}
        if any(one != scene[next(iter(scene))] for one in scene.values()):
            raise ValueError(
                f"expected one scene at position {index} of every camera, got {scene}: files of one scene have one name"
            )
        return {**next(iter(items.values())), "video": {camera: item["video"] for camera, item in items.items()}}


def open_scenes(
    name: str,
    root: str | Path | None,
    split: str = "train",
    *,
    cameras: Sequence[str],
    fold: int | None = None,
    lists: str | Path | None = None,
    motion: MotionConfig | None = None,
    missing: Literal["error", "keep"] = "error",
    group: str | None = None,
) -> Scenes:
    """Opens one split of a data set that has several cameras of each scene.

    `<root>/<camera>` is a data set of its own, as `open_source` reads it. The files of one scene have the same name in
    each: `videos/front/jump/a.mp4` and `videos/left/jump/a.mp4`. `motion` is drawn for each camera.

    Args:
        name, split, fold, lists, missing, group: As in `open_source`. A scene that one camera did not see is missing.
        root: The folder that has a folder for each camera.
        cameras: Names of the cameras. Those of `motion` are "front", "left" and "right".
        motion: What to draw; the cameras replace its `camera`.

    Raises:
        ValueError: There are no cameras, or one comes twice. `open_source` and `Scenes` raise it, too.
        FileNotFoundError: A camera's folder, or its files, are not there.
    """
    if not cameras or len(set(cameras)) < len(cameras):
        raise ValueError(f"expected cameras of different names, got {tuple(cameras)}: name each one once")
    if name == "motion":
        config = motion or MotionConfig()
        configs = {camera: dataclasses.replace(config, camera=camera) for camera in cameras}
        return Scenes({camera: open_source(name, root, split, motion=own) for camera, own in configs.items()})
    if root is None:
        raise ValueError(f"{name}: expected as root the folder of {', '.join(cameras)}, got None: name it")
    unknown = [camera for camera in cameras if not (Path(root).expanduser() / camera).is_dir()]
    if unknown:
        raise FileNotFoundError(
            f"{name}: expected a folder for each camera in {root}, got none for {', '.join(unknown)}: each camera is a "
            "data set of its own, with the same file names"
        )
    options = {"fold": fold, "lists": lists, "missing": missing, "group": group}
    return Scenes({camera: open_source(name, Path(root) / camera, split, **options) for camera in cameras})
