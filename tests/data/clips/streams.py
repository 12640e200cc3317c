"""Random video streams, each the same for its seed, and the full decode that is the truth about them.

    python tests/data/clips/streams.py 2000            the sparse decode of 2,000 streams against their full decode
    python tests/data/clips/streams.py 2000 --first 500 --keep DIR       from seed 500 on; those that differ stay in DIR

Encoders, containers, B-frames, groups of pictures, rates, cuts with edit lists, lost packets, wrong times, boxes that
are missing, truncation and flipped bytes are drawn by chance.
"""

import argparse
import collections
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from flaxvid.data.clips import decode as decoding
from flaxvid.data.clips.decode import VideoError, count_frames, decode, open_video
from flaxvid.data.clips.pictures import orientation
from flaxvid.data.clips.seek import InexactError

X264 = (
    {"bf": "0"},
    {"bf": "3", "b_strategy": "0"},
    {"x264-params": "b-pyramid=normal:bframes=5:b-adapt=0"},
    {"x264-params": "b-pyramid=strict:bframes=3:open-gop=1:b-adapt=0"},
    {"x264-params": "intra-refresh=1"},
    {"x264-params": "interlaced=1"},
    {"x264-params": "slices=3:bframes=2"},
    {"x264-params": "repeat-headers=1:aud=1"},
    {"x264-params": "nal-hrd=vbr:vbv-maxrate=500:vbv-bufsize=500:bframes=2"},
    {"x264-params": "bframes=0:cabac=0:ref=1"},
)
MPEG4 = ({}, {}, {"bf": "2"}, {"flags": "+ildct+ilme"}, {"flags": "+mv4+qpel"})
# encoder: (options to choose from, pixel formats, containers)
ENCODERS = {
    "libx264": (
        X264,
        ("yuv420p", "yuv444p", "yuv420p10le"),
        ("mp4", "mp4", "mov", "mkv", "mkv", "avi", "ts", "flv", "h264"),
    ),
    "mpeg4": (MPEG4, ("yuv420p",), ("avi", "avi", "mp4", "mkv", "mov", "ts", "m4v")),
    "libx265": (({"x265-params": "log-level=none:bframes=3"},), ("yuv420p", "yuv420p10le"), ("mp4", "mkv", "ts")),
    "libvpx": (
        ({"deadline": "realtime", "cpu-used": "8", "auto-alt-ref": "1", "lag-in-frames": "8"},),
        ("yuv420p",),
        ("webm", "mkv"),
    ),
    "libvpx-vp9": (
        ({"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "8"},),
        ("yuv420p", "yuv444p"),
        ("webm", "mp4"),
    ),
    "libsvtav1": (({"preset": "12"},), ("yuv420p",), ("mp4", "webm")),
    "mpeg2video": (({}, {"bf": "2"}, {"flags": "+ildct+ilme"}), ("yuv420p",), ("mpg", "ts", "mkv", "avi")),
    "mpeg1video": (({"bf": "2"},), ("yuv420p",), ("mpg", "mkv")),
    "mjpeg": (({},), ("yuvj420p", "yuvj444p"), ("avi", "mov", "mkv")),
    "rawvideo": (({},), ("pal8", "rgb24", "yuv420p"), ("avi", "mov", "nut")),
    "qtrle": (({},), ("rgb24", "argb"), ("mov",)),
    "png": (({},), ("rgb24", "pal8"), ("mov",)),
    "ffv1": (({},), ("yuv420p",), ("mkv", "avi")),
    "huffyuv": (({},), ("yuv422p",), ("avi",)),
    "flv": (({},), ("yuv420p",), ("flv",)),
    "msmpeg4": (({},), ("yuv420p",), ("avi", "asf")),
    "wmv2": (({},), ("yuv420p",), ("asf",)),
    "gif": (({},), ("rgb8", "pal8"), ("gif",)),
}
OFTEN = ("libx264", "libx264", "libx264", "libx264", "mpeg4", "mpeg4")
BOXES = (b"stss", b"ctts", b"elst", b"stps", b"sdtp", b"idx1")


def write_stream(folder: Path, seed: int) -> tuple[Path, str]:
    """Writes the stream of a seed; its path and what it is."""
    rng = np.random.default_rng(seed)
    encoder = rng.choice([*ENCODERS, *OFTEN])
    choices, pixels, containers = ENCODERS[encoder]
    options, pixel, suffix = dict(rng.choice(choices)), rng.choice(pixels), rng.choice(containers)
    options["g"] = str(rng.choice((1, 4, 12, 250)))
    if "x264-params" in options:
        options["x264-params"] += f":keyint={options['g']}:min-keyint=1"
    count, rate = int(rng.integers(1, 50)), int(rng.choice((10, 25, 30)))
    if encoder in ("mpeg1video", "mpeg2video"):
        rate = 25
    path = folder / f"{seed}.{suffix}"
    steps = [encoder, pixel, suffix, str(options), f"{count} frames"]
    ticks = np.arange(count)
    if rng.random() < 0.15 and encoder not in ("mpeg2video", "mpeg1video"):
        ticks = np.cumsum(rng.choice((1, 1, 1, 20), count))
        steps.append("variable rate")
    encode(path, encoder, options, pixel, ticks, rng, rate)
    for change in rng.choice(CHANGES, rng.choice((0, 0, 1, 1, 2)), replace=False):
        steps.append(change(path, rng) or "")
    return path, ", ".join(filter(None, steps))


def encode(path: Path, encoder: str, options: dict, pixel: str, ticks, rng: np.random.Generator, rate: int) -> None:
    """A texture on its way across the picture, with cuts."""
    height, width = (int(side) * 4 for side in rng.integers(8, 20, 2))
    if encoder in ("flv", "msmpeg4", "wmv2", "mpeg1video", "mpeg2video", "libx265"):  # which cannot make all sizes
        height, width = 48, 64
    if encoder == "libsvtav1":
        height, width = 64, 64
    textures = rng.integers(0, 256, (3, 200, 200, 3), np.uint8)
    palette = rng.integers(0, 256, (256, 4), np.uint8)
    palette[:, 0] = 255  # opaque
    milliseconds = rng.random() < 0.5 and encoder not in ("mpeg4", "mpeg1video", "mpeg2video")
    base = Fraction(1, 1000) if milliseconds else Fraction(1, rate)
    pictures = [textures[i // 17 % 3, i % 100 :, i % 90 :][:height, :width] for i in range(len(ticks))]
    times = [round(tick / rate / base) for tick in ticks.tolist()]
    write(path, pictures, str(encoder), str(pixel), options, palette, times, base, rate)


def write(path: Path, pictures, encoder, pixel, options: dict, palette, times, base: Fraction, rate: int) -> None:
    """Encodes RGB pictures that are shown at `times` in units of `base`. With a palette, red values are its entries."""
    with av.open(str(path), "w", format={"m4v": "m4v"}.get(path.suffix[1:])) as container:
        stream = container.add_stream(encoder, rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = *pictures[0].shape[:2], pixel
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = base
        for time, picture in zip(times, pictures, strict=True):
            if pixel == "pal8":
                frame = av.VideoFrame.from_ndarray((picture[..., 0].copy(), palette), "pal8")
            else:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture)).reformat(format=pixel)
            frame.pts, frame.time_base = time, base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_texture(path: Path, encoder="libx264", count=40, pixel="yuv420p", seed=0, size=(48, 64), **options) -> Path:
    """Writes a texture on its way across the picture, at 25 frames a second."""
    texture = np.random.default_rng(seed).integers(0, 256, (160, 160, 3), np.uint8)
    palette = np.random.default_rng(1).integers(0, 256, (256, 4), np.uint8)
    pictures = [texture[i : i + size[0], 2 * i : 2 * i + size[1]] for i in range(count)]
    write(path, pictures, encoder, pixel, options, palette, range(count), Fraction(1, 25), 25)
    return path


def remux(path: Path, change, options: dict | None = None) -> None:
    """Copies the packets that `change` makes of all; it gets and gives lists. What cannot be copied stays as it is."""
    other = path.with_name(f"other{path.suffix}")
    try:
        with av.open(str(path)) as source, av.open(str(other), "w", options=options or {}) as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in change([packet for packet in source.demux(video=0) if packet.size]):
                packet.stream = stream
                target.mux(packet)
    except (av.error.FFmpegError, IndexError, ValueError):  # no video is left in it
        return
    other.replace(path)


def cut(path: Path, rng: np.random.Generator) -> str:
    """As `ffmpeg -ss T -i a.mp4 -c copy` cuts: what comes before has times below zero."""
    part = rng.random() * 0.9

    def change(packets):
        shift = packets[int(part * len(packets))]
        shift = shift.pts if shift.pts is not None else shift.dts or 0
        for packet in packets:
            packet.pts = None if packet.pts is None else packet.pts - shift
            packet.dts = None if packet.dts is None else packet.dts - shift
        return packets

    remux(path, change)
    return f"cut at {part:.2f}"


def lose(path: Path, rng: np.random.Generator) -> str:
    """Packets are lost."""
    chance = rng.choice((0.03, 0.2))
    remux(path, lambda packets: [packet for packet in packets if rng.random() > chance] or packets)
    return f"{chance} lost"


def lose_first(path: Path, rng: np.random.Generator) -> str:
    """The first packets are lost."""
    first = int(rng.integers(1, 4))
    remux(path, lambda packets: packets[first:] or packets)
    return f"first {first} lost"


def decode_times(path: Path, rng: np.random.Generator) -> str:
    """Presentation times are those of decoding."""

    def change(packets):
        for packet in packets:
            packet.pts = packet.dts
        return packets

    remux(path, change)
    return "pts = dts"


def jitter(path: Path, rng: np.random.Generator) -> str:
    """Presentation times are wrong, and may not differ."""

    def change(packets):
        for packet in packets:
            if packet.pts is not None and packet.dts is not None:
                packet.pts = max(packet.dts, packet.pts + int(rng.integers(-2, 3)) * (packet.duration or 1))
        return packets

    remux(path, change)
    return "pts jittered"


def fragment(path: Path, rng: np.random.Generator) -> str | None:
    """MP4 in fragments."""
    if path.suffix in (".mp4", ".mov"):
        remux(path, lambda packets: packets, {"movflags": "frag_keyframe+empty_moov+default_base_moof"})
        return "fragments"
    return None


def lose_box(path: Path, rng: np.random.Generator) -> str | None:
    """A table is missing."""
    content, box = path.read_bytes(), bytes(rng.choice(BOXES))
    if box not in content:
        return None
    path.write_bytes(content.replace(box, b"free" if box != b"idx1" else b"JUNK"))
    return f"without {box.decode()}"


def truncate(path: Path, rng: np.random.Generator) -> str:
    """The file ends too early."""
    content, part = path.read_bytes(), rng.uniform(0.3, 1)
    path.write_bytes(content[: int(part * len(content))])
    return f"truncated to {part:.2f}"


def flip(path: Path, rng: np.random.Generator) -> str:
    """Bytes are wrong."""
    content, count = bytearray(path.read_bytes()), int(rng.integers(1, 10))
    for place in rng.integers(0, len(content), count):
        content[place] = rng.integers(256)
    path.write_bytes(content)
    return f"{count} bytes flipped"


def join(path: Path, rng: np.random.Generator) -> str | None:
    """Another stream of the same encoder goes on where this one ends: its parameters differ, or the file is doubled."""
    if path.suffix in (".ts", ".h264", ".m4v", ".mpg"):
        other = path.with_name(f"joined{path.suffix}")
        encode(
            other,
            {".h264": "libx264", ".m4v": "mpeg4", ".ts": "libx264"}.get(path.suffix, "mpeg2video"),
            {},
            "yuv420p",
            np.arange(9),
            rng,
            25,
        )
        path.write_bytes(path.read_bytes() + other.read_bytes())
        other.unlink()
        return "joined to another"

    def change(packets):
        copies = [av.Packet(bytes(packet)) for packet in packets]
        end = max((packet.pts or packet.dts or 0) + (packet.duration or 1) for packet in packets)
        for copy, packet in zip(copies, packets, strict=True):
            copy.time_base, copy.is_keyframe = packet.time_base, packet.is_keyframe
            copy.pts = None if packet.pts is None else packet.pts + end
            copy.dts = None if packet.dts is None else packet.dts + end
        return packets + copies

    remux(path, change)
    return "doubled"


CHANGES = (cut, lose, lose_first, decode_times, jitter, fragment, lose_box, truncate, flip, join)


def ask(video, choose, **options) -> np.ndarray:
    """The frames of a video that are chosen when its length is known."""
    with open_video(video) as opened:
        return opened.frames(choose(len(opened)), **options)


def frame_times(video) -> np.ndarray:
    """When the frames of a video are shown."""
    with open_video(video) as opened:
        return opened.times


def full_decode(path: Path) -> tuple[list[np.ndarray], bool]:
    """All frames in the order of presentation, upright, and whether they ended without an error."""
    pictures, reformatter = [], VideoReformatter()
    try:
        with av.open(str(path)) as container:
            stream = container.streams.best("video")
            stream.thread_type = "NONE"
            for frame in container.decode(stream):
                picture = frame.to_ndarray(format="rgb24")
                pictures.append(orientation(frame, reformatter).turn(picture).copy())
    except (av.error.FFmpegError, AttributeError, IndexError):
        return pictures, False
    return pictures, True


@contextmanager
def watched() -> Iterator[list[str]]:
    """Notes how videos are read: "sparse", or "undone" on finding out that this is not exact."""
    used, read_runs = [], decoding.read_runs

    def watch(*arguments):
        used.append("sparse")
        try:
            yield from read_runs(*arguments)
        except InexactError:
            used[-1] = "undone"
            raise

    decoding.read_runs = watch
    try:
        yield used
    finally:
        decoding.read_runs = read_runs


def compare(path: Path, rng: np.random.Generator, draws: int = 6) -> tuple[str, str]:
    """How a stream is read ("sparse", "full", "undone", "error"), and what of it differs from the truth."""
    with watched() as used:
        return _compare(path, rng, draws, used)


def _compare(path: Path, rng: np.random.Generator, draws: int, used: list[str]) -> tuple[str, str]:
    truth, whole = full_decode(path)
    try:
        count = count_frames(path)
    except VideoError:
        count = None
    if whole and truth and count != len(truth):
        return "", f"{count} frames, expected {len(truth)}"
    if count and whole:
        try:
            times = frame_times(path)
        except VideoError:
            times = np.arange(count + 1)
        if len(times) != count + 1 or (np.diff(times) < 0).any():
            return "", f"times {times}"
    for draw in range(draws):
        positions = rng.integers(0, len(truth) or 1, (4, 8, 16)[draw % 3])
        try:
            video = decode(path, positions) if draw % 2 else ask(path, lambda _, chosen=positions: chosen)
        except VideoError as error:
            if whole and truth:
                return "", str(error)
            used.append("error")
            continue
        if not truth:
            return "", "frames where there are none"
        for picture, position in zip(video, positions, strict=True):
            expected = truth[position] if position < len(truth) else None
            if expected is None or (expected.shape == picture.shape and (expected != picture).any()):
                return "", f"frame {position} of {positions} differs"
    return "error" if "error" in used else "undone" if "undone" in used else used[0] if used else "full", ""


def main() -> None:
    """Counts how streams are read, and which differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    arguments = parser.parse_args()
    av.logging.set_level(None)
    kinds, encoders, differ = collections.Counter(), collections.Counter(), 0
    for seed in range(arguments.first, arguments.first + arguments.count):
        with tempfile.TemporaryDirectory() as folder:
            path, what = write_stream(Path(folder), seed)
            kind, fault = compare(path, np.random.default_rng(seed))
            kinds[kind or "differs"] += 1
            encoders[f"{what.split(',')[0]} {kind}"] += 1
            if fault:
                differ += 1
                print(f"{seed}: {what}: {fault}", flush=True)
                if arguments.keep:
                    shutil.copy(path, arguments.keep)
    print(f"{arguments.count} streams: {dict(kinds)}; {differ} differ from their full decode")
    print(dict(sorted(encoders.items())))
    sys.exit(bool(differ))


if __name__ == "__main__":
    main()
