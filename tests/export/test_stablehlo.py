"""Networks as StableHLO: in processes without flaxvid, and for other platforms."""

import re
import subprocess
import sys

import jax
import numpy as np
import pytest

import flaxvid
from flaxvid.models.registry import create_tiny

pytest.importorskip("flatbuffers")

WITHOUT_FLAXVID = """
import sys
sys.modules["flaxvid"] = sys.modules["flax"] = None  # whoever imports them fails
import jax, numpy, pathlib
program = jax.export.deserialize(bytearray(pathlib.Path(sys.argv[1]).read_bytes()))
numpy.save(sys.argv[3], program.call(numpy.load(sys.argv[2])))
"""


@pytest.fixture(scope="module")
def exported(random_variables, tmp_path_factory):
    model = create_tiny("r3d_18_se")
    variables, folder = random_variables(model), tmp_path_factory.mktemp("bundle")
    (file,) = flaxvid.export_stablehlo(flaxvid.Trained(model, variables), folder).values()
    return model, variables, file


def test_a_process_without_flaxvid_runs_it_with_any_batch(exported, clip, tmp_path):
    model, variables, file = exported
    assert file.name == "4_frames.stablehlo"
    video = clip(5, 4, 32, 32)
    np.save(tmp_path / "video.npy", video)
    arguments = [str(file), str(tmp_path / "video.npy"), str(tmp_path / "logits.npy")]
    subprocess.run([sys.executable, "-c", WITHOUT_FLAXVID, *arguments], check=True, cwd=tmp_path)
    wanted = jax.jit(model.apply)(variables, video)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), wanted, rtol=1e-5, atol=1e-6)


def test_it_is_for_cpu_cuda_and_tpu_with_direct_convolutions_there(exported):
    model, _, file = exported
    program = jax.export.deserialize(bytearray(file.read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert program.in_avals[0].shape[0] != 1  # a symbol
    assert not isinstance(program.in_avals[0].shape[0], int)
    kernels = re.findall(
        r"stablehlo\.convolution.*: \(tensor<\?x[^>]*>, tensor<([0-9x]*)xf32>\)", program.mlir_module()
    )
    wanted = [leaf for path, leaf in flaxvid.trees.flatten(_shapes(model)).items() if path.endswith("kernel")]
    wanted = {"x".join(map(str, leaf.shape)) for leaf in wanted if len(leaf.shape) == 5}
    assert {shape for shape in kernels if shape.count("x") == 4} == wanted  # each 3-D kernel whole
    assert {shape for shape in kernels if shape.count("x") == 3}  # the CPU has them cut into 2-D ones


def _shapes(model):
    video = jax.ShapeDtypeStruct((1, 4, 32, 32, 3), np.uint8)
    return jax.eval_shape(model.init, jax.random.key(0), video)["params"]


def test_frame_flexible_targets_and_cameras(random_variables, clip, tmp_path):
    model = create_tiny("ts_cva", num_classes={"action": 3, "actor": 2})
    variables = random_variables(model)
    files = flaxvid.export_stablehlo(flaxvid.Trained(model, variables), tmp_path)
    program = jax.export.deserialize(bytearray(files[4].read_bytes()))
    video = {camera: clip(2, 4, 32, 32, seed=seed) for seed, camera in enumerate(model.cameras)}
    given, wanted = program.call(video), jax.jit(model.apply)(variables, video)
    assert given.keys() == wanted.keys() == {"action", "actor"}
    for target, logits in wanted.items():
        np.testing.assert_allclose(given[target], logits, rtol=1e-5, atol=1e-6)
