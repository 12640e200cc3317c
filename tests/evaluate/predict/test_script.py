import json
import shutil

import pytest
from safetensors.numpy import save_file

from flaxvid.models.registry import create_model, get_spec
from flaxvid.weights.known import KNOWN, KnownFile, class_names
from flaxvid.weights.native import WeightsInfo, save_variables
from flaxvid.weights.torch import to_torch


def test_lines_for_people(predict, videos):
    code, out, err = predict(videos / "a.mp4", videos / "deep", videos / "none.mp4", "--top", 2)
    lines = out.splitlines()
    assert code == 0
    assert [line.split()[0] for line in lines] == [str(videos / "a.mp4"), str(videos / "deep" / "b.mp4")]
    assert all(len(line.split()) == 5 for line in lines)
    assert "none.mp4: no such file" in err
    assert "2 of 3 videos read, 1 unreadable, 4 frames a clip" in err


def test_json_lines_by_windows(predict, videos):
    code, out, _ = predict(videos / "a.mp4", "--json", "--window", 2, "--frames", 3, "--top", 9)
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [(line["start"], line["end"]) for line in lines] == [(0, 2), (2, 4)]
    for line in lines:
        assert (line["video"], line["frames"]) == (str(videos / "a.mp4"), 3)
        assert {answer["class"] for answer in line["top"]} == {"first", "second", "third"}
        assert sum(answer["probability"] for answer in line["top"]) == pytest.approx(1, abs=1e-5)


def test_clock_times(predict, videos):
    _, out, _ = predict(videos / "a.mp4", "--window", 3)
    assert "0:00:00.0 - 0:00:03.0" in out
    assert "0:00:03.0 - 0:00:04.0" in out


def test_a_budget_picks_the_frame_count(predict, videos):
    code, _, err = predict(videos / "a.mp4", "--budget-ms", 60_000, "--frames", 2, 3)
    assert code == 0
    assert "3 frames a clip for 60000 ms (measured, without decoding: 3 frames" in err
    code, *_ = predict(videos / "a.mp4", "--budget-ms", 1e-6, "--frames", 2, 3)
    assert "expected a frame count of 2, 3 within 1e-06 ms" in code


def test_the_status_says_whether_anything_was_read(predict, videos, tmp_path):
    (tmp_path / "empty.mp4").touch()
    code, out, err = predict(tmp_path)
    assert (code, out) == (1, "")
    assert "0 of 1 videos read, 1 unreadable" in err
    code, *_ = predict(videos, "--frames", 2, 3)
    assert "several are for --budget-ms" in code
    code, *_ = predict(f"{tmp_path}/*.webm")
    assert "expected videos" in code


def test_scenes_of_several_cameras(predict, videos, random_variables, tmp_path):
    overrides = {
        "backbone_options": {"width": 8, "depths": (1,)},
        "backbone": "tsm_resnet18",
        "cameras": ("front", "left"),
    }
    overrides |= {"num_classes": 3, "image_size": 32, "num_frames": 4}
    weights, scenes = tmp_path / "tiny.safetensors", tmp_path / "scenes"
    info = WeightsInfo("ts_cva", overrides, classes=("first", "second", "third"))
    save_variables(weights, random_variables(create_model("ts_cva", **overrides)), info)
    for camera, name in (("front", "a.mp4"), ("left", "a.mp4"), ("left", "b.mp4")):
        (scenes / camera / "jump").mkdir(parents=True, exist_ok=True)
        shutil.copy(videos / "a.mp4", scenes / camera / "jump" / name)
    code, out, err = predict(scenes, "--json", run=weights)
    both, one = map(json.loads, out.splitlines())
    assert code == 0
    assert (both["video"], one["video"]) == (str(scenes / "jump/a"), str(scenes / "jump/b"))
    assert both["top"] != one["top"]
    assert "2 of 2 videos read" in err
    assert "takes a scene whole" in predict(scenes, "--window", 2, run=weights)[0]
    assert "a folder of videos for each camera in" in predict(scenes / "front", run=weights)[0]


def test_published_weights_by_name(call_script, capsys, videos, tmp_path, monkeypatch, random_variables):
    """`--model slow_r50 --weights ORIGIN/DATA clip.mp4` needs no run, and answers with the origin's class names."""
    tiny = {option: value for option, value in get_spec("slow_r50").tiny.items() if option != "num_classes"}
    name = "slow_r50/test/kinetics400"
    known = KnownFile("https://example.org/slow.safetensors", classes="kinetics400", interval=2, options=tiny)
    monkeypatch.setitem(KNOWN, name, known)
    monkeypatch.setenv("FLAXVID_CACHE", str(tmp_path))
    file = tmp_path / name / "slow.safetensors"
    file.parent.mkdir(parents=True)
    model = create_model("slow_r50", **tiny)
    save_file(to_torch("slow_r50", random_variables(model)), file)
    for words in (("--model", "slow_r50", "--weights", "test/kinetics400"), ("--weights", name)):
        with pytest.raises(SystemExit) as status:
            call_script("predict.py", *words, "--json", videos / "a.mp4")
        out, err = capsys.readouterr()
        assert status.value.code == 0, err
        answer = json.loads(out)
        assert answer["frames"] == 4
        assert {one["class"] for one in answer["top"]} <= set(class_names("kinetics400"))
