"""Makes the first table and the plot of docs/results.md: frame counts on `motion`.

    python scripts/reproduce/frames.py [--seeds 0 1 2] [--jobs 2]

It trains every method with every seed, `--jobs` runs at a time. Called again, it skips finished runs and resumes the
others.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).resolve().parents[2]

Runs = dict[str, tuple[str, list[str]]]

# name: (config, overrides). Only overrides, so that each run can be made by hand with train.py.
RUNS: Runs = {
    "tsm-16": ("tsm", []),
    "tsm-8": ("tsm", ["task.frames=(8,)"]),
    "tsm-4": ("tsm", ["task.frames=(4,)"]),
    "ffn": ("ffn", []),
    "single-frame": ("tsm", ["task.frames=(1,)", "eval_frames=(1,)"]),
    "order-blind": ("tsm", ["model.name=tsn_resnet18"]),
    "shuffled": ("tsm", ["data.clips.shuffle_frames=True"]),
    "ffn-shared-norms": ("ffn", ["task.private_norms=False"]),
    "ffn-no-alteration": ("ffn", ["task.alteration=none"]),
    "ffn-no-distillation": ("ffn", ["task.distil=False"]),
    "mixed": ("tsm", ["task.frames=(4,8,16)", "task.sampling=mixed"]),
    "proportional": ("tsm", ["task.frames=(4,8,16)", "task.sampling=proportional"]),
}

# row of the table: {frame count or None for all: run}
ROWS = {
    "TSM trained at 16 frames": {None: "tsm-16"},
    "... statistics re-estimated": {None: "tsm-16-reestimated"},
    "... its frames in random order": {None: "tsm-16-disordered"},
    "TSM trained at 4 frames": {None: "tsm-4"},
    "mixed sampling": {None: "mixed"},
    "proportional sampling": {None: "proportional"},
    "separate training": {4: "tsm-4", 8: "tsm-8", 16: "tsm-16"},
    "FFN": {None: "ffn"},
    "FFN without private norms": {None: "ffn-shared-norms"},
    "FFN without weight alteration": {None: "ffn-no-alteration"},
    "FFN without distillation": {None: "ffn-no-distillation"},
    "TSM trained on frames in random order": {None: "shuffled"},
    "TSN, blind to order": {None: "order-blind"},
    "a single frame": {None: "single-frame"},
}


def parse(description: str | None, runs: Iterable[str], folder: str, *needed: str) -> argparse.Namespace:
    """Reads the command line: which of the runs to make, and where; `needed` names paths that must be given."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", nargs="+", choices=runs, default=list(runs), help="which runs; default all")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time; default one a core")
    parser.add_argument("--folder", type=Path, default=Path(folder), help="of the runs and the results")
    for name in needed:
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="epochs=1", help="override for every run")
    return parser.parse_args()


def train_all(runs: Runs, seeds: list[int], folder: Path, jobs: int, overrides: list[str]) -> None:
    """Trains every run with every seed, `jobs` at a time. Ends this process with a list of the runs that failed."""
    folder.mkdir(parents=True, exist_ok=True)
    cores: SimpleQueue = SimpleQueue()
    available = (
        sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    )
    for job in range(jobs):
        cores.put(set(available[job % len(available) :: jobs]))
    with ThreadPoolExecutor(jobs) as pool:
        started = [
            pool.submit(train, name, *run, seed, folder, cores, overrides)
            for seed in seeds
            for name, run in runs.items()
        ]
        if problems := [problem for one in started if (problem := one.result())]:
            sys.exit("\n".join(problems))


def train(
    name: str, config: str, own: list[str], seed: int, folder: Path, cores: SimpleQueue, overrides: list[str]
) -> str:
    """Makes one run in its own process, on its own core if the system allows that. Returns its error, or ""."""
    workdir = folder / f"{name}-seed{seed}"
    settings = [f"--config.{setting}" for setting in (*own, *overrides, f"seed={seed}")]
    file, _, argument = config.partition(":")
    config = str(ROOT / f"configs/{file}.py:{argument or 'motion'}")
    command = [sys.executable, str(ROOT / "scripts/train.py"), "--config", config]
    core = cores.get()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with (workdir / "log.txt").open("a") as log:
            process = subprocess.Popen([*command, *settings, "--workdir", str(workdir)], stdout=log, stderr=log)
            # Not by preexec_fn: between fork and exec, a lock of another thread would hold it for ever.
            if hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(process.pid, core)
            process.wait()
    finally:
        cores.put(core)
    state = "finished" if process.returncode == 0 else "FAILED"
    print(f"{state}: {name} seed {seed} ({workdir / 'log.txt'})", flush=True)
    return "" if process.returncode == 0 else f"{name} seed {seed}: see {workdir / 'log.txt'}"


