"""Networks as ONNX programs: every model of the zoo, and what the files are like."""

import jax
import numpy as np
import pytest
from flax import linen as nn

import flaxvid
from flaxvid.layers.conv import Conv
from flaxvid.models import registry

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from flaxvid.evaluate.runtimes import open_program  # noqa: E402
from flaxvid.export import onnx as export  # noqa: E402
from flaxvid.export import programs  # noqa: E402


def create_tiny(name, **overrides):
    """The tiny sibling; "<name> attention" is that with the attentive head."""
    name, _, head = name.partition(" ")
    return registry.create_tiny(name, head=head or "own", **overrides)


def structure(model):
    return repr(model.clone(zoo_name="", overrides={}))


# As in the contract suite: names whose tiny siblings are the same network are tested once.
_SHORTEST_LAST = sorted(flaxvid.list_models(), key=lambda name: (len(name), name), reverse=True)
DISTINCT = sorted({structure(create_tiny(name)): name for name in _SHORTEST_LAST}.values())
DISTINCT += [f"{name} attention" for name in ("slowfast_r50", "vivit_base", "x3d_m")]

CONVOLUTIONAL = ("tsn", "tsm", "slow", "c2d", "i3d", "res3d", "r3d", "mc3", "csn", "r2plus1d", "x3d")


def count_layers(model, variables, video, kind):
    """How often layers of a kind are applied."""
    calls = []

    def record(call, args, kwargs, context):
        if isinstance(context.module, kind) and context.method_name == "__call__":
            calls.append(context.module)
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(model.apply, variables, video)
    return len(calls)


def apply(model, variables, video):
    return jax.device_get(jax.jit(model.apply)(variables, video))


def operators(file):
    return [node.op_type for node in onnx.load(file).graph.node]


def transposed(file):
    """The transposes."""
    return [node for node in onnx.load(file).graph.node if node.op_type == "Transpose"]


def most_dims_of_a_sum(file):
    model = onnx.shape_inference.infer_shapes(onnx.load(file))
    dims = {value.name: len(value.type.tensor_type.shape.dim) for value in model.graph.value_info}
    return max(dims.get(node.output[0], 0) for node in model.graph.node if node.op_type == "Add")


@pytest.mark.parametrize("name", DISTINCT)
def test_every_model_computes_the_same_in_onnxruntime(name, random_variables, clip, tmp_path):
    model = create_tiny(name)
    variables, spec = random_variables(model), model.clip
    files = flaxvid.export_onnx(flaxvid.Trained(model, variables), tmp_path)
    assert files == {spec.num_frames: tmp_path / f"{spec.num_frames}_frames.onnx"}
    onnx.checker.check_model(onnx.load(files[spec.num_frames]), full_check=True)
    video = clip(2, spec.num_frames, spec.image_size, spec.image_size)  # another batch than export has tried
    video = {camera: video[:, ::step] for camera, step in zip(model.cameras, (1, -1, 1), strict=False)} or video
    (logits,) = open_program(files[spec.num_frames], "onnxruntime")(video).values()
    wanted = apply(model, variables, video)
    assert np.abs(logits - wanted).max() < 1e-5 * np.abs(wanted).max()
    assert most_dims_of_a_sum(files[spec.num_frames]) <= 6  # OpenVINO 2026.4 adds tensors of 7 wrongly
    found = operators(files[spec.num_frames])
    assert found.count("Conv") == count_layers(model, variables, video, Conv)
    unused = int(name == "timesformer_base")  # its head sees the class token, not the norm of the others
    assert found.count("LayerNormalization") == count_layers(model, variables, video, nn.LayerNorm) - unused
    weighs_places = "attention" in name or "_nln_" in name  # by products of rows of places
    if name.startswith(CONVOLUTIONAL) and not weighs_places:
        pathways = 2 if name.startswith("slowfast") else 1
        assert len(transposed(files[spec.num_frames])) == pathways
        assert not {"Sqrt", "Reciprocal"} & {*found}
        assert "Mul" not in found or name.startswith(("x3d", "tsm")) or "_se" in name  # gates, and sizes in shifts


