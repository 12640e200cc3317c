"""scripts/quantise.py on a real run, and a run that is trained for int8."""

import dataclasses

import numpy as np
import pytest

import flaxvid
from flaxvid.train.trained import load

pytest.importorskip("qwix")


def test_a_run_becomes_an_int8_file(call_script, colour_run, tmp_path, capsys):
    call_script("quantise.py", colour_run, tmp_path / "int8.safetensors", "--clips", 12)
    out = capsys.readouterr().out
    assert "3 layers in int8" in out
    assert "top-1 at 2 frames, 6 videos: 100.00 as it was, 100.00 in int8" in out
    trained, rounded = load(colour_run), load(tmp_path / "int8.safetensors")
    parts = {f"body/layer1_0/{part}" for part in ("conv1", "conv2", "sum")}
    assert set(rounded.model.int8) == parts | {"stem/conv1"}
    assert rounded.classes == trained.classes
    clip = np.full((2, 32, 32, 3), (20, 220, 20), np.uint8)
    exact, inexact = (one.predict(clip)["probabilities"] for one in (trained, rounded))
    assert next(iter(inexact)) == "green"
    assert 0 < abs(exact["green"] - inexact["green"]) < 0.1
    with pytest.raises(SystemExit, match="expected a file that ends in"):
        call_script("quantise.py", colour_run, tmp_path / "int8.npz")
    with pytest.raises(SystemExit, match="no weights file at none/such"):  # a name that is no path, and a file is there
        call_script("quantise.py", "none/such", tmp_path / "int8.safetensors")
    with pytest.raises(
        SystemExit, match="got 'bodi', which matches none: the layers are stem/conv1, body/layer1_0/conv1"
    ):
        call_script("quantise.py", colour_run, tmp_path / "none.safetensors", "--keep", "bodi")
    call_script("quantise.py", colour_run, tmp_path / "sums.safetensors", "--keep", "body/.*/sum", "--no-test")
    assert "body/layer1_0/sum" not in load(tmp_path / "sums.safetensors").model.int8


def test_a_run_that_is_trained_for_int8(call_script, colour_recipe, tmp_path, capsys):
    recipe = dataclasses.replace(colour_recipe, model=dataclasses.replace(colour_recipe.model, int8_training=True))
    (row,) = flaxvid.run(recipe, tmp_path / "run")
    assert row["top1"] == 1
    assert load(tmp_path / "run").model.int8 == "dynamic"
    keep = "--keep", "stem", "body/.*/conv2"
    call_script("quantise.py", tmp_path / "run", tmp_path / "int8.safetensors", *keep, "--no-test")
    assert "1 layers in int8" in capsys.readouterr().out
    kept = load(tmp_path / "int8.safetensors").model.int8
    assert set(kept) == {f"body/layer1_0/{part}" for part in ("conv1", "sum")}
