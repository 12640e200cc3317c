"""Several cameras from the command line to predictions: trained, tested with cameras missing, tabulated, refused."""

import json

import pytest

from flaxvid.evaluate.predictor import Predictor
from flaxvid.report.run import read_run
from flaxvid.train.recipe import DataRecipe, ModelRecipe, Recipe
from flaxvid.train.setup import clip_config, make_model, open_data
from flaxvid.train.trained import load

CAMERAS = ("front", "left", "right")
TINY = {
    "data.motion.size": 32,
    "data.motion.num_frames": 8,
    "data.motion.train": 16,
    "data.motion.validation": 1,
    "data.motion.test": 12,
    "model.image_size": 32,
    "model.num_frames": 4,
    "model.options.backbone_options.width": 8,
    "model.options.backbone_options.depths": "(1,)",
    "task.frames": "(4,)",
    "eval_frames": "(4,)",
    "batch_size": 8,
    "eval_batch_size": 8,
    "epochs": 1,
    "log_every": 1,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cameras")


@pytest.fixture(scope="module")
def reproduce(folder):
    """The script that makes the comparison, with one fusion and one seed."""
    overrides = [f"--set={name}={value}" for name, value in {**TINY, "data.root": folder / "data"}.items()]
    return "reproduce/cameras.py", "--runs", "attention", "--seeds=0", "--jobs=1", f"--folder={folder}", *overrides


@pytest.fixture(scope="module")
def table(folder, reproduce, start_script):
    script, *arguments = reproduce
    process = start_script(f"scripts/{script}", *arguments)
    out, err = process.communicate(900)
    assert process.returncode == 0, err[-3000:] + (folder / "attention-seed0" / "log.txt").read_text()[-3000:]
    return out


@pytest.fixture
def trained(folder, table):
    return load(folder / "attention-seed0")


def test_the_table_has_every_choice_of_cameras(folder, reproduce, table, call_script, capsys):
    scores = json.loads((folder / "attention-seed0" / "cameras.json").read_text())
    assert len(scores) == 7
    assert all((value * 12).is_integer() for value in scores.values())
    assert scores["front left right"] == read_run(folder / "attention-seed0").any_frame[0]["top1"]
    assert "cross-view attention (ts_cva)" in table
    assert table.strip().endswith((folder / "table.md").read_text().strip())
    (folder / "attention-seed0" / "cameras.json").write_text(json.dumps({**scores, "left": 0.125}))
    call_script(*reproduce)
    assert "12.50" in capsys.readouterr().out  # nothing is measured twice


def test_a_run_knows_its_cameras(trained):
    assert (trained.model.cameras, trained.recipe.data.cameras) == (CAMERAS, CAMERAS)
    predictor = Predictor(trained.model, trained.select, trained.classes, clip_config(trained.recipe, (4,)))
    scene = open_data(trained.recipe.data, "test")[5]["video"]
    for cameras in (CAMERAS, ("left", "right")):
        (prediction,) = predictor.predict({camera: scene[camera] for camera in cameras}, 4)
        assert prediction.probabilities[""].shape == (8,)
        assert prediction.probabilities[""].sum() == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match="knows the cameras front, left, right, got rear"):
        next(predictor.predict({"rear": scene["left"]}, 4))
    with pytest.raises(ValueError, match="takes a dict of the cameras front, left, right"):
        next(predictor.predict(scene["left"], 4))
    with pytest.raises(ValueError, match="take the scene whole"):
        next(predictor.predict(scene, 4, window=1.0))


def test_evaluation_with_a_camera_missing(folder, table, call_script, tmp_path):
    run = folder / "attention-seed0"
    call_script("evaluate.py", run, "--cameras", "front", "right", "--output", tmp_path)
    record = json.loads((tmp_path / "evaluation.json").read_text())
    assert record["data"]["name"] == "motion from front, right"
    assert record["frames"][0]["top1"] == json.loads((run / "cameras.json").read_text())["front right"]


def test_the_strips_show_every_camera(folder, table):
    from matplotlib.image import imread

    assert imread(folder / "attention-seed0" / "strips" / "00.jpg").shape[0] == 3 * 96 + 2 * 2


def test_network_and_data_must_agree():
    recipe = Recipe(ModelRecipe("tsm_resnet18"), DataRecipe(cameras=CAMERAS))
    with pytest.raises(ValueError, match=r"tsm_resnet18 takes one video, got data.cameras=\('front', .*such as ts_cva"):
        make_model(recipe, 8)
    with pytest.raises(ValueError, match=r"ts_cva takes several cameras, and data.cameras is empty: name them"):
        make_model(Recipe(ModelRecipe("ts_cva")), 8)
    model = make_model(Recipe(ModelRecipe("ts_cva"), DataRecipe(cameras=("top", "side"))), 8)
    assert model.cameras == ("top", "side")


def test_a_camera_alone_is_an_ordinary_data_set(folder, table):
    settings = {name.rpartition(".")[2]: value for name, value in TINY.items() if name.startswith("data.motion")}
    data = DataRecipe(root=str(folder / "data"), motion={**settings, "camera": "left"})
    source = open_data(data, "test")
    assert (type(source[0]["video"]), len(source.classes)) == (bytes, 8)
    assert make_model(Recipe(ModelRecipe("tsm_resnet18"), data), 8).cameras == ()
