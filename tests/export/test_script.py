"""`scripts/export.py`, and the scripts that take what it writes."""

import json

import numpy as np
import pytest

from flaxvid.models.registry import create_tiny
from flaxvid.train.network import Trained, save

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


CLASSES = ("jump", "run")


@pytest.fixture
def weights(random_variables, tmp_path):
    model = create_tiny("tsm_resnet18", num_classes=2)
    save(Trained(model, random_variables(model), classes=CLASSES), tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


@pytest.fixture
def videos(encode_video, tmp_path):
    """Two videos of each class, for training and for the test."""
    for seed, name in enumerate(
        f"{split}/{label}/{i}.mp4" for split in ("train", "test") for label in CLASSES for i in "ab"
    ):
        pictures = np.random.default_rng(seed).integers(0, 256, (8, 5, 6, 3), np.uint8).repeat(8, 1).repeat(8, 2)
        encode_video(tmp_path / "videos" / name, pictures)
    return tmp_path / "videos"


def test_the_script_writes_a_folder_that_others_take(call_script, weights, videos, capsys, tmp_path):
    out = tmp_path / "out"
    call_script("export.py", weights, out)
    said = capsys.readouterr().out
    assert all(name in said for name in ("4_frames.onnx", "4_frames.stablehlo", "in onnxruntime", "in jax"))

    answers, records = [], []
    for options in ((), ("--runtime", "onnxruntime")):
        with pytest.raises(SystemExit) as status:
            call_script(
                "predict.py", "--run", out, *options, "--json", "--budget-ms", 60000, videos / "test/jump/a.mp4"
            )
        assert status.value.code == 0
        line = capsys.readouterr().out.splitlines()[-1]
        answers.append({one["class"]: one["probability"] for one in json.loads(line)["top"]})
        results = tmp_path / f"results{len(records)}"
        call_script("evaluate.py", out, *options, "--data", "folder", "--root", videos, "--output", results)
        records.append(json.loads((results / "evaluation.json").read_text()))
    assert answers[1] == pytest.approx(answers[0], abs=1e-5)
    ours, theirs = (record["frames"][0] for record in records)
    assert [row["clips"] for row in (ours, theirs)] == [4, 4]
    assert theirs["confusion"] == ours["confusion"]
    assert theirs["milliseconds"] > 0
    assert "onnxruntime" in records[1]["device"]
    assert "onnxruntime" not in records[0]["device"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nowhere", "out"), "FileNotFoundError: expected a run's folder"),
        (("--frames", "0", "nowhere", "out"), "at least 1, got '0'"),
    ],
)
def test_a_wrong_command_is_one_line(call_script, capsys, words, said):
    with pytest.raises(SystemExit) as end:
        call_script("export.py", *words)
    assert said in str(end.value.code) + capsys.readouterr().err
