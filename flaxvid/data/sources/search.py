"""Finds the videos below folders, by their names or first bytes, and those that files and patterns name."""

import bisect
import collections
import glob
import mimetypes
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flaxvid.data.clips.images import IMAGE_SUFFIXES
from flaxvid.data.sources.names import list_names

VIDEO_SUFFIXES = (
    *(".264", ".265", ".3g2", ".3gp", ".amv", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".gif", ".h264", ".h265"),
    *(".hevc", ".ivf", ".m1v", ".m2p", ".m2t", ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mjpg", ".mk3d", ".mkv", ".mov"),
    *(".mp4", ".mp4v", ".mpe", ".mpeg", ".mpg", ".mpv", ".mts", ".mxf", ".nut", ".ogm", ".ogv", ".qt", ".rm", ".rmvb"),
    *(".tod", ".trp", ".ts", ".vob", ".webm", ".wmv", ".wtv", ".xvid", ".y4m"),
)

_CODE = (".ts", ".mts")  # TypeScript has the same suffixes
_OTHER = (
    *(".aria2", ".ass", ".cfg", ".crdownload", ".download", ".flo", ".gz", ".h5", ".hdf5", ".idx", ".ini", ".jsonl"),
    *(".lock", ".log", ".lst", ".mat", ".md", ".npy", ".npz", ".parquet", ".part", ".partial", ".pb", ".pkl", ".pt"),
    *(".pth", ".rar", ".srt", ".sub", ".toml", ".tmp", ".vtt", ".webp", ".yaml", ".yml", ".ytdl"),
)
_JUNK = frozenset(
    {"__macosx", "__pycache__", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "#recycle", "$recycle.bin"}
    | {"lost+found", "system volume information"}
)
_KINDS = mimetypes.MimeTypes()  # Python's own table is the same on every machine
_CONTENT = re.compile(
    rb".{4}(ftyp|moov|mdat|wide)|RIFF.{4}AVI |\x1aE\xdf\xa3|FLV\x01|\0\0\x01[\xb3\xba]|0&\xb2u\x8ef\xcf\x11|GIF8[79]a"
    rb"|\x06\x0e\x2b\x34\x02\x05|YUV4MPEG2 |DKIF|\.RMF|OggS.{0,400}(\x80theora|OVP80|video\0)|\0\0\0?\x01[\x27\x67]"
    rb"|(.{4})?G.{187,203}G.{187,203}G",
    re.DOTALL,
)


@dataclass(frozen=True)
class Found:
    """What lies below a folder.

    Attributes:
        videos: Files and folders of frames, sorted, as paths below the folder with "/". "" is the folder itself.
        others: The number of files that are no videos, by suffix.
        notes: What was left out and why, a sentence each.
        folders: Device and inode of each folder that was read. Links to one folder have the same.
    """

    videos: tuple[str, ...]
    others: Mapping[str, int]
    notes: tuple[str, ...]
    folders: frozenset[tuple[int, int]]


def find_videos(folder: Path) -> list[Path]:
    """The videos below a folder, sorted: files, and folders of numbered images. A missing folder has none.

    It follows links, but reads no folder twice. It leaves out hidden files and what systems leave in folders. A folder
    of numbered images is a video if no video lies in it or below it. `folder` itself may be one.
    """
    return [folder / path for path in search(folder).videos] if folder.is_dir() else []


def collect_videos(places: Iterable[str | Path]) -> list[str | Path]:
    """The videos that files, folders and shell patterns name. One that is named twice is there once.

    A folder stands for all videos below it; see `find_videos`. A file stays in the list even if it does not exist, so
    that its reader can say so. A URL stays as it is.

    Raises:
        FileNotFoundError: A folder or pattern has no video.
    """
    found: dict[str, str | Path] = {}
    for place in map(str, places):
        if "://" in place:  # as a path it would lose a slash
            found.setdefault(place, place)
            continue
        named = os.path.exists(place) or not glob.has_magic(place)
        paths = [Path(place)] if named else sorted(map(Path, glob.glob(place, recursive=True)))
        inside = [video for path in paths for video in (find_videos(path) if os.path.isdir(path) else [path])]
        if not inside:
            raise FileNotFoundError(f"expected videos or numbered images in {place}, got none: name another place")
        for video in inside:
            found.setdefault(os.path.join(os.path.realpath(video.parent), video.name), video)
    return list(found.values())


def collect_scenes(places: Iterable[str | Path], cameras: Sequence[str]) -> dict[str, dict[str, Path]]:
    """The scenes in folders that have a folder for each camera. The files of a scene have the same name in each.

    Args:
        places: Folders such as `videos`, with `videos/front/jump/a.mp4` and `videos/left/jump/a.mp4` in them.
        cameras: The cameras that the network knows. A scene may lack some of them.

    Returns:
        The files of each scene, ``{"videos/jump/a": {"front": Path(...), "left": Path(...)}}``.

    Raises:
        FileNotFoundError: No camera has a video in one of the places.
        ValueError: Two videos of one camera have the same name.
    """
    scenes: dict[str, dict[str, Path]] = {}
    for place in map(Path, places):
        folders = {camera: place / camera for camera in cameras if (place / camera).is_dir()}
        if not any(map(find_videos, folders.values())):
            raise FileNotFoundError(
                f"expected a folder of videos for each camera in {place}, {' or '.join(cameras)}, got none: make them, "
                "and give the files of one scene the same name in each"
            )
        for camera, folder in folders.items():
            for video in find_videos(folder):
                name = str(place / video.relative_to(folder)).removesuffix(video.suffix)
                other = scenes.setdefault(name, {}).setdefault(camera, video)
                if other != video:
                    raise ValueError(
                        f"expected one video of {name} in each camera, got {other} and {video}: rename one"
                    )
    return scenes


def collect(places: Sequence[str | Path], cameras: Sequence[str]) -> dict[str, Any]:
    """The videos that `collect_videos` finds, by name; for a network of several cameras the scenes."""
    if cameras:
        return dict(collect_scenes(places, cameras))
    return {str(video): video for video in collect_videos(places)}


def is_junk(name: str) -> bool:
    """Whether a file or folder is hidden or left by a system. It is neither a video nor a class."""
    return name.startswith(".") or name.lower() in _JUNK


def search(folder: Path) -> Found:
    """Looks through a folder and all below it. It lists each folder once, because network disks are slow."""
    start = os.path.realpath(folder)
    above = {_identity(str(place)) for place in Path(start).parents}
    read: set[tuple[int, int]] = set()
    videos: list[str] = []
    mixed: list[str] = []  # folders that have images and folders
    notes: list[str] = []
    broken: list[str] = []
    others: collections.Counter[str] = collections.Counter()
    waiting, linked = [""], []
    while waiting or linked:
        place = waiting.pop() if waiting else linked.pop(0)  # links last: a folder here counts at its own place
        full = os.path.join(start, place)
        if (identity := _identity(full)) in read or identity in above:
            where = "a folder above it" if identity in above else "a folder that is read already"
            notes.append(f"{place} is not followed: it leads to {where}")
            continue
        read.add(identity)
        files, images, below = [], [], False
        for entry in _entries(full):
            path, link = f"{place}/{entry.name}" if place else entry.name, entry.is_symlink()
            if link and not os.path.exists(entry.path):
                broken.append(path)
            elif _is_folder(entry):
                (linked if link else waiting).append(path)
                below = True
            elif not os.path.isfile(entry.path):
                others["no plain file"] += 1
            elif is_video(entry.path):
                files.append(path)
            elif _is_frame(entry.name):
                images.append(entry.name)
            else:
                others[os.path.splitext(entry.name)[1].lower() or "no suffix"] += 1
        videos += files
        if files:
            others.update(os.path.splitext(name)[1].lower() for name in images)
        elif images:
            (mixed if below else videos).append(place)
    videos.sort(key=_parts)
    for place in sorted(mixed, key=_parts, reverse=True):
        at = bisect.bisect_left(videos, [*_parts(place)], key=_parts)
        if at < len(videos) and (not place or videos[at].startswith(f"{place}/")):
            notes.append(f"{place or folder} has images beside folders of videos: the images are left out")
        else:
            videos.insert(at, place)
    if broken:
        notes.append(f"links that lead nowhere are left out: {list_names(broken, 3)}")
    return Found(tuple(videos), others, tuple(notes), frozenset(read))


def folders_in(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted, including links to folders."""
    return [entry.name for entry in _entries(str(folder)) if _is_folder(entry)]


def videos_in(folder: Path) -> list[str]:
    """Names of the video files in a folder itself, sorted."""
    return [entry.name for entry in _entries(str(folder)) if os.path.isfile(entry.path) and is_video(entry.path)]


def is_video(path: str) -> bool:
    """Whether a file is a video, by its suffix, or by its first bytes if the suffix does not tell."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix in VIDEO_SUFFIXES and suffix not in _CODE:
        return True
    kind = _KINDS.guess_type(f"x{suffix}")[0] or "application/octet-stream"
    if suffix not in _CODE and (suffix in _OTHER or not kind.startswith(("video/", "application/octet"))):
        return False
    try:
        with open(path, "rb") as file:
            head = file.read(1024)
    except OSError:
        return suffix in VIDEO_SUFFIXES  # reading it will say what is wrong
    if suffix in _CODE:
        return not (head and _is_text(head))
    return _CONTENT.match(head) is not None


def _is_text(head: bytes) -> bool:
    return head[:2] in (b"\xff\xfe", b"\xfe\xff") or not re.search(rb"[\0-\x08\x0e-\x1f]", head)


def _is_frame(name: str) -> bool:
    stem, suffix = os.path.splitext(name)
    return suffix.lower() in IMAGE_SUFFIXES and any(map(str.isdecimal, stem))


def _entries(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not is_junk(entry.name)), key=lambda entry: entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()  # is_dir raises for a link in a circle


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _parts(path: str) -> list[str]:
    return path.split("/")
