"""README, CONTRIBUTING and the pages in docs/: links lead somewhere, commands can be given, what is named is there."""

import argparse
import ast
import functools
import re
import runpy
import shlex
import sys
import tomllib
from pathlib import Path
from unittest import mock

import pytest
from absl import flags
from ml_collections import config_flags

import flaxvid
from flaxvid.command import find_config, shipped
from flaxvid.models.registry import SPECS
from flaxvid.train.fields import walk
from flaxvid.train.flags import last_of_each, register_types
from flaxvid.train.recipe import TASKS, Recipe

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
FIELDS = {field.path for task in TASKS.values() for field in walk(Recipe(task=task()))}


def each_page(pages=PAGES):
    return pytest.mark.parametrize("page", pages, ids=lambda page: page.name)


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def prose(page):
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def code(page):
    """Inline code, each piece on one line."""
    return [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose(page))]


# Links.


@functools.cache
def anchors(page):
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(page, text):
    """What a page's text links to and is not there. The site holds nothing but docs/, so its pages link to no more."""
    for link in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = link.partition("#")
        if re.match(r"https?:", link):
            continue
        target = (page.parent / path).resolve() if path else page
        outside = page.parent == ROOT / "docs" and not target.is_relative_to(page.parent)
        if not target.exists() or outside or (anchor and anchor not in anchors(target)):
            yield link


@each_page()
def test_links_have_targets(page):
    assert not list(broken_links(page, prose(page)))


def test_a_broken_link_is_found():
    wrong = "[a](none.md) [b](results.md#none) [c](../README.md) [d](results.md#fine-tuning) [e](https://example.org)"
    assert list(broken_links(ROOT / "docs" / "index.md", wrong)) == ["none.md", "results.md#none", "../README.md"]


