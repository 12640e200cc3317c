"""A step gives its state's memory away: whatever shares it before, the first step runs, on one device and on two."""

import os
import subprocess
import sys

PROGRAM = """
import functools, tempfile
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import Mesh
from safetensors.numpy import save_file
from flaxvid.models.registry import create_tiny
from flaxvid.train.mesh import make_mesh, put_batch, replicated
from flaxvid.train.recipe import DataRecipe, ModelRecipe, OptimizerRecipe, Recipe
from flaxvid.tasks.task import init_model
from flaxvid.train.setup import make_model
from flaxvid.train.start import fit_start, load_start
from flaxvid.train.state import create_state
from flaxvid.train.step import jit_step, train_step
from flaxvid.tasks.supervised import SupervisedRecipe
from flaxvid.weights.native import WeightsInfo, save_variables
from flaxvid.weights.torch import to_torch

class Sum:
    def loss(self, variables, batch, key):
        loss = sum((leaf * batch["x"].mean()).sum() for leaf in jax.tree.leaves(variables["params"]))
        return loss, ({}, {"loss": loss})

    def after(self, variables, step):
        return variables


def step_twice(task, variables, batch, optimizer=optax.sgd(0.1), ema=0.0):
    state = create_state(variables, optimizer, ema=ema > 0)
    state = jax.device_put(state, replicated(mesh))
    step = jit_step(functools.partial(train_step, task=task, optimizer=optimizer, ema=ema), mesh)
    for _ in range(2):
        state, metrics = step(state, put_batch(batch, mesh), jax.random.key(0), 1.0)
    assert np.isfinite(jax.device_get(metrics["loss"]))
    for leaf in jax.tree.leaves(variables):
        np.asarray(leaf)  # the caller's are still there
    return jax.device_get(state.variables)


def from_a_file(kind):
    path = tempfile.mkdtemp() + "/w.safetensors"
    backbone = create_tiny("tsn_resnet18", depths=(1,), num_classes=3)
    video = np.zeros((4, 2, 32, 32, 3), np.uint8)
    weights = backbone.init(jax.random.key(0), video)
    if kind == "torch":
        save_file(to_torch("tsn_resnet18", weights), path)
    else:
        save_variables(path, weights, WeightsInfo("tsn_resnet18", {"depths": [1], "width": 8}))
    options = {"backbone": "tsn_resnet18", "backbone_options": {"width": 8, "depths": (1,)}, "separate": True}
    recipe = Recipe(ModelRecipe("ts_cva", path, 2, 32, options=options), DataRecipe(cameras=("front", "left")))
    model = make_model(recipe, 3)
    cameras = {camera: video for camera in ("front", "left")}
    batch = {"video": {2: cameras}, "label": np.zeros(4, np.int32), "index": np.arange(4, dtype=np.int32)}
    step_twice(SupervisedRecipe((2,)).make(model), fit_start(recipe, model, load_start(recipe, 3)), batch, ema=0.9)


keeps = optax.GradientTransformation(lambda params: params, lambda updates, state, params: (updates, state))
leaf, array = jnp.arange(1000.0), np.arange(1000, dtype=np.float32)
here = lambda: jax.device_put(leaf, replicated(mesh))
for mesh in (Mesh(np.asarray(jax.devices()[:1]), ("data",)), make_mesh()):
    for way, params, optimizer, ema in (
        ("one leaf twice", {"a": leaf, "b": leaf}, optax.sgd(0.1), 0.0),
        ("one buffer twice", {"a": here(), "b": here()}, optax.sgd(0.1), 0.0),
        ("one array twice", {"a": array, "b": array}, optax.sgd(0.1), 0.0),
        ("averages", {"a": leaf}, optax.sgd(0.1), 0.9),
        ("an optimizer's copy", {"a": leaf}, optax.chain(keeps, optax.sgd(0.1)), 0.0),
    ):
        print(way, flush=True)
        moved = step_twice(Sum(), {"params": params}, {"x": np.ones((4, 1), np.float32)}, optimizer, ema)
        for value in moved["params"].values():
            np.testing.assert_allclose(value, np.arange(1000) - 0.2, rtol=1e-6, atol=1e-6)
    for kind in ("torch", "native"):
        print("separate backbones from one file,", kind, flush=True)
        from_a_file(kind)
    print(mesh.size, "devices: done", flush=True)
"""


def test_what_shares_memory_is_trained():
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{done.returncode}: {done.stdout} {done.stderr[-2000:]}"
    assert "1 devices: done\n" in done.stdout
    assert done.stdout.endswith("2 devices: done\n")
