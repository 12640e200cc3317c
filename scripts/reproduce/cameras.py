"""Compares several cameras with single ones on the scenes of `motion`.

    python scripts/reproduce/cameras.py [--seeds 0 1 2] [--jobs 2]

It trains every fusion, and the same network on each camera alone, with every seed. It tests every network with each
choice of its cameras, as if the others had failed. Called again, it skips finished runs and resumes the others.
"""

import dataclasses
import itertools
import json
import statistics
from pathlib import Path

from frames import Runs, parse, train_all

CAMERAS = ("front", "left", "right")

# name: (config, overrides), as in frames.py.
RUNS: Runs = {
    "attention": ("ts_cva", []),
    "attention-all-cameras": ("ts_cva", ["model.options.camera_dropout=0.0"]),
    "concat": ("ts_cva", ["model.options.fusion=concat"]),
    "late": ("ts_cva", ["model.options.fusion=late"]),
    "late-separate": ("ts_cva", ["model.options.fusion=late", "model.options.separate=True"]),
    **{camera: ("ts_cva", [f'data.cameras=("{camera}",)', "model.options.camera_dropout=0.0"]) for camera in CAMERAS},
}

ROWS = {
    "attention": "cross-view attention (ts_cva)",
    "attention-all-cameras": "... no camera dropped in training",
    "concat": "concatenation",
    "late": "mean of logits",
    "late-separate": "... a backbone for each camera",
    "front": "front alone",
    "left": "left alone",
    "right": "right alone",
}

CHOICES = [choice for count in (3, 2, 1) for choice in itertools.combinations(CAMERAS, count)]


def test_choices(run: Path) -> dict[str, float]:
    """Top-1 of a run with each choice of its cameras. They are measured once and kept in cameras.json."""
    from flaxvid.data.pipeline import eval_batches
    from flaxvid.evaluate.evaluator import evaluate_videos
    from flaxvid.train.setup import clip_config, open_data
    from flaxvid.train.step import enable_compilation_cache
    from flaxvid.train.trained import load
    from flaxvid.writing import written_whole

    file = run / "cameras.json"
    if file.exists():
        return json.loads(file.read_text())
    enable_compilation_cache()
    trained, scores = load(run), {}
    recipe, count = trained.recipe, max(trained.frames)
    for choice in CHOICES:
        if set(choice) <= set(trained.model.cameras):
            source = open_data(dataclasses.replace(recipe.data, cameras=choice), recipe.data.eval_split)
            batches = eval_batches(source, clip_config(recipe, (count,)), recipe.eval_batch_size)
            evaluation = evaluate_videos(trained.model, {count: trained.select(count)}, batches)[""]
            scores[" ".join(choice)] = evaluation.frames[count].scores["top1"]
    with written_whole(file) as path:
        path.write_text(json.dumps(scores, indent=1))
    return scores


def cell(values: list[float]) -> str:
    """Mean and deviation over seeds, in percent."""
    if not values:
        return "–"
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def main() -> None:
    """Trains, tests, tabulates."""
    args = parse(__doc__, RUNS, "runs/cameras")
    from flaxvid.report.tables import render

    train_all({name: RUNS[name] for name in args.runs}, args.seeds, args.folder, args.jobs, args.set)
    rows = []
    for name in args.runs:
        tested = [test_choices(args.folder / f"{name}-seed{seed}") for seed in args.seeds]
        columns = [[100 * scores[" ".join(c)] for scores in tested if " ".join(c) in scores] for c in CHOICES]
        rows.append((ROWS[name], *map(cell, columns)))
    text = render(("top-1 (%) with", *(" + ".join(choice) for choice in CHOICES)), rows)
    (args.folder / "table.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