def test_every_page_is_in_the_navigation_and_linked_from_the_readme():
    listed = re.findall(r"^ +- (\S+\.md)$", (ROOT / "docs" / "site" / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == [page.name for page in DOCS]
    linked = re.findall(r"\]\(docs/(\S+?\.md)", (ROOT / "README.md").read_text())
    assert set(linked) == set(listed)


# Commands.


class AcceptedError(Exception):
    """The parser of a script has taken its command line."""


def commands(page):
    """The commands of a page's blocks of bash, and those within its text, as words."""
    lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    lines += [span for span in code(page) if re.match(r"(python scripts/|flaxvid |pip |mkdocs |pytest )", span)]
    for line in lines:
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word != "&&":
                words.append(word)
            elif words:
                yield words
                words = []


def check_recipe(script, words):
    """Reads the command line of scripts/train.py or scripts/plan.py, as these do."""
    own = re.findall(r"flags\.DEFINE_\w+\(\s*\"(\w+)\"", script.read_text())
    assert own
    argv, values = find_config(last_of_each([script.name, *words])), flags.FlagValues()
    register_types()
    for name in (*own, "list"):
        define = flags.DEFINE_bool if name in ("list", "distributed") else flags.DEFINE_string
        define(name, None, "", flag_values=values)
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    assert values(argv) == [script.name]
    assert isinstance(values.config, Recipe)


def check_script(script, words):
    """Gives a command line to the parser of a script, and ends it there."""

    def wrapped(parse):
        def parse_and_end(parser, *arguments):
            raise AcceptedError(parse(parser, *arguments))

        return parse_and_end

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flaxvid.train.interrupt.end_when_told", lambda _: None)
        patch.setattr(sys, "argv", [script.name, *words])
        patch.syspath_prepend(script.parent)
        for name in ("parse_args", "parse_intermixed_args"):
            patch.setattr(argparse.ArgumentParser, name, wrapped(getattr(argparse.ArgumentParser, name)))
        with pytest.raises(AcceptedError) as accepted:
            runpy.run_path(str(script), run_name="__main__")
    return accepted.value.args[0]


def check(page, words):
    """Raises an error unless a command can be given."""
    first, *rest = words
    if first == "srun":
        check(page, rest)
    elif first == "pip":
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for extras in re.findall(r"\.\[([\w,]+)\]", " ".join(rest)):
            assert set(extras.split(",")) <= set(known), words
    elif first in ("pytest", "mkdocs", "ruff", "pyright", "."):
        for word in rest:
            assert "/" not in word or word.startswith((".venv", "--")) or (ROOT / word).exists(), words
    elif first == "flaxvid":
        check(page, ["python", f"scripts/{shipped('scripts')[rest[0]].name}", *rest[1:]])
    elif rest[0] != "-m":
        assert first == "python", words
        script = ROOT / rest[0]
        assert script.exists(), words
        if script.name in ("train.py", "plan.py"):
            check_recipe(script, rest[1:])
        elif script.name == "launch.py":
            check(page, ["python", *check_script(script, rest[1:]).command])
        elif "argparse.ArgumentParser(" in (script.read_text() if script.is_file() else ""):
            check_script(script, rest[1:])
        elif script.is_dir():
            assert f'"{rest[1]}"' in (script / "__main__.py").read_text(), words


@each_page()
@mock.patch.dict(SPECS)  # a page adds a family of the reader's
def test_commands_can_be_given(page, tmp_path):
    for block in blocks(page, "python"):
        if name := re.match(r"# (\w+\.py)\n", block):
            (tmp_path / name[1]).write_text(block)
    for words in commands(page):
        own = [str(tmp_path / word) if (tmp_path / word).is_file() else word for word in words]
        own = [str(ROOT / word) if word.startswith("configs/") else word for word in own]
        check(page, own)


@pytest.mark.parametrize(
    "command",
    [
        "python scripts/evaluat.py runs/x",
        "python scripts/evaluate.py runs/x --frame-count 4",
        "python scripts/predict.py --run runs/x clip.mp4 --window much",
        "python scripts/train.py --config configs/ffn.py:mtion",
        "python scripts/train.py --config configs/ffn.py --config.task.weigt=1",
        "python scripts/train.py --config configs/ffn.py --workdirs x",
        "python scripts/launch.py --processes 2 scripts/train.py --config configs/none.py",
        "python scripts/benchmark modle",
        "flaxvid trian",
        "pip install -e .[tset]",
        "rm -r runs",
    ],
)
def test_a_wrong_command_is_found(command):
    words = [str(ROOT / word) if word.startswith("configs/") else word for word in shlex.split(command)]
    with pytest.raises((Exception, SystemExit, pytest.fail.Exception)):
        check(ROOT / "README.md", words)


# What is named within the text.


EACH_TASK = ("tsm:folder", "ffn", "videomae:pretrain", "distill", "domain", "ts_cva")
"""Configs that have the fields of all tasks and the options that pages name."""


def fits(config, words):
    """Whether a config takes these flags."""
    try:
        check_recipe(ROOT / "scripts" / "train.py", ["--config", f"flaxvid:{config}", *words])
    except (KeyError, ValueError, flags.Error):
        return False
    return True


@each_page()
def test_what_a_page_names_is_there(page):
    for span in code(page):
        if re.match(r"--config\.\w+(\.\w+)*=", span):
            assert any(fits(config, shlex.split(span)) for config in EACH_TASK), span
        elif re.fullmatch(r"--config\.[\w.]+", span):
            assert span.removeprefix("--config.") in FIELDS, span
        elif match := re.fullmatch(r"(configs/\w+\.py)(?::(\w+))?", span):
            text = (ROOT / match[1]).read_text()
            assert not match[2] or re.search(rf"Arguments: [^.]*\b{match[2]}\b", text), span
        elif re.fullmatch(r"(configs|docs|flaxvid|scripts|tests)/[\w/.]+", span):
            assert (ROOT / span).exists(), span


def test_a_wrong_flag_is_found():
    assert fits("ffn", ["--config.task.weight=0.5"])
    for wrong in ("--config.task.weigt=1", "--config.epochs=many", "--config.model.options.widht=8"):
        assert not any(fits(config, [wrong]) for config in EACH_TASK), wrong


# What the pages are about.


def test_every_public_name_is_on_the_page_of_the_api():
    told = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    assert len(told) == len(set(told))
    rooms = ("layers", "losses")
    wanted = {f"flaxvid.{name}" for name in flaxvid.__all__ if name not in rooms}
    wanted |= {f"flaxvid.{room}.{name}" for room in rooms for name in getattr(flaxvid, room).__all__}
    assert wanted <= set(told)
    for name in told:
        assert resolve(name).__doc__, name


def resolve(name):
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(sys.modules.get(module) or __import__(module, fromlist=[attribute]), attribute)
    except ImportError:
        pytest.importorskip("onnx")
        raise


def texts(node):
    """A literal text of Python, with "..." for what is filled in."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(map(texts, node.values))
    return "..." if isinstance(node, ast.FormattedValue) else ""


def test_every_message_on_the_page_of_errors_is_one_of_ours():
    rows = re.findall(r"^\| `(.+?)` \|", (ROOT / "docs" / "errors.md").read_text(), re.MULTILINE)
    assert len(rows) > 30
    files = [*(ROOT / "flaxvid").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]
    trees = [ast.parse(file.read_text()) for file in files]
    ours = {texts(node) for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant | ast.JoinedStr)}
    for row in rows:
        pattern = re.compile(".*".join(map(re.escape, row.split("..."))), re.DOTALL)
        assert any(map(pattern.search, ours)), row
