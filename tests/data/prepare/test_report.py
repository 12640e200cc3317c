import dataclasses
import io
import json
import re

import numpy as np
import pytest
from rich.console import Console

from flaxvid.data.prepare.report import Finding, find_contradictions, find_duplicates, near_pairs, show, summarise


def row(name, level, digest=None, **kind):
    return Finding(name, 0, 10, digest or name, bytes([level] * 256).hex(), **kind)


def bad(name, problem, reason="", frames=0):
    return Finding(name, 0, frames, problem=problem, reason=reason)


def test_near_pairs_by_hand():
    a = np.array([[0, 0, 0, 0], [100, 100, 100, 100]], np.uint8)
    b = np.array([[100, 100, 100, 104], [0, 0, 0, 8], [255, 255, 255, 255]], np.uint8)
    assert near_pairs(a, b) == [(1, 0, pytest.approx(2.0))]  # sqrt(16 / 4); the other pair differs by sqrt(64 / 4) = 4
    assert [pair[:2] for pair in near_pairs(a, b, limit=4)] == [(0, 1), (1, 0)]


def test_near_pairs_across_blocks():
    rng = np.random.default_rng(0)
    b = rng.integers(0, 256, (50, 256), np.uint8)
    a = rng.integers(0, 256, (2100, 256), np.uint8)
    a[[0, 1023, 1024, 2099]] = b[[7, 8, 9, 10]]
    assert near_pairs(a, b) == [(0, 7, 0.0), (1023, 8, 0.0), (1024, 9, 0.0), (2099, 10, 0.0)]


def test_labels_of_several_targets_contradict_only_where_both_are_known():
    labels = [{"do": 0, "who": -1}, {"do": -1, "who": 2}, {"do": 1, "who": 2}]
    first, *others = (dataclasses.replace(row(f"{n}", 10, "x"), label=label) for n, label in enumerate(labels))
    kinds = [pair.kind for pair in find_duplicates(("train", "test"), [first], others)]
    assert kinds == ["same file", "same file, two labels"]
    assert [pair.ids for pair in find_contradictions("train", [first, *others])] == [("0", "2")]


def test_duplicates():
    train = [row("a", 10, "x"), row("b", 50), row("c", 200), bad("d", "missing"), bad("e", "unreadable", "why")]
    test = [row("f", 10, "x"), row("g", 52), row("h", 100), bad("i", "missing")]
    found = find_duplicates(("train", "test"), train, test)
    assert [(pair.ids, pair.kind, pair.difference) for pair in found] == [
        (("a", "f"), "same file", 0.0),
        (("b", "g"), "same pictures", 2.0),
    ]
    assert find_duplicates(("train", "test"), train, test[3:]) == ()


def test_report(tmp_path):
    good = [row(f"good{i}", 20 * i) for i in range(3)]
    train = good + [bad(f"[b]{i}", "unreadable", "no [/b] end") for i in range(12)]
    report = summarise({"train": train, "test": [row("t", 20), bad("s", "short", frames=2), bad("m", "missing")]})
    assert not report.clean
    test = report.splits["test"]
    assert (report.splits["train"].good, test.good, test.short, test.missing) == (3, 1, {"s": 2}, ("m",))
    report.save(tmp_path / "report.json")
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["duplicates"] == [
        {"splits": ["train", "test"], "ids": ["good1", "t"], "kind": "same pictures", "difference": 0.0}
    ]
    assert saved["splits"]["train"]["unreadable"]["[b]11"] == "no [/b] end"
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(show(report))
    text = console.export_text()
    assert re.search(r"train │ +15 │ +3 │ +0 │ +12 │ +0 │ +10, 10, 10 │", text), text
    assert "[b]9" in text
    assert "no [/b] end" in text
    assert "... and 2 more" in text
    assert "2 frames" in text
    assert re.search(r"train and test │ good1 .*\n.* t .*same pictures|good1 .*same pictures .*\n.*│ t  ", text), text
    assert summarise({"train": good}).clean
