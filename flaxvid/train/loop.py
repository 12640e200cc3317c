"""The train loop: one function for every task, from a recipe to a trained network and its any-frame table."""

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from flaxvid.adapt.freezing import check_frozen
from flaxvid.data.broken import Tally
from flaxvid.data.pipeline import steps_per_epoch, train_batches
from flaxvid.data.sources.account import check_labels, describe_splits
from flaxvid.data.sources.class_names import relabel
from flaxvid.data.sources.open import Source
from flaxvid.evaluate.cost import model_cost
from flaxvid.evaluate.evaluator import Evaluations, score_rows
from flaxvid.evaluate.record import evaluation_record, write_record
from flaxvid.evaluate.views import describe_views
from flaxvid.report.page import write_page
from flaxvid.report.run import read_run
from flaxvid.report.tables import any_frame_table
from flaxvid.tasks.task import Task
from flaxvid.train.checkpoint import Checkpoints
from flaxvid.train.hosts import end_with_peers
from flaxvid.train.interrupt import StopRequest
from flaxvid.train.logging import RunLogger, parameter_table
from flaxvid.train.mesh import check_batch_size, check_norm_groups, make_mesh, put_batch, replicated
from flaxvid.train.optimizer import check_rules, make_optimizer, make_schedule
from flaxvid.train.origin import with_implied
from flaxvid.train.recipe import Recipe, check
from flaxvid.train.session import Session
from flaxvid.train.setup import clip_config, count_classes, data_origin, load_start, make_model, make_task, open_data
from flaxvid.train.state import create_state, trainable
from flaxvid.train.step import TrainStep, make_train_step
from flaxvid.train.workdir import check_name, claim_classes, claim_workdir, lock_workdir
from flaxvid.types import Variables
from flaxvid.writing import written_whole

Rows = list[dict[str, float]]