def test_a_frame_flexible_network_gives_a_program_for_each_count(random_variables, clip, randomise, tmp_path):
    flexible = flaxvid.FrameFlexible(create_tiny("tsm_resnet18"), (2, 4))
    variables = randomise(flexible.specialise(random_variables(flexible.model)))
    files = flaxvid.export_onnx(flaxvid.Trained(flexible, variables), tmp_path)
    assert sorted(files) == [2, 4]
    for count, file in files.items():
        video = clip(2, count, 32, 32)
        wanted = apply(flexible.model, flexible.select(variables, count), video)
        np.testing.assert_allclose(open_program(file, "onnxruntime")(video)[""], wanted, rtol=1e-4, atol=1e-4)
    assert sorted(flaxvid.export_onnx(flaxvid.Trained(flexible, variables), tmp_path, frames=(1, 3))) == [1, 3]


def test_targets_and_cameras_have_their_names(random_variables, clip, tmp_path):
    model = create_tiny("ts_cva", num_classes={"action": 3, "actor": 2})
    variables = random_variables(model)
    (file,) = flaxvid.export_onnx(flaxvid.Trained(model, variables), tmp_path).values()
    program = open_program(file, "onnxruntime")
    video = {camera: clip(2, 4, 32, 32, seed=seed) for seed, camera in enumerate(model.cameras)}
    logits = program(video)
    for target, wanted in apply(model, variables, video).items():
        np.testing.assert_allclose(logits[target], wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(
        ValueError,
        match=r"expected front uint8 .*, left uint8 .*, right uint8 .*, got front uint8 \(2, 4, 32, 32, 3\):",
    ):
        program({"front": video["front"]})


def test_a_network_trained_in_bfloat16_is_exported_in_float32(random_variables, clip, tmp_path):
    model = create_tiny("x3d_s", dtype="bfloat16")
    variables = random_variables(model)
    (file,) = flaxvid.export_onnx(flaxvid.Trained(model, variables), tmp_path).values()
    video = clip(2, 4, 32, 32)
    wanted = apply(create_tiny("x3d_s"), variables, video)
    np.testing.assert_allclose(open_program(file, "onnxruntime")(video)[""], wanted, rtol=1e-4, atol=1e-5)


def test_weights_are_stored_once_and_nodes_are_named_by_their_layers(random_variables, tmp_path):
    model = create_tiny("cnn_gru")
    variables = random_variables(model)
    (file,) = flaxvid.export_onnx(flaxvid.Trained(model, variables), tmp_path).values()
    weights = sum(leaf.nbytes for leaf in variables["params"]["body"].values() for leaf in _leaves(leaf))
    assert file.stat().st_size < 1.5 * weights  # the loop is unrolled, its kernels are not
    convolutions = [node.name for node in onnx.load(file).graph.node if node.op_type == "Conv"]
    assert any("layer1_0/conv1/Conv" in name for name in convolutions)


def _leaves(tree):
    return [leaf for value in tree.values() for leaf in _leaves(value)] if isinstance(tree, dict) else [tree]


# --- refused --------------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(random_variables):
    model = create_tiny("r3d_18")
    return flaxvid.Trained(model, random_variables(model))


def test_a_program_that_differs_is_not_written(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(programs, "TOLERANCE", 0.0)
    (tmp_path / "4_frames.onnx").write_text("an older program")
    with pytest.raises(ValueError, match=r"got a relative difference of .* in onnxruntime at 4 frames"):
        flaxvid.export_onnx(trained, tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"4_frames.onnx": "an older program"}


def test_what_cannot_be_exported_is_one_error(trained, random_variables, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="frames: expected positive multiples of 1, got 0"):
        flaxvid.export_onnx(trained, tmp_path, frames=(0, 4))
    videomae = create_tiny("videomae_base")
    with pytest.raises(ValueError, match="frames: expected positive multiples of 2, got 3"):
        flaxvid.export_onnx(flaxvid.Trained(videomae, random_variables(videomae)), tmp_path, frames=(3,))
    monkeypatch.setattr(export, "LARGEST", 1000)
    with pytest.raises(ValueError, match=r"at most 2 GB.* got 0\.0 GB"):
        flaxvid.export_onnx(trained, tmp_path)
    monkeypatch.setattr(export, "is_installed", lambda runtime: False)
    with pytest.raises(ImportError, match=r"pip install \"flaxvid\[export\]\""):
        flaxvid.export_onnx(trained, tmp_path)
    assert list(tmp_path.iterdir()) == []
