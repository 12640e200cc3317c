"""Makes the tables of distillation and pruning on `motion`.

    python scripts/reproduce/compress.py [--seeds 0 1 2] [--only distillation]

Every command is one that a user gives; it is printed before it runs. One teacher teaches the students of all seeds.
Called again, it skips finished runs and resumes the others.
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from cameras import cell

ROOT = Path(__file__).resolve().parents[2]

# name: the row's title, then the script and its arguments; {name} is another run's folder, of the same seed.
Rows = dict[str, tuple[str, ...]]

DISTIL = ("train.py", "--config", "configs/distill.py", "--config.task.teachers=('{teacher}',)")
FEATURES = ("--config.task.logit_weight=0", "--config.task.feature_weight=1", "--config.task.label_weight=1")
ALONE = ("train.py", "--config", "configs/distill.py:motion_alone")

DISTILLATION: Rows = {
    "teacher": ("the teacher", "train.py", "--config", "configs/distill.py:motion_teacher"),
    "alone": ("the student, from the labels alone", *ALONE),
    "logits": ("the student, from the teacher's logits", *DISTIL),
    "features": ("the student, from the teacher's features", *DISTIL, *FEATURES),
}


def pruned(title: str, *words: str) -> tuple[str, ...]:
    """A row of a network that was pruned and trained again."""
    return title, "prune.py", "{alone}", *words, "--epochs", "1"


PRUNING: Rows = {
    "alone": ("trained", *ALONE),
    "again": ("... and trained again for an epoch", *ALONE, "--config.model.weights={alone}", "--config.epochs=1"),
    "channels-3": pruned("30 % of the inner channels removed", "--channels", "0.3"),
    "channels-5": pruned("50 % of the inner channels removed", "--channels", "0.5"),
    "channels-7": pruned("70 % of the inner channels removed", "--channels", "0.7"),
    "weights-5": pruned("50 % of the weights removed", "--sparsity", "0.5"),
    "weights-8": pruned("80 % of the weights removed", "--sparsity", "0.8"),
    "weights-9": pruned("90 % of the weights removed", "--sparsity", "0.9"),
}


def place(folder: Path, name: str, seed: int) -> Path:
    """The folder of a run."""
    return (folder / (name if name == "teacher" else f"{name}-seed{seed}")).resolve()


def make(rows: Rows, seed: int, folder: Path) -> None:
    """Makes the runs of a seed, one after the other."""
    places = {name: str(place(folder, name, seed)) for name in rows}
    for name, (_, script, *words) in rows.items():
        words, own = [word.format(**places) for word in words], 0 if name == "teacher" else seed
        chosen = [f"--config.seed={own}"] if script == "train.py" else ["--seed", str(own)]
        command = [f"scripts/{script}", *words, *chosen, "--workdir", places[name]]
        print(shlex.join(["python", *command]), flush=True)
        if subprocess.run([sys.executable, *command], cwd=ROOT).returncode:
            sys.exit(f"{name}, seed {seed}, failed")


def measure(run: Path) -> tuple[int, float, float, float]:
    """Parameters, GMACs, milliseconds and accuracy of a run, at its largest frame count."""
    from flaxvid.evaluate.cost import clip_milliseconds, model_cost
    from flaxvid.report.run import read_run
    from flaxvid.train.trained import load

    trained = load(run)
    frames, size = max(trained.frames), trained.model.clip.image_size
    variables = trained.select(frames)
    cost = model_cost(trained.model, (1, frames, size, size, 3), variables)
    (top1,) = (row["top1"] for row in read_run(run).any_frame if row["frames"] == frames)
    return cost.parameters, cost.gflops, clip_milliseconds(trained.model, variables, frames, size), 100 * top1


def main() -> None:
    """Trains, measures, tabulates."""
    tables = {"distillation": DISTILLATION, "pruning": PRUNING}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", choices=tables, help="one of the tables")
    parser.add_argument("--folder", type=Path, default=Path("runs/compress"), help="of the runs and the tables")
    args = parser.parse_args()
    from flaxvid.report.tables import render

    for table, rows in tables.items():
        if args.only in (None, table):
            for seed in args.seeds:
                make(rows, seed, args.folder)
            lines = []
            for name, (title, *_) in rows.items():
                folders = dict.fromkeys(place(args.folder, name, seed) for seed in args.seeds)
                measured = [measure(folder) for folder in folders]
                (parameters, gmacs, *_), milliseconds = measured[0], min(one[2] for one in measured)
                accuracies = [top1 for *_, top1 in measured]
                lines.append((title, f"{parameters:,}", f"{gmacs:.4f}", f"{milliseconds:.2f}", cell(accuracies)))
            text = render(("network", "parameters", "GMACs", "ms a clip", "top-1 (%)"), lines)
            (args.folder / f"{table}.md").write_text(text + "\n")
            print(text)


if __name__ == "__main__":
    main()
