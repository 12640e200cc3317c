"""Input for scripts/benchmark: decoding against decord and OpenCV (where they are installed), and the whole pipeline.

Decoding takes so many frames of each video, resized to a short side, on one core: pin it with `taskset -c 0` for a fair
comparison, for the peers start threads of their own.
"""

import functools
import importlib.util
import os
import pathlib
import tempfile
import time
from collections.abc import Callable

os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", "threads;1")

import av
import numpy as np
from timing import Rows, Timing, interleaved, print_rows

from flaxvid.data.clips.cut import ClipConfig
from flaxvid.data.clips.decode import count_frames, decode
from flaxvid.data.clips.sampling import segment_indices
from flaxvid.data.pipeline import train_batches
from flaxvid.data.sources.files import FileSource
from flaxvid.data.sources.search import VIDEO_SUFFIXES

Reader = Callable[[pathlib.Path, np.ndarray, int], np.ndarray]


def read_flaxvid(path: pathlib.Path, indices: np.ndarray, short_side: int) -> np.ndarray:
    """Frames at these positions."""
    return decode(path, indices, size=short_side)


@functools.cache
def decord_size(path: pathlib.Path, short_side: int) -> tuple[int, int]:
    """Width and height to decode to; found before the timing, for decord must be told both."""
    import decord  # pyright: ignore[reportMissingImports]

    height, width, _ = decord.VideoReader(str(path))[0].shape
    return round(width * short_side / min(height, width)), round(height * short_side / min(height, width))


def read_decord(path: pathlib.Path, indices: np.ndarray, short_side: int) -> np.ndarray:
    """The same with decord, which resizes while it decodes."""
    import decord  # pyright: ignore[reportMissingImports]

    width, height = decord_size(path, short_side)
    return decord.VideoReader(str(path), width=width, height=height, num_threads=1).get_batch(indices).asnumpy()


def read_opencv(path: pathlib.Path, indices: np.ndarray, short_side: int) -> np.ndarray:
    """The same with OpenCV, which reads on from the start."""
    import cv2  # pyright: ignore[reportMissingImports]

    capture, wanted, frames = cv2.VideoCapture(str(path)), set(indices.tolist()), []
    for position in range(int(indices.max()) + 1):
        capture.grab()
        if position in wanted:
            _, frame = capture.retrieve()
            scale = short_side / min(frame.shape[:2])
            size = (round(frame.shape[1] * scale), round(frame.shape[0] * scale))
            frames.append(cv2.cvtColor(cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR), cv2.COLOR_BGR2RGB))
    capture.release()
    return np.stack(frames)


PEERS = {"flaxvid": ("flaxvid", read_flaxvid), "decord": ("decord", read_decord), "opencv": ("cv2", read_opencv)}
"""By name: the package that it needs, and its reader."""


def read_all(reader: Reader, videos: list[tuple[pathlib.Path, np.ndarray]], short_side: int) -> None:
    """Every video once."""
    for path, indices in videos:
        clip = reader(path, indices, short_side)
        assert clip.shape[0] == len(indices), path
        assert min(clip.shape[1:3]) == short_side, path


def make_videos(folder: pathlib.Path, count: int = 8, length: int = 300) -> None:
    """Encodes drifting textures as h264, with a key frame every 250 frames, x264's default."""
    rng = np.random.default_rng(0)
    for index in range(count):
        texture = rng.integers(0, 256, (64 + 32, 85 + 75, 3), np.uint8).repeat(4, 0).repeat(4, 1)
        with av.open(str(folder / f"{index}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=30)
            stream.width, stream.height, stream.pix_fmt = 340, 256, "yuv420p"
            for step in range(length):
                y, x = step * 128 // length, step
                picture = np.ascontiguousarray(texture[y : y + 256, x : x + 340])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
            container.mux(stream.encode())


def clips_per_second(source: FileSource, clips: ClipConfig, threads: int, workers: int, seconds: float) -> float:
    """Training clips that the pipeline makes, after its start."""
    stream = train_batches(source, clips, 4, num_threads=threads, num_workers=workers)
    for _ in range(2 + 2 * workers):
        next(stream)
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        count += len(next(stream)["label"])
    return count / (time.perf_counter() - begin)


def compare_input(
    folder: pathlib.Path | None, frames: int, short_side: int, limit: int, seconds: float, timing: Timing
) -> Rows:
    """Seconds a clip of every reader, and clips a second of the pipeline by threads and worker processes.

    Args:
        folder: of videos; None makes h264 clips of 340 x 256 pixels and 300 frames.
        frames: of a clip.
        short_side: pixels that frames are resized to.
        limit: at most so many of the videos.
        seconds: for each setting of the pipeline.
        timing: repeats and clock.
    """
    with tempfile.TemporaryDirectory() as made:
        if folder is None:
            make_videos(pathlib.Path(made))
        folder = folder or pathlib.Path(made)
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES)
        paths = paths[:: max(1, len(paths) // limit)][:limit]
        if not paths:
            raise SystemExit(f"expected videos under {folder}, found none")
        videos = [(path, segment_indices(count_frames(path), frames).ravel()) for path in paths]
        readers = {name: reader for name, (package, reader) in PEERS.items() if importlib.util.find_spec(package)}
        runs = {name: functools.partial(read_all, reader, videos, short_side) for name, reader in readers.items()}
        row = {name: total / len(videos) for name, total in interleaved(runs, timing, 60).items()}
        rows = {f"seconds a clip: {frames} frames of {len(videos)} videos, {short_side} px": row}
        print_rows(rows)
        names = tuple(str(path.relative_to(folder)) for path in paths)
        source = FileSource("videos", str(folder), names, (0,) * len(names), ("any",))
        clips = ClipConfig((frames,), 224, short="repeat")
        for threads, workers in ((1, 0), (2, 0), (4, 0), (1, 1), (1, 2), (2, 2)):
            label = f"clips a second: {threads} threads in each of {workers or 'no'} workers"
            own: Rows = {label: {"pipeline": clips_per_second(source, clips, threads, workers, seconds)}}
            print_rows(own)
            rows |= own
        return rows
