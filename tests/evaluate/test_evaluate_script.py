import dataclasses
import json

import numpy as np
import pytest
from matplotlib.image import imsave

from flaxvid.train import testing
from flaxvid.train.setup import clip_config
from flaxvid.train.step import enable_compilation_cache
from flaxvid.train.testing import adapt, choose_data, open_test
from flaxvid.train.trained import load
from flaxvid.weights.native import WeightsInfo, save_variables


@pytest.fixture(scope="module")
def weights(network, tmp_path_factory):
    _, variables = network
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    overrides = {"num_classes": 5, "image_size": 32, "width": 8, "depths": (1, 1, 1, 1), "num_frames": 4}
    save_variables(path, variables, WeightsInfo("tsm_resnet18", overrides))
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A list of eight videos (folders of images) of five classes, of which one is damaged."""
    root = tmp_path_factory.mktemp("data")
    for number in range(8):
        (root / f"v{number}").mkdir()
        for frame in range(4):
            picture = np.random.default_rng(9 * number + frame).integers(0, 256, (40, 48, 3), np.uint8)
            imsave(root / f"v{number}" / f"{frame}.png", picture)
    (root / "v3" / "1.png").write_bytes(b"no image")
    (root / "test.txt").write_text("".join(f"v{number} {number % 5}\n" for number in range(8)))
    return root


def test_a_weights_file_on_a_list(call_script, capsys, weights, root, tmp_path):
    enable_compilation_cache()
    call_script("evaluate.py", weights, "--data", "list", "--root", root, "--frames", 4, 2, "--batch-size", 4,
        "--output", tmp_path / "out")  # fmt: skip
    out = capsys.readouterr().out
    assert "7 of 8 of list test evaluated, 0 missing, 1 unreadable" in out
    assert "unreadable: " in out
    assert [line.split("|")[1].strip() for line in out.splitlines()[2:4]] == ["2", "4"]
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert record["protocol"] == {"name": "the recipe's", "views": "1 clip x 1 crop", "size": 32}
    assert all(row["clips"] == 7 and row["milliseconds"] > 0 and row["gflops"] > 0 for row in record["frames"])
    assert (tmp_path / "out" / "index.html").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "add --data NAME --root FOLDER"),
        (["--data", "list"], "data.root is empty"),
        (["--data", "list", "--root", "ROOT", "--limit", "9"], "expected 1 to 8 videos of list test, got 9"),
        (["--data", "ucf101", "--root", "ROOT"], "classInd.txt"),
    ],
)
def test_a_slip_is_one_line(call_script, weights, root, arguments, message):
    arguments = [str(root) if argument == "ROOT" else argument for argument in arguments]
    with pytest.raises(SystemExit, match=message):
        call_script("evaluate.py", weights, *arguments)


def test_another_number_of_classes_is_refused(call_script, weights, root, tmp_path):
    (tmp_path / "test.txt").write_text("v0 0\nv1 1\n")
    with pytest.raises(SystemExit, match=r"expected videos of the network's 5 classes .* got 2 classes"):
        call_script("evaluate.py", weights, "--data", "list", "--root", root, "--lists", tmp_path)


@pytest.mark.parametrize("way", ["adabn", "tent"])
def test_it_adapts_to_the_videos_first(call_script, capsys, weights, root, tmp_path, way):
    outputs = []
    for name, flags in (("plain", []), ("adapted", ["--adapt", way]), ("again", ["--adapt", way])):
        call_script("evaluate.py", weights, "--data", "list", "--root", root, "--frames", 4, "--batch-size", 4,
            "--output", tmp_path / name, *flags)  # fmt: skip
        record = json.loads((tmp_path / name / "evaluation.json").read_text())
        outputs.append((record["protocol"]["name"], record["frames"][0]["calibration_error"]))
    assert outputs[0][0] == "the recipe's"
    assert outputs[1][0] == f"the recipe's, adapted to its videos by {way}"
    assert outputs[0][1] != outputs[1][1] == outputs[2][1]
    assert "7 of 8 of list test evaluated" in capsys.readouterr().out


def test_adaptation_sees_nearly_all_videos(weights, root, monkeypatch):
    """Eight videos, at most five in a batch: two batches of four, not one of five."""
    monkeypatch.setitem(testing.ADAPTATIONS, "count", lambda model, variables, clips: [len(own) for own in clips])
    trained = load(weights)
    source = open_test(trained, choose_data(trained.recipe.data, "list", {"root": str(root)}), {})
    assert adapt(trained, source, clip_config(trained.recipe, (4,)), "count", 5) == {4: [4, 4]}
    assert adapt(trained, source, clip_config(trained.recipe, (4,)), "count", 3) == {4: [2] * 4}
    with pytest.raises(ValueError, match="count changes the weights of a network, got programs in onnxruntime: use"):
        adapt(dataclasses.replace(trained, runtime="onnxruntime"), source, clip_config(trained.recipe, (4,)), "count")
