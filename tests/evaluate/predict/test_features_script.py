"""`scripts/features.py`: the features of videos in one file."""

import shutil

import numpy as np
import pytest

import flaxvid


@pytest.fixture
def extract(call_script, capsys, weights):
    """Runs the script and returns its exit status and stderr."""

    def extract(*arguments, run=weights):
        with pytest.raises(SystemExit) as status:
            call_script("features.py", "--run", run, *arguments)
        return status.value.code, capsys.readouterr().err

    return extract


def test_a_row_for_each_video_that_could_be_read(extract, videos, weights, tmp_path):
    out = tmp_path / "features.npz"
    code, said = extract(videos / "none.mp4", videos / "a.mp4", videos / "deep", "--out", out, "--batch-size", 2)
    assert code == 0
    assert "unreadable:" in said
    assert "none.mp4" in said
    assert "2 of 3 videos read, 4 frames a clip" in said
    table = np.load(out)
    assert sorted(table) == ["features", "videos"]
    assert table["videos"].tolist() == [str(videos / "a.mp4"), str(videos / "deep" / "b.mp4")]
    trained = flaxvid.load(weights)
    expected = [trained.features(path) for path in table["videos"].tolist()]
    np.testing.assert_allclose(table["features"], expected, rtol=1e-5, atol=1e-6)
    assert table["features"].dtype == np.float32
    code, _ = extract(videos / "a.mp4", "--frames", 2, "--out", out)
    np.testing.assert_allclose(np.load(out)["features"][0], trained.features(videos / "a.mp4", 2), rtol=1e-5, atol=1e-6)


def test_scenes_may_lack_cameras(extract, videos, random_variables, tmp_path):
    options = {"backbone": "tsm_resnet18", "backbone_options": {"width": 8, "depths": (1,)}}
    model = flaxvid.create_model("ts_cva", cameras=("front", "left"), image_size=32, num_frames=2, **options)
    flaxvid.save(flaxvid.Trained(model, random_variables(model)), tmp_path / "w.safetensors")
    for camera, name in (("front", "a.mp4"), ("left", "a.mp4"), ("left", "b.mp4")):
        (tmp_path / "scenes" / camera).mkdir(parents=True, exist_ok=True)
        shutil.copy(videos / "a.mp4", tmp_path / "scenes" / camera / name)
    code, said = extract(tmp_path / "scenes", "--out", tmp_path / "f.npz", run=tmp_path / "w.safetensors")
    assert (code, "2 of 2 videos read" in said) == (0, True)
    both, one = np.load(tmp_path / "f.npz")["features"]
    assert np.abs(both - one).max() > 1e-3


def test_what_is_wrong_is_said_before_the_work(extract, videos, tmp_path):
    code, _ = extract(videos / "a.mp4", "--out", tmp_path / "f.npy")
    assert "expected a file that ends in .npz" in code
    code, _ = extract(videos / "a.mp4", "--out", tmp_path / "none" / "f.npz")
    assert "expected a folder for" in code
    code, said = extract(videos / "none.mp4", "--out", tmp_path / "f.npz")
    assert (code, "0 of 1 videos read" in said) == (1, True)
    assert list(tmp_path.iterdir()) == []
