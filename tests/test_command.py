"""The command `flaxvid`, from a folder that is not the repository's."""

import subprocess
import sys
from pathlib import Path

import pytest

from flaxvid.command import find_config, shipped

ROOT = Path(__file__).parents[1]


def flaxvid(folder, *words):
    """What the installed command does: its exit status, output and errors."""
    code = "from flaxvid.command import main; main()"
    return subprocess.run([sys.executable, "-c", code, *words], cwd=folder, capture_output=True, text=True, timeout=120)


def test_it_names_every_script_and_config(tmp_path):
    done = flaxvid(tmp_path)
    assert done.returncode == 0
    for path in ROOT.glob("scripts/*.py"):
        assert f"\n  {path.stem} " in done.stdout
    assert ", ".join(sorted(path.stem for path in ROOT.glob("configs/*.py"))) in done.stdout


def test_a_script_reads_a_config_by_name(tmp_path):
    done = flaxvid(tmp_path, "train", "--config=flaxvid:ffn:ssv2", "--config.epochs=7", "--list")
    assert done.returncode == 0, done.stderr
    assert "--config.epochs=7 " in done.stdout
    assert "TSM-R50 FFN, top-1 at 4 / 8 / 16 frames: 56.07" in done.stdout  # Something-Something v2


def test_words_that_are_not_there(tmp_path):
    done = flaxvid(tmp_path, "trian")
    assert done.returncode == 1
    assert done.stderr.strip() == "expected one of these commands, got trian"
    done = flaxvid(tmp_path, "train", "--config", "flaxvid:fnn")
    assert done.returncode == 1
    assert done.stderr.strip().endswith("flaxvid:x3d, got flaxvid:fnn")


def test_only_a_config_is_looked_up():
    ffn = shipped("configs")["ffn"]
    assert find_config(["train", "--config", "flaxvid:ffn"]) == ["train", "--config", str(ffn)]
    assert find_config(["train", "--config=flaxvid:ffn:ssv2"]) == ["train", f"--config={ffn}:ssv2"]
    others = ["train", "--workdir", "flaxvid:ffn", "--config.model.weights=flaxvid:ffn", "--config=configs/ffn.py"]
    assert find_config(others) == others
    with pytest.raises(ValueError, match=r"got flaxvid:$"):
        find_config(["--config", "flaxvid:"])
