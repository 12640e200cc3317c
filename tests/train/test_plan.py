"""Plans. A tiny network is compiled for this machine's CPU, in the place of the machine that is not there."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxvid.evaluate.cost import model_cost
from flaxvid.tasks.domain import DomainRecipe
from flaxvid.tasks.frame_flexible import FfnRecipe
from flaxvid.tasks.supervised import SupervisedRecipe
from flaxvid.train import machines, plan
from flaxvid.train.machines import CHIPS, Chip, Target, find_devices, read_target
from flaxvid.train.plan import Program, bound, describe, find_largest_batch, make_plan
from flaxvid.train.presets import preset
from flaxvid.train.program import Collective, count_bytes, read_traffic
from flaxvid.train.recipe import ModelRecipe
from flaxvid.train.setup import complete, make_model

ROOT = Path(__file__).parents[2]
HERE = Chip("this CPU", "cpu", memory=2_000_000_000, arithmetic=1e12, bandwidth=1e10, links=1e9)


@pytest.mark.parametrize(
    ("text", "count"), [("h100:1", 1), ("h100:8", 8), ("v5e:2x2", 4), ("v5e:4x4", 16), ("v5e:8x16", 128)]
)
def test_targets(text, count):
    target = read_target(text)
    assert (target.name, target.chip, target.count) == (text, CHIPS[text.partition(":")[0]], count)


@pytest.mark.parametrize("text", ["", "h100", "h100:0", "h100:2x2", "v5e:4", "v5e:4x4x4", "a100:8", "h100:eight"])
def test_other_targets_get_one_error(text):
    with pytest.raises(ValueError, match=r"expected a target such as h100:8 or v5e:4x4, got"):
        read_target(text)


@pytest.mark.parametrize(("text", "package"), [("h100:8", "jax-cuda12-pjrt=="), ("v5e:4x4", "libtpu==")])
def test_a_missing_compiler_says_what_to_install(monkeypatch, text, package):
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    monkeypatch.setattr(machines, "_is_installed", lambda module: False)
    with pytest.raises(RuntimeError, match=rf"is missing: pip install .*{package}") as error:
        find_devices(read_target(text))
    assert "\n" not in str(error.value)


def test_traffic_of_a_product():
    a, b = jnp.zeros((16, 32)), jnp.zeros((32, 8))
    compiled = jax.jit(lambda a, b: a @ b).lower(a, b).compile()
    assert read_traffic(compiled.as_text() or "").moved == 4 * (16 * 32 + 32 * 8 + 16 * 8)


PROGRAM = """HloModule step

body (p: (s32[], bf16[100])) -> (s32[], bf16[100]) {
  %p = (s32[], bf16[100]) parameter(0)
  %x = bf16[100]{0} get-tuple-element(%p), index=1
  %y = bf16[100]{0} negate(%x)
}

ENTRY %main (a: f32[10], b: bf16[100]) -> f32[10] {
  %a = f32[10]{0} parameter(0)
  %b = bf16[100]{0} parameter(1)
  %start = f32[10]{0} all-reduce-start(%a), to_apply=%add
  %sum = f32[10]{0} all-reduce-done(%start)
  %gather = (f32[10]{0}, f32[40]{0}) all-gather-start(%sum), dimensions={0}
  %scatter = ((f32[10]{0}), f32[5]{0}) reduce-scatter-start(%sum), dimensions={0}, to_apply=%add
  %loop = (s32[], bf16[100]{0}) while(%b), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %call = (f32[10]{0}, u8[999]{0}) custom-call(%sum), custom_call_target="library"
  ROOT %out = f32[10]{0} get-tuple-element(%call), index=0
}
"""


def test_traffic_counts_loops_collectives_and_no_workspace():
    traffic = read_traffic(PROGRAM)
    assert traffic.collectives == {
        "all-reduce": Collective(1, 40),
        "all-gather": Collective(1, 160),
        "reduce-scatter": Collective(1, 40),
    }
    assert traffic.moved == (40 + 40) + (40 + 160) + (40 + 20) + 3 * (200 + 200) + (40 + 40)


TAKING = """HloModule step

