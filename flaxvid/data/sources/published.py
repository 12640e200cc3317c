"""Reads well-known data sets from the files and folders that their owners publish.

Unpack them as they come. Each reader's `layout` shows what that looks like, and each error shows the layout.
"""

import csv
import json
import re
import warnings
from pathlib import Path
from typing import Any

from flaxvid.data.sources.files import FileSource, file_source, video_stem
from flaxvid.data.sources.search import search
from flaxvid.data.sources.splits import check_split
from flaxvid.data.sources.texts import first_file, list_places, read_lines, read_text, videos_folder


def ucf101_source(root: Path, split: str, fold: int = 1, lists: str | Path | None = None) -> FileSource:
    """UCF-101 with its own lists: classInd.txt, trainlist01.txt, testlist01.txt, and `<class>/v_*.avi`."""
    layout = (
        f"{root}/<class>/v_<class>_g01_c01.avi (or {root}/UCF-101/<class>/...), and classInd.txt, trainlist0{fold}.txt "
        f"and testlist0{fold}.txt in {root} or {root}/ucfTrainTestlist (or lists=)"
    )
    check_split("ucf101", split, ("train", "test"))
    numbers = first_file(["classInd.txt"], list_places(root, lists, "ucfTrainTestlist"), layout)
    index = dict(line.split()[::-1] for line in read_lines(numbers, layout) if len(line.split()) == 2)
    if sorted(index.values()) != sorted(map(str, range(1, len(index) + 1))):
        raise ValueError(f"ucf101: expected lines `1 <class>`, numbered from 1, in {numbers}, got {index}: {layout}")
    classes = sorted(index, key=lambda name: int(index[name]))
    rows = []
    for line in read_lines(numbers.parent / f"{split}list{fold:02d}.txt", layout):
        path, _, number = line.partition(" ")  # a test list has no numbers: the folder names the class
        name = path.partition("/")[0]
        if name not in index or number.strip() not in ("", index[name]):
            raise ValueError(f"ucf101: expected a class of classInd.txt and its number, got {line!r}: {layout}")
        rows.append((path, classes.index(name)))
    return file_source(f"ucf101 {split}{fold}", videos_folder(root, "UCF-101", "videos"), rows, classes, layout)


def hmdb51_source(root: Path, split: str, fold: int = 1, lists: str | Path | None = None) -> FileSource:
    """HMDB-51 with its own lists, one a class: `<class>_test_split1.txt` of lines `video.avi 0|1|2`.

    1 is training, 2 is test, 0 is neither. Some file names begin with `#`, so these lists have no comments.
    """
    pattern = f"*_test_split{fold}.txt"
    layout = (
        f"{root}/<class>/<video>.avi (or {root}/videos/<class>/...), and {pattern} with lines `<video>.avi 0|1|2` in "
        f"{root}, {root}/testTrainMulti_7030_splits or {root}/splits (or lists=)"
    )
    check_split("hmdb51", split, ("train", "test"))
    places = list_places(root, lists, "testTrainMulti_7030_splits", "splits")
    files = sorted(first_file([pattern], places, layout).parent.glob(pattern))
    classes = [path.name.removesuffix(pattern[1:]) for path in files]
    wanted = {"train": "1", "test": "2"}[split]
    rows = []
    for label, path in enumerate(files):
        for line in read_lines(path, layout):
            video, _, number = line.rpartition(" ")
            if not video or number not in ("0", "1", "2"):
                raise ValueError(f"hmdb51: expected lines `<video>.avi 0|1|2` in {path}, got {line!r}: {layout}")
            if number == wanted:
                rows.append((f"{classes[label]}/{video.strip()}", label))
    return file_source(f"hmdb51 {split}{fold}", videos_folder(root, "videos"), rows, classes, layout)


