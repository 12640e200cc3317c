"""Parameters that are divided over eight fake devices, against one device, in a process of its own."""

import dataclasses
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from jax.sharding import PartitionSpec

from flaxvid.tasks.masked import MaskedRecipe
from flaxvid.tasks.supervised import SupervisedRecipe
from flaxvid.train.limits import check
from flaxvid.train.recipe import ModelRecipe, Recipe
from flaxvid.train.sharding import check_tensor, place

PROGRAM = """
import functools, json, re, sys
import jax, numpy as np
from flaxvid.models.registry import create_tiny
from flaxvid.tasks.frame_flexible import FfnRecipe
from flaxvid.tasks.masked import MaskedRecipe
from flaxvid.tasks.supervised import SupervisedRecipe
from flaxvid.train.mesh import check_batch_size, make_mesh, put_batch
from flaxvid.train.optimizer import make_optimizer
from flaxvid.train.recipe import OptimizerRecipe
from flaxvid.train.sharding import make_whole, place_state
from flaxvid.train.state import create_state
from flaxvid.train.step import jit_step, train_step
from jax.sharding import Mesh

options = {"depth": 1, "width": 32, "num_heads": 4, "image_size": 16, "num_classes": 8}
options |= {"dropout": 0.1, "drop_path": 0.1}
videomae = create_tiny("videomae_base", **options)
tsm = create_tiny("tsm_resnet18", depths=(1,), num_classes=8, dropout=0.1, image_size=16)
supervised = SupervisedRecipe((4,), mixup=0.5)
tasks = {
    "videomae": supervised.make(videomae),
    "remat": supervised.make(create_tiny("videomae_base", remat=True, **options)),
    "masked": MaskedRecipe((4,), mask_ratio=0.5, decoder_depth=1).make(videomae),
    "tsm": supervised.make(tsm),
    "ffn": FfnRecipe((2, 4)).make(tsm),
}
key, rate = jax.random.key(0), np.float32(0.05)
rng = np.random.default_rng(0)
batches = [
    {
        "video": {n: rng.integers(0, 256, (16, n, 16, 16, 3), np.uint8) for n in (2, 4)},
        "label": rng.integers(0, 8, 16, np.int32),
    }
    for _ in range(2)
]
kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"

def train(task, mesh, freeze=(), accumulate=1, norm_groups=1):
    put = lambda batch: put_batch(batch | {"video": {n: batch["video"][n] for n in task.frames}}, mesh)
    optimizer = make_optimizer(OptimizerRecipe("sgd", momentum=0.9, clip_norm=1.0))
    state = create_state(task.init(key), optimizer, ema=True, freeze=freeze)
    start = jax.device_get(state)
    state = jax.device_put(state, place_state(state, mesh))
    step = jit_step(functools.partial(
        train_step, task=task, optimizer=optimizer, ema=0.9, freeze=freeze, accumulate=accumulate,
        norm_groups=norm_groups, mesh=mesh), mesh, state)
    compiled = step.lower(state, put(batches[0]), key, rate).compile()
    losses = []
    for batch in batches:
        state, metrics = compiled(state, put(batch), key, rate)
        losses.append(float(metrics["loss"]))
    own = lambda tree: sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))
    text = compiled.as_text()
    whole = jax.tree.leaves(make_whole(state.variables, mesh))[0].sharding
    return {
        "losses": losses,
        "state": jax.device_get(state),
        "start": start,
        "bytes": own(state),
        "collectives": {kind: len(re.findall(rf" {kind}(?:-start)?\\(", text)) for kind in kinds.split("|")},
        "whole": whole.is_fully_replicated and len(whole.device_set) == mesh.size,
    }

def difference(these, those):
    # By path: the largest difference, over the largest way moved since the start.
    leaves = zip(
        jax.tree_util.tree_leaves_with_path(these["state"].variables), jax.tree.leaves(those["state"].variables),
        jax.tree.leaves(those["start"].variables), strict=True,
    )
    return {
        jax.tree_util.keystr(path): float(np.max(np.abs(a - b)) / (np.max(np.abs(b - c)) + 1e-8))
        for (path, a), b, c in leaves
    }

cases = {
    "fsdp": ("videomae", make_mesh(8)),
    "tensor": ("videomae", make_mesh(1, 4)),
    "both": ("videomae", make_mesh(2, 2)),
    "remat": ("remat", make_mesh(4)),
    "convolutions": ("tsm", make_mesh(4), ("stem",)),
    "in parts": ("tsm", make_mesh(2), (), 2, 8),
    "private norms": ("ffn", make_mesh(8)),
    "masked": ("masked", make_mesh(4, 2)),
}
found = {}
for name, (task, mesh, *options) in cases.items():
    one = train(tasks[task], Mesh(np.asarray(jax.devices()[:1]), ("data",)), *options)
    many = train(tasks[task], mesh, *options)
    found[name] = {
        "losses": [many["losses"], one["losses"]],
        "difference": difference(many, one),
        "bytes": [many["bytes"], one["bytes"]],
        "collectives": many["collectives"],
        "whole": many["whole"],
    }
errors = []
for call in (lambda: make_mesh(3), lambda: make_mesh(4, 4), lambda: check_batch_size(6, make_mesh(2, 2))):
    try:
        call()
    except ValueError as error:
        errors.append(str(error))
check_batch_size(8, make_mesh(1, 2), accumulate=2)
print(json.dumps({"devices": jax.device_count(), "found": found, "errors": errors}))
"""


