"""Damaged video files: whatever is in them, reading one is an answer or a `VideoError`, in time and in bounds.

    python tests/data/clips/fuzz.py 2000               damages of random streams (see streams.py)
    python tests/data/clips/fuzz.py 2000 --of DIR      of the videos in DIR, too

Bytes are flipped, cut out, doubled and exchanged, numbers of the header become huge, files are cut short. The files are
read in a process of their own, which is started anew where it dies or takes too long.
"""

import argparse
import collections
import multiprocessing
import resource
import sys
import tempfile
from pathlib import Path

import av
import numpy as np
import streams

from flaxvid.data.clips.decode import VideoError, count_frames, decode
from flaxvid.data.clips.sampling import segment_indices
from flaxvid.data.prepare.examine import examine

SECONDS = 60
"""For one file, on a machine that others use too."""
HUGE = (0x7FFFFFFF, 0xFFFFFFFF, 0xFFFF, 0x80000000, 0, 1)


def damage(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """One to four damages; those of the first 2,000 bytes and the last meet the headers."""
    made = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        size = max(len(made), 1)
        anywhere, header = int(rng.integers(size)), int(rng.integers(min(size, 2000)))
        place = (anywhere, header, max(0, size - header))[rng.integers(3)]
        length = int(rng.integers(1, 200))
        match rng.integers(7):
            case 0:
                for at in rng.integers(0, size, 1 + length // 10):
                    made[at : at + 1] = bytes([rng.integers(256)])
            case 1:
                made[place : place + 4] = int(rng.choice(HUGE)).to_bytes(4, rng.choice(("big", "little")))
            case 2:
                del made[place : place + length]
            case 3:
                made[place:place] = made[anywhere : anywhere + length]
            case 4:
                made[place : place + length] = other[place : place + length]
            case 5:
                del made[max(anywhere, 1) :]
            case 6:
                made[place : place + length] = bytes(length)
    return bytes(made)


def read(path: Path) -> str:
    """All that the library does with a video's file; the error's class and text where it is not the one error."""
    answers = []
    for use in (
        count_frames,
        streams.frame_times,
        lambda video: streams.ask(video, lambda count: segment_indices(count, 8, short="repeat").ravel(), size=64),
        lambda video: decode(video, [0, 5, 9]),
        lambda video: examine({"video": str(video), "id": "v", "label": 0}, 1, None)[0].reason,
    ):
        try:
            answer = use(path)
            # `examine` makes a reason of any error.
            answers.append(answer if isinstance(answer, str) and "Error:" in answer else "read")
        except VideoError:
            answers.append("VideoError")
        except Exception as error:
            answers.append(f"{type(error).__name__}: {error}")
    return next((answer for answer in answers if answer not in ("read", "VideoError")), answers[0])


def work(files, answers) -> None:
    """Reads files until there are no more."""
    av.logging.set_level(None)
    for path in iter(files.recv, None):
        answer = read(path)
        answers.send((answer, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024))


class Reader:
    """A process that reads files, and another one after its death."""

    def __init__(self):
        self.process = None

    def read(self, path: Path) -> tuple[str, int]:
        """What came of a file, and the largest memory that the process has had, MB."""
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            receive, self.files = context.Pipe(duplex=False)
            self.answers, send = context.Pipe(duplex=False)
            self.process = context.Process(target=work, args=(receive, send), daemon=True)
            self.process.start()
            send.close()
        self.files.send(path)
        fault = "too long"
        try:
            if self.answers.poll(SECONDS):
                return self.answers.recv()
        except EOFError:
            self.process.join()
            fault = f"died: {self.process.exitcode}"
        self.process.kill()
        self.process = None
        return fault, 0


def main() -> None:
    """Counts what comes of damaged files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--of", type=Path)
    parser.add_argument("--keep", type=Path, help="where those that are neither read nor a VideoError stay")
    arguments = parser.parse_args()
    samples = [path.read_bytes() for path in sorted(arguments.of.rglob("*")) if path.is_file()] if arguments.of else []
    samples = [sample for sample in samples if len(sample) < 2_000_000]
    reader, kinds, most, faults = Reader(), collections.Counter(), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(60):
            path, _ = streams.write_stream(Path(folder), seed)
            samples.append(path.read_bytes())
        for seed in range(arguments.first, arguments.first + arguments.count):
            rng = np.random.default_rng(seed)
            sample, other = (samples[i] for i in rng.integers(0, len(samples), 2))
            path = Path(folder) / "damaged.mp4"
            path.write_bytes(damage(sample, other, rng))
            answer, memory = reader.read(path)
            if memory > most:
                print(f"{seed}: {memory} MB", flush=True)
            kinds[answer.partition(":")[0]] += 1
            most = max(most, memory)
            if answer not in ("read", "VideoError"):
                faults += 1
                print(f"{seed}: {answer}", flush=True)
                if arguments.keep:
                    (arguments.keep / f"{seed}.mp4").write_bytes(path.read_bytes())
    print(f"{arguments.count} damaged files: {dict(kinds)}; at most {most} MB")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
