"""`scripts/export.py`, and the scripts that take what it writes."""

import json

import numpy as np
import pytest

from flaxvid.models.registry import create_tiny
from flaxvid.train.network import Trained, save

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture
def weights(random_variables, tmp_path):
    model = create_tiny("tsm_resnet18", num_classes=2)
    save(Trained(model, random_variables(model), classes=("jump", "run")), tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


def test_the_script_writes_a_folder_that_predict_takes(call_script, weights, capsys, encode_video, tmp_path):
    out = tmp_path / "out"
    call_script("export.py", weights, out)
    said = capsys.readouterr().out
    assert "4_frames.onnx" in said
    assert "4_frames.stablehlo" in said
    assert "in onnxruntime" in said
    pictures = np.random.default_rng(0).integers(0, 256, (8, 5, 6, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    video = encode_video(tmp_path / "a.mp4", pictures)
    answers = []
    for options in ((), ("--runtime", "onnxruntime"), ("--runtime", "onnxruntime", "--budget-ms", 60000)):
        with pytest.raises(SystemExit) as status:
            call_script("predict.py", "--run", out, *options, "--json", video)
        assert status.value.code == 0
        answers.append({one["class"]: one["probability"] for one in json.loads(capsys.readouterr().out)["top"]})
    assert answers[1] == pytest.approx(answers[0], abs=1e-5)
    assert answers[2] == answers[1]


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
