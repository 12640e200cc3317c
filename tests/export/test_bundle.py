"""Folders of exports: what is in them, and that they answer as the network does."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import flaxvid
from flaxvid.evaluate.runtimes import open_program
from flaxvid.models.registry import create_tiny
from flaxvid.train.bundle import is_bundle

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

CLASSES = ("jump", "run", "walk")


@pytest.fixture(scope="module")
def trained(random_variables, randomise):
    flexible = flaxvid.FrameFlexible(create_tiny("tsm_resnet18", num_classes=3), (2, 4))
    variables = randomise(flexible.specialise(random_variables(flexible.model)))
    return flaxvid.Trained(flexible, variables, classes=CLASSES)


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports") / "bundle"
    flaxvid.export_onnx(trained, folder)
    return folder


@pytest.fixture(scope="module")
def video(encode_video, tmp_path_factory):
    pictures = np.random.default_rng(0).integers(0, 256, (12, 5, 6, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    return encode_video(tmp_path_factory.mktemp("videos") / "a.mp4", pictures)


def test_the_folder_says_what_is_in_it(folder):
    names = {path.name for path in folder.iterdir()}
    assert names == {"2_frames.onnx", "4_frames.onnx", "weights.safetensors", "bundle.json"}
    description = json.loads((folder / "bundle.json").read_text())
    assert description["network"] == "tsm_resnet18"
    assert description["classes"] == list(CLASSES)
    assert description["frames"] == [2, 4]
    assert description["clips"] | {"short_side": 37, "centre_crop": 32, "clips": 1} == description["clips"]
    assert description["accuracy"] is None
    assert [program["file"] for program in description["programs"]] == ["2_frames.onnx", "4_frames.onnx"]
    assert all(0 < program["difference"]["onnxruntime"] < 1e-4 for program in description["programs"])


def test_every_runtime_gives_the_same_answers(trained, folder, video):
    mine = flaxvid.load(folder)
    theirs = flaxvid.load(folder, runtime="onnxruntime")
    assert (mine.classes, mine.frames, theirs.frames, theirs.runtime) == (CLASSES, (2, 4), (2, 4), "onnxruntime")
    for frames in (2, 4):
        wanted = trained.predict(video, frames)
        for network in (mine, theirs):
            given = network.predict(video, frames)
            assert given["frames"] == frames
            assert list(given["probabilities"]) == list(wanted["probabilities"])
            for name, probability in wanted["probabilities"].items():
                assert given["probabilities"][name] == pytest.approx(probability, abs=1e-5)
    assert theirs.predictor.milliseconds(4) > 0


def test_what_a_runtime_cannot_do_is_one_error(folder, video, tmp_path):
    network = flaxvid.load(folder, runtime="onnxruntime")
    with pytest.raises(ValueError, match="expected a frame count that was exported, 2, 4, got 3"):
        network.predict(video, 3)
    with pytest.raises(ValueError, match='an exported program gives no features: use runtime="jax"'):
        network.features(video)
    with pytest.raises(
        ValueError, match=r"expected video uint8 \(batch, 2, 32, 32, 3\), got video uint8 \(1, 2, 33, 32, 3\)"
    ):
        open_program(folder / "2_frames.onnx", "onnxruntime")(np.zeros((1, 2, 33, 32, 3), np.uint8))
    with pytest.raises(ValueError, match="runtime: expected onnxruntime or openvino, got 'torch'"):
        open_program(folder / "2_frames.onnx", "torch")
    with pytest.raises(FileNotFoundError, match="expected an ONNX file, got none at"):
        open_program(folder / "3_frames.onnx", "onnxruntime")
    with pytest.raises(ValueError, match="expected a folder with ONNX programs for onnxruntime or openvino"):
        flaxvid.load(folder, runtime="torch")
    file = shutil.copy(folder / "weights.safetensors", tmp_path / "tiny.safetensors")
    with pytest.raises(ValueError, match=r"got .* for onnxruntime: write one by scripts/export\.py"):
        flaxvid.load(file, runtime="onnxruntime")


def test_a_folder_holds_one_network(trained, folder, random_variables, tmp_path):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    other = flaxvid.Trained(trained.model, random_variables(trained.model, seed=5), classes=CLASSES)
    with pytest.raises(
        ValueError, match=r"expected a folder for this network, got .*, which holds another: give another"
    ):
        flaxvid.export_onnx(other, folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    flaxvid.export_onnx(trained, copy, frames=(3,))
    assert flaxvid.load(copy, runtime="onnxruntime").frames == (2, 3, 4)
    programs = json.loads((copy / "bundle.json").read_text())["programs"]
    assert [program["frames"] for program in programs] == [2, 3, 4]


def test_the_folder_of_a_run_stays_one(trained, tmp_path):
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(ValueError, match="expected a folder of its own for exports, got the run"):
        flaxvid.export_onnx(trained, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.json"]
    flaxvid.save(trained, tmp_path / "weights.safetensors")
    assert not is_bundle(tmp_path)


def test_a_model_made_by_hand_has_programs_but_no_weights(random_variables, tmp_path):
    model = create_tiny("x3d_s").clone(zoo_name="", overrides={})
    (file,) = flaxvid.export_onnx(flaxvid.Trained(model, random_variables(model)), tmp_path).values()
    assert sorted(path.name for path in tmp_path.iterdir()) == [file.name, "bundle.json"]
    assert json.loads((tmp_path / "bundle.json").read_text())["weights"] is None
