"""int8 in ONNX: where tensors are quantised, that programs compute what JAX does, and what OpenVINO makes of them."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import flaxvid
from flaxvid.compress.quantise import calibrate, quantise
from flaxvid.layers.int8 import round_input, round_kernel
from flaxvid.layers.pooling import max_pool
from flaxvid.layers.shift import temporal_shift
from flaxvid.models.registry import create_tiny

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("qwix")

from flaxvid.evaluate.runtimes import is_installed, open_program  # noqa: E402
from flaxvid.export.onnx import onnx_function  # noqa: E402

RNG = np.random.default_rng(0)
KERNEL = np.asarray(round_kernel(RNG.normal(size=(3, 3, 8, 6)).astype(np.float32)))
SINGLE = np.asarray(round_kernel(RNG.normal(size=(1, 1, 8, 6)).astype(np.float32)))
POSITIVE, BALANCED, SKEWED = (0.0, 2.0), (-128 / 127 * 2, 2.0), (-0.3, 1.9371)
WHOLE = {onnx.TensorProto.UINT8, onnx.TensorProto.INT8}


def framed(x):
    """The same numbers in the layout that convolutions want, made by one."""
    same, layout = np.eye(8, dtype=np.float32)[None, None], ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x.reshape(-1, 6, 5, 8), same, (1, 1), "SAME", dimension_numbers=layout).reshape(
        x.shape
    )


def conv(x, limits, kernel=KERNEL, strides=(1, 1)):
    """A rounding convolution of every frame."""
    flat = round_input(x, limits).reshape(-1, *x.shape[2:])
    y = lax.conv_general_dilated(flat, kernel, strides, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return y.reshape(*x.shape[:2], *y.shape[1:])


FUNCTIONS = {
    "one tensor, three readers": (
        lambda x: conv(temporal_shift(x), POSITIVE) + conv(x, POSITIVE) + round_input(x[..., :6], POSITIVE),
        1,
    ),
    "two ranges": (lambda x: conv(x, POSITIVE) + conv(x, SKEWED), 2),
    "symmetric": (lambda x: conv(x, BALANCED), 1),
    "a kernel of one place with strides": (lambda x: conv(x, SKEWED, SINGLE, (2, 2)), 1),
    "padded with what is no zero in whole numbers": (
        lambda x: conv(jnp.pad(x, ((0, 0), (0, 0), (1, 2), (0, 0), (0, 0))), SKEWED),
        1,
    ),
    "a constant in front": (lambda x: conv(jnp.concatenate([0.7 * jnp.ones_like(x[:, :1]), x], 1), SKEWED), 1),
    "rounded twice alike": (lambda x: conv(temporal_shift(round_input(x, POSITIVE)), POSITIVE), 1),
    "rounded twice": (lambda x: conv(round_input(x, SKEWED), POSITIVE), 2),
    "pooled": (lambda x: conv(max_pool(x, (3, 3), strides=(2, 2), padding=(1, 1)), SKEWED), 1),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_tensor_is_quantised_once_before_what_moves_it(name):
    function, times = FUNCTIONS[name]
    program = onnx_function(lambda x: {"y": function(framed(x))}, {"x": (("batch", 4, 6, 5, 8), np.float32)})
    onnx.checker.check_model(program, full_check=True)
    found = collections.Counter(node.op_type for node in program.graph.node)
    assert found["QuantizeLinear"] == times
    if times == 1:
        check_moves(program, 1)
    options = onnxruntime.SessionOptions()  # by itself it would leave out the first of two roundings
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    for batch in (1, 3):
        x = np.random.default_rng(batch).normal(0.5, 1, (batch, 4, 6, 5, 8)).astype(np.float32)
        (given,) = onnxruntime.InferenceSession(program.SerializeToString(), options).run(None, {"x": x})
        wanted = np.asarray(function(jnp.asarray(x)))
        assert given.shape == wanted.shape
        assert np.abs(given - wanted).max() < 1e-5 * np.abs(wanted).max()


def check_moves(program, first=0):
    """Convolutions from `first` on read dequantised tensors and kernels; up to QuantizeLinear numbers are whole."""
    graph = onnx.shape_inference.infer_shapes(program, check_type=True).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)}
    made = {node.output[0]: node for node in graph.node}
    convolutions = [node for node in graph.node if node.op_type == "Conv"][first:]
    for node in convolutions:
        assert [made[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2, node.name
    read = [name for node in convolutions for name in made[node.input[0]].input[:1]]
    while read:
        name = read.pop()
        node = made.get(name)
        if node is not None and node.op_type != "QuantizeLinear":
            assert kinds[name] in WHOLE, name
            read += [name for name in node.input if kinds.get(name) in WHOLE]
    return convolutions


@pytest.mark.parametrize("name", ["tsm_resnet18", "slow_r50", "r3d_18"])
def test_a_network_computes_in_whole_numbers(name, random_variables, clip, tmp_path):
    model = create_tiny(name, depths=(2, 1))
    size, frames = model.clip.image_size, model.clip.num_frames
    variables = random_variables(model)
    rounded = quantise(model, calibrate(model, variables, [clip(4, frames, size, size)]))
    (file,) = flaxvid.export_onnx(flaxvid.Trained(rounded, variables), tmp_path).values()
    program = onnx.load(file)
    convolutions = check_moves(program)
    made = {node.output[0]: node for node in program.graph.node}
    sums = [node for node in program.graph.node if "/sum/Add" in node.name]
    assert len(sums) == 3
    for node in sums:
        assert made[node.input[0]].op_type == "DequantizeLinear"
    quantised = collections.Counter(node.input[0] for node in program.graph.node if node.op_type == "QuantizeLinear")
    assert set(quantised.values()) == {1}
    if is_installed("openvino"):
        assert count_executed(file, "Convolution") == {"u8": len(convolutions)}
        assert "f32" not in count_executed(file, "Eltwise")
        assert count_executed(file, "FakeQuantize").total() <= 1  # that of the video: others are within convolutions
    video = clip(2, frames, size, size, seed=3)
    wanted = jax.device_get(jax.jit(rounded.apply)(variables, video))
    (given,) = open_program(file, "onnxruntime")(video).values()
    assert np.abs(given - wanted).max() < 0.05 * np.abs(wanted).max()


def count_executed(file, kind):
    """How often OpenVINO computes an operator, by the type that it computes in."""
    import openvino

    compiled = openvino.Core().compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    facts = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    return collections.Counter(
        fact["runtimePrecision"].astype(str) for fact in facts if fact["layerType"].astype(str) == kind
    )


def test_a_program_has_a_quarter_of_the_size(random_variables, clip, tmp_path):
    model = create_tiny("tsm_resnet18", width=64, depths=(1, 1))
    variables, clips = random_variables(model), [clip(2, 4, 32, 32)]
    networks = {"float": model, "int8": quantise(model, calibrate(model, variables, clips))}
    sizes = {}
    for name, network in networks.items():
        (file,) = flaxvid.export_onnx(flaxvid.Trained(network, variables), tmp_path / name).values()
        sizes[name] = file.stat().st_size
    assert sizes["int8"] < 0.3 * sizes["float"]
