"""Reads class folders of videos: which folders are splits and which are classes. In doubt it asks."""

import collections
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from unicodedata import normalize

from flaxvid.data.sources.files import FileSource, file_source
from flaxvid.data.sources.names import list_names
from flaxvid.data.sources.search import Found, folders_in, search, videos_in
from flaxvid.data.sources.splits import (
    NoSplitError,
    check_groups,
    choose_split,
    group_rule,
    hold_out,
    split_of,
    warn_of_scenes,
)

_SHOWN = 5
_some = partial(list_names, most=_SHOWN)


def folder_source(root: Path, split: str, group: str | None = None) -> FileSource:
    """Class folders of videos: `<root>/<split>/<class>/*.mp4`, or `<root>/<class>/*.mp4` with a hold-out.

    Split folders may have any case and spelling (`Train`, `training`, `val`, `testing`). Without a test folder the
    validation folder is the test. Without split folders a fifth of each class is "test" and the rest "train". A hash of
    the file names chooses it, so a new video moves at most one other. Classes are the folders' names, sorted; with
    split folders those of `train`. Videos may lie at any depth below a class folder.

    Args:
        root: The folder.
        split: "train", "test", or "validation"; "all" is every video.
        group: A regular expression with one group that finds the scene in a video's path below the root. The hold-out
            keeps the videos of a scene together.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: The folders have two readings, fewer than two classes, or no videos.
    """
    layout = f"{root}/<class>/<video>.mp4, or {root}/train/<class>/<video>.mp4 and {root}/test/<class>/..."
    if not root.is_dir():
        raise FileNotFoundError(f"folder: expected {layout}; got no folder {root}")
    found = {name: _classes(root / name) if split_of(name) else {"": search(root / name)} for name in folders_in(root)}
    if splits := _splits(root, split, found, layout):
        return _from_splits(root, split, splits, found, layout, group)
    if split not in ("train", "test", "all"):
        raise NoSplitError(f"folder: expected split train or test without split folders, got {split!r}: use {layout}")
    classes = {name: part[""] for name, part in found.items()}
    _check_classes(root, classes, layout, fewest=1 if split == "all" else 2)
    rows = [(f"{name}/{path}", label) for label, name in enumerate(classes) for path in classes[name].videos]
    paths, labels = [path for path, _ in rows], [label for _, label in rows]
    test = hold_out(paths, labels, [*map(group_rule(group), paths)] if group else None)
    if not test and split == "test":
        raise ValueError(
            f"folder: expected a class with two {'scenes' if group else 'videos'} or more, to hold one out for the "
            f"test, got one of each in {root}: add videos, or make {root}/train and {root}/test"
        )
    notes = _notes(root, classes) if group else _notes(root, classes) + warn_of_scenes(paths, labels, test)
    kept = [row for at, row in enumerate(rows) if split == "all" or (at in test) == (split == "test")]
    return file_source(f"folder {split}", root, kept, tuple(classes), layout, notes)


def _from_splits(
    root: Path,
    asked: str,
    splits: Mapping[str, str],
    found: Mapping[str, Mapping[str, Found]],
    layout: str,
    group: str | None,
) -> FileSource:
    """One split of split folders. `splits` has the folder of each split."""
    if split_of(asked) == "test" and [*splits] == ["train"]:
        raise ValueError(
            f"folder {root}: expected split train, got {asked!r}: there is none; make {root}/test, or set the root to "
            f"{root / splits['train']}, and a fifth of it is held out"
        )
    split, notes = ("all", ()) if asked == "all" else choose_split(asked, splits, f"folder {root}")
    taken = [*splits.values()] if split == "all" else [splits[split]]
    first = splits.get("train", taken[0])
    for folder in splits.values():
        if folder not in (first, *taken) and found[folder].keys() == {""}:
            notes += (f"{root / folder} is left out: its {len(found[folder][''].videos)} videos have no class",)
            continue
        fewest = 0 if folder != first else 1 if split == "all" else 2
        _check_classes(root / folder, found[folder], layout, fewest=fewest)
        notes += _notes(root / folder, found[folder])
    classes, rows = [*found[first]], []
    label_of = {normalize("NFC", name): label for label, name in enumerate(classes)}  # Macs write accents otherwise
    if len(label_of) < len(classes):
        label_of = {name: label for label, name in enumerate(classes)}
    for folder in taken:
        part = {name: label_of.get(name, label_of.get(normalize("NFC", name))) for name in found[folder]}
        if strange := sorted(name for name in part if part[name] is None and found[folder][name].videos):
            raise ValueError(
                f"folder: expected in {root / folder} the classes of {root / first}, got also {strange[:_SHOWN]} "
                f"(those are {_some(map(repr, classes))}): give them training videos, rename them, or remove them"
            )
        own = sorted((label, name) for name, label in part.items() if label is not None)
        rows += [(f"{folder}/{name}/{path}", label) for label, name in own for path in found[folder][name].videos]
    if not rows:
        raise ValueError(f"folder: expected {layout}; got no {asked} videos in {root / taken[0]}")
    if left := sorted(found.keys() - set(splits.values())):
        notes += (f"left out of {root}, because they are no splits or have no videos: {_some(left)}",)
    read = {split: set().union(*(one.folders for one in found[name].values())) for split, name in splits.items()}
    for split in splits:
        if split != "train" and read[split] & read.get("train", set()):
            notes += (f"{splits['train']} and {splits[split]} have links to one folder: its videos are in both",)
    if group:
        scene = group_rule(group)
        paths = {
            split: [f"{folder}/{name}/{path}" for name, part in found[folder].items() for path in part.videos]
            for split, folder in splits.items()
        }
        notes += check_groups({split: {*map(scene, own)} for split, own in paths.items()})
    return file_source(f"folder {asked}", root, rows, classes, layout, notes)


