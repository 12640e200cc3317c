"""scripts/train.py --profile: a trace of some steps."""

import dataclasses
import gzip
import json

import pytest

import flaxvid
from flaxvid.train.profile import WARM, Profile


def traced(folder):
    """The numbers of the steps that a trace marks."""
    (file,) = folder.glob("plugins/profile/*/*.trace.json.gz")
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    return sorted({int(event["args"]["step_num"]) for event in events if event.get("name") == "train"})


def test_a_run_traces_the_steps_after_the_warm_ones(colour_recipe, tmp_path, capsys):
    recipe = dataclasses.replace(colour_recipe, epochs=3)
    flaxvid.run(recipe, tmp_path / "run", profile=2)
    folder = tmp_path / "run" / "profile"
    assert traced(folder) == [WARM + 1, WARM + 2]
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("traced")]
    assert len(told) == 1
    assert f"traced 2 steps, {WARM + 1} to {WARM + 2}, into {folder}: pip install xprof" in told[0]
    flaxvid.run(recipe, tmp_path / "run", profile=2)
    assert "is finished, so nothing is traced" in capsys.readouterr().out


def test_more_steps_than_are_left_are_refused_before_the_training(colour_recipe, tmp_path):
    recipe = dataclasses.replace(colour_recipe, epochs=1)
    with pytest.raises(ValueError, match=r"expected --profile of at most \d+ steps, got 9: the run has \d+ steps to"):
        flaxvid.run(recipe, tmp_path / "run", profile=9)
    assert not list((tmp_path / "run").glob("checkpoints/[0-9]*"))
    with pytest.raises(ValueError, match="at most 0 steps, got 1: the run has 3 steps to go"):
        Profile(tmp_path, 1, 20, 23)


def test_a_stop_ends_the_trace_and_says_how_much_it_has(tmp_path, capsys):
    with Profile(tmp_path, 5, 10, 100) as tracing:
        for step in range(11, 10 + WARM + 3):
            tracing.begin_if_due(step)
            tracing.end_if_due(step, {})
    assert traced(tmp_path) == [10 + WARM + 1, 10 + WARM + 2]
    assert f"traced 2 steps of the 5 that were asked for, {10 + WARM + 1} to {10 + WARM + 2}" in capsys.readouterr().out


def test_a_first_step_that_fails_ends_the_trace(tmp_path, capsys):
    """JAX traces once at a time: the next run of a notebook could not."""

    def fail(folder):
        with Profile(folder, 2, 0, 100) as tracing:
            tracing.begin_if_due(WARM + 1)
            raise MemoryError

    for name in "ab":
        with pytest.raises(MemoryError):
            fail(tmp_path / name)
    assert capsys.readouterr().out == ""


def test_without_a_number_nothing_is_traced(tmp_path):
    with Profile(tmp_path, 0, 0, 10) as tracing:
        for step in range(1, 11):
            tracing.begin_if_due(step)
            tracing.end_if_due(step, {})
    assert list(tmp_path.iterdir()) == []
