"""Reads and writes data sets of TFDS without TensorFlow. They are videos in ArrayRecord files."""

import dataclasses
import functools
import importlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import fsdecode, fsencode
from pathlib import Path
from typing import Any, NamedTuple

from flaxvid.data.clips.decode import VideoError
from flaxvid.data.mirror import FlipLabels, flip_labels
from flaxvid.data.sources.splits import choose_split, split_of
from flaxvid.types import Classes, by_target
from flaxvid.writing import written_whole


class Shard(NamedTuple):
    """Part of one file with `examples_in_shard` records: `take` records from number `skip` on."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


class Fields(NamedTuple):
    """Names of a record's features: the encoded video, the labels, and the id if there is one.

    Several labels are several targets, named after the features.
    """

    video: str
    labels: tuple[str, ...]
    id: str | None


@dataclass(frozen=True)
class TfdsSource:
    """One split as a source of encoded videos. Every process opens its files on first use.

    A video that is stored frame by frame (`tfds.features.Video`) becomes the bytes of its PNG or JPEG images one after
    the other, which FFmpeg reads as a video.
    """

    name: str
    classes: Classes
    shards: tuple[Shard, ...]
    fields: Fields
    notes: tuple[str, ...] = dataclasses.field(default=(), repr=False, compare=False)

    @property
    def flip_labels(self) -> FlipLabels:
        """What each label becomes in a mirror, by the words for sides and turns in the class names."""
        return flip_labels(self.classes)

    @functools.cached_property
    def _records(self) -> Any:
        # It calls shards file instructions.
        return _array_record("array_record_data_source").ArrayRecordDataSource(list(self.shards))

    def __getstate__(self) -> dict[str, Any]:
        return {field: getattr(self, field) for field in ("name", "classes", "shards", "fields", "notes")}

    def __len__(self) -> int:
        return sum(shard.take for shard in self.shards)

    def __getitem__(self, index: int) -> dict[str, Any]:
        from tensorflow_datasets.proto import tf_example_pb2

        example: Any = tf_example_pb2  # its classes are made by importing it
        try:
            features = example.Example.FromString(self._records[int(index)]).features.feature
        except RuntimeError as error:
            ends = itertools.accumulate(shard.take for shard in self.shards)
            shard = next(shard for shard, end in zip(self.shards, ends, strict=True) if index < end)
            raise VideoError(f"{self.name}: record {index} is damaged; {_advice(shard.filename)} ({error})") from error
        labels = {name: int(features[name].int64_list.value[0]) for name in self.fields.labels}
        identity = self.fields.id and fsdecode(features[self.fields.id].bytes_list.value[0])
        return {
            "video": b"".join(features[self.fields.video].bytes_list.value),
            "label": labels if isinstance(self.classes, Mapping) else labels[self.fields.labels[0]],
            "id": identity or f"{self.name} {index}",
        }


def tfds_source(root: Path, split: str, dataset: str = "") -> TfdsSource:
    """A data set that TFDS has prepared, with its files beside `<root>/<name>/[<config>/]<version>/dataset_info.json`.

    Args:
        root: TFDS's `data_dir`, or the folder of one data set.
        split: One of its splits, or a part of one as TFDS writes it (`train[:10%]`). Without a test split, "test" is
            the validation split.
        dataset: Its name, such as "ucf101/ucf101_1:2.0.0". Without a version it is the newest one. "" is the only data
            set of the root.
    """
    folder = _find(root, dataset)
    from etils import epath
    from tensorflow_datasets.core.dataset_info import read_proto_from_builder_dir
    from tensorflow_datasets.core.naming import ShardedFileTemplate
    from tensorflow_datasets.core.splits import SplitDict

    info = read_proto_from_builder_dir(folder)
    if info.file_format != "array_record":
        raise ValueError(
            f"tfds: expected ArrayRecord files in {folder}, got {info.file_format or 'tfrecord'}, which only "
            f"TensorFlow reads: {_preparation(dataset or info.name, root)}"
        )
    template = ShardedFileTemplate(epath.Path(folder), dataset_name=info.name, filetype_suffix="array_record")
    splits = SplitDict.from_proto(info.splits, template)
    notes = ()
    if split not in splits and split.partition("[")[0] not in splits:
        there = {split_of(name) or name: name for name in splits}
        taken, notes = choose_split(split, there, f"tfds {info.name}")
        split = there[taken]
    parts = splits[split].file_instructions
    shards = tuple(Shard(str(p.filename), p.skip, p.take, p.examples_in_shard) for p in parts)
    _check(shards)
    fields, classes = _fields(folder)
    return TfdsSource(f"{info.name} {split}", classes, shards, fields, notes)


def shard_path(folder: Path, name: str, split: str, number: int) -> Path:
    """The file of one shard of a data set that `write_info` describes."""
    return folder / f"{name}-{split}.array_record-{number:05d}"


def shard_writer(classes: Classes) -> Callable[[Path, Iterable[Mapping[str, Any]]], None]:
    """Makes a function that writes a file of `{"video": bytes, "label": int or {target: int}, "id": str}`.

    The file appears when it is complete. Call this before any progress bar starts: while it imports TFDS, imports in
    other threads fail.
    """
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    make_writer = _array_record("array_record_module").ArrayRecordWriter
    features = _features(classes)
    serializer = ExampleSerializer(features.get_serialized_info())

    def write(path: Path, examples: Iterable[Mapping[str, Any]]) -> None:
        with written_whole(path) as beside:
            writer = make_writer(str(beside), "group_size:1")
            for example in examples:
                labels = {name or "label": label for name, label in by_target(example["label"]).items()}
                stored = {"video": example["video"], **labels, "id": fsencode(example["id"])}
                writer.write(serializer.serialize_example(features.encode_example(stored)))
            writer.close()

    return write


def write_info(
    folder: Path,
    name: str,
    version: str,
    description: str,
    classes: Classes,
    lengths: Mapping[str, Sequence[int]],
) -> None:
    """Makes a folder of shards a TFDS data set. `lengths` has the number of records of each shard of every split."""
    from etils import epath
    from tensorflow_datasets.core import DatasetInfo, Version
    from tensorflow_datasets.core.dataset_info import DatasetIdentity
    from tensorflow_datasets.core.naming import ShardedFileTemplate
    from tensorflow_datasets.core.splits import SplitDict, SplitInfo

    info = DatasetInfo(
        builder=DatasetIdentity(name, Version(version), data_dir=str(folder), module_name=__name__),
        description=description,
        features=_features(classes),
        disable_shuffling=True,
    )
    info.set_file_format("array_record")
    template = ShardedFileTemplate(
        epath.Path(folder), "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}", name, filetype_suffix="array_record"
    )
    splits = []
    for split, counts in lengths.items():
        size = sum(shard_path(folder, name, split, number).stat().st_size for number in range(len(counts)))
        splits.append(
            SplitInfo(
                split, shard_lengths=list(counts), num_bytes=size, filename_template=template.replace(split=split)
            )
        )
    info.set_splits(SplitDict(splits))
    info.write_to_directory(str(folder))


def _features(classes: Classes) -> Any:
    from tensorflow_datasets.core import features

    labels = {name or "label": features.ClassLabel(names=list(names)) for name, names in by_target(classes).items()}
    described = {"video": features.Text(), **labels, "id": features.Text()}
    return features.FeaturesDict(described)  # Text keeps any bytes


def _find(root: Path, dataset: str) -> Path:
    name, _, version = dataset.partition(":")
    found = sorted(path.parent for path in (root / name).glob(f"**/{f'{version}/' * bool(version)}dataset_info.json"))
    if not found:
        raise FileNotFoundError(
            f"tfds: expected a prepared data set as {root / name}/[<config>/]{version or '<version>'}/"
            f"dataset_info.json, got none: {_preparation(dataset or 'NAME', root)}"
        )
    if len({path.parent for path in found}) > 1:
        names = ", ".join(sorted({f"tfds:{path.parent.relative_to(root).as_posix()}" for path in found}))
        raise ValueError(f"tfds: expected one data set, got several in {root / name}: name one of {names}")
    return max(found, key=lambda path: [int(number) for number in re.findall(r"\d+", path.name)])


def _fields(folder: Path) -> tuple[Fields, Classes]:
    """The features to read, and the class names: those of `label`, otherwise every ClassLabel is a target."""
    try:
        features = json.loads((folder / "features.json").read_text())["featuresDict"]["features"]
        kinds = {key: value["pythonClassName"].rpartition(".")[2] for key, value in features.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"tfds: expected a features.json of TFDS 4.4 or later in {folder}, got {error!r}: prepare the set with a "
            "newer TFDS"
        ) from error
    videos = [key for key, kind in kinds.items() if kind == "Video"] or [key for key in kinds if key == "video"]
    labels = [key for key, kind in kinds.items() if kind == "ClassLabel"]
    labels = [key for key in labels if key == "label"] or labels
    if len(videos) != 1 or not labels:
        described = ", ".join(f"{key}: {kind}" for key, kind in kinds.items())
        raise ValueError(
            f"tfds: expected in {folder} one feature of kind Video, or encoded files as `video`, and at least one "
            f"ClassLabel, got {described}: choose another data set, or prepare this one with scripts/prepare_data.py"
        )
    classes = {label: _class_names(folder, label, features[label]) for label in labels}
    fields = Fields(videos[0], tuple(labels), "id" if kinds.get("id") == "Text" else None)
    return fields, classes if len(labels) > 1 else classes[labels[0]]


def _class_names(folder: Path, label: str, feature: Mapping[str, Any]) -> tuple[str, ...]:
    names = folder / f"{label}.labels.txt"
    if names.is_file():
        return tuple(names.read_text().splitlines())
    return tuple(str(number) for number in range(int(feature["classLabel"]["numClasses"])))


def _array_record(module: str) -> Any:
    try:
        return importlib.import_module(f"array_record.python.{module}")
    except ImportError as error:
        raise OSError(
            "motion and data sets of TFDS or prepare_data.py need array_record, which is not installed and has no "
            "build for Windows: take videos in folders or lists there"
        ) from error


def _check(shards: tuple[Shard, ...]) -> None:
    """Finds files that are cut off, by the index at the end of each."""
    open_reader = _array_record("array_record_module").ArrayRecordReader
    for shard in shards:
        try:
            reader = open_reader(shard.filename)
            count = reader.num_records()
            reader.close()
        except RuntimeError as error:
            raise OSError(f"tfds: {_advice(shard.filename)} ({error})") from error
        if count != shard.examples_in_shard:
            raise OSError(f"tfds: expected {shard.examples_in_shard} records, got {count}; {_advice(shard.filename)}")


def _advice(filename: str) -> str:
    return f"{filename} is missing or damaged: copy it again, or delete it and prepare the data set anew"


def _preparation(name: str, root: Path) -> str:
    return (
        f"prepare it, where TensorFlow is installed, with `tfds build {name} --data_dir {root} --file_format "
        "array_record`; if scripts/prepare_data.py was stopped, run it again to finish"
    )