fused (p: bf16[100,8], q: bf16[100,8]) -> bf16[10,8] {
  %p = bf16[100,8]{1,0} parameter(0)
  %q = bf16[100,8]{1,0} parameter(1)
  %minus = bf16[100,8]{1,0} negate(%p)
  %one = bf16[10,8]{1,0} slice(%minus), slice={[0:10], [0:8]}
  %all = bf16[10,8]{1,0} reduce(%q), dimensions={0}, to_apply=%add
  ROOT %out = bf16[10,8]{1,0} multiply(%one, %all)
}

ENTRY %main (a: bf16[100,8], b: bf16[100,8]) -> bf16[10,8] {
  %a = bf16[100,8]{1,0} parameter(0)
  %b = bf16[100,8]{1,0} parameter(1)
  %part = bf16[20,8]{1,0} slice(%a), slice={[0:20], [0:8]}
  ROOT %fusion = bf16[10,8]{1,0} fusion(%a, %b), kind=kLoop, calls=%fused
}
"""


def test_of_what_is_sliced_only_the_slices_are_read():
    part, fused = 20 * 8 * 2 * 2, 10 * 8 * 2 + 100 * 8 * 2 + 10 * 8 * 2
    assert read_traffic(TAKING).moved == part + fused


def test_bytes_of_shapes():
    assert count_bytes("(f32[2,3]{1,0}, bf16[4], pred[], f8e4m3fn[8])") == 24 + 8 + 1 + 8


def program(batch_size, activations, **fields):
    fields = {"operations": 0, "moved": 0, "collectives": {}} | fields
    return Program(batch_size, weights=10, optimizer=20, clips=batch_size, activations=activations, **fields)


def test_the_largest_batch_is_on_the_line_through_two():
    programs = [program(16, 160), program(8, 80)]  # 30 bytes, and 11 for each clip
    assert find_largest_batch(programs, 30 + 11 * 50, 1) == 50
    assert find_largest_batch(programs, 30 + 11 * 50, 8) == 48
    assert find_largest_batch(programs, 20, 1) == 0
    assert find_largest_batch(programs[:1], 1000, 1) is None
    assert find_largest_batch([program(16, 10), program(8, 80)], 1000, 1) is None


def test_bounds():
    chip = Chip("chip", "tpu", memory=100, arithmetic=10.0, bandwidth=5.0, links=2.0)
    sent = {"all-reduce": Collective(3, 8), "all-gather": Collective(1, 4)}
    one = program(4, 0, operations=30, moved=20, collectives=sent)
    assert bound(one, Target("chip:2x2", chip, 4)) == {"arithmetic": 3, "memory": 4, "links": (16 + 4) * 0.75 / 2}
    assert bound(one, Target("chip:1x1", chip, 1))["links"] == 0


@pytest.fixture(scope="module")
def recipe():
    recipe = preset("motion")
    options = {"width": 64, "depth": 2, "num_heads": 4, "patch_size": 8}
    recipe.model = ModelRecipe("videomae_base", num_frames=4, image_size=40, options=options)
    recipe.task, recipe.batch_size, recipe.eval_frames = SupervisedRecipe(frames=(4,)), 8, ()
    return recipe


@pytest.fixture
def on_this_cpu(monkeypatch):
    monkeypatch.setattr(plan, "find_devices", lambda target: jax.devices()[: target.count])
    return Target("cpu:1", HERE, 1)


def test_a_plan(recipe, on_this_cpu):
    told = []
    made = make_plan(recipe, on_this_cpu, 400, told.append)
    step = made.program
    assert step is not None
    assert (len(told), made.fits, step.batch_size) == (2, True, 8)
    model = make_model(complete(recipe), 400)
    cost = model_cost(model, (8, 4, 40, 40, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 4, 40, 40, 3), np.float32))
    assert step.weights == sum(4 * leaf.size for leaf in jax.tree.leaves(variables))
    assert step.optimizer == pytest.approx(2 * 4 * cost.parameters, rel=1e-3)  # AdamW's two averages
    assert step.clips == 8 * (4 * 40 * 40 * 3 + 3 * 4)
    assert step.collectives == {}
    patches = 8 * 50 * (2 * 8 * 8 * 3) * 64  # the clip gets no gradient
    assert step.operations == 2 * (3 * cost.macs - patches)
    assert made.largest_batch is not None
    assert made.largest_batch > 8
    record = json.loads(json.dumps(made.as_json()))
    assert record["step_seconds"] == max(record["seconds"].values())
    assert record["clips_a_day"] == pytest.approx(8 * record["steps_a_day"])
    assert describe(made, complete(recipe))[0] == "videomae_base on cpu:1: 1 devices, 8 clips in a step"


def test_a_target_domain_has_as_many_clips_again(recipe, on_this_cpu):
    domains = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, target={"motion": {"seed": 1}}))
    domains.task = DomainRecipe((4,), method="mmd")
    plain, both = (make_plan(one, on_this_cpu, 9, lambda text: None).program for one in (recipe, domains))
    assert plain is not None
    assert both is not None
    assert both.clips == 8 * (2 * 4 * 40 * 40 * 3 + 5 * 4)
    assert both.operations == pytest.approx(2 * plain.operations, rel=0.01)


def test_kept_features_are_refused(recipe, on_this_cpu):
    clips = dataclasses.replace(recipe.data.clips, fixed=True)
    kept = dataclasses.replace(recipe, feature_cache=1.0, data=dataclasses.replace(recipe.data, clips=clips))
    with pytest.raises(ValueError, match=r"a plan is of steps on videos, got feature_cache=1.0: set it to 0"):
        make_plan(kept, on_this_cpu, 9, lambda text: None)


def test_what_does_not_fit(recipe, on_this_cpu):
    small = Target("cpu:1", Chip("small", "cpu", 1_000_000, 1.0, 1.0, 1.0), 1)
    made = make_plan(recipe, small, 400, lambda text: None)
    assert not made.fits
    assert made.largest_batch is not None
    assert made.largest_batch < recipe.batch_size
    assert any("does not fit: lower batch_size" in line for line in describe(made, recipe))


FSDP = """
import json, jax
from flaxvid.train import machines, plan
from flaxvid.train.presets import preset
from flaxvid.train.recipe import ModelRecipe