def kinetics_source(root: Path, split: str, lists: str | Path | None = None) -> FileSource:
    """Kinetics (400, 600 or 700) with its CSV files: label, youtube_id, time_start, time_end, split.

    Clips disappear from the web, so missing ones are left out, and a warning counts them. Clips may have another
    container than MP4.
    """
    check_split("kinetics", split, ("train", "validation", "test"))
    parts = ("val", "validate", "validation") if split == "validation" else (split,)
    layout = (
        f"{root}/{parts[0]}/<youtube_id>_<start, 6 digits>_<end, 6 digits>.mp4, with or without a class folder in "
        f"between, and train.csv and {parts[0]}.csv in {root} or {root}/annotations (or lists=)"
    )
    places = list_places(root, lists, "annotations")
    tables = {}
    for name, files in (("train", ["train.csv"]), (split, [f"{part}.csv" for part in parts])):
        path = first_file(files, places, layout)
        tables[name] = list(csv.DictReader(read_text(path, layout).splitlines()))
        got = tables[name][0].keys() if tables[name] else set()
        if missing := {"label", "youtube_id", "time_start", "time_end"} - got:
            raise ValueError(
                f"kinetics: expected columns {', '.join(sorted(missing))} in {path}, got {', '.join(got) or 'none'}: "
                f"{layout}"
            )
    classes = sorted({row["label"] for row in tables["train"]})
    index = {name: label for label, name in enumerate(classes)}
    folder = videos_folder(root, *parts)
    videos = () if folder == root else search(folder).videos
    found = {video_stem(path.rpartition("/")[2]): f"{folder.name}/{path}" for path in videos}
    names = [
        f"{row['youtube_id']}_{int(row['time_start']):06d}_{int(row['time_end']):06d}.mp4" for row in tables[split]
    ]
    if strange := next((row["label"] for row in tables[split] if row["label"] not in index), None):
        raise ValueError(
            f"kinetics: expected the labels of train.csv in {split}, got {strange!r}: fetch the lists again"
        )
    stems = [video_stem(name) for name in names]
    rows = [(found[s], index[row["label"]]) for s, row in zip(stems, tables[split], strict=True) if s in found]
    if not rows:
        raise FileNotFoundError(
            f"kinetics: expected {layout}; got none of {len(names)} videos, such as {names[0]}: check the root"
        )
    if len(rows) < len(names):
        warnings.warn(f"kinetics {split}: {len(names) - len(rows)} of {len(names)} videos are missing", stacklevel=3)
    return file_source(f"kinetics {split}", root, rows, classes, layout)


def ssv1_source(root: Path, split: str, lists: str | Path | None = None) -> FileSource:
    """Something-Something V1: folders of JPEG frames, and its CSV files (`id;template`, and a list of templates)."""
    return _frame_folders(root, split, lists, "ssv1", "something-something-v1")


def jester_source(root: Path, split: str, lists: str | Path | None = None) -> FileSource:
    """Jester V1: folders of JPEG frames, and its CSV files (`id;gesture`, and a list of gestures).

    A mirror swaps "Swiping Left" with "Swiping Right", and "Turning Hand Clockwise" with "... Counterclockwise".
    """
    return _frame_folders(root, split, lists, "jester", "jester-v1")


def _frame_folders(root: Path, split: str, lists: str | Path | None, name: str, prefix: str) -> FileSource:
    """Something-Something V1 and Jester, whose test sets have no public labels."""
    check_split(name, split, ("train", "validation"))
    layout = (
        f"{root}/20bn-{prefix}/<id>/00001.jpg (or {root}/<id>/00001.jpg), and {prefix}-labels.csv (lines `<class>`) "
        f"and {prefix}-{split}.csv (lines `<id>;<class>`) in {root}, {root}/labels or {root}/annotations (or lists=)"
    )
    labels = first_file([f"{prefix}-labels.csv"], list_places(root, lists, "labels", "annotations"), layout)
    classes = read_lines(labels, layout)
    lines = [line.partition(";") for line in read_lines(labels.parent / f"{prefix}-{split}.csv", layout)]
    pairs = [(folder, text) for folder, _, text in lines]
    rows = _by_text(name, pairs, classes, labels, layout)
    return file_source(f"{name} {split}", videos_folder(root, f"20bn-{prefix}"), rows, classes, layout)


