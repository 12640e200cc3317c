"""What users do wrong: one clear message each, before anything is written or trained."""

import re
import runpy
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxvid
from flaxvid.data.motion.build import MotionConfig, build_motion, motion_source
from flaxvid.tasks.frame_flexible import FfnRecipe
from flaxvid.tasks.supervised import SupervisedRecipe
from flaxvid.train.checkpoint import Checkpoints, restore_variables
from flaxvid.train.recipe import DataRecipe, ModelRecipe, Recipe
from flaxvid.train.state import TrainState

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def videos(motion_data, tmp_path_factory):
    """Class folders of real videos of 16 frames: two classes, four videos each."""
    root = tmp_path_factory.mktemp("videos")
    config = MotionConfig(size=32, num_frames=16, train=24, validation=8, test=8)
    source = motion_source(build_motion(motion_data, config), "train")
    for index in range(8):
        path = root / f"class{index % 2}" / f"video{index}.mp4"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(source[index]["video"])
    return root


@pytest.fixture
def recipe(videos):
    """A tiny recipe over `videos`."""
    return Recipe(
        model=ModelRecipe("tsm_resnet18", image_size=32, num_frames=4, options={"width": 8, "depths": (1,)}),
        data=DataRecipe("folder", root=str(videos), num_threads=2),
        task=SupervisedRecipe((4,)),
        batch_size=4,
        eval_batch_size=4,
        eval_frames=(4,),
        epochs=1,
    )


def test_a_device_without_enough_memory(recipe, tmp_path, monkeypatch):
    """The error is XLA's own."""
    petabyte = jax.jit(lambda: jnp.ones((2**24, 2**24)))
    monkeypatch.setattr("flaxvid.train.loop.train", lambda *_: jax.block_until_ready(petabyte()))
    message = "expected work that fits into the memory of cpu, got RESOURCE_EXHAUSTED: .*: lower batch_size or eval_b"
    with pytest.raises(ValueError, match=message):
        flaxvid.run(recipe, tmp_path / "run")


def refused(recipe, workdir, error=ValueError):
    """The message of a recipe that is refused with nothing written."""
    with pytest.raises(error) as wrong:
        flaxvid.run(recipe, workdir)
    assert not workdir.exists()
    return str(wrong.value)


def test_an_unknown_model_names_the_nearest(recipe, tmp_path):
    recipe.model.name = "tsm_resnet5"
    assert "did you mean tsm_resnet50" in refused(recipe, tmp_path / "run")


def test_an_unknown_override_names_the_valid_ones(recipe, tmp_path):
    recipe.model.options = {"widht": 8}
    message = refused(recipe, tmp_path / "run")
    assert message.startswith("tsm_resnet18 has no option widht: valid ones are ")
    assert "width" in message


def test_slips_show_before_the_data_set_is_made(tmp_path, monkeypatch):
    monkeypatch.setenv("FLAXVID_DATA", str(tmp_path / "data"))
    for recipe in (
        Recipe(model=ModelRecipe("tsm_resnet5")),
        Recipe(task=FfnRecipe(alteration="norml")),
        Recipe(data=DataRecipe(missing="kept")),
    ):
        refused(recipe, tmp_path / "run")
    assert not (tmp_path / "data").exists()


def test_a_parameter_group_of_nothing_shows_what_there_is(recipe, tmp_path):
    recipe.optimizer.rules = ((r".*norm.*", 1.0, 0.0), ("body/.*", 0.1, 1.0), ("params/hed/.*", 5.0, 1.0))
    message = refused(recipe, tmp_path / "run")
    assert message.startswith("optimizer.rules: 'body/.*', 'params/hed/.*' matches no parameter, neither as ")
    assert "params/stem/conv1/kernel" in message


def test_an_unknown_data_set_names_the_known_ones(recipe, tmp_path):
    recipe.data.name = "ucf100"
    assert "ucf101" in refused(recipe, tmp_path / "run")


def test_an_unknown_field_of_motion_names_the_valid_ones(recipe, tmp_path):
    recipe.data = DataRecipe("motion", motion={"frames": 8})
    assert "data.motion has no field frames: valid ones are size, num_frames" in refused(recipe, tmp_path / "run")


