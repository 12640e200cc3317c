"""The house's rules: imports only go down, no circles, no long files."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "flaxvid"
FLOORS = (
    ("types", "trees", "writing", "arguments", "command"),
    ("layers", "losses", "data", "report"),
    ("models", "frames"),
    ("weights", "adapt"),
    ("evaluate", "compress"),
    ("tasks",),
    ("train",),
    ("export",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
SAME_FLOOR = {("frames", "models")}  # a file of the second floor, not a folder
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imports(path):
    """Names of flaxvid's modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else node.module for name in names}
    return {name for name in found if name in FILES}


GRAPH = {name: imports(path) for name, path in FILES.items()}


def room(module):
    return module.split(".")[1] if "." in module else None


def test_the_page_shows_these_floors():
    _, _, rest = (ROOT / "docs" / "why.md").read_text().partition("**Imports go down.**")
    lines = rest.split("```")[1].strip().splitlines()
    assert tuple(tuple(line.split(", ")) for line in reversed(lines)) == FLOORS


def test_every_room_has_a_floor():
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms - {"__init__"} <= set(FLOOR)


def test_imports_only_go_down():
    """Within a floor, folders do not import each other; only the package's front door, which loads lazily, may."""
    wrong = []
    for module, imported in GRAPH.items():
        for other in imported:
            here, there = room(module), room(other)
            if here is None or here == there or (here, there) in SAME_FLOOR:
                continue
            if there is None or FLOOR[there] >= FLOOR[here]:
                wrong.append(f"{module} imports {other}")
    assert wrong == []


def test_no_circles_between_files():
    """A package's `__init__` imports its files; no file may lead back to itself by other files."""
    files = {
        name: {other for other in imported if FILES[other].stem != "__init__"}
        for name, imported in GRAPH.items()
        if FILES[name].stem != "__init__"
    }
    done = set()

    def visit(name, path):
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for other in sorted(files[name]):
                visit(other, (*path, name))
            done.add(name)

    for name in files:
        visit(name, ())


@pytest.mark.parametrize("folder", ["flaxvid", "scripts", "configs", "tests"])
def test_files_are_short(folder):
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in (ROOT / folder).rglob("*.py")
    }
    assert {path: length for path, length in lengths.items() if length >= 400} == {}


def test_data_knows_no_jax_and_report_only_files():
    """`data` runs in worker processes that must not start a JAX backend; `report` reads a finished run anywhere."""
    for module, path in FILES.items():
        if room(module) in ("data", "report"):
            roots = set()
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    roots |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    roots.add(node.module.partition(".")[0])
            assert not roots & {"jax", "flax", "optax", "orbax"}, module