def retest(folder: Path, seed: int) -> None:
    """Tests a seed's 16-frame network in two more ways, without more training.

    Once its statistics are re-estimated at each frame count, and once its frames come in random order.
    """
    from flaxvid.adapt.statistics import reestimate_statistics
    from flaxvid.data.pipeline import eval_batches, train_batches
    from flaxvid.evaluate.evaluator import evaluate_videos
    from flaxvid.train.checkpoint import restore_variables
    from flaxvid.train.recipe import read_recipe
    from flaxvid.train.setup import clip_config, make_model, open_data

    targets = {name: folder / f"tsm-16-{name}-seed{seed}" / "any_frame.json" for name in ("reestimated", "disordered")}
    if all(target.exists() for target in targets.values()):
        return
    run, frames = folder / f"tsm-16-seed{seed}", (4, 8, 16)
    recipe, variables = read_recipe(run), restore_variables(run)
    train_source, test_source = open_data(recipe.data, "train"), open_data(recipe.data, recipe.data.eval_split)
    model, rules = make_model(recipe, len(train_source.classes)), clip_config(recipe, frames)
    # The plain centre view of training clips: what the network will see, not its augmentation.
    stream = train_batches(train_source, dataclasses.replace(rules, scales=(1.0,)), recipe.batch_size, seed=recipe.seed)
    seen = [next(stream)["video"] for _ in range(40)]
    reestimated = {
        n: reestimate_statistics(model, variables, (video[n] for video in seen), recipe.freeze) for n in frames
    }
    disordered = dataclasses.replace(rules, shuffle_frames=True)
    tests = {"reestimated": (reestimated, rules), "disordered": (dict.fromkeys(frames, variables), disordered)}
    old = {row["frames"]: row for row in json.loads((run / "any_frame.json").read_text())}
    for name, (plain, clips) in tests.items():
        videos = eval_batches(test_source, clips, recipe.eval_batch_size)
        results = evaluate_videos(model, plain, videos)[""].frames
        targets[name].parent.mkdir(parents=True, exist_ok=True)
        targets[name].write_text(json.dumps([{**old[n], **results[n].scores} for n in frames], indent=1))


def main() -> None:
    """Trains, tabulates, draws."""
    args = parse(__doc__, RUNS, "runs/motion")
    from flaxvid.data.motion.build import build_motion, fingerprint
    from flaxvid.report.plots import accuracy_plot, save_figure
    from flaxvid.report.run import Run, read_run
    from flaxvid.report.tables import seed_table

    path = build_motion()
    args.folder.mkdir(parents=True, exist_ok=True)
    (args.folder / "fingerprint.txt").write_text(f"{fingerprint(path)}\n")
    train_all({name: RUNS[name] for name in args.runs}, args.seeds, args.folder, args.jobs, args.set)
    if "tsm-16" in args.runs:
        for seed in args.seeds:
            retest(args.folder, seed)

    table: dict[str, list[Run]] = {}
    for row, parts in ROWS.items():
        folders = {n: [args.folder / f"{name}-seed{seed}" for seed in args.seeds] for n, name in parts.items()}
        if not all((folder / "any_frame.json").exists() for group in folders.values() for folder in group):
            continue
        table[row] = [
            Run(
                row,
                any_frame=tuple(
                    r for n, group in folders.items() for r in read_run(group[i]).any_frame if n in (None, r["frames"])
                ),
            )
            for i in range(len(args.seeds))
        ]
    text = seed_table(table)
    (args.folder / "table.md").write_text(text + "\n")
    lines = {
        name: runs for name, runs in table.items() if name in ("TSM trained at 16 frames", "separate training", "FFN")
    }
    print(f"{text}\n{save_figure(accuracy_plot(lines), args.folder / 'accuracy.png')}")


if __name__ == "__main__":
    main()
