"""Scenes that several cameras saw at once: a data set for each camera, of any kind, read side by side."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flaxvid.data.sources.open import Source, open_source

if TYPE_CHECKING:
    from flaxvid.data.motion.build import MotionConfig


@dataclasses.dataclass(frozen=True)
class Scenes:
    """Sources of equal videos from several sides as one; its "video" is a dict, ``{"front": ..., "left": ...}``.

    Attributes:
        cameras: a source for each view; position i is the same scene in all of them.

    Raises:
        ValueError: they have not as many videos, or not the same classes.
    """

    cameras: Mapping[str, Source]

    def __post_init__(self):
        lengths = {view: len(source) for view, source in self.cameras.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"expected the same scenes in every view, got as many videos as {lengths}: complete them")
        if any(source.classes != self._first.classes for source in self.cameras.values()):
            raise ValueError(
                f"expected the same classes in every view, got others in one of {', '.join(self.cameras)}: "
                "the folders of all classes must be there for each"
            )

    @property
    def _first(self) -> Source:
        return next(iter(self.cameras.values()))

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the cameras."""
        return tuple(self.cameras)

    @property
    def name(self) -> str:
        """The first camera's, and all views."""
        return f"{self._first.name} from {', '.join(self.cameras)}"

    @property
    def classes(self) -> Any:
        """The cameras'."""
        return self._first.classes

    @property
    def flip_labels(self) -> Any:
        """The cameras'."""
        return self._first.flip_labels

    def __len__(self) -> int:
        return len(self._first)

    def __getitem__(self, index: int) -> dict[str, Any]:
        items = {view: source[index] for view, source in self.cameras.items()}
        scene = {view: (item["id"], item["label"]) for view, item in items.items()}
        if any(one != scene[next(iter(scene))] for one in scene.values()):
            raise ValueError(
                f"expected one scene at position {index} of every view, got {scene}: files of one scene have one name"
            )
        return {**next(iter(items.values())), "video": {view: item["video"] for view, item in items.items()}}


def open_scenes(
    name: str,
    root: str | Path | None,
    split: str = "train",
    *,
    views: Sequence[str],
    fold: int | None = None,
    lists: str | Path | None = None,
    motion: "MotionConfig | None" = None,
    missing: Literal["error", "keep"] = "error",
    group: str | None = None,
) -> Scenes:
    """Opens one split of a data set that has several views of each scene.

    `<root>/<view>` is for each view a data set of its own, as `open_source` reads it, in which the files of a scene
    have the same name: `videos/front/jump/a.mp4` and `videos/left/jump/a.mp4`. `motion` is drawn for each camera.

    Args:
        name, split, fold, lists, missing, group: As in `open_source`; a scene is missing that one camera did not see.
        root: The folder of the views' folders.
        views: Which of them, or for `motion` which of its cameras "front", "left" and "right".
        motion: What `motion` is to look like; its camera is of no account.

    Raises:
        ValueError: No views or one twice, or what `open_source` and `Scenes` find wrong.
        FileNotFoundError: A view's folder, or its files, are not there.
    """
    if not views or len(set(views)) < len(views):
        raise ValueError(f"expected views as distinct names, got {tuple(views)}")
    if name == "motion":
        from flaxvid.data.motion.build import MotionConfig  # brings tensorflow_datasets

        config = motion or MotionConfig()
        cameras = {view: dataclasses.replace(config, camera=view) for view in views}
        return Scenes({view: open_source(name, root, split, motion=own) for view, own in cameras.items()})
    if root is None:
        raise ValueError(f"{name}: expected the folder of the views' folders {', '.join(views)} as root, got None")
    unknown = [view for view in views if not (Path(root).expanduser() / view).is_dir()]
    if unknown:
        raise FileNotFoundError(
            f"{name}: expected a folder for each view in {root}, got none for {', '.join(unknown)}: each view is a "
            "data set of its own, with the same file names"
        )
    options = {"fold": fold, "lists": lists, "missing": missing, "group": group}
    return Scenes({view: open_source(name, Path(root) / view, split, **options) for view in views})
