"""What tests of real runs share: class folders of coloured videos, and a run that knows their colours."""

import av
import numpy as np
import pytest

import flaxvid
from flaxvid.data.clips.cut import ClipConfig
from flaxvid.tasks.supervised import SupervisedRecipe
from flaxvid.train.recipe import DataRecipe, ModelRecipe, OptimizerRecipe, Recipe

COLOURS = {"red": (220, 20, 20), "green": (20, 220, 20), "blue": (20, 20, 220), "white": (230, 230, 230)}


def write_videos(root, classes, count, seed):
    """Class folders of videos that are noise about one colour; `classes` names the colour of each folder."""
    rng = np.random.default_rng(seed)
    for folder, colour in classes.items():
        for number in range(count):
            path = root / folder / f"{number}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            with av.open(str(path), "w") as container:
                stream = container.add_stream("libx264", rate=25)
                stream.width = stream.height = 32
                stream.pix_fmt = "yuv420p"
                for _ in range(4):
                    noisy = np.clip(np.array(COLOURS[colour]) + rng.normal(0, 12, (32, 32, 3)), 0, 255)
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(noisy.astype(np.uint8), format="rgb24")))
                container.mux(stream.encode())
    return root


@pytest.fixture(scope="session")
def make_videos():
    return write_videos


@pytest.fixture(scope="session")
def coloured_videos(tmp_path_factory):
    """Three classes of eight videos each."""
    return write_videos(tmp_path_factory.mktemp("own"), {"red": "red", "green": "green", "blue": "blue"}, 8, 0)


@pytest.fixture(scope="session")
def colour_recipe(coloured_videos):
    """Learns the colours in seconds."""
    return Recipe(
        ModelRecipe(
            "tsm_resnet18",
            num_frames=2,
            image_size=32,
            dropout=0.0,
            options={"width": 8, "depths": (1,), "classifier_std": 0.1},
        ),
        DataRecipe("folder", str(coloured_videos), clips=ClipConfig(short="repeat")),
        SupervisedRecipe((2,)),
        OptimizerRecipe("adamw", 5e-3, schedule="constant"),
        batch_size=6,
        eval_batch_size=4,
        epochs=8,
        eval_frames=(2,),
    )


@pytest.fixture(scope="session")
def colour_run(colour_recipe, tmp_path_factory):
    """A run that knows its three colours; copy it to write into it."""
    folder = tmp_path_factory.mktemp("runs") / "own"
    (row,) = flaxvid.run(colour_recipe, folder)
    assert row["top1"] == 1
    return folder
