"""The train loop: from a recipe to a trained network and its any-frame table, for every task."""

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path

import jax
from jax.sharding import Mesh

from flaxvid.adapt.freezing import check_frozen, check_parts
from flaxvid.compress.prune import MASKS, first_masks
from flaxvid.data.broken import Tally
from flaxvid.data.pipeline import steps_per_epoch
from flaxvid.report.page import write_page
from flaxvid.report.run import read_run
from flaxvid.report.tables import results_table
from flaxvid.tasks.task import Findings, Task
from flaxvid.train.checkpoint import Checkpoints, restore_variables
from flaxvid.train.features import check_features, kept_features
from flaxvid.train.groups import check_rules
from flaxvid.train.hosts import end_with_peers
from flaxvid.train.interrupt import StopRequest, say
from flaxvid.train.limits import check
from flaxvid.train.logging import RunLogger, parameter_table
from flaxvid.train.mesh import check_batch_size, check_norm_groups, make_mesh, put_batch, replicated
from flaxvid.train.optimizer import make_pruning, make_schedule, parts_kept
from flaxvid.train.origin import with_implied, with_network
from flaxvid.train.phases import make_phases, phase_of
from flaxvid.train.prefetch import Prefetch, make_batches
from flaxvid.train.profile import Profile
from flaxvid.train.recipe import Recipe
from flaxvid.train.session import Session
from flaxvid.train.setup import (
    clip_config,
    complete,
    count_classes,
    data_origin,
    find_shapes,
    make_model,
)
from flaxvid.train.sharding import check_tensor, place_state
from flaxvid.train.splits import Splits, open_splits
from flaxvid.train.start import fit_start, load_start
from flaxvid.train.state import create_state, trainable, unfreeze
from flaxvid.train.step import (
    TrainStep,
    compile_step,
    enable_compilation_cache,
    explained_memory,
    jit_step,
    train_step,
)
from flaxvid.train.teachers import claim_teachers, load_teachers, make_task
from flaxvid.train.trackers import open_trackers
from flaxvid.train.workdir import (
    RESULTS,
    check_name,
    claim_classes,
    claim_videos,
    claim_workdir,
    is_finished,
    lock_workdir,
)
from flaxvid.types import Variables

Rows = list[dict[str, float]]

SAVES_MEMORY = "lower batch_size or eval_batch_size, or set optimizer.accumulate, model.remat, model.dtype or fsdp"
"""What to do where a device has too little memory."""


