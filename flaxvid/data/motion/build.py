"""The embedded data set `motion`: short h264 clips whose labels only the order and the pace of the frames can tell."""

import contextlib
import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flaxvid.data.mirror import FlipLabels, flip_labels
from flaxvid.data.motion.draw import (
    CAMERAS,
    HEADINGS,
    MOTION_CLASSES,
    encode,
    render_camera,
    render_clip,
)
from flaxvid.data.workers import processes
from flaxvid.writing import take_lock

VERSION = "1.0.0"  # raise it whenever a clip would come out differently
_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class MotionConfig:
    """What to draw; every set of options has a folder of its own, so that two of them never mix.

    Attributes:
      size: height and width in pixels, even and at least 16.
      num_frames: frames a clip, at least 4.
      train: clips of the training split.
      validation: clips of the validation split, where settings are chosen.
      test: clips of the test split.
      seed: everything drawn follows from it, the split's name and the clip's position.
      camera: "", a flat world seen from the front; or which of the three cameras (`CAMERAS`) sees a scene in depth,
        whose classes are `HEADINGS`. The same position is the same scene for all of them.
    """

    size: int = 64
    num_frames: int = 32
    train: int = 6000
    validation: int = 512
    test: int = 2048
    seed: int = 0
    camera: str = ""

    def __post_init__(self):
        if self.camera not in ("", *CAMERAS):
            raise ValueError(f"motion: the cameras of a scene are {', '.join(CAMERAS)}, got {self.camera!r}.")
        if self.size < 16 or self.size % 2:
            raise ValueError(f"motion: size must be even and at least 16, got {self.size}; try 64.")
        if self.num_frames < 4:
            raise ValueError(f"motion: num_frames must be at least 4, got {self.num_frames}; try 32.")
        if self.seed < 0 or min(self.train, self.validation, self.test) < 1:
            raise ValueError(f"motion: seed must not be negative and every split needs at least one clip, got {self}.")

    @property
    def folder(self) -> str:
        """Name of the folder of this set, with every option in it."""
        options = f"{self.size}px-{self.num_frames}f-{self.train}-{self.validation}-{self.test}-seed{self.seed}"
        return f"{options}{f'-{self.camera}' * bool(self.camera)}/{VERSION}"

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; the clip at position i has the class `i % len(classes)`."""
        return HEADINGS if self.camera else MOTION_CLASSES


def make_clip(config: MotionConfig, split: str, index: int) -> bytes:
    """The h264 file of one clip, a function of its arguments alone."""
    source = (config.seed, _SPLITS.index(split), index)
    rng, label = np.random.default_rng(source), index % len(config.classes)
    if not config.camera:
        return encode(*render_clip(label, config.size, config.num_frames, rng))
    own = np.random.default_rng((*source, 1 + list(CAMERAS).index(config.camera)))
    return encode(*render_camera(label, config.size, config.num_frames, config.camera, rng, own))


def build_motion(
    root: str | Path | None = None, config: MotionConfig | None = None, workers: int | None = None
) -> Path:
    """Folder of the data set, which is drawn first if it is not there (a minute for the default on two cores).

    The set is written beside its place and moved there when complete: an interrupted build leaves nothing that looks
    finished, and of two processes that start at once, the second waits for the first.

    Args:
      root: folder of data sets; default `$FLAXVID_DATA`, or else `~/.cache/flaxvid`.
      config: what to draw; default `MotionConfig()`.
      workers: processes that draw, which never changes the clips; default one a core. 1 draws in this process. A script
        that asks for more runs its own work under `if __name__ == "__main__"`, as `multiprocessing` demands.

    Returns:
      A TFDS folder (`tfds.builder_from_directory` opens it) of ArrayRecord files.
    """
    config = config or MotionConfig()
    root = Path(root or os.environ.get("FLAXVID_DATA") or Path.home() / ".cache" / "flaxvid").expanduser().absolute()
    path = root / "motion" / config.folder
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / f".{path.name}.lock").open("w") as lock:
        take_lock(lock, wait=True)
        for leftover in path.parent.glob(f".{path.name}.building-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        if not path.exists():
            building = Path(tempfile.mkdtemp(prefix=f".{path.name}.building-", dir=path.parent))
            try:
                _write(building, config, workers or os.cpu_count() or 1)
                os.replace(building, path)
            finally:
                shutil.rmtree(building, ignore_errors=True)
    return path


def _write(folder: Path, config: MotionConfig, workers: int) -> None:
    """Draw and store all clips in the order of their index, under a progress bar."""
    import tensorflow_datasets as tfds
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from tensorflow_datasets.core.dataset_info import DatasetIdentity

    options = {name: value for name, value in asdict(config).items() if value != ""}
    info = tfds.core.DatasetInfo(
        builder=DatasetIdentity(
            name="motion", version=tfds.core.Version(VERSION), data_dir=str(folder), module_name=__name__
        ),
        description=f"Clips whose labels only the order and the pace of frames can tell: {json.dumps(options)}",
        features=tfds.features.FeaturesDict(
            {
                "video": tfds.features.Text(),  # arbitrary bytes come back as they were
                "label": tfds.features.ClassLabel(names=config.classes),
                "id": tfds.features.Text(),
            }
        ),
        disable_shuffling=True,
    )
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard=4096, file_format="array_record")
    writer.initialize_splits(list(_SPLITS))
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns) as progress, _mapper(workers) as mapper:
        task = progress.add_task("Drawing `motion`", total=sum(getattr(config, split) for split in _SPLITS))
        for split in _SPLITS:
            count, chunk = getattr(config, split), []
            for index, video in enumerate(mapper(functools.partial(make_clip, config, split), count)):
                chunk.append({"video": video, "label": index % len(config.classes), "id": f"{split}-{index:06d}"})
                if len(chunk) == 64 or index == count - 1:  # every call writes the metadata anew
                    writer.add_examples({split: chunk})
                    progress.advance(task, len(chunk))
                    chunk = []
    writer.close_all()


@contextlib.contextmanager
def _mapper(workers: int) -> Iterator[Any]:
    """`map` over `range(n)` in order: here, or in spawned processes (encoding holds the interpreter lock)."""
    if workers == 1:
        yield lambda make, count: map(make, range(count))
        return
    with processes(workers) as pool:
        yield lambda make, count: pool.map(make, range(count), chunksize=16)


class MotionSource:
    """One split of a built set as a source of encoded clips; opens its files on first use, in every process anew."""

    name = "motion"

    def __init__(self, path: str | Path, split: str = "train"):
        if split not in _SPLITS:
            raise ValueError(f"motion: expected a split of {_SPLITS}, got {split!r}.")
        if not (Path(path) / "dataset_info.json").exists():
            raise FileNotFoundError(f"motion: no data set in {path}; give the path that build_motion returns.")
        self.path, self.split = str(path), split

    @functools.cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple((Path(self.path) / "label.labels.txt").read_text().splitlines())

    @functools.cached_property
    def _records(self) -> Any:
        from tensorflow_datasets.core.read_only_builder import ReadOnlyBuilder

        builder: Any = ReadOnlyBuilder(builder_dir=self.path)  # its methods' decorators hide their arguments
        return builder.as_data_source(self.split)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, by label."""
        return self._names

    @property
    def flip_labels(self) -> FlipLabels:
        """The label of each class's mirror image."""
        return flip_labels(self.classes)

    def __getstate__(self) -> dict[str, str]:
        return {"path": self.path, "split": self.split}

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self._records[int(index)]
        return {"video": record["video"], "label": int(record["label"]), "id": record["id"].decode()}


def fingerprint(path: str | Path) -> str:
    """SHA-256 over every id, label and encoded clip of a built set, in order.

    Equal hashes mean equal data. Another x264 may encode the same drawing differently, and so may hash differently.
    """
    digest = hashlib.sha256()
    for split in _SPLITS:
        source = MotionSource(path, split)
        for index in range(len(source)):
            item = source[index]
            digest.update(f"{item['id']} {item['label']} {len(item['video'])}\n".encode() + item["video"])
    return digest.hexdigest()