def _classes(folder: Path) -> dict[str, Found]:
    """What lies in each class folder. Videos outside of all of them have the name ""."""
    classes = {name: search(folder / name) for name in folders_in(folder)}
    loose = videos_in(folder)
    return {"": Found(tuple(loose), {}, (), frozenset()), **classes} if loose else classes


def _splits(root: Path, asked: str, found: Mapping[str, Mapping[str, Found]], layout: str) -> dict[str, str]:
    """The folder of each split, in the order of training, validation, test. It is empty if the folders are classes."""
    loose = videos_in(root)
    filled = [name for name, part in found.items() if any(one.videos for one in part.values())]
    if loose and filled:
        raise ValueError(
            f"folder: expected {layout}; got {len(loose)} videos ({_some(loose)}) beside the folders {_some(filled)} "
            f"in {root}. Either the folders are classes: move the videos into one, or away. Or {root} is itself a "
            "class: set the root one level higher"
        )
    if not filled:
        where = f"; the {len(loose)} videos in {root} itself ({_some(loose)}) have no class" if loose else ""
        kinds = _kinds(one for part in found.values() for one in part.values())
        kinds = f"; its files are {kinds}" if kinds else ""
        raise ValueError(f"folder: expected {layout}; got no {asked} videos in {root}{where}{kinds}")
    named = [name for name in found if split_of(name)]
    plain = [name for name in filled if name not in named]
    if named and plain:
        raise ValueError(
            f"folder: expected {layout}; got {_some(named)} beside {_some(plain)} in {root}. Either {_some(named)} "
            f"{'is a split' if len(named) == 1 else 'are splits'}: move the other folders away, or as classes into "
            f"{root}/train. Or all {len(named) + len(plain)} are classes: rename {_some(named)}, or put all of them "
            f"into {root}/train"
        )
    splits = {}
    for split in ("train", "validation", "test"):
        same = [name for name in named if split_of(name) == split]
        same = [name for name in same if name in filled] or same[:1]
        if len(same) > 1:
            raise ValueError(
                f"folder: expected one folder of {split} videos in {root}, got {' and '.join(same)}. Either one is "
                "an old copy: remove it. Or they belong together: put their videos into one"
            )
        if same:
            splits[split] = same[0]
    return splits


