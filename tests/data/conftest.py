import importlib.util
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest


def level(i):
    return 24 + 6 * i


@pytest.fixture(scope="session")
def write_video():
    """Writes a real h264 video whose i-th frame is grey `level(i)`, with the left half 20 brighter, or noise."""

    def write(path, frames=20, height=32, width=48, noise=False, audio_only=False, gop=250, movflags="faststart"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w", options={"movflags": movflags}) as container:
            if audio_only:
                stream = container.add_stream("aac", rate=8000)
                stream.layout = "mono"
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                frame.sample_rate, frame.pts = 8000, 0
                container.mux(stream.encode(frame))
                container.mux(stream.encode(None))
                return path
            stream = container.add_stream(
                "libx264", rate=10, options={"crf": "1", "preset": "ultrafast", "g": str(gop)}
            )
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for i in range(frames):
                picture = np.full((height, width, 3), level(i), np.uint8)
                picture[:, : width // 2] += 20
                if noise:
                    picture = np.random.default_rng(i).integers(0, 256, picture.shape, np.uint8)
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = i, Fraction(1, 10)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path

    return write


@pytest.fixture(scope="session")
def streams():
    """The module that writes random streams and decodes them in full."""
    spec = importlib.util.spec_from_file_location("streams", Path(__file__).with_name("clips") / "streams.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def write_texture(streams):
    """Writes a texture on its way across the picture: `write_texture(path, encoder, **options)`."""
    return streams.write_texture


@pytest.fixture(scope="session")
def ask(streams):
    """Frames of a video that are chosen when its length is known: `ask(path, lambda count: [count - 1])`."""
    return streams.ask


@pytest.fixture(scope="session")
def frame_times(streams):
    """When the frames of a video are shown."""
    return streams.frame_times


@pytest.fixture(scope="session")
def frame_numbers():
    """Reads the frame numbers back from the right edge of `write_video`'s pictures: uint8 (..., h, w, 3) -> (...)."""

    def numbers(video):
        return np.rint((video[..., -4:, :].mean(axis=(-3, -2, -1)) - level(0)) / (level(1) - level(0))).astype(int)

    return numbers


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real videos that is not part of the project (see each test for what it wants there)."""
    path = Path(os.environ.get("FLAXVID_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data")
    if not path.is_dir():
        pytest.skip(f"no real videos at {path}: set FLAXVID_TEST_DATA to a folder that has decode/ and ucf6-mini/")
    return path