def run(recipe: Recipe, workdir: str | Path) -> Rows:
    """Trains what a recipe says, or goes on where the same recipe stopped; a finished run only gives its results.

    Args:
        recipe: model, data, task, optimizer.
        workdir: gets recipe.json, metrics.jsonl, checkpoints/, any_frame.json and index.html.

    Returns:
        The rows of the any-frame table: ``[{"frames", "top1", "top5", "gflops", "clips"}, ...]``, with the "target" of
        each where the data has several.

    Raises:
        ValueError: recipe, data or weights do not fit, or another run is at work in `workdir`; raised before anything
            is trained.
        FloatingPointError: a loss or a gradient is not finite; nothing of it was saved.
        Interrupted: the run was told to stop (SIGTERM, Ctrl-C), and saved.
    """
    check(recipe)
    check_name(Path(workdir))
    shapes = find_shapes(recipe)  # a slip shows now, and not after the data set was made
    check_frozen(shapes, recipe.freeze)
    check_rules(trainable(shapes), recipe.optimizer.rules)
    for frames in (recipe.task.frames, recipe.eval_frames):
        clip_config(recipe, frames)
    enable_compilation_cache()
    workdir, mesh = Path(workdir), make_mesh()
    check_batch_size(recipe.batch_size, mesh, accumulate=recipe.optimizer.accumulate)
    check_norm_groups(recipe.batch_size // recipe.optimizer.accumulate, recipe.norm_groups, mesh)
    check_batch_size(recipe.eval_batch_size, mesh, "eval_batch_size")
    source, eval_source = (open_data(recipe.data, split) for split in (recipe.data.train_split, recipe.data.eval_split))
    eval_source = relabel(eval_source, source.classes, source.name, "give it training videos, or correct its labels")
    check_labels(source, fewest=2)
    check_labels(eval_source, fewest=1)
    account = describe_splits({recipe.data.train_split: source, recipe.data.eval_split: eval_source})
    if account and jax.process_index() == 0:
        print(account)
    count_steps(recipe, source)  # too few videos for a batch show now
    recipe = with_implied(recipe)
    model = make_model(recipe, count_classes(source.classes))
    task, plain = make_task(recipe, model), load_start(recipe, model, source.classes)
    with lock_workdir(workdir) if jax.process_index() == 0 else contextlib.nullcontext(lambda: None) as check_there:
        claim_workdir(recipe, workdir)
        claim_classes(source.classes, workdir)
        if (workdir / "any_frame.json").exists():
            finished = read_run(workdir)
            print(f"{workdir} is finished:\n{any_frame_table(finished)}")
            return [dict(row) for row in finished.any_frame]
        with end_with_peers():
            evaluation = train(recipe, workdir, task, plain, source, eval_source, mesh, check_there)
        check_there()
        size = model.clip.image_size
        costs = {n: {"gflops": model_cost(model, (1, n, size, size, 3)).gflops} for n in recipe.eval_frames}
        rows = [{**row, **costs[row["frames"]]} for row in score_rows(evaluation)]
        if jax.process_index() == 0:
            clips = clip_config(recipe, recipe.eval_frames)
            facts = {"name": "the recipe's", "views": describe_views(clips), "size": size}
            origin = data_origin(recipe.data)
            record = evaluation_record(evaluation, eval_source, clips=clips, protocol=facts, costs=costs, origin=origin)
            write_record(workdir, record, evaluation, eval_source)
            with written_whole(workdir / "any_frame.json") as path:
                path.write_text(json.dumps(rows, indent=1))
            print(f"{any_frame_table(read_run(workdir))}\nall about this run: {write_page(workdir)}")
    return rows


def train(
    recipe: Recipe,
    workdir: Path,
    task: Task,
    plain: Variables | None,
    source: Source,
    eval_source: Source,
    mesh: Mesh,
    check_there: Callable[[], None],
) -> Evaluations:
    """Trains from the newest whole checkpoint of `workdir`, else from `plain`, else from scratch; tests at the end."""
    hosts, epoch_steps = jax.process_count(), count_steps(recipe, source)
    optimizer = make_optimizer(recipe.optimizer, make_schedule(recipe.optimizer, recipe.epochs, epoch_steps))
    init_key, step_key = jax.random.split(jax.random.key(recipe.seed))
    variables = task.init(init_key, plain)
    state = create_state(variables, optimizer, ema=recipe.optimizer.ema > 0, freeze=recipe.freeze)
    state = jax.device_put(state, replicated(mesh))
    clip_rules = clip_config(recipe, task.frames)
    tally = Tally(source, clip_rules, recipe.data.max_broken)
    data = train_batches(
        source,
        clip_rules,
        recipe.batch_size // hosts,
        seed=recipe.seed,
        shard_index=jax.process_index(),
        shard_count=hosts,
        num_threads=recipe.data.num_threads,
        num_workers=recipe.data.num_workers,
    )
    jitted = make_train_step(
        task,
        optimizer,
        mesh,
        accumulate=recipe.optimizer.accumulate,
        ema=recipe.optimizer.ema,
        norm_groups=recipe.norm_groups,
        freeze=recipe.freeze,
    )
    keep_every, total = recipe.keep_every * epoch_steps or None, recipe.epochs * epoch_steps
    with contextlib.ExitStack() as opened:
        checkpoints = opened.enter_context(Checkpoints(workdir / "checkpoints", recipe.keep, keep_every))
        if checkpoints.latest_step() is not None:
            state = checkpoints.restore(state, data)
        start = int(state.step)
        tested = 0 < start < total and checkpoints.has_score(start)
        log = opened.enter_context(RunLogger(workdir, total, start, tested))
        stop = opened.enter_context(StopRequest())
        session = Session(
            recipe,
            task,
            source,
            eval_source,
            mesh,
            data=data,
            checkpoints=checkpoints,
            log=log,
            stop=stop,
            tally=tally,
            check_there=check_there,
            epoch_steps=epoch_steps,
            start=start,
        )
        log.print(parameter_table(state.variables))
        log.print(
            f"{source.name}: {len(source)} training and {len(eval_source)} test videos, "
            f"{count_classes(source.classes)} classes; {recipe.epochs} epochs of {epoch_steps} steps on "
            f"{mesh.size} {jax.default_backend()} device(s)" + (f"; going on after step {start}" if start else "")
        )
        session.make_up(state, tested)
        train_step: TrainStep | None = None
        for step in range(start + 1, total + 1):
            clips = session.next_clips(step, state)
            batch = put_batch(clips, mesh)
            session.waiting.arrived()
            train_step = train_step or compile_step(jitted, (state, batch, step_key), log)
            stop.hold()
            state, metrics = train_step(state, batch, step_key)
            session.finish(step, state, metrics, clips)
        data.close()  # its processes are not needed for the test
        if tally.broken:
            log.print(f"{len(tally.broken)} broken videos were replaced, of {len(tally.seen)} in training")
        log.print(f"testing on {len(eval_source)} videos at {', '.join(map(str, recipe.eval_frames))} frames")
        return session.test(total, state, recipe.eval_frames)


def find_shapes(recipe: Recipe) -> Variables:
    """The shapes of the recipe's variables; of the data's tasks only those with weights are known yet.

    Raises:
        ValueError: its network cannot be made.
    """
    try:
        task = make_task(recipe, make_model(recipe, dict.fromkeys(recipe.task.target_weights, 1) or 1))
        return jax.eval_shape(task.init, jax.random.key(0))
    except ValueError:
        raise
    except Exception as error:  # whatever a wrong option makes it
        reason = next(iter(str(error).splitlines()), "")
        raise ValueError(
            f"{recipe.model.name} cannot be made with model.options={recipe.model.options} "
            f"({type(error).__name__}: {reason}): correct them"
        ) from error


def count_steps(recipe: Recipe, source: Source) -> int:
    """Steps of one pass over the training videos."""
    hosts = jax.process_count()
    return steps_per_epoch(source, recipe.batch_size // hosts // recipe.data.repeats, hosts)


def compile_step(jitted: Any, arguments: tuple[Any, ...], log: RunLogger) -> TrainStep:
    """Compiles the step ahead of its first use and says how long that took; a warm cache makes it short."""
    begin = time.perf_counter()
    compiled = jitted.lower(*arguments).compile()
    seconds = time.perf_counter() - begin
    log.print(
        f"compiled the training step in {seconds:.1f} s (the next start with the same shapes takes it from the cache)"
    )
    return compiled


def enable_compilation_cache() -> None:
    """Keeps compiled programs between runs, unless JAX_COMPILATION_CACHE_DIR or the program itself chose a place."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        default = Path(os.environ.get("FLAXVID_CACHE", "~/.cache/flaxvid")).expanduser() / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(default))
