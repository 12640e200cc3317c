"""Runs that an older version stored (commit a628795): they load, answer as they did, and go on or say why not."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import flaxvid
from flaxvid.report.compare import write_comparison
from flaxvid.tasks.frame_flexible import FfnRecipe
from flaxvid.tasks.supervised import SupervisedRecipe
from flaxvid.train.recipe import read_recipe
from flaxvid.train.trained import load

STORED = Path(__file__).parents[1] / "stored"
NAMES = sorted(path.name.partition(".")[0] for path in STORED.glob("*.tar.xz"))


@pytest.fixture
def stored(tmp_path):
    """Unpacks a stored run."""

    def unpack(name):
        shutil.unpack_archive(STORED / f"{name}.tar.xz", tmp_path / name, filter="data")
        return tmp_path / name

    return unpack


def assert_answers(folder, expected_of):
    """The logits of two random videos of 2 and of 4 frames are those that the older version stored with a run."""
    trained = load(folder)
    expected = json.loads((expected_of / "logits.json").read_text())
    for n in (2, 4):
        video = np.random.default_rng(n).integers(0, 256, (2, n, 32, 32, 3), np.uint8)
        if trained.model.cameras:
            video = {camera: np.roll(video, shift, 1) for shift, camera in enumerate(trained.model.cameras)}
        logits = trained.model.apply(trained.select(n), video)
        jax.tree.map(
            lambda new, old: np.testing.assert_allclose(new, np.array(old), atol=2e-6), logits, expected[str(n)]
        )


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_run_answers_as_it_did(stored, name):
    folder = stored(name)
    assert_answers(folder, folder)


def test_fields_are_read_under_their_new_names(stored):
    recipe = read_recipe(stored("ffn"))
    assert recipe.task == FfnRecipe((2, 4))
    assert (recipe.data.clips.test_size, recipe.data.clips.scales) == (32, (1.0, 0.9))
    recipe = read_recipe(stored("targets"))
    assert recipe.task == SupervisedRecipe((2, 4), label_smoothing=0.1, target_weights={"actor": 0.5})
    clips = recipe.data.clips
    assert (clips.sampling, clips.interval, clips.crops, clips.test_size) == ("dense", 2, 3, None)
    recipe = read_recipe(stored("cameras"))
    assert recipe.data.cameras == ("front", "left", "right")
    assert recipe.model.options["camera_dropout"] == 0.2
    recipe = read_recipe(stored("frozen"))
    assert recipe.freeze == (r"body/.*norm\w*",)
    assert "freeze_norms" not in recipe.model.options


def test_stored_runs_are_compared_on_one_page(stored, tmp_path):
    finished = ["ffn", "targets", "cameras"]
    page = write_comparison([stored(name) for name in finished], tmp_path / "page.html").read_text()
    assert all(name in page for name in finished)


def test_a_stopped_run_goes_on_to_where_the_whole_one_came(stored, motion_data):
    """Its videos lie elsewhere now, and are decoded by another number of threads."""
    folder, whole = stored("ffn_stopped"), stored("ffn")
    recipe = read_recipe(folder)
    recipe.data.root, recipe.data.num_threads = str(motion_data), 1
    rows = flaxvid.run(recipe, folder)
    assert [row["frames"] for row in rows] == [2, 3, 4]
    assert_answers(folder, whole)


def test_a_stopped_run_whose_option_is_gone_says_how_to_go_on(stored, motion_data):
    folder = stored("frozen")
    recipe = read_recipe(folder)
    recipe.data.root = str(motion_data)
    with pytest.raises(ValueError, match=r"begun by an older version with model\.options\.freeze_norms, ") as error:
        flaxvid.run(recipe, folder)
    assert f"--config.model.weights={folder}" in str(error.value)
    assert "\n" not in str(error.value)