def ssv2_source(root: Path, split: str, lists: str | Path | None = None) -> FileSource:
    """Something-Something V2: WebM videos, and its JSON files (labels.json, train.json, validation.json).

    train.json writes the placeholders of a template in brackets, labels.json does not.
    """
    check_split("ssv2", split, ("train", "validation"))  # the test set has no public labels
    prefix = "something-something-v2"
    layout = (
        f"{root}/20bn-{prefix}/<id>.webm (or {root}/<id>.webm), and labels.json ({{class: number}}) and {split}.json "
        f"([{{id, template}}]), or the same with {prefix}- before, in {root}, {root}/labels or {root}/annotations "
        "(or lists=)"
    )
    places = list_places(root, lists, "labels", "annotations")
    labels = first_file(["labels.json", f"{prefix}-labels.json"], places, layout)
    numbers = _read_json(labels, layout, dict)
    if sorted(map(str, numbers.values())) != sorted(map(str, range(len(numbers)))):
        raise ValueError(f"ssv2: expected classes numbered from 0 in {labels}, got {numbers}: {layout}")
    classes = sorted(numbers, key=lambda text: int(numbers[text]))
    entries = labels.with_name(labels.name.replace("labels", split))
    pairs = [(f"{e['id']}.webm", re.sub(r"[\[\]]", "", e["template"])) for e in _entries(entries, layout, "template")]
    rows = _by_text("ssv2", pairs, classes, labels, layout)
    return file_source(f"ssv2 {split}", videos_folder(root, f"20bn-{prefix}", "videos"), rows, classes, layout)


def diving48_source(root: Path, split: str, lists: str | Path | None = None) -> FileSource:
    """Diving-48: MP4 clips, its cleaned V2 lists, and its vocabulary (take-off, somersaults, twists, position)."""
    check_split("diving48", split, ("train", "test"))
    layout = (
        f"{root}/rgb/<vid_name>.mp4 (or {root}/<vid_name>.mp4), and Diving48_vocab.json and Diving48_V2_{split}.json "
        f"([{{vid_name, label}}]) in {root} or {root}/annotations (or lists=)"
    )
    vocabulary = first_file(["Diving48_vocab.json"], list_places(root, lists, "annotations"), layout)
    classes = [name if isinstance(name, str) else " ".join(name) for name in _read_json(vocabulary, layout, list)]
    entries = _entries(vocabulary.with_name(f"Diving48_V2_{split}.json"), layout, "label", key="vid_name")
    rows = [(f"{entry['vid_name']}.mp4", int(entry["label"])) for entry in entries]
    return file_source(f"diving48 {split}", videos_folder(root, "rgb", "videos"), rows, classes, layout)


def _by_text(
    name: str, pairs: list[tuple[str, str]], classes: list[str], labels: Path, layout: str
) -> list[tuple[str, int]]:
    """Rows from (path, text of the class)."""
    index = {text: label for label, text in enumerate(classes)}
    for path, text in pairs:
        if text not in index:
            raise ValueError(f"{name}: expected a class of {labels}, got {text!r} for {path}: {layout}")
    return [(path, index[text]) for path, text in pairs]


def _entries(path: Path, layout: str, label: str, key: str = "id") -> list[dict[str, Any]]:
    entries = _read_json(path, layout, list)
    for entry in entries:
        if not isinstance(entry, dict) or not entry.keys() >= {key, label}:
            raise ValueError(f"{path}: expected entries with {key!r} and {label!r}, got {entry!r}: {layout}")
    return entries


def _read_json(path: Path, layout: str, kind: type) -> Any:
    text = read_text(path, layout)
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, got broken text ({error}): fetch the file again") from error
    if not isinstance(content, kind):
        raise ValueError(f"{path}: expected a JSON {kind.__name__}, got a {type(content).__name__}: {layout}")
    return content
