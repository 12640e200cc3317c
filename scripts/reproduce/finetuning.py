"""Compares ways to train on few videos of one's own: from a trained network by configs/finetune.py, and from scratch.

    python scripts/reproduce/finetuning.py --weights runs/ffn-motion --root UCF-101 [--seeds 0 1 2] [--jobs 2]

The weights are a run's; the videos lie in UCF-101's layout, of which a part will do. Every run has the same network,
epochs and batches. Called again, it skips finished runs and resumes the others.
"""

import json
from pathlib import Path

from cameras import cell
from frames import Runs, parse, train_all

ROWS = {
    "all": "fine-tuning, layer-wise rates",
    "l2_sp": "fine-tuning, L2-SP",
    "gradual": "gradual unfreezing",
    "head": "a new head alone",
    "scratch": "from scratch",
}


def make_runs(weights: Path, root: Path) -> Runs:
    """The runs, as in frames.py."""
    from flaxvid.train.trained import find_network

    data = ["data.name=ucf101", "data.fold=1", f"data.root={root.resolve()}"]
    runs: Runs = {
        way: (f"finetune:{way}", [*data, f"model.weights={weights.resolve()}"]) for way in ROWS if way != "scratch"
    }
    model = find_network(weights)
    fields = [f"model.{name}={getattr(model, name)}" for name in ("name", "num_frames", "image_size", "options")]
    return runs | {"scratch": ("finetune:all", [*data, *fields, "optimizer.layer_decay=1.0"])}


def main() -> None:
    """Trains, tabulates."""
    args = parse(__doc__, ROWS, "runs/finetuning", "weights", "root")
    from flaxvid.report.tables import render

    runs = make_runs(args.weights, args.root)
    train_all({name: runs[name] for name in args.runs}, args.seeds, args.folder, args.jobs, args.set)
    rows = []
    for name in args.runs:
        files = [args.folder / f"{name}-seed{seed}" / "any_frame.json" for seed in args.seeds]
        scores = [100 * row["top1"] for file in files for row in json.loads(file.read_text())]
        rows.append((ROWS[name], cell(scores)))
    text = render(("way", "top-1 (%)"), rows)
    (args.folder / "table.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
