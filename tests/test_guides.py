"""The guides in docs/: every block of Python runs, one after the other, as a reader would type them."""

import contextlib
import re
import shutil
from pathlib import Path

import chex
import numpy as np
import pytest

import flaxvid
from flaxvid.evaluate.cost import model_cost

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "docs" / "python.md"


@pytest.fixture(scope="module")
def place(tmp_path_factory, encode_video):
    """A small frame-flexible run of `motion`, and class folders with seven videos of a second and a half each."""
    folder = tmp_path_factory.mktemp("guide")
    shutil.unpack_archive(ROOT / "tests/stored/ffn.tar.xz", folder / "runs" / "ffn-motion", filter="data")
    rng = np.random.default_rng(0)
    for name in ("jump", "run"):
        for number in range(7):
            pictures = rng.integers(0, 256, (12, 32, 40, 3), np.uint8)
            encode_video(folder / "videos" / name / f"{number}.mp4", pictures, rate=8, preset="ultrafast")
    return folder


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
