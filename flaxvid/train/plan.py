"""What a run needs on a machine that is not here: its training step is compiled for it, and the program is read.

All seconds are bounds: no step can be faster. How fast the kernels are is not known without the machine.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from flaxvid.compress.prune import MASKS, first_masks
from flaxvid.evaluate.cost import count_macs
from flaxvid.tasks.domain import DomainRecipe
from flaxvid.tasks.labelled import LabelledRecipe
from flaxvid.tasks.task import Task
from flaxvid.train.limits import check
from flaxvid.train.machines import Target, compiler_options, find_devices, traced_for
from flaxvid.train.mesh import check_batch_size, check_norm_groups, count_parts, divided, make_mesh, replicated
from flaxvid.train.optimizer import make_pruning, parts_kept
from flaxvid.train.phases import make_phases
from flaxvid.train.program import Collective, read_traffic
from flaxvid.train.recipe import Recipe
from flaxvid.train.setup import complete, count_classes, make_model
from flaxvid.train.sharding import check_tensor, place_state
from flaxvid.train.state import TrainState, create_state
from flaxvid.train.step import jit_step, train_step
from flaxvid.train.teachers import load_teachers, make_task

DAY = 24 * 60 * 60
"""Seconds."""


@dataclasses.dataclass(frozen=True)
class Program:
    """The training step at one batch size. Bytes and operations are those of one device.

    Attributes:
        batch_size: clips in a step, over all devices.
        weights: bytes of parameters, statistics and averages.
        optimizer: bytes of its state.
        clips: bytes of the batch.
        activations: bytes of all that a step keeps meanwhile.
        operations: multiplications and additions, of the convolutions and matrix products.
        moved: bytes between memory and cores.
        collectives: what devices send each other.
    """

    batch_size: int
    weights: int
    optimizer: int
    clips: int
    activations: int
    operations: int
    moved: int
    collectives: Mapping[str, Collective]

    @property
    def memory(self) -> int:
        """Bytes in all."""
        return self.weights + self.optimizer + self.clips + self.activations


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run on a machine.

    Attributes:
        target: the machine's name.
        devices: how many.
        memory: bytes of one of them.
        fits: whether the step at the recipe's batch size fits.
        program: at that batch size; if the compiler refuses it, at the largest smaller one that was tried. None if it
            refuses all.
        seconds: that a step takes at least, for the "arithmetic" alone, the "memory" traffic and the "links" between
            devices.
        largest_batch: about the largest batch that fits, from the programs at two batch sizes; None if that is unknown.
    """

    target: str
    devices: int
    memory: int
    fits: bool
    program: Program | None
    seconds: Mapping[str, float]
    largest_batch: int | None

    @property
    def step_seconds(self) -> float:
        """What no step goes below."""
        return max(self.seconds.values())

    def as_json(self) -> dict[str, Any]:
        """All of it, with the bounds on a step and on a day."""
        own = dataclasses.asdict(self)
        if self.program is None:
            return own
        steps = DAY / self.step_seconds
        own["program"]["memory"] = self.program.memory
        return own | {
            "step_seconds": self.step_seconds,
            "steps_a_day": steps,
            "clips_a_day": steps * self.program.batch_size,
        }


