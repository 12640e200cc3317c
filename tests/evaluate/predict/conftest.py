import numpy as np
import pytest

from flaxvid.data.clips.cut import ClipConfig
from flaxvid.evaluate.predictor import Predictor
from flaxvid.models.registry import create_tiny
from flaxvid.weights.native import WeightsInfo, save_variables

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
def videos(encode_video, tmp_path_factory):
    """Real h264 videos: a.mp4 and a.avi of 40 frames at 10 a second, deep/b.mp4 of 3; and a file that is none."""
    folder = tmp_path_factory.mktemp("videos")
    pictures = np.broadcast_to(20 + 5 * np.arange(40, dtype=np.uint8)[:, None, None, None], (40, 32, 48, 3)).copy()
    pictures[:, :, :16] //= 2
    for name, count in (("a.mp4", 40), ("a.avi", 40), ("deep/b.mp4", 3)):
        encode_video(folder / name, pictures[:count], rate=10, crf="1", preset="ultrafast")
    (folder / "notes.txt").write_text("no video")
    return folder


@pytest.fixture(scope="session")
def weights(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    overrides = {"num_classes": 3, "image_size": 32, "width": 8, "depths": (1, 1, 1, 1), "num_frames": 4}
    info = WeightsInfo("tsm_resnet18", overrides, classes=CLASSES)
    save_variables(path, network[1], info)
    return path


@pytest.fixture
def predict(call_script, capsys, weights):
    """Runs the script and returns its exit status, stdout and stderr."""

    def predict(*arguments, run=weights):
        with pytest.raises(SystemExit) as status:
            call_script("predict.py", "--run", run, *arguments)
        return status.value.code, *capsys.readouterr()

    return predict
