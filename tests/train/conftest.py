"""What tests of real runs share: class folders of coloured videos, and a run that knows their colours."""

import dataclasses
import subprocess

import jax
import numpy as np
import optax
import pytest

import flaxvid
from flaxvid.data.clips.cut import ClipConfig
from flaxvid.tasks.frame_flexible import FfnRecipe
from flaxvid.tasks.supervised import SupervisedRecipe
from flaxvid.train.checkpoint import Checkpoints
from flaxvid.train.recipe import DataRecipe, ModelRecipe, OptimizerRecipe, Recipe, to_json
from flaxvid.train.setup import make_model
from flaxvid.train.state import create_state

COLOURS = {"red": (220, 20, 20), "green": (20, 220, 20), "blue": (20, 20, 220), "white": (230, 230, 230)}


@pytest.fixture(scope="session")
def make_videos(encode_video):
    """Writes class folders of videos that are noise about one colour; `classes` names the colour of each folder."""

    def write(root, classes, count, seed):
        rng = np.random.default_rng(seed)
        for folder, colour in classes.items():
            for number in range(count):
                noisy = np.array(COLOURS[colour]) + rng.normal(0, 12, (4, 32, 32, 3))
                encode_video(root / folder / f"{number}.mp4", np.clip(noisy, 0, 255).astype(np.uint8))
        return root

    return write


@pytest.fixture(scope="session")
def coloured_videos(make_videos, tmp_path_factory):
    """Three classes of eight videos each."""
    return make_videos(tmp_path_factory.mktemp("own"), {name: name for name in ("red", "green", "blue")}, 8, 0)


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


@pytest.fixture(scope="session")
def write_run(tmp_path_factory):
    """Writes the folder of a frame-flexible run of two classes at step 3, with moving averages, as training leaves it.

    `change` makes the variables that are saved of those that training began with.
    """

    def write(change):
        recipe = Recipe(
            model=ModelRecipe("tsm_resnet18", image_size=32, num_frames=2, options={"width": 8, "depths": (1,)}),
            data=DataRecipe("folder", root="nowhere"),
            task=FfnRecipe(frames=(2, 4)),
        )
        variables = recipe.task.make(make_model(recipe, 2)).init(jax.random.key(0))
        state = create_state(variables, optax.sgd(0.1), ema=True)
        state = dataclasses.replace(state, variables=change(state.variables))
        folder = tmp_path_factory.mktemp("run")
        (folder / "recipe.json").write_text(to_json(recipe))
        with Checkpoints(folder / "checkpoints") as checkpoints:
            checkpoints.save(3, state)
        return folder

    return write


@pytest.fixture
def small_disk(tmp_path, request):
    """A file system of the size that the test gives as its parameter."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={request.param}", "tmpfs", folder]
    mount = subprocess.run(command, capture_output=True, text=True)
    if mount.returncode:  # a full disk cannot be made otherwise
        pytest.skip(f"no right to mount a small file system: {mount.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)
