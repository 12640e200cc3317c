"""Opens any data set that the library knows, by name: `open_source`.

A source is a read-only sequence of `{"video": bytes or path, "label": int, "id": str}`. With several targets, a label
is `{"action": 3, "actor": 0}`. Opening a source reads the lists and checks that every video is there. It decodes
nothing.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from flaxvid.data.mirror import FlipLabels
from flaxvid.data.motion.build import MotionConfig, build_motion, motion_source
from flaxvid.data.sources.files import FileSource
from flaxvid.data.sources.folders import folder_source
from flaxvid.data.sources.lists import list_source
from flaxvid.data.sources.published import (
    diving48_source,
    hmdb51_source,
    jester_source,
    kinetics_source,
    ssv1_source,
    ssv2_source,
    ucf101_source,
)
from flaxvid.data.sources.splits import SPLITS
from flaxvid.data.sources.tfds import tfds_source
from flaxvid.types import Classes, by_target

__all__ = ["SOURCES", "FileSource", "Source", "open_source"]


class Source(Protocol):
    """A labelled set of videos, indexed from 0. It can be pickled, because worker processes get a copy.

    A source of scenes also has the names of its `cameras`, and its videos are dicts; see `sources.cameras`.
    """

    @property
    def name(self) -> str:
        """The data set and split, for messages."""
        ...

    @property
    def classes(self) -> Classes:
        """Class names, by label. Several targets have such a tuple each."""
        ...

    @property
    def flip_labels(self) -> FlipLabels:
        """What each label becomes in a mirror; see `FlipLabels`."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


def open_source(
    name: str,
    root: str | Path | None,
    split: str = "train",
    *,
    fold: int | None = None,
    lists: str | Path | None = None,
    motion: MotionConfig | None = None,
    missing: Literal["error", "keep"] = "error",
    group: str | None = None,
) -> Source:
    """Opens one split of a data set.

    Args:
        name: One of `SOURCES`. Their functions and errors say what they expect on disk. A data set that TFDS has
            prepared is `tfds:NAME`, as in `tfds:ucf101/ucf101_1:2.0.0`. `tfds` alone is the only data set in the root,
            such as one that `scripts/prepare_data.py` wrote.
        root: The folder of the videos. `motion` is built there, or in the cache if it is None.
        split: "train" or "test"; "validation" if the data set has it; "all" for `folder` and `list`.
        fold: Number of the official split, from 1, of `ucf101` and `hmdb51`; 1 by default.
        lists: The folder of the list files, if it is not found by itself.
        motion: What `motion` draws.
        missing: What to do if some listed files are missing: "error", or "keep" them in the source, where reading one
            fails.
        group: Keeps the scenes of `folder` and `list` whole in a hold-out: a regular expression with one group that
            finds the scene in the path, or a column of the list.

    Raises:
        ValueError: The name is unknown, the data set does not have the option, or its files hold something wrong.
        FileNotFoundError: Files are missing. The message shows the expected layout.
    """
    name, _, dataset = name.partition(":")
    if name not in SOURCES or (dataset and name != "tfds"):
        wrong = f"{name}:{dataset}" if dataset else name
        raise ValueError(
            f"expected one of {', '.join(sorted(SOURCES))} or tfds:NAME, got {wrong!r}: your own videos are `folder` "
            "or `list`"
        )
    if missing not in ("error", "keep"):
        raise ValueError(f'expected missing="error" or "keep", got {missing!r}: choose one')
    options = {"fold": fold, "lists": lists, "motion": motion, "dataset": dataset or None}
    given = {key: value for key, value in options.items() if value is not None}
    kind = SOURCES[name]
    if given.keys() - kind.options:
        known = ", ".join(sorted(kind.options - {"dataset"})) or "no options"  # `dataset` is part of the name
        raise ValueError(
            f"{name}: expected {known}, got {', '.join(sorted(given.keys() - kind.options))}: leave it out"
        )
    if root is None and name != "motion":
        raise ValueError(f"{name}: expected the folder of the videos as root, got None: name it")
    if group:
        if kind.open not in (folder_source, list_source):
            raise ValueError(f"{name}: expected no group, because its splits are fixed, got {group!r}: leave it out")
        given["group"] = group
    source = kind.open(None if root is None else Path(root).expanduser(), split, **given)
    if isinstance(source, FileSource) and kind.open is not folder_source:  # its files were just found
        source = source.located(some=missing == "keep")
    for target, classes in by_target(source.classes).items():
        if len(classes) < 2 and split.startswith("train"):
            raise ValueError(
                f"{source.name}: expected two classes{' of ' * bool(target)}{target} or more, got {len(classes)} "
                f"({', '.join(classes)}): a network learns to tell classes apart; correct the root or the list"
            )
    return source


class Kind(NamedTuple):
    """A kind of data set: the function that opens it, its options of `open_source`, and its splits."""

    open: Callable[..., Any]  # a `Source`
    options: frozenset[str] = frozenset()
    splits: tuple[str, ...] = ("train", "test")


_LISTS, _FOLDS = frozenset({"lists"}), frozenset({"fold", "lists"})
SOURCES = {
    "motion": Kind(
        lambda root, split, motion=None: motion_source(build_motion(root, motion), split), frozenset({"motion"}), SPLITS
    ),
    "folder": Kind(folder_source),
    "list": Kind(list_source, _LISTS),
    "tfds": Kind(tfds_source, frozenset({"dataset"})),
    "ucf101": Kind(ucf101_source, _FOLDS),
    "hmdb51": Kind(hmdb51_source, _FOLDS),
    "diving48": Kind(diving48_source, _LISTS),
    "jester": Kind(jester_source, _LISTS, ("train", "validation")),
    "ssv1": Kind(ssv1_source, _LISTS, ("train", "validation")),
    "ssv2": Kind(ssv2_source, _LISTS, ("train", "validation")),
    "kinetics400": Kind(kinetics_source, _LISTS, ("train", "validation")),
    "kinetics600": Kind(kinetics_source, _LISTS, ("train", "validation")),
    "kinetics700": Kind(kinetics_source, _LISTS, ("train", "validation")),
}
"""What can be opened, by name."""
