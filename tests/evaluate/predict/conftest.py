import runpy
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from flaxvid.data.clips.cut import ClipConfig
from flaxvid.evaluate.predictor import Predictor
from flaxvid.models.registry import create_tiny
from flaxvid.weights.native import WeightsInfo, save_variables

SCRIPT = Path(__file__).parents[3] / "scripts" / "predict.py"
CLASSES = ("first", "second", "third")


@pytest.fixture(scope="session")
def network(random_variables):
    """A tiny network of three classes with random variables."""
    model = create_tiny("tsm_resnet18", num_classes=3, image_size=32)
    return model, random_variables(model)


@pytest.fixture(scope="session")
def predictor(network):
    model, variables = network
    return Predictor(model, lambda _: variables, CLASSES, ClipConfig(image_size=32, test_size=32))


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    """Real h264 videos: a.mp4 and a.avi of 40 frames at 10 a second, deep/b.mp4 of 3; and a file that is none."""
    folder = tmp_path_factory.mktemp("videos")
    write(folder / "a.mp4", 40)
    write(folder / "a.avi", 40)
    write(folder / "deep" / "b.mp4", 3)
    (folder / "notes.txt").write_text("no video")
    return folder


@pytest.fixture(scope="session")
def weights(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    overrides = {"num_classes": 3, "image_size": 32, "width": 8, "depths": (1, 1, 1, 1), "num_frames": 4}
    info = WeightsInfo("tsm_resnet18", overrides, classes=("first", "second", "third"))
    save_variables(path, network[1], info)
    return path


@pytest.fixture
def predict(monkeypatch, capsys, weights):
    """Runs the script and returns its exit status, stdout and stderr."""

    def predict(*arguments, run=weights):
        monkeypatch.setattr(sys, "argv", ["predict.py", "--run", str(run), *map(str, arguments)])
        with pytest.raises(SystemExit) as status:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        return status.value.code, *capsys.readouterr()

    return predict


def write(path, frames):
    path.parent.mkdir(exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "1", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for i in range(frames):
            picture = np.full((32, 48, 3), 20 + 5 * i, np.uint8)
            picture[:, :16] //= 2
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