@explained_memory(SAVES_MEMORY)
def run(recipe: Recipe, workdir: str | Path, profile: int = 0) -> Rows:
    """Trains a recipe, or goes on where the same recipe stopped; a finished run only gives its results.

    Args:
        recipe: the run.
        workdir: gets recipe.json, metrics.jsonl, checkpoints/, index.html, and the results: any_frame.json, or for
            masked pre-training reconstruction.json.
        profile: steps that are traced into `workdir`/profile, see `Profile`.

    Returns:
        The rows of the final table.

    Raises:
        ValueError: recipe, data or weights do not fit, or another run is at work in `workdir`. This shows before the
            training. Or a device has too little memory.
        FloatingPointError: a loss or a gradient is not finite; it was not saved.
        Interrupted: the run got SIGTERM or Ctrl-C, and saved its state.
    """
    recipe = with_network(recipe)
    check(recipe)
    check_name(Path(workdir))
    recipe = complete(recipe)
    shapes = find_shapes(recipe)  # before the data set is made: a slip shows at once
    check_frozen(shapes, recipe.freeze, recipe.unfreeze)
    check_parts(shapes, recipe.optimizer.decay_to_start, "optimizer.decay_to_start")
    if recipe.feature_cache:
        check_features(recipe, shapes)
    check_rules(trainable(shapes), recipe.optimizer.rules)
    if recipe.pruning.sparsity:
        check_parts(shapes, recipe.pruning.keep, "pruning.keep")
        jax.eval_shape(functools.partial(first_masks, keep=parts_kept(recipe)), shapes["params"])
    teachers = load_teachers(recipe.task)
    enable_compilation_cache()
    check_tensor(shapes, recipe.tensor)
    workdir, mesh = Path(workdir), make_mesh(recipe.fsdp, recipe.tensor)
    check_batch_size(recipe.batch_size, mesh, accumulate=recipe.optimizer.accumulate)
    check_norm_groups(recipe.norm_groups, mesh)
    check_batch_size(recipe.eval_batch_size, mesh, "eval_batch_size")
    splits = open_splits(recipe)
    source = splits.train
    epoch_steps = count_steps(recipe, splits)  # raises if there are too few videos for a batch
    trained = load_start(recipe, count_classes(source.classes))
    recipe = with_implied(recipe, trained)
    model = make_model(recipe, count_classes(source.classes))
    task = make_task(recipe.task, model, teachers, source.classes)
    plain = fit_start(recipe, model, trained, source.classes)
    with lock_workdir(workdir) if jax.process_index() == 0 else contextlib.nullcontext(lambda: None) as check_there:
        claim_workdir(recipe, workdir)
        claim_classes(source.classes, workdir)
        claim_videos(source, workdir)
        claim_teachers(task, workdir)
        if splits.target is not None:
            claim_videos(splits.target, workdir, "target.json")
        if is_finished(workdir):
            if jax.process_index() == 0:
                complete_page(workdir)
            finished = read_run(workdir)
            print(f"{workdir} is finished{', so nothing is traced' * bool(profile)}:\n{results_table(finished)}")
            return [dict(row) for row in finished.rows]
        with end_with_peers(), contextlib.ExitStack() as opened:
            opened.push(lambda _, error, __: show_stopped(workdir, error))  # the last to be called: the log is whole
            findings = train(recipe, workdir, task, plain, splits, mesh, check_there, opened, profile)
        check_there()
        rows = task.finish(
            findings,
            splits.test,
            clip_config(recipe, recipe.eval_frames),
            origin=data_origin(recipe.data),
            checkpoint={"name": "latest", "step": recipe.epochs * epoch_steps},
            folder=workdir,
        )
        if jax.process_index() == 0:
            print(f"{results_table(read_run(workdir))}\nall about this run: {workdir / 'index.html'}")
    return rows