def test_an_empty_folder_shows_the_layout(recipe, tmp_path):
    (tmp_path / "empty").mkdir()
    recipe.data.root = str(tmp_path / "empty")
    message = refused(recipe, tmp_path / "run")
    assert f"{tmp_path / 'empty'}/<class>/<video>.mp4" in message
    recipe.data.root = str(tmp_path / "nowhere")
    assert "got no folder" in refused(recipe, tmp_path / "run", FileNotFoundError)


def test_labels_beyond_the_classes_name_the_video(recipe, videos, tmp_path):
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "classes.txt").write_text("one\ntwo\n")
    for split in ("train", "test"):
        (lists / f"{split}.txt").write_text("class0/video0.mp4 0\nclass1/video1.mp4 5\n")
    recipe.data = DataRecipe("list", root=str(videos), lists=str(lists))
    message = refused(recipe, tmp_path / "run")
    assert "expected labels from 0 to 1 (2 classes), got 5 for class1/video1.mp4" in message


def test_fewer_videos_than_a_batch(recipe, tmp_path):
    recipe.batch_size = 64
    assert "expected at least one batch of videos, got 6" in refused(recipe, tmp_path / "run")


def test_a_video_shorter_than_the_clip_is_named_through_grains_threads(recipe, tmp_path):
    """The error comes out of a reading thread; a mended recipe then starts in the same folder."""
    recipe.task.frames = (17,)
    with pytest.raises(ValueError, match=r"class\d/video\d\.mp4: clip shorter than the frame count") as error:
        flaxvid.run(recipe, tmp_path / "run")
    assert "expected at least 17 frames, got 16: train with fewer frames" in str(error.value)
    assert "\n" not in str(error.value)
    recipe.task.frames = (4,)
    assert [row["frames"] for row in flaxvid.run(recipe, tmp_path / "run")] == [4]


def test_so_is_one_in_a_worker_process(recipe, tmp_path):
    recipe.task.frames, recipe.data.num_workers = (17,), 1
    with pytest.raises(ValueError, match=r"class\d/video\d\.mp4: clip shorter than the frame count"):
        flaxvid.run(recipe, tmp_path / "run")


def save(folder, variables):
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(1, TrainState(np.zeros((), np.int32), variables, ()))


def test_a_checkpoint_of_another_model_is_refused(recipe, tmp_path, random_variables):
    save(tmp_path / "other", random_variables(flaxvid.create_model("tsm_resnet18", width=16, depths=(1,))))
    recipe.model.weights = str(tmp_path / "other")
    message = refused(recipe, tmp_path / "run")
    assert message.startswith("these weights are of another architecture: ")
    assert "\n" not in message


def test_weights_that_are_not_there(recipe, tmp_path):
    recipe.model.weights = str(tmp_path / "nothing.pth")
    assert "nothing.pth" in refused(recipe, tmp_path / "run", (ValueError, OSError))
    (tmp_path / "folder").mkdir()
    recipe.model.weights = str(tmp_path / "folder")
    assert "expected checkpoints in" in refused(recipe, tmp_path / "run", FileNotFoundError)


@pytest.mark.parametrize("private_norms", [True, False])
def test_a_head_of_another_number_of_classes_is_said(recipe, tmp_path, random_variables, capsys, private_norms):
    """Of a frame-flexible run the longest count's variables are taken, with its norms shared or not."""
    model = flaxvid.create_model("tsm_resnet18", width=8, depths=(1,), num_classes=9)
    plain = random_variables(model)
    flexible = flaxvid.FrameFlexible(model, (2, 4), private_norms=private_norms)
    save(tmp_path / "start", flexible.specialise(plain))
    recipe.model.weights = str(tmp_path / "start")
    recipe.optimizer.learning_rate = 0.0
    recipe.epochs = 1
    flaxvid.run(recipe, tmp_path / "run")
    assert "the head has another number of classes and starts anew" in capsys.readouterr().out
    params = restore_variables(tmp_path / "run")["params"]
    np.testing.assert_array_equal(params["stem"]["conv1"]["kernel"], plain["params"]["stem"]["conv1"]["kernel"])
    assert params["head"]["classifier"]["bias"].shape == (2,)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_what_was_saved(recipe, tmp_path):
    recipe.optimizer.learning_rate, recipe.optimizer.clip_norm, recipe.epochs = 1e30, 0.0, 4
    recipe.log_every = 3  # noticed later than it happened
    with pytest.raises(FloatingPointError, match="lower the learning rate or clip the gradient") as wrong:
        flaxvid.run(recipe, tmp_path / "run")
    message = str(wrong.value)
    assert re.match(
        r"the (loss|gradient norm) is (nan|inf) at step \d, of the clips class\d/video\d.mp4, class", message
    )
    (saved,) = re.findall(r"the last checkpoint is of step (\d)|nothing was saved yet", message)
    leaves = jax.tree.leaves(restore_variables(tmp_path / "run")) if saved else []
    assert all(np.isfinite(leaf).all() for leaf in leaves)