@pytest.fixture(scope="module")
def outcome():
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome["devices"] == 8
    return outcome


CASES = ("fsdp", "tensor", "both", "remat", "convolutions", "in parts", "private norms", "masked")


@pytest.mark.parametrize("case", CASES)
def test_divided_parameters_give_the_numbers_of_one_device(outcome, case):
    """Momentum, averages, a clipped gradient, mixup, dropout: two steps.

    Adam would divide gradients that are zero but for rounding by their own size.
    """
    many, one = outcome["found"][case]["losses"]
    assert many == pytest.approx(one, rel=1e-4)
    assert many[0] != many[1]
    assert {path: value for path, value in outcome["found"][case]["difference"].items() if value > 1e-3} == {}
    assert outcome["found"][case]["whole"]


@pytest.mark.parametrize(
    ("case", "least", "most"),
    [
        ("fsdp", 0.125, 0.2),
        ("remat", 0.25, 0.3),
        ("tensor", 0.25, 0.7),
        ("both", 0.25, 0.5),
        ("private norms", 0.125, 0.3),
        ("masked", 0.125, 0.35),
    ],
)
def test_a_device_keeps_a_part(outcome, case, least, most):
    """Kernels are divided with averages and momentum. Vectors are whole, for tensor stem and head too."""
    many, one = outcome["found"][case]["bytes"]
    assert least < many / one < most


def test_collectives(outcome):
    """FSDP gathers each kernel once, and sums and cuts each kernel's gradient, as XLA on a CPU has no reduce-scatter.

    Tensor parallelism adds up each attention and mlp once in each direction, and moves the packed kernel of attention,
    whose heads lie elsewhere than its columns.
    """
    fsdp, tensor = (outcome["found"][case]["collectives"] for case in ("fsdp", "tensor"))
    kernels = 6  # patch, qkv, project, fc1, fc2, classifier
    assert fsdp["all-gather"] == kernels
    assert kernels <= fsdp["all-reduce"] <= kernels + 4
    assert 4 <= tensor["all-reduce"] <= 8
    assert 0 < tensor["all-gather"] <= 6
    for found in (fsdp, tensor):
        assert found["all-to-all"] == found["collective-permute"] == 0


def test_a_mesh_that_cannot_be_says_why(outcome):
    three, sixteen, batch = outcome["errors"]
    wanted = "expected fsdp x tensor to divide 8 devices, and tensor those of a process (8)"
    assert three == f"{wanted}, got fsdp=3, tensor=1: lower them"
    assert "got fsdp=4, tensor=4" in sixteen
    assert batch.startswith("batch_size=6 must divide evenly over 4 devices")


def test_where_arrays_lie():
    mesh = SimpleNamespace(shape={"data": 2, "fsdp": 4, "tensor": 2})
    body = "variables/params/body/block_0"
    spec = lambda path, *shape: place(path, shape, mesh)  # noqa: E731
    assert spec(f"{body}/attention/qkv/kernel", 64, 192) == PartitionSpec("fsdp", "tensor")
    assert spec(f"{body}/attention_time/project/kernel", 64, 64) == PartitionSpec("tensor", "fsdp")
    assert spec("training/opt_state/1/mu/params/body/block_0/mlp/fc2/kernel", 256, 64) == PartitionSpec(
        "tensor", "fsdp"
    )
    assert spec(f"{body}/mlp/fc1/bias", 256) == PartitionSpec("tensor")
    assert spec(f"{body}/norm1/scale", 64) == PartitionSpec(None)
    assert spec("variables/params/stem/conv1/kernel", 3, 3, 3, 64) == PartitionSpec(None, None, None, "fsdp")
    assert spec("variables/params/stem/conv1/kernel", 3, 3, 3, 7) == PartitionSpec(None, None, None, None)
    assert spec("step") == PartitionSpec()
    with pytest.raises(ValueError, match=r"tensor to divide axis -1 of .*fc1/kernel \(64, 33\), got 2: lower it"):
        spec(f"{body}/mlp/fc1/kernel", 64, 33)
    alone = SimpleNamespace(shape={"data": 8})
    assert place(f"{body}/attention/qkv/kernel", (64, 192), alone) == PartitionSpec(None, None)