def train(
    recipe: Recipe,
    workdir: Path,
    task: Task,
    plain: Variables | None,
    splits: Splits,
    mesh: Mesh,
    check_there: Callable[[], None],
    opened: contextlib.ExitStack,
    profile: int,
) -> Findings:
    """Trains from the newest whole checkpoint of `workdir`, else from `plain`, else from scratch; then tests.

    `opened` closes what this opens.
    """
    epoch_steps, same = count_steps(recipe, splits), replicated(mesh)
    schedule = make_schedule(recipe.optimizer, recipe.epochs, epoch_steps)
    rate_at = jax.jit(schedule, out_shardings=same)  # outside the step, whose program is the same for all rates
    init_key, step_key = jax.random.split(jax.random.key(recipe.seed))
    variables = task.init(init_key, plain)
    if pruning := make_pruning(recipe.pruning, epoch_steps):
        variables[MASKS] = first_masks(variables["params"], parts_kept(recipe))
    phases = make_phases(recipe.optimizer, recipe.freeze, recipe.unfreeze, variables, task.model.layers, epoch_steps)
    keep_every = recipe.keep_every * epoch_steps or None
    checkpoints = opened.enter_context(Checkpoints(workdir / "checkpoints", recipe.keep, keep_every))
    phase = phase_of(phases, checkpoints.latest_step() or 0)
    state = create_state(variables, phase.optimizer, ema=recipe.optimizer.ema > 0, freeze=phase.freeze)
    place = functools.partial(place_state, mesh=mesh)
    state = jax.device_put(state, place(state))
    step_key = jax.jit(lambda key: key, out_shardings=same)(step_key)  # device_put takes no keys to other hosts
    learner, features = task, None
    if recipe.feature_cache:
        frozen = variables if checkpoints.latest_step() is None else restore_variables(workdir)
        learner, features = opened.enter_context(kept_features(recipe, task, frozen, splits.train, mesh))
    one_step = functools.partial(
        train_step,
        task=learner,
        accumulate=recipe.optimizer.accumulate,
        ema=recipe.optimizer.ema,
        norm_groups=recipe.norm_groups,
        mesh=mesh,
        pruning=pruning,
    )
    batches = Prefetch(make_batches(recipe, task, splits, features), lambda clips: put_batch(clips, mesh))
    total = recipe.epochs * epoch_steps
    if checkpoints.latest_step() is not None:
        state = checkpoints.restore(state, batches)
    start = int(state.step)
    evaluated = start > 0 and checkpoints.has_score(start)
    tracing = opened.enter_context(Profile(workdir / "profile", profile, start, total))
    track = opened.enter_context(open_trackers(recipe, workdir, start))
    log = opened.enter_context(RunLogger(workdir, total, start, evaluated, track=track))
    stop = opened.enter_context(StopRequest())
    rules, limit = clip_config(recipe, task.frames), recipe.data.max_broken
    session = Session(
        recipe,
        task,
        splits,
        mesh,
        batches=batches,
        checkpoints=checkpoints,
        log=log,
        stop=stop,
        tally=Tally(splits.train, rules, limit),
        target_tally=None if splits.target is None else Tally(splits.target, rules, limit),
        check_there=check_there,
        epoch_steps=epoch_steps,
        start=start,
    )
    log.print(parameter_table(state.variables))
    log.print(describe_run(recipe, splits, mesh, epoch_steps, start))
    opened.enter_context(jax.transfer_guard("disallow"))  # every transfer is explicit from here on
    session.evaluate_if_due(start, state)
    programs: dict[tuple[int, ...], TrainStep] = {}  # by the frame counts of a batch
    for step in range(start + 1, total + 1):
        batch, clips = session.next_batch(step, state)
        if (now := phase_of(phases, step)) is not phase:
            phase, programs = now, {}
            log.print(phase.news)
            state = unfreeze(state, phase.optimizer, phase.freeze, place)
        rate = rate_at(state.step)
        if (counts := tuple(batch["video"])) not in programs:
            jitted = jit_step(functools.partial(one_step, optimizer=phase.optimizer, freeze=phase.freeze), mesh, state)
            programs[counts] = compile_step(jitted, (state, batch, step_key, rate), log.print)
        stop.hold()
        tracing.begin_if_due(step)
        state, metrics = programs[counts](state, batch, step_key, rate)
        tracing.end_if_due(step, metrics)
        session.log_if_due(step, metrics, clips)
        session.save_if_due(step, state)
        session.evaluate_if_due(step, state)
    return session.test(state)


def complete_page(workdir: Path) -> None:
    """Writes the page of a finished run that was killed after its results and before its page."""
    page = workdir / "index.html"
    results = max(path.stat().st_mtime_ns for name in RESULTS if (path := workdir / name).exists())
    if not page.exists() or page.stat().st_mtime_ns < results:
        write_page(workdir)


def show_stopped(workdir: Path, error: BaseException | None) -> None:
    """Writes the page of a run that an error or a signal stopped, with its curves so far."""
    if isinstance(error, Exception) and jax.process_index() == 0 and (workdir / "metrics.jsonl").exists():
        try:
            write_page(workdir)
        except (OSError, ValueError) as fault:  # what stopped the run is the news
            say(f"{workdir / 'index.html'} could not be written: {fault}")


def describe_run(recipe: Recipe, splits: Splits, mesh: Mesh, epoch_steps: int, start: int) -> str:
    """The run in one sentence."""
    videos = [f"{len(splits.train)} training", f"{len(splits.test)} test"]
    if splits.validation is not None:
        videos.insert(1, f"{len(splits.validation)} validation")
    return (
        f"{recipe.data.name}: {', '.join(videos)} videos, {count_classes(splits.train.classes)} classes; "
        f"{recipe.epochs} epochs of {epoch_steps} steps on {mesh.size} {jax.default_backend()} device(s)"
        + (f"; going on after step {start}" if start else "")
    )


def count_steps(recipe: Recipe, splits: Splits) -> int:
    """The number of steps in one pass over the training videos.

    Raises:
        ValueError: there, or in the target domain, are fewer videos than a batch.
    """
    hosts = jax.process_count()
    videos = recipe.batch_size // hosts // recipe.data.clips.repeats
    if splits.target is not None:
        steps_per_epoch(splits.target, videos, hosts)
    return steps_per_epoch(splits.train, videos, hosts, splits.buckets)
