"""README and the pages in docs/: every block of Python runs, one after the other, as a reader would type them."""

import contextlib
import re
import shutil
import sys
from pathlib import Path

import chex
import numpy as np
import pytest

import flaxvid
from flaxvid.evaluate.cost import model_cost
from flaxvid.models.registry import SPECS
from flaxvid.weights.known import class_names, find_weights
from flaxvid.weights.torch_file import write_torch_file

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "docs" / "python.md"


ALL = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [page for page in ALL if "```python" in page.read_text()]


@pytest.fixture(scope="module")
def material(tmp_path_factory, encode_video):
    """A small frame-flexible run of `motion`, and class folders with seven videos of a second and a half each."""
    folder = tmp_path_factory.mktemp("material")
    for run in ("ffn-motion", "ffn-folder"):
        shutil.unpack_archive(ROOT / "tests/stored/ffn.tar.xz", folder / "runs" / run, filter="data")
    rng = np.random.default_rng(0)
    for name in ("jump", "run"):
        for number in range(7):
            pictures = rng.integers(0, 256, (12, 32, 40, 3), np.uint8)
            encode_video(folder / "videos" / name / f"{number}.mp4", pictures, rate=8, preset="ultrafast")
    shutil.copy(folder / "videos" / "jump" / "0.mp4", folder / "clip.mp4")
    return folder


@pytest.fixture(scope="module")
def place(material, tmp_path_factory):
    """Where the blocks of docs/python.md run."""
    return Path(shutil.copytree(material, tmp_path_factory.mktemp("guide"), dirs_exist_ok=True))


def section(heading):
    """The blocks of Python below a heading of the guide."""
    _, _, rest = GUIDE.read_text().partition(f"\n## {heading}\n")
    return [block.strip() for block in re.findall(r"```python\n(.*?)```", rest.partition("\n## ")[0], re.DOTALL)]


def blocks(path):
    """The blocks of Python of a page, with empty lines before them, so that errors name the page's line."""
    text = path.read_text()
    for match in re.finditer(r"```python\n(.*?)```", text, re.DOTALL):
        yield "\n" * (text[: match.start(1)].count("\n")) + match[1]


@pytest.fixture(scope="module")
def names(place):
    """What the blocks of the guide leave behind, but for those of the section on export, which needs an extra."""
    names, exports = {}, section("Export")
    with contextlib.chdir(place):
        for block in blocks(GUIDE):
            if block.strip() not in exports:
                exec(compile(block, GUIDE, "exec"), names)
    return names


def test_the_blocks_of_the_guide_run(place, names, monkeypatch):
    monkeypatch.chdir(place)
    assert 0.99 < sum(names["probabilities"].values()) < 1.01
    assert names["feature"].shape == (names["trained"].model.feature_dim,)
    tuned = flaxvid.load("runs/fine-tuned")
    assert tuned.classes == ("jump", "run")
    assert tuned.frames == names["trained"].frames
    assert {row["frames"] for row in names["rows"]} == {2, 3, 4}
    assert (2, 512) in {array.shape for array in names["state_dict"].values()}
    assert np.isfinite(names["value"])
    assert names["plain"]["params"]["head"]["classifier"]["kernel"].shape == (512, 5)
    chex.assert_trees_all_equal(names["variables"], names["again"].variables)
    answer, before = (names[one].predict("videos/run/1.mp4")["probabilities"] for one in ("back", "again"))
    assert set(answer) == {"jump", "run"}
    assert answer != before


def test_the_section_on_export_runs(place, names, monkeypatch):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(place)
    names = dict(names)
    exports = section("Export")
    assert len(exports) == 2
    for block in blocks(GUIDE):
        if block.strip() in exports:
            exec(compile(block, GUIDE, "exec"), names)
    trained, clip = names["trained"], names["clip"]
    wanted = trained.model.apply(trained.select(8), clip[None])
    for given in ("from_onnx", "from_stablehlo"):
        np.testing.assert_allclose(names[given], wanted, rtol=1e-4, atol=1e-4)
    answers = [one.predict("videos/jump/0.mp4", 8)["probabilities"] for one in (names["served"], trained)]
    assert answers[0] == pytest.approx(answers[1], abs=1e-4)


# What the blocks of a page leave behind.
LEFT = {
    "README.md": "set(answer) == set(trained.classes)",
    "cameras.md": "{target: z.shape for target, z in logits.items()} == {'action': (1, 9), 'actor': (1, 4)}",
    "export.md": "logits.shape == (1, len(trained.classes)) == (1, len(bundle['classes']))",
    "family.md": "trained.model.zoo_name == 'pace' and 'params_2f' in variables and programs[4].exists()",
    "frames.md": "abs(again - logits).max() < 1e-5 and set(start) == set(variables)",
    "import.md": "trained.classes == class_names('kinetics400') and 'blocks.5.proj.weight' in state_dict",
    "index.md": "answer['frames'] == 8",
    "streams.md": "logits.shape == (1, 2)",
}


@pytest.mark.parametrize("page", [page for page in PAGES if page != GUIDE], ids=lambda page: page.name)
def test_the_blocks_of_a_page_run(page, material, published, tmp_path, monkeypatch):
    if "onnx" in "".join(blocks(page)):
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
    if page.name == "import.md":
        published(tmp_path)
    shutil.copytree(material, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before, names = {*SPECS}, {}
    try:
        for block in blocks(page):
            if own := re.match(r"\s*# (\w+)\.py\n", block):  # a file of the reader's, which a later block imports
                Path(f"{own[1]}.py").write_text(block)
                monkeypatch.delitem(sys.modules, own[1], raising=False)
            else:
                exec(compile(block, page, "exec"), names)
    finally:
        for name in {*SPECS} - before:
            del SPECS[name]
    assert eval(LEFT[page.name], {"class_names": class_names}, names)


@pytest.fixture
def published(random_variables, monkeypatch):
    """Puts random weights of X3D where downloads and a file of the reader's would be."""

    def publish(folder):
        monkeypatch.setenv("FLAXVID_CACHE", str(folder / "cache"))
        name = "x3d_s/pytorchvideo/kinetics400"
        cached = folder / "cache" / name / find_weights(name).file_name
        cached.parent.mkdir(parents=True)
        state_dict = flaxvid.to_torch("x3d_s", random_variables(flaxvid.create_model("x3d_s")), "pytorchvideo")
        write_torch_file(cached, state_dict)
        shutil.copy(cached, folder / "x3d_m.pyth")

    return publish


def test_the_table_of_models_is_that_of_the_zoo():
    """All models, with the parameters and multiply-adds that they have now."""
    lines = [line for line in (ROOT / "docs" / "models.md").read_text().splitlines() if line.startswith("| `")]
    rows = {name.strip("` "): row for _, name, *row, _ in (line.split("|") for line in lines)}
    assert list(rows) == flaxvid.list_models()
    for name in ("tsm_resnet18", "x3d_xs", "videomae_small"):
        model = flaxvid.create_model(name)
        n, size = model.clip.num_frames, model.clip.image_size
        cost = model_cost(model, (1, n, size, size, 3))
        clip, parameters, gmacs, *_ = rows[name]
        assert clip.strip() == f"{n} x {size}"
        assert (parameters.strip(), gmacs.strip()) == (f"{cost.parameters / 1e6:.2f}", f"{cost.gflops:.2f}")