def test_tensor_parallelism_is_for_transformers():
    check_tensor({"params": {"body": {"block_0": {"mlp": {"fc1": {"kernel": 0}}}}}}, 2)
    check_tensor({"params": {"body": {"layer1_0": {"conv1": {"kernel": 0}}}}}, 1)
    with pytest.raises(ValueError, match="expected a transformer for tensor=2"):
        check_tensor({"params": {"body": {"layer1_0": {"conv1": {"kernel": 0}}}}}, 2)


RUNS = """
import dataclasses, sys
import flaxvid, numpy as np
from flaxvid import trees
from flaxvid.data.clips.cut import ClipConfig
from flaxvid.tasks.supervised import SupervisedRecipe
from flaxvid.train.checkpoint import restore_variables
from flaxvid.train.recipe import DataRecipe, ModelRecipe, OptimizerRecipe, Recipe

videos, folder = sys.argv[1:]
recipe = Recipe(
    ModelRecipe("videomae_base", num_frames=2, image_size=16, options={
        "depth": 1, "width": 16, "num_heads": 2, "patch_size": 8}),
    DataRecipe("folder", videos, clips=ClipConfig(short="repeat")),
    SupervisedRecipe((2,)),
    OptimizerRecipe("sgd", 0.01, schedule="constant", ema=0.9),
    batch_size=4, eval_batch_size=4, epochs=3, freeze=("stem",), unfreeze=((1, "stem"),),
)
flaxvid.run(recipe, f"{folder}/plain")
flaxvid.run(dataclasses.replace(recipe, epochs=2, fsdp=2, tensor=2), f"{folder}/divided")
flaxvid.run(dataclasses.replace(recipe, epochs=3, fsdp=4), f"{folder}/divided")
plain, divided = (trees.flatten(restore_variables(f"{folder}/{name}")) for name in ("plain", "divided"))
assert plain.keys() == divided.keys()
for path in plain:
    np.testing.assert_allclose(divided[path], plain[path], rtol=1e-4, atol=1e-6, err_msg=path)
plain = dataclasses.replace(recipe, freeze=(), unfreeze=())
convolutions = ModelRecipe("tsm_resnet18", num_frames=2, image_size=16, options={"depths": (1,), "width": 8})
for wrong in (
    dataclasses.replace(plain, tensor=4),
    dataclasses.replace(plain, fsdp=8),
    dataclasses.replace(plain, fsdp=3),
    dataclasses.replace(plain, fsdp=4, batch_size=2),
    dataclasses.replace(plain, tensor=2, model=convolutions),
):
    try:
        flaxvid.run(wrong, f"{folder}/none")
    except ValueError as error:
        print(f"refused: {error}")
"""


def test_a_run_goes_on_with_its_parameters_divided_otherwise(coloured_videos, tmp_path):
    """Two epochs on 2 x 2 devices, in the second the stem thaws; another one on four: the numbers of a plain run."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", RUNS, str(coloured_videos), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "fsdp: 2 there, 4 here" in done.stdout
    refused = done.stdout.partition("refused: ")[2].split("refused: ")
    wanted = (
        "tensor=4 must divide the heads of videomae_base, got num_heads=2",
        "expected fsdp x tensor to divide 4 devices, and tensor those of a process (4), got fsdp=8, tensor=1: lower",
        "expected fsdp x tensor to divide 4 devices, and tensor those of a process (4), got fsdp=3, tensor=1: lower",
        "batch_size=2 must divide evenly over 4 devices x 1 accumulated parts: use 4",
        "expected a transformer for tensor=2, got a network without an attention or mlp to divide: use fsdp",
    )
    assert [said in error for said, error in zip(wanted, refused, strict=True)] == [True] * len(wanted), refused
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("task", "heads", "tensor", "said"),
    [
        (SupervisedRecipe((4,)), 4, 3, "tensor=3 must divide the heads of videomae_base, got num_heads=4"),
        (MaskedRecipe((4,)), 6, 2, "tensor=2 must divide the heads of the decoder, got 3: change task.decoder_width"),
    ],
)
def test_heads_that_do_not_divide_are_one_problem(task, heads, tensor, said):
    model = ModelRecipe("videomae_base", num_frames=4, image_size=32, options={"width": 48, "num_heads": heads})
    recipe = Recipe(model, task=task, eval_frames=(), tensor=tensor)
    with pytest.raises(ValueError, match="the recipe cannot run") as error:
        check(recipe)
    (line,) = str(error.value).splitlines()[1:]
    assert line.strip().startswith(said)
    check(dataclasses.replace(recipe, tensor=1))
