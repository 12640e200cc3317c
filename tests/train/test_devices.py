"""Eight fake devices against one, in a process of its own: the number of devices is fixed when JAX starts."""

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import functools, json, re
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from flaxvid.models.registry import create_tiny
from flaxvid.tasks.frame_flexible import FfnRecipe
from flaxvid.tasks.mixing import mix
from flaxvid.tasks.supervised import SupervisedRecipe
from flaxvid.train.mesh import check_batch_size, make_mesh, put_batch, replicated
from flaxvid.train.optimizer import make_optimizer
from flaxvid.train.recipe import OptimizerRecipe
from flaxvid.train.state import create_state
from flaxvid.train.step import jit_step, train_step

model = create_tiny("tsm_resnet18", depths=(1,), dropout=0.2)
task = FfnRecipe((2, 4)).make(model)
baseline = SupervisedRecipe((2, 4), mixup=1.0, cutmix=1.0, erasing=0.5).make(model)
optimizer = make_optimizer(OptimizerRecipe("sgd", momentum=0.9, weight_decay=5e-4))
key, rate = jax.random.key(0), np.float32(0.05)
rng = np.random.default_rng(0)
batches = [
    {
        "video": {n: rng.integers(0, 256, (16, n, 32, 32, 3), np.uint8) for n in (2, 4)},
        "label": rng.integers(0, 5, 16, np.int32),
        "index": np.arange(16, dtype=np.int32),
    }
    for _ in range(3)
]

missing = [{**batch, "label": np.where(np.arange(16) % 5, batch["label"], -1)} for batch in batches]

def train(mesh, norm_groups=1, task=task, batches=batches, **arguments):
    state = jax.device_put(create_state(task.init(key), optimizer), replicated(mesh))
    first = put_batch(batches[0], mesh)
    options = {"task": task, "optimizer": optimizer, "norm_groups": norm_groups, **arguments}
    step = jit_step(functools.partial(train_step, **options), mesh)
    step = step.lower(state, first, key, rate).compile()
    losses = []
    for batch in batches:
        state, metrics = step(state, put_batch(batch, mesh), key, rate)
        losses.append(float(metrics["loss"]))
    return jax.device_get(state), losses, step.as_text()

eight, eight_losses, program = train(make_mesh())
one, one_losses, alone = train(Mesh(np.asarray(jax.devices()[:1]), ("data",)))
grouped, grouped_losses, apart = train(make_mesh(), norm_groups=8)
together, together_losses, _ = train(Mesh(np.asarray(jax.devices()[:1]), ("data",)), norm_groups=8)
cut, cut_losses, _ = train(make_mesh(), task=baseline, batches=missing, accumulate=2)
uncut, uncut_losses, _ = train(Mesh(np.asarray(jax.devices()[:1]), ("data",)), 1, baseline, missing, accumulate=2)
sharding = NamedSharding(make_mesh(), PartitionSpec("data"))
mixed = jax.jit(
    lambda batch, key: mix(model, batch, key, mixup=1.0, cutmix=1.0, erasing=0.5),
    in_shardings=(sharding, None),
    out_shardings=sharding,
)
small = {"video": {2: np.zeros((16, 2, 8, 8, 3), np.uint8)}, "label": np.arange(16)}
mixing = mixed.lower(small, key).compile().as_text()
kinds = "all-reduce|all-gather|all-to-all|collective-permute|collective-broadcast|reduce-scatter"
count = lambda text: {k: len(re.findall(rf" {k}(?:-start)?\\(", text)) for k in kinds.split("|")}
def difference(these, those, task=task):
    start = jax.device_get(create_state(task.init(key), optimizer))
    # By path: the largest difference, over the largest way moved since the start.
    leaves = zip(
        jax.tree_util.tree_leaves_with_path(these.variables),
        jax.tree.leaves(those.variables), jax.tree.leaves(start.variables), strict=True,
    )
    return {
        jax.tree_util.keystr(path): float(np.max(np.abs(a - b)) / (np.max(np.abs(b - c)) + 1e-8))
        for (path, a), b, c in leaves
    }

try:
    check_batch_size(12, make_mesh())
    message = ""
except ValueError as error:
    message = str(error)
print(json.dumps({
    "devices": jax.device_count(),
    "losses": [eight_losses, one_losses],
    "grouped_losses": [grouped_losses, together_losses],
    "difference": difference(eight, one),
    "grouped_difference": difference(grouped, together),
    "collectives": [count(program), count(alone), count(apart)],
    "mixing": ["f32[2,2,8,8,3]" in mixing, count(mixing)],
    "cut_losses": [cut_losses, uncut_losses],
    "cut_difference": difference(cut, uncut, baseline),
    "message": message,
}))
"""


@pytest.fixture(scope="module")
def outcome():
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome["devices"] == 8
    return outcome


def test_eight_devices_give_the_numbers_of_one(outcome):
    """Three FFN steps in float32: norms, dropout, distillation and momentum are those of the global batch.

    The sums run in another order, so every variable may differ by a thousandth of the way that it has moved.
    """
    eight, one = outcome["losses"]
    assert eight == pytest.approx(one, rel=1e-4)
    assert len(set(one)) == 3
    assert {path: value for path, value in outcome["difference"].items() if value > 1e-3} == {}


def test_the_program_only_reduces(outcome):
    """Gradients, batch statistics and metrics are summed over the devices; no activation and no parameter travels."""
    eight, one, grouped = outcome["collectives"]
    assert not any(one.values())
    # The forward pass needs none, and what is left waits for the gradients: a single one here.
    assert 0 < grouped.pop("all-reduce") < eight.pop("all-reduce")
    assert not any(eight.values())
    assert not any(grouped.values())


def test_neighbours_are_mixed_where_they_are(outcome):
    """Each device mixes its own two rows: no video moves."""
    divided, collectives = outcome["mixing"]
    assert divided
    assert not any(collectives.values())


def test_statistics_of_groups_are_the_same_on_one_device_and_not_those_of_the_batch(outcome):
    grouped, together = outcome["grouped_losses"]
    assert grouped == pytest.approx(together, rel=1e-5)
    assert {path: value for path, value in outcome["grouped_difference"].items() if value > 1e-3} == {}
    assert grouped != pytest.approx(outcome["losses"][0], rel=1e-4)


def test_a_divided_and_mixed_batch_in_parts_is_the_same_on_eight_devices(outcome):
    """Proportional sampling, mixup, cutmix, erasing, labels missing, two parts: three steps."""
    cut, uncut = outcome["cut_losses"]
    assert cut == pytest.approx(uncut, rel=1e-4)
    assert {path: value for path, value in outcome["cut_difference"].items() if value > 1e-3} == {}


def test_a_batch_size_that_does_not_divide_is_one_clear_error(outcome):
    assert outcome["message"].startswith("batch_size=12 must divide evenly over 8 devices")
    assert outcome["message"].endswith("use 8")
