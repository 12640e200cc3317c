"""Compares ways of domain adaptation on `motion`: labels in its usual look, tests in the shifted one.

    python scripts/reproduce/domains.py [--seeds 0 1 2] [--jobs 2]

It trains every method with every seed, and adapts the network of the source domain to the test videos. Called again, it
skips finished runs, resumes the others, and adapts anew. scripts/reproduce/domain_weights.py tells where the weights
of the methods come from.
"""

import json
from pathlib import Path

from cameras import cell
from frames import Runs, parse, train_all

# name: (config, overrides), as in frames.py.
RUNS: Runs = {name: (f"domain:{name}", []) for name in ("source", "coral", "mmd", "adversarial", "target")}

ROWS = {
    "source": "the source domain alone",
    "adabn": "... AdaBN on the test videos",
    "tent": "... TENT on the test videos",
    "coral": "CORAL",
    "mmd": "MMD",
    "adversarial": "adversarial (DANN)",
    "target": "labels of the target domain",
}


def adapted(run: Path) -> dict[str, float]:
    """Top-1 of a run after each adaptation to its test videos."""
    from flaxvid.train.setup import clip_config
    from flaxvid.train.step import enable_compilation_cache
    from flaxvid.train.testing import ADAPTATIONS, adapt, choose_data, evaluate_passes, open_test
    from flaxvid.train.trained import load

    enable_compilation_cache()
    trained, scores = load(run), {}
    source = open_test(trained, choose_data(trained.recipe.data, "", {}), {})
    clips = clip_config(trained.recipe, trained.recipe.eval_frames)
    for way in ADAPTATIONS:
        found = evaluate_passes(
            trained,
            source,
            (clips,),
            plain=adapt(trained, source, clips, way),
            batch_size=0,
            num_threads=0,
            advance=lambda videos: None,
        )
        scores[way] = found[""].frames[clips.frames[-1]].scores["top1"]
    return scores


def main() -> None:
    """Trains, adapts, tabulates."""
    args = parse(__doc__, RUNS, "runs/domains")
    from flaxvid.report.tables import render

    train_all({name: RUNS[name] for name in args.runs}, args.seeds, args.folder, args.jobs, args.set)
    scores: dict[str, list[float]] = {}
    for name in args.runs:
        for seed in args.seeds:
            run = args.folder / f"{name}-seed{seed}"
            (row,) = json.loads((run / "any_frame.json").read_text())
            found = {name: row["top1"]} | (adapted(run) if name == "source" else {})
            for key, value in found.items():
                scores.setdefault(key, []).append(100 * value)
    rows = [(label, cell(scores[key])) for key, label in ROWS.items() if key in scores]
    text = render(("trained with", "top-1 (%) on the shifted domain"), rows)
    (args.folder / "table.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