def _check_classes(root: Path, classes: Mapping[str, Found], layout: str, fewest: int) -> None:
    """Refuses folders with two readings, and fewer classes with videos than `fewest`."""
    filled = {name: found.videos for name, found in classes.items() if found.videos}
    if "" in filled and len(filled) > 1:
        raise ValueError(
            f"folder: expected {layout}; got {len(filled[''])} videos ({_some(filled[''])}) beside the class folders "
            f"{_some([name for name in filled if name])} in {root}. Either they have no class: move them into one, or "
            f"away. Or {root} is itself a class: move it one level up"
        )
    if images := [name for name, videos in filled.items() if name and "" in videos]:
        raise ValueError(
            "folder: expected in a class folder videos, or a folder of frames for each video, got the images of a "
            f"single video in {root / images[0]}. Either {root} is a class and {_some(images)} its videos: set the "
            f"root one level higher. Or {_some(images)} are classes: put the frames of each video into a folder of its "
            "own"
        )
    below = {name: {path.partition("/")[0] for path in videos if "/" in path} for name, videos in filled.items()}
    if "" in filled:
        raise ValueError(
            f"folder: expected two class folders with videos or more in {root}, got none, but {len(filled[''])} videos "
            f"({_some(filled[''])}) without a class: put them into folders named by class. If they are a test without "
            "labels, move them away, or evaluate another split by data.eval_split"
        )
    if len(filled) < fewest:
        got = f"{len(filled)} ({_some(filled)})" if filled else "none"
        raise ValueError(
            f"folder: expected two class folders with videos or more in {root}, got {got}: {_advice(root, filled)}"
        )
    if inside := [name for name in filled if any(split_of(folder) for folder in below[name])]:
        parts = sorted(folder for folder in below[inside[0]] if split_of(folder))
        classes_below = all(path.count("/") > 1 for path in filled[inside[0]])
        way = f"set the root to {root / inside[0]}" if classes_below else f"as {root}/{parts[0]}/{inside[0]}"
        raise ValueError(
            f"folder: expected {layout}; got {_some(parts)} inside of {root / inside[0]}. Either they are splits: put "
            f"them above the classes, {way}. Or they are no splits: rename them"
        )
    deep = len(filled) > 1 and all("/" in path for videos in filled.values() for path in videos)
    times = collections.Counter(folder for folders in below.values() for folder in folders)
    if deep and len(times) > 1 and all(any(times[folder] > 1 for folder in below[name]) for name in below):
        one = max(filled, key=lambda name: len(below[name]))
        raise ValueError(
            f"folder: expected {layout}; got the same folders ({_some(sorted(below[one]))}) in each of {_some(filled)} "
            f"in {root}. If {_some(filled)} are the classes, put the videos directly into them. If "
            f"{_some(sorted(below[one]))} are the classes, put them directly into {root}, or set the root to one of "
            f"{root / one}, ... If they are cameras, name them by data.cameras. Or write a list (data.name=list)"
        )
    seen: dict[tuple[int, int], str] = {}
    for name in filled:
        for folder in classes[name].folders:
            if seen.setdefault(folder, name) != name:
                raise ValueError(
                    f"folder: expected other videos in each class, got links from {seen[folder]} and {name} in {root} "
                    "to one folder, whose videos then have two labels: remove one of the links"
                )


def _advice(root: Path, filled: Mapping[str, Sequence[str]]) -> str:
    """What to do about fewer than two classes."""
    paths = [f"{name}/{path}" if name else path for name, videos in filled.items() for path in videos]
    above = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""
    inside = sorted({rest.partition("/")[0] for path in paths if "/" in (rest := path[len(above) :].lstrip("/"))})
    if above and len(inside) > 1:
        return f"if the classes are {_some(inside)}, set the root to {root / above}, or move them into {root}"
    return "a network learns to tell classes apart: add another class, or evaluate all videos by the split all"


def _notes(root: Path, classes: Mapping[str, Found]) -> tuple[str, ...]:
    """Says what was left out below class folders."""
    notes = [f"{root / name}: {note}" for name, found in classes.items() for note in found.notes]
    for name, found in classes.items():
        if not found.videos and (kinds := _kinds([found])):
            notes.append(f"{root / name} has no videos; its files are {kinds}")
    if kinds := _kinds(found for found in classes.values() if found.videos):
        notes.append(f"left out of {root}, because they are no videos: {kinds}")
    filled = {name: found.videos for name, found in classes.items() if found.videos}
    below = {name: sorted({path.partition("/")[0] for path in videos}) for name, videos in filled.items()}
    deep = all("/" in path for videos in filled.values() for path in videos)
    if filled and deep and all(len(folders) > 1 for folders in below.values()):
        name = next(iter(below))
        notes.append(
            f"all videos lie in folders below the classes, as in {_some(below[name])} of {name}: if those are the "
            f"classes, set the root one level below {root}"
        )
    return tuple(notes)


def _kinds(found: Iterable[Found]) -> str:
    others = sum((collections.Counter(one.others) for one in found), collections.Counter())
    return ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(_SHOWN))
