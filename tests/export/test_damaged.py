"""Folders of exports that are damaged, incomplete or made to do harm: one error each, and nothing is opened."""

import json
import shutil

import numpy as np
import pytest

import flaxvid
from flaxvid.models.registry import create_tiny
from flaxvid.train.bundle import digest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from flaxvid.evaluate.runtimes import open_program  # noqa: E402

CLASSES = ("jump", "run")


@pytest.fixture(scope="module")
def exported(random_variables, tmp_path_factory):
    model = create_tiny("x3d_s", num_classes=2)
    folder = tmp_path_factory.mktemp("exports") / "bundle"
    flaxvid.export_onnx(flaxvid.Trained(model, random_variables(model), classes=CLASSES), folder)
    return folder


@pytest.fixture
def folder(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "bundle")


def describe(folder, **changes):
    file = folder / "bundle.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def programs(*names):
    return [{"file": name, "frames": count} for count, name in enumerate(names)]


def change(file):
    file.write_bytes(file.read_bytes()[:-1] + b"!")


DAMAGES = {
    "no program": (lambda f: (f / "4_frames.onnx").unlink(), FileNotFoundError, "got no such file: copy the whole"),
    "no weights": (lambda f: (f / "weights.safetensors").unlink(), FileNotFoundError, "got no such file: copy"),
    "no description": (lambda f: (f / "bundle.json").unlink(), FileNotFoundError, r"expected bundle\.json in"),
    "another program": (lambda f: change(f / "4_frames.onnx"), ValueError, "as it was exported, got other bytes: copy"),
    "other weights": (lambda f: change(f / "weights.safetensors"), ValueError, "as it was exported, got other bytes"),
    "no JSON": (lambda f: (f / "bundle.json").write_text("{"), ValueError, "expected a JSON object"),
    "a later format": (lambda f: describe(f, format=2), ValueError, "format 1, got .* of format 2: export it again"),
    "no files": (lambda f: describe(f, files=None), ValueError, "expected files, programs and classes"),
    "no frame count": (lambda f: describe(f, programs=[{"file": "a"}]), ValueError, "got KeyError"),
    "a path upwards": (
        lambda f: describe(f, programs=programs("../4_frames.onnx")),
        ValueError,
        r"got '\.\./4_frames\.onnx': do not trust",
    ),
    "a path from the root": (lambda f: describe(f, files={"/etc/passwd": ""}), ValueError, "got '/etc/passwd': do not"),
    "a program of no digest": (
        lambda f: describe(f, programs=programs("4_frames.onnx", "8_frames.onnx")),
        ValueError,
        r"expected a bundle with 8_frames\.onnx, got",
    ),
    "other class names": (lambda f: describe(f, classes=["run", "jump"]), ValueError, "got others: .* by classes="),
    "too few class names": (lambda f: describe(f, classes=["run"]), ValueError, "got others: .* by classes="),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_one_error(folder, damage):
    harm, error, message = DAMAGES[damage]
    harm(folder)
    with pytest.raises(error, match=message):
        flaxvid.load(folder, runtime="onnxruntime")


def test_what_was_asked_for_wrongly_is_one_error(folder):
    with pytest.raises(ValueError, match="expected names of the 2 classes"):
        flaxvid.load(folder, classes=("run",))
    assert flaxvid.load(folder, classes=("a", "b")).classes == ("a", "b")
    with pytest.raises(ValueError, match=r"got the file or export .*: leave it out"):
        flaxvid.load(folder, checkpoint="best")
    with pytest.raises(ValueError, match="expected a program for streams of 4 frames, got none: export one"):
        flaxvid.load(folder, runtime="onnxruntime").stream()


# --- programs that are more than a network --------------------------------------------------------------------------


def outside_weights(model):
    tensor = model.graph.initializer[0]
    onnx.external_data_helper.set_external_data(tensor, location="../../secret")
    tensor.ClearField("raw_data")


def foreign_operator(model):
    model.graph.node[0].domain = "evil.ops"
    model.opset_import.append(onnx.helper.make_opsetid("evil.ops", 1))


def control_flow(model):
    graph = onnx.helper.make_graph([], "empty", [], [])
    model.graph.node.append(onnx.helper.make_node("If", ["x"], ["y"], then_branch=graph, else_branch=graph))


def unknown_operator(model):
    model.graph.node[0].op_type = "Nothing"


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (outside_weights, "its weights are in another file"),
        (foreign_operator, r"the operator \w+ is of evil\.ops"),
        (control_flow, "the operator If has a graph of its own"),
        (unknown_operator, "Nothing"),
    ],
)
def test_a_program_with_foreign_parts_is_not_run(folder, harm, message):
    file = folder / "4_frames.onnx"
    model = onnx.load(file)
    harm(model)
    file.write_bytes(model.SerializeToString())
    description = json.loads((folder / "bundle.json").read_text())
    describe(folder, files=description["files"] | {file.name: digest(file)})
    trained = flaxvid.load(folder, runtime="onnxruntime")  # the digests are right
    with pytest.raises(ValueError, match=rf"expected an ONNX program of flaxvid, got .* \(.*{message}"):
        trained.answering(4)


def test_bytes_that_are_no_program_are_one_error(tmp_path):
    for content in (b"", b"no program", b"\x08\xff" * 50):
        (tmp_path / "a.onnx").write_bytes(content)
        with pytest.raises(ValueError, match="expected an ONNX program of flaxvid, got"):
            open_program(tmp_path / "a.onnx", "onnxruntime")


def test_odd_sizes_and_a_batch_of_one(random_variables, clip, tmp_path):
    model = create_tiny("tsm_resnet18", num_classes=2, image_size=37)
    trained = flaxvid.Trained(model, random_variables(model), classes=CLASSES)
    flaxvid.export_onnx(trained, tmp_path, frames=(3,))
    video = clip(1, 3, 37, 37)[0]
    given = flaxvid.load(tmp_path, runtime="onnxruntime").predict(video)["probabilities"]
    assert given == pytest.approx(trained.predict(video)["probabilities"], abs=1e-5)
    with pytest.raises(ValueError, match=r"expected video uint8 \(batch, 3, 37, 37, 3\), got .* \(1, 3, 38, 38, 3\)"):
        flaxvid.load(tmp_path, runtime="onnxruntime").predict(np.zeros((3, 38, 38, 3), np.uint8))