plan.find_devices = lambda target: jax.devices()
options = {"width": 64, "depth": 1, "num_heads": 4, "patch_size": 8}
target = machines.Target("cpu:4", machines.Chip("CPU", "cpu", 10**9, 1e12, 1e10, 1e9), 4)
for fsdp in (1, 4):
    recipe = preset("motion")
    recipe.model = ModelRecipe("videomae_base", num_frames=4, image_size=40, options=options)
    recipe.batch_size, recipe.eval_frames, recipe.fsdp = 8, (), fsdp
    print(json.dumps(plan.make_plan(recipe, target, 400, lambda text: None).as_json()["program"]))
"""


def test_fsdp_divides_weights_and_optimizer():
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", FSDP], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    whole, parts = map(json.loads, done.stdout.splitlines())
    for field in ("weights", "optimizer"):  # all but norms and biases
        assert 0.25 <= parts[field] / whole[field] < 0.3
    assert (parts["clips"], parts["operations"]) == (whole["clips"], whole["operations"])
    assert set(whole["collectives"]) == {"all-reduce"}
    assert parts["collectives"]["all-gather"]["bytes"] > 0.9 * whole["weights"]


def test_the_batch_must_divide_over_the_devices(monkeypatch, recipe):
    monkeypatch.setattr(plan, "find_devices", lambda target: [jax.devices()[0]] * 3)
    with pytest.raises(ValueError, match="batch_size=8 must divide evenly over 3 devices"):
        make_plan(recipe, Target("cpu:3", HERE, 3), 400)


def test_an_ffns_operations_are_within_a_percent_of_three_forward_passes():
    recipe = preset("kinetics400")
    recipe.task = FfnRecipe(frames=(4, 8))
    recipe = complete(recipe)
    model = make_model(recipe, 400)
    batch = plan.batch_shapes(recipe, recipe.task.make(model), 1)
    forward = sum(model_cost(model, (1, frames, 224, 224, 3)).macs for frames in batch["video"])
    assert plan.count_operations(recipe, recipe.task.make(model), 1) == pytest.approx(6 * forward, rel=0.01)


@pytest.mark.parametrize(("words", "message"), [(["--target", "a100:8"], "got 'a100:8'"), ([], "got ''")])
def test_the_script_ends_with_one_line(words, message):
    command = [sys.executable, ROOT / "scripts/plan.py", "--config", ROOT / "configs/ffn.py", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.strip().endswith(message)
    assert done.stderr.count("\n") == 1