def make_plan(recipe: Recipe, target: Target, num_classes: int, say: Callable[[str], None] = print) -> Plan:
    """Compiles the training step of a recipe for a machine, at its batch size and at another one.

    Args:
        recipe: the run; its data are not opened.
        target: the machine.
        num_classes: of the data; in a distillation these are those of the first teacher.
        say: is told what is compiled, which takes minutes.

    Raises:
        ValueError: the recipe cannot run, there or anywhere.
        RuntimeError: the compiler is missing.
    """
    check(recipe)
    if recipe.feature_cache:
        raise ValueError(
            f"a plan is of steps on videos, got feature_cache={recipe.feature_cache}: set it to 0 to see what the "
            "whole network needs"
        )
    recipe = complete(recipe)
    targets = recipe.task.target_weights if isinstance(recipe.task, LabelledRecipe) else {}
    teachers, number = load_teachers(recipe.task), dict.fromkeys(targets, num_classes) or num_classes
    classes = teachers[0].classes if teachers else ()
    model = make_model(recipe, count_classes(classes) if teachers else number)
    mesh = make_mesh(recipe.fsdp, recipe.tensor, find_devices(target))
    accumulate = recipe.optimizer.accumulate
    check_batch_size(recipe.batch_size, mesh, accumulate=accumulate)
    check_norm_groups(recipe.norm_groups, mesh)
    least = count_parts(mesh) * accumulate
    task, programs = make_task(recipe.task, model, teachers, classes), []
    check_tensor(jax.eval_shape(task.init, jax.random.key(0)), recipe.tensor)
    for batch_size in _batch_sizes(recipe.batch_size, least):
        say(f"compiling the step of {batch_size} clips for {target.name}, which takes minutes")
        program = compile_step(recipe, task, mesh, target, batch_size)
        programs += [] if program is None else [program]
        if len(programs) == 2:
            break
    first = programs[0] if programs else None
    fits = first is not None and first.batch_size == recipe.batch_size and first.memory <= target.chip.memory
    return Plan(
        target.name,
        target.count,
        target.chip.memory,
        fits,
        first,
        {} if first is None else bound(first, target),
        find_largest_batch(programs, target.chip.memory, least),
    )


