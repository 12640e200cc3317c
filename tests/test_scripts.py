"""The command lines of all scripts: help, and one line that says what is wrong."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
NAMES = sorted(path.name for path in SCRIPTS.glob("*.py") if "argparse.ArgumentParser(" in path.read_text())
DRIVER = """
import contextlib, io, json, runpy, signal, sys

def call(script, *words):
    sys.argv, out, err = [script, *words], io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_path(script, run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code
    return code, out.getvalue(), err.getvalue()

folder, *names = sys.argv[1:]
sys.path.insert(0, folder)
words = {
    "help": ["--help"],
    "wrong": ["--nothing-of-the-kind"],
    "evaluate": ["--frames", "4", "8", "none"],
    "views": ["run", "--views", "front", "left"],
    "import_torch": ["--frames", "4", "8", "tsm_resnet18", "none.pth", "none.safetensors"],
}
results = {f"{name} {kind}": call(f"{folder}/{name}", *words[kind]) for name in names for kind in ("help", "wrong")}
for kind in ("evaluate", "import_torch"):
    results[kind] = call(f"{folder}/{kind}.py", *words[kind])
results["views"] = call(f"{folder}/evaluate.py", *words["views"])
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Exit status, stdout and stderr of all scripts, one after the other in a process of its own, in another folder."""
    command = [sys.executable, "-c", DRIVER, str(SCRIPTS), *NAMES]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path_factory.mktemp("elsewhere"))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_there_are_scripts():
    assert {"predict.py", "evaluate.py", "import_torch.py", "prepare_data.py", "compare.py", "features.py"} <= {*NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_help(told, name):
    code, out, err = told[f"{name} help"]
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: {name}")


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_flag_is_one_line_after_the_usage(told, name):
    code, out, err = told[f"{name} wrong"]
    usage, _, error = err.partition(f"{name}: error: ")
    assert (code, out) == (2, "")
    assert usage.startswith(f"usage: {name}")
    assert len(error.splitlines()) == 1


def test_numbers_do_not_swallow_what_follows(told):
    code, *_ = told["evaluate"]
    assert "no folder and no weights file at none" in code
    code, *_ = told["import_torch"]
    assert "none.pth" in code


def test_a_flag_of_before_says_its_new_name(told):
    code, _, err = told["views"]
    assert code == 2
    assert err.splitlines()[-1] == "evaluate.py: error: --views is --cameras now"