def test_broken_videos_are_replaced_and_named_and_too_many_stop_the_run(recipe, videos, tmp_path, capsys):
    root, paths = tmp_path / "listed", sorted(videos.rglob("*.mp4"))
    for path in (*paths, root / "noise/b.mp4"):
        copy = root / "videos" / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes() if path.exists() else np.random.default_rng(0).bytes(3000))
    names = [*(path.name for path in paths), "b.mp4", "gone.mp4"]
    for split in ("train", "test"):
        lines = (f"videos/{name} {number % 2}" for number, name in enumerate(names))
        (root / f"{split}.txt").write_text("\n".join(lines))
    recipe.data.name, recipe.data.root, recipe.batch_size = "list", str(root), 10
    assert "1 are missing (videos/gone.mp4)" in refused(recipe, tmp_path / "run", FileNotFoundError)
    recipe.data.missing = "keep"
    with pytest.raises(ValueError, match="at most 10% broken videos, got 2 among the first 10 of 10") as stopped:
        flaxvid.run(recipe, tmp_path / "run")
    recipe.data.max_broken = 0.2
    (row,) = flaxvid.run(recipe, tmp_path / "run")
    out = capsys.readouterr().out
    assert "2 broken videos were replaced, of 10 in training" in out
    for name in ("b.mp4: expected a video", "gone.mp4: no such file"):
        assert name in out
        assert name in str(stopped.value)
    assert row["clips"] == 8


@pytest.fixture(scope="module")
def slips(start_training, tmp_path_factory):
    """Wrong commands, started side by side: (code, output, errors) of each."""
    folder = tmp_path_factory.mktemp("slips")
    run, slip, other = folder / "run", folder / "slip.py", folder / "other.py"
    slip.write_text("def get_config(:\n")
    other.write_text("def get_config():\n    return {}\n")
    commands = {
        "file": ("configs/fn.py",),
        "recipe": ("configs/ffn.py", "--config.model.name=tsm_resnet5"),
        "python": (str(slip),),
        "type": (str(other),),
    }
    started = {
        name: start_training(*flags, "--workdir", str(run), config=config, tiny=False)
        for name, (config, *flags) in commands.items()
    }
    results = {name: (*process.communicate(timeout=120), process.returncode) for name, process in started.items()}
    assert not run.exists()
    return results


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("file", "No such file or directory: 'configs/fn.py'"),
        ("recipe", "unknown model 'tsm_resnet5': did you mean tsm_resnet50"),
        ("python", "got SyntaxError: invalid syntax (slip.py, line 1)"),
        ("type", "expected get_config() to return a Recipe as in configs/tsm.py, got dict"),
    ],
)
def test_the_command_says_it_in_one_line(slips, name, message):
    out, err, code = slips[name]
    assert code not in (0, None)
    assert out == ""
    assert message in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "command",
    [
        ("evaluate.py", "RUN"),
        ("predict.py", "--run", "RUN", "clip.mp4"),
        ("features.py", "--run", "RUN", "clip.mp4", "--out", "features.npz"),
        ("export.py", "RUN", "folder"),
        ("quantise.py", "RUN", "int8.safetensors"),
    ],
)
def test_every_script_says_that_memory_is_short(command, monkeypatch):
    """The error is XLA's own."""
    name, *arguments = command
    main = runpy.run_path(str(ROOT / "scripts" / name))["main"]
    petabyte = jax.jit(lambda: jnp.ones((2**24, 2**24)))
    monkeypatch.setitem(main.__globals__, "run", lambda _: jax.block_until_ready(petabyte()))
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with pytest.raises(SystemExit, match=r"^ValueError: expected work .* RESOURCE_EXHAUSTED: .*: lower --"):
        main()
