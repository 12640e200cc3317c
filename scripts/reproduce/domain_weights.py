"""Chooses the weights of configs/domain.py: every method with several, tested on validation videos of the target.

    python scripts/reproduce/domain_weights.py [--seeds 0] [--jobs 2] [--set epochs=2]

The test videos, which scripts/reproduce/domains.py tells of, have no part in it. Called again, it skips finished runs
and resumes the others.
"""

import json

from cameras import cell
from frames import Runs, parse, train_all

VALIDATION = "data.target={'motion': {'domain': 'shifted', 'seed': 1}, 'eval_split': 'validation'}"
WEIGHTS = {"coral": (10.0, 100.0, 1000.0), "mmd": (0.3, 1.0, 3.0), "adversarial": (0.1, 0.3, 1.0)}

# name: (config, overrides), as in frames.py.
RUNS: Runs = {
    f"{method}-{weight:g}": (f"domain:{method}", [f"task.weight={weight}", VALIDATION])
    for method, weights in WEIGHTS.items()
    for weight in weights
}


def main() -> None:
    """Trains and tabulates."""
    args = parse(__doc__, RUNS, "runs/domain-weights")
    from flaxvid.report.tables import render

    train_all({name: RUNS[name] for name in args.runs}, args.seeds, args.folder, args.jobs, args.set)
    rows = []
    for name in args.runs:
        files = [args.folder / f"{name}-seed{seed}" / "any_frame.json" for seed in args.seeds]
        scores = [100 * row["top1"] for file in files for row in json.loads(file.read_text())]
        method, _, weight = name.partition("-")
        rows.append((method, weight, cell(scores)))
    text = render(("method", "weight", "top-1 (%) on validation videos of the target"), rows)
    (args.folder / "table.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
