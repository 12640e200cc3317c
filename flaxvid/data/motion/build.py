"""Builds the embedded data set `motion`: short h264 clips whose labels only the order and pace of frames tell."""

import contextlib
import functools
import hashlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from flaxvid.data.motion.draw import (
    CAMERAS,
    HEADINGS,
    MOTION_CLASSES,
    change_look,
    encode,
    render_camera,
    render_clip,
)
from flaxvid.data.sources.splits import SPLITS, check_split
from flaxvid.data.sources.tfds import TfdsSource, shard_path, shard_writer, tfds_source, write_info
from flaxvid.data.workers import processes
from flaxvid.writing import cache_folder, locked

VERSION = "1.0.0"  # raise it when a clip would come out otherwise
LOOK = 99
"""Of the random numbers that draw another look; small ones are the cameras'."""
_SHARD = 4096  # clips of one file


@dataclass(frozen=True)
class MotionConfig:
    """What to draw. Each choice of options has a folder of its own.

    Attributes:
        size: Height and width in pixels, even and at least 16.
        num_frames: Frames of a clip, at least 4.
        train: Clips of the training split.
        validation: Clips of the validation split, where settings are chosen.
        test: Clips of the test split.
        seed: Determines every clip, together with the split's name and the clip's position.
        camera: "" draws a flat world seen from the front. One of the three `CAMERAS` sees a scene in depth, whose
            classes are `HEADINGS`. At one position all cameras see the same scene.
        domain: "" is the usual look. "shifted" films the same scenes with other light, colours, noise and a camera that
            shakes: the target domain on which domain adaptation is compared.
    """

    size: int = 64
    num_frames: int = 32
    train: int = 6000
    validation: int = 512
    test: int = 2048
    seed: int = 0
    camera: str = ""
    domain: str = ""

    def __post_init__(self):
        if self.camera not in ("", *CAMERAS):
            raise ValueError(
                f"motion: expected camera to be {', '.join(CAMERAS)} or empty, got {self.camera!r}: choose one"
            )
        if self.domain not in ("", "shifted"):
            raise ValueError(f'motion: expected domain to be "shifted" or empty, got {self.domain!r}: choose one')
        if self.size < 16 or self.size % 2:
            raise ValueError(f"motion: expected an even size of at least 16, got {self.size}: try 64")
        if self.num_frames < 4:
            raise ValueError(f"motion: expected num_frames of at least 4, got {self.num_frames}: try 32")
        if self.seed < 0 or min(self.train, self.validation, self.test) < 1:
            raise ValueError(f"motion: expected a seed of at least 0 and a clip in every split, got {self}: raise them")

    @property
    def folder(self) -> str:
        """The folder of these options, which are all in its name."""
        options = f"{self.size}px-{self.num_frames}f-{self.train}-{self.validation}-{self.test}-seed{self.seed}"
        return f"{'-'.join(filter(None, (options, self.camera, self.domain)))}/{VERSION}"

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names. The clip at position i has the class `i % len(classes)`."""
        return HEADINGS if self.camera else MOTION_CLASSES


def make_clip(config: MotionConfig, split: str, index: int) -> bytes:
    """The h264 file of one clip. It depends on nothing but the arguments."""
    source = (config.seed, SPLITS.index(split), index)
    rng, label = np.random.default_rng(source), index % len(config.classes)
    if not config.camera:
        planes = render_clip(label, config.size, config.num_frames, rng)
    else:
        own = np.random.default_rng((*source, 1 + list(CAMERAS).index(config.camera)))
        planes = render_camera(label, config.size, config.num_frames, config.camera, rng, own)
    if config.domain:
        planes = change_look(*planes, np.random.default_rng((*source, LOOK)))
    return encode(*planes)


def build_motion(
    root: str | Path | None = None, config: MotionConfig | None = None, workers: int | None = None
) -> Path:
    """Draws the data set if it is not there (the default takes a minute on two cores), and gives its folder.

    It writes the set beside its place and moves it there when it is complete, so an interrupted build leaves nothing
    that looks finished. If two processes start at once, the second one waits for the first.

    Args:
        root: Folder of data sets; by default `$FLAXVID_DATA`, otherwise `cache_folder()`.
        config: What to draw; by default `MotionConfig()`.
        workers: Processes that draw; by default one a core. Their number never changes the clips. 1 draws in this
            process. With more, `multiprocessing` demands that a script does its work under
            `if __name__ == "__main__"`.

    Returns:
        A TFDS folder of ArrayRecord files (`tfds.builder_from_directory` opens it).
    """
    config = config or MotionConfig()
    root = Path(root or os.environ.get("FLAXVID_DATA") or cache_folder()).expanduser().absolute()
    path = root / "motion" / config.folder
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent / f".{path.name}.lock", wait=True):
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
    """Draws and stores all clips in order, under a progress bar."""
    write, lengths = shard_writer(config.classes), {}
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns) as progress, _mapper(workers) as mapper:
        task = progress.add_task("Drawing `motion`", total=sum(getattr(config, split) for split in SPLITS))

        def draw(split: str, count: int) -> Iterator[dict[str, Any]]:
            for index, video in enumerate(mapper(functools.partial(make_clip, config, split), count)):
                yield {"video": video, "label": index % len(config.classes), "id": f"{split}-{index:06d}"}
                progress.advance(task)

        for split in SPLITS:
            count = getattr(config, split)
            lengths[split] = [min(_SHARD, count - start) for start in range(0, count, _SHARD)]
            clips = draw(split, count)
            for number, length in enumerate(lengths[split]):
                write(shard_path(folder, "motion", split, number), itertools.islice(clips, length))
    options = {name: value for name, value in asdict(config).items() if value != ""}
    description = f"Clips whose labels only the order and the pace of frames can tell: {json.dumps(options)}"
    write_info(folder, "motion", VERSION, description, config.classes, lengths)


@contextlib.contextmanager
def _mapper(workers: int) -> Iterator[Any]:
    """`map` over `range(n)` in order: here, or in processes, because encoding holds the interpreter lock."""
    if workers == 1:
        yield lambda make, count: map(make, range(count))
        return
    with processes(workers) as pool:
        yield lambda make, count: pool.map(make, range(count), chunksize=16)


def motion_source(path: str | Path, split: str = "train") -> TfdsSource:
    """One split of a built set, as a source of encoded clips.

    Raises:
        NoSplitError: There is no such split.
        FileNotFoundError: There is no data set in the folder.
    """
    check_split("motion", split, SPLITS)
    if not (Path(path) / "dataset_info.json").exists():
        raise FileNotFoundError(f"motion: expected a data set in {path}, got none: build it by build_motion")
    return replace(tfds_source(Path(path), split), name="motion")


def fingerprint(path: str | Path) -> str:
    """SHA-256 of all ids, labels and encoded clips of a built set, in order.

    Equal hashes mean equal data. Another x264 may encode the same drawing differently and give another hash.
    """
    digest = hashlib.sha256()
    for split in SPLITS:
        source = motion_source(path, split)
        for index in range(len(source)):
            item = source[index]
            digest.update(f"{item['id']} {item['label']} {len(item['video'])}\n".encode() + item["video"])
    return digest.hexdigest()
