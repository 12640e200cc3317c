"""`scripts/save_weights.py`: a run as one file."""

import sys

import chex
import jax
import numpy as np
import pytest
from safetensors import safe_open

import flaxvid


@pytest.fixture(scope="module")
def run(write_run):
    """A run whose kernels are not those that it began with."""
    folder = write_run(lambda variables: jax.tree.map(lambda leaf: leaf + 0.01, variables))
    (folder / "classes.json").write_text('["jump", "run"]')
    return folder


@pytest.fixture
def write(call_script, capsys):
    def write(*arguments):
        call_script("save_weights.py", *arguments)
        return capsys.readouterr().out

    return write


def test_a_file_of_ours_is_the_run(write, run, tmp_path):
    said = write(run, tmp_path / "out" / "mine.safetensors")
    assert "tsm_resnet18 at 2, 4 frames ->" in said
    trained, again = flaxvid.load(run), flaxvid.load(tmp_path / "out" / "mine.safetensors")
    assert (again.classes, again.frames) == (("jump", "run"), (2, 4))
    chex.assert_trees_all_equal(dict(again.variables), dict(trained.variables))
    write(run, tmp_path / "two.safetensors", "--frames", 2)
    two = flaxvid.load(tmp_path / "two.safetensors")
    assert two.frames == (2,)
    chex.assert_trees_all_equal(two.variables, trained.select(2))


def test_keys_of_torch_without_torch(write, run, tmp_path):
    said = write(run, tmp_path / "keys.safetensors", "--format", "tsm", "--frames", 4)
    call = said.partition("read back by ")[2].strip()
    assert call.startswith('flaxvid.load_model("tsm_resnet18", ')
    _, variables = eval(call, {"flaxvid": flaxvid})
    chex.assert_trees_all_equal(variables, jax.tree.map(np.asarray, flaxvid.load(run).select(4)))
    with safe_open(tmp_path / "keys.safetensors", "numpy") as file:
        assert "base_model.conv1.weight" in file.keys()  # noqa: SIM118
        assert file.metadata() == {"format": "pt"}


def test_a_pth_file_without_torch(write, run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    said = write(run, tmp_path / "keys.pth", "--frames", 4)
    _, variables = eval(said.partition("read back by ")[2].strip(), {"flaxvid": flaxvid})
    chex.assert_trees_all_equal(variables, jax.tree.map(np.asarray, flaxvid.load(run).select(4)))


def test_what_is_wrong_is_one_line(write, run, tmp_path):
    with pytest.raises(SystemExit, match=r"ends in \.safetensors or \.pth, got .*a\.npz"):
        write(run, tmp_path / "a.npz")
    with pytest.raises(SystemExit, match=r"has the torch formats .* got format='none'"):
        write(run, tmp_path / "a.safetensors", "--format", "none")
    with pytest.raises(SystemExit, match=r"expected a torch file for part 'ema', got .*, which holds one network"):
        write(run, tmp_path / "a.pth", "--part", "ema")
    assert list(tmp_path.iterdir()) == []