def _batch_sizes(wanted: int, least: int) -> list[int]:
    """The batch sizes to compile for: the one that is wanted, then halves of it; of the least one, the double."""
    sizes = [wanted]
    while sizes[-1] > least:
        sizes.append(max(1, sizes[-1] // 2 // least) * least)
    return sizes if len(sizes) > 1 else [wanted, 2 * wanted]


def make_step(recipe: Recipe, task: Task) -> tuple[Callable[..., Any], TrainState]:
    """The training step of a completed recipe, and the shapes of its state."""
    variables = jax.eval_shape(task.init, jax.random.key(0))
    if pruning := make_pruning(recipe.pruning, 1):
        masks = functools.partial(first_masks, keep=parts_kept(recipe))
        variables = {**variables, MASKS: jax.eval_shape(masks, variables["params"])}
    phases = make_phases(recipe.optimizer, recipe.freeze, recipe.unfreeze, variables, task.model.layers, 1)
    phase = phases[-1]  # most of the network learns in it
    make_state = functools.partial(create_state, optimizer=phase.optimizer, ema=recipe.optimizer.ema > 0)
    step = functools.partial(
        train_step,
        task=task,
        optimizer=phase.optimizer,
        accumulate=recipe.optimizer.accumulate,
        ema=recipe.optimizer.ema,
        norm_groups=recipe.norm_groups,
        freeze=phase.freeze,
        pruning=pruning,
    )
    return step, jax.eval_shape(functools.partial(make_state, freeze=phase.freeze), variables)


def count_operations(recipe: Recipe, task: Task, batch_size: int) -> int:
    """The multiplications and additions of a step, over all devices; see `Program`."""
    step, state = make_step(recipe, task)
    return 2 * count_macs(step, state, batch_shapes(recipe, task, batch_size), jax.random.key(0), jnp.float32(0))


def compile_step(recipe: Recipe, task: Task, mesh: Mesh, target: Target, batch_size: int) -> Program | None:
    """The training step of a completed recipe, compiled for a machine; None if the compiler finds no room for it."""
    step, state = make_step(recipe, task)
    batch, rest = batch_shapes(recipe, task, batch_size), (jax.random.key(0), jnp.float32(0))
    same, places = replicated(mesh), place_state(state, mesh)
    arguments = (_on(state, places), _on(batch, divided(mesh)), *(_on(one, same) for one in rest))
    with traced_for(target):
        lowered = jit_step(functools.partial(step, mesh=mesh), mesh, state).lower(*arguments)
    try:
        compiled = lowered.compile(compiler_options=compiler_options(target))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None
    traffic, memory = read_traffic(compiled.as_text()), compiled.memory_analysis()
    costs = compiled.cost_analysis() or {}  # TPUs count for themselves what they read and write
    return Program(
        batch_size,
        weights=_device_bytes(state.variables, places.variables),
        optimizer=_device_bytes((state.step, state.opt_state), (places.step, places.opt_state)),
        clips=_device_bytes(batch, divided(mesh)),
        activations=memory.temp_size_in_bytes,
        operations=count_operations(recipe, task, batch_size) // mesh.size,
        moved=int(costs.get("bytes accessed", 0)) or traffic.moved,
        collectives=traffic.collectives,
    )


def batch_shapes(recipe: Recipe, task: Task, batch_size: int) -> dict[str, Any]:
    """The shapes of a training batch; see `data.pipeline`."""
    size, video = task.image_size, {}
    one_count = getattr(recipe.task, "sampling", "") == "bucketed"  # in a batch; the longest videos take most
    for frames in [max(task.frames)] if one_count else task.frames:
        clip = jax.ShapeDtypeStruct((batch_size, frames, size, size, 3), jnp.uint8)
        video[frames] = task.model.for_cameras(clip)
    row = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    targets = recipe.task.target_weights if isinstance(recipe.task, LabelledRecipe) else {}
    batch = {"video": video, "label": dict.fromkeys(targets, row) or row, "index": row, "broken": row}
    if isinstance(recipe.task, DomainRecipe):
        batch["target"] = {name: batch[name] for name in ("video", "index", "broken")}
    return batch


def bound(program: Program, target: Target) -> dict[str, float]:
    """The seconds that a step takes at least, for each of what a device does meanwhile."""
    chip, others = target.chip, (target.count - 1) / target.count
    # A sum is sent twice: each device gets its part of it, then all parts.
    sent = {op: 2 if op == "all-reduce" else 1 for op in program.collectives}
    return {
        "arithmetic": program.operations / chip.arithmetic,
        "memory": program.moved / chip.bandwidth,
        "links": sum(sent[op] * others * one.bytes for op, one in program.collectives.items()) / chip.links,
    }


def find_largest_batch(programs: list[Program], memory: int, multiple_of: int) -> int | None:
    """About the largest batch that fits, if each clip adds the same; None without two programs to compare."""
    if len(programs) < 2:
        return None
    one, other = programs
    clip = (one.memory - other.memory) / (one.batch_size - other.batch_size)
    if clip <= 0:
        return None
    batch_size = one.batch_size + (memory - one.memory) / clip
    return max(0, int(batch_size // multiple_of) * multiple_of)


def describe(plan: Plan, recipe: Recipe) -> list[str]:
    """The plan in words."""
    program, of = plan.program, f"{_giga(plan.memory)} GB"
    if program is None:
        return [f"{recipe.model.name}: not even one clip a device fits into the {of} of {plan.target}"]
    lines = [
        f"{recipe.model.name} on {plan.target}: {plan.devices} devices, {program.batch_size} clips in a step",
        f"a device keeps {_giga(program.weights)} GB of weights, {_giga(program.optimizer)} GB of the optimizer, "
        f"{_giga(program.clips)} GB of clips and {_giga(program.activations)} GB of activations: "
        f"{_giga(program.memory)} of {of}",
        f"it computes {program.operations / 1e12:.3g} TFLOP, moves {_giga(program.moved)} GB, and takes part in "
        + (
            ", ".join(f"{one.count} {op} of {_giga(one.bytes)} GB" for op, one in program.collectives.items())
            or "no communication"
        ),
        "a step takes at least "
        + ", ".join(f"{1000 * seconds:.3g} ms for its {what}" for what, seconds in plan.seconds.items())
        + f": at most {DAY / plan.step_seconds:,.0f} steps and {DAY / plan.step_seconds * program.batch_size:,.0f} "
        "clips a day",
    ]
    if program.batch_size != recipe.batch_size:
        lines.append(f"the recipe's {recipe.batch_size} clips do not fit: the figures are those of fewer")
    elif not plan.fits:
        lines.append("this does not fit: lower batch_size, or set model.remat or optimizer.accumulate")
    if plan.largest_batch is not None:
        lines.append(f"the largest batch that fits has about {plan.largest_batch:,} clips")
    return lines


def _giga(count: int) -> str:
    return f"{count / 1e9:.3g}"


def _on(tree: Any, places: Any) -> Any:
    """The shapes of arrays that lie so on a mesh; `places` is one for all, or a tree of them."""
    if isinstance(places, NamedSharding):
        places = jax.tree.map(lambda _: places, tree)
    return jax.tree.map(lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), tree, places)


def _device_bytes(tree: Any, places: Any) -> int:
    """The bytes of arrays on each device; arguments as of `_on`."""
    leaves = jax.tree.leaves(_on(tree, places))
    return sum(leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves)
