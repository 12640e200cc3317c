"""docs/seeds.md: every test, module, option, file and heading that it names is there."""

import ast
import functools
import importlib
import re
from pathlib import Path

import pytest

import flaxvid
from flaxvid.data.sources.open import SOURCES
from flaxvid.train.fields import walk
from flaxvid.train.recipe import TASKS, Recipe

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "seeds.md"
FIELDS = {field.path for task in TASKS.values() for field in walk(Recipe(task=task()))}


def rows():
    """The cells of each row of the page's tables: the note's words, where it is, what shows it, what differs."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "the note" not in line]


ROWS = rows()


def code(cell):
    return re.findall(r"`([^`]+)`", cell)


@functools.cache
def names_in(name):
    return {node.name for node in ast.parse((ROOT / "tests" / name).read_text()).body if hasattr(node, "name")}


@functools.cache
def headings(path):
    """The anchors of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def resolve(name):
    """What a dotted name of flaxvid is; raises where there is nothing."""
    found = flaxvid
    for depth, part in enumerate(name.split(".")[1:], 2):
        if not hasattr(found, part):
            importlib.import_module(".".join(name.split(".")[:depth]))
        found = getattr(found, part)
    return found


def is_script(span):
    path, *words = span.split()
    script = ROOT / path
    source = (script / "__main__.py" if script.is_dir() else script).read_text()
    source += (ROOT / "flaxvid" / "train" / "flags.py").read_text() if path == "scripts/train.py" else ""
    return all(f'"{word}"' in source or f'"{word.removeprefix("--")}"' in source for word in words)


def is_config(span):
    path, _, argument = span.partition(":")
    return re.search(rf"Arguments: [^.]*\b{argument}\b", (ROOT / path).read_text()) is not None


def check(span):
    """Whether a piece of code names something of ours that is there; None for another piece of code."""
    if span in SOURCES:
        return True
    if "::" in span:
        file, _, test = span.partition("::")
        return test.startswith("test_") and test in names_in(file)
    if span.startswith("--config."):
        return span.removeprefix("--config.").partition("=")[0] in FIELDS
    if span.startswith("configs/"):
        return is_config(span)
    if span.startswith("scripts/"):
        return is_script(span)
    if span.startswith("create_model("):
        return eval(span, {"create_model": flaxvid.create_model}) is not None
    if span.startswith("flaxvid."):
        return span.removeprefix("flaxvid.") in flaxvid.__all__ or resolve(span) is not None  # some need an extra
    if span.startswith("model."):
        model = flaxvid.create_model("res3dcnn")
        for part in span.partition("(")[0].split(".")[1:]:
            model = getattr(model, part)
        return True
    return None


def test_there_are_five_tables_without_holes():
    assert len(re.findall(r"^\| the note", PAGE.read_text(), re.MULTILINE)) == 5
    assert len(ROWS) > 100
    assert {len(row) for row in ROWS} == {4}
    for note, _, shown, differs in ROWS:
        assert note
        assert shown or "**" in differs, f"neither a test nor a figure, nor a word about it: {note}"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:40])
def test_what_a_row_names_is_there(row):
    _, where, shown, differs = row
    for span in code(where):
        assert check(span), span
    for span in code(shown):
        assert check(span), span
    for span in code(differs):
        assert check(span) in (True, None), span


def test_links_lead_to_headings():
    links = re.findall(r"\]\(([^)]+)\)", PAGE.read_text())
    assert links
    for link in links:
        path, _, anchor = link.partition("#")
        page = (PAGE.parent / path).resolve() if path else PAGE
        assert page.is_file(), link
        assert not anchor or anchor in headings(page), link


def test_a_wrong_name_is_found():
    for wrong in (
        "models/test_resnet3d.py::test_nothing",
        "--config.model.remt",
        "configs/tsm.py:mtion",
        "scripts/prune.py --channel",
        "scripts/benchmark ffm",
        "model.steem",
        "flaxvid.layers.PoolHeat",
        'create_model("res3dcnn", widht=3)',
    ):
        try:
            found = check(wrong)
        except (AttributeError, ImportError, ValueError):
            found = False
        assert not found, wrong
