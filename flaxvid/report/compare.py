"""Writes a page that compares runs: accuracy, cost, curves, and the settings in which they differ.

A table holds only accuracies on the same videos. Other videos have a section of their own.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flaxvid.report.html import write_html
from flaxvid.report.intervals import newcombe
from flaxvid.report.page import TILES, flatten
from flaxvid.report.plots import accuracy_plot, cost_plot, interval_plot, metric_plot
from flaxvid.report.run import Run, read_run
from flaxvid.report.tables import describe_data, interval_of, percent_range, seed_statistics

LONG = 80
"""Most characters of a setting in the table of differences."""

CHANGED = 10
"""Most classes in a table of changes; the others can be unfolded."""


def write_comparison(folders: Sequence[str | Path], path: str | Path) -> Path:
    """Writes one HTML page about several runs and returns its path. It leaves out what a run lacks.

    Raises:
        FileNotFoundError: A folder has none of a run's files.
        ValueError: There are fewer than two folders.
    """
    if len(set(map(str, folders))) < 2:
        got = ", ".join(map(str, folders)) or "none"
        raise ValueError(f"expected two runs or more to compare, got {got}: name more folders")
    runs = name_runs(folders)
    groups = group_by_data(runs)
    return write_html(
        path,
        "comparison.html",
        title=f"{len(runs)} runs compared",
        headlines=_headlines(groups),
        groups=[_accuracy(data, evaluated) for data, evaluated in groups.items()],
        reconstructions=_reconstructions(runs),
        curves=_curves(runs),
        names=("setting", *runs),
        settings=_settings(runs),
    )


def name_runs(folders: Sequence[str | Path]) -> dict[str, Run]:
    """Reads runs. Their names are the shortest ends of their paths that differ."""
    paths = [Path(folder).resolve() for folder in folders]
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(set(paths)):
        depth += 1
    return {"/".join(path.parts[-depth:]): read_run(path) for path in paths}


def group_by_data(runs: Mapping[str, Run]) -> dict[str, dict[str, Run]]:
    """Groups records by their videos: each run's own record, and other records that several runs have.

    Equal digests mean equal videos. Older records have no digest. They belong together if their recipes have the same
    data set, root, split and number of videos. They join records with such a recipe if these all have one digest.
    """
    records = [(name, record) for name, run in runs.items() for record in (run, *run.others) if record.any_frame]
    digests: dict[str, set[str]] = {}
    for _, record in records:
        if record.recipe and "digest" in record.data:
            digests.setdefault(_described(record), set()).add(record.data["digest"])
    groups: dict[str, list[tuple[str, Run]]] = {}
    for name, record in records:
        text = _described(record)
        same = digests.get(text, set())
        key = record.data.get("digest") or (next(iter(same)) if len(same) == 1 else text)
        groups.setdefault(key, []).append((name, record))
    titled: dict[str, dict[str, Run]] = {}
    for group in sorted(groups.values(), key=len, reverse=True):
        if len({name for name, _ in group}) > 1 or any(record is runs[name] for name, record in group):
            title = next((describe_data(record.data) for _, record in group if record.data), _described(group[0][1]))
            title += f" ({len(titled) + 1})" * (title in titled)
            titled[title] = {
                f"{_called(name, record, runs[name])} {target}".rstrip(): part
                for name, record in group
                for target, part in record.by_target().items()
            }
    return titled


def _called(name: str, record: Run, run: Run) -> str:
    """A run's name, with the step if the record is of other weights than the run's own."""
    return name if record.step in (None, run.step) else f"{name} at step {record.step}"


def _described(run: Run) -> str:
    """Describes the videos of a record by its recipe, otherwise by the record."""
    data = run.recipe.get("data")
    if isinstance(data, Mapping):
        rest = ", ".join(
            f"{key} {data[key]}" for key in ("fold", "lists", "group", "cameras", "motion") if data.get(key)
        )
        named = {"name": data.get("name"), "root": data.get("root"), "split": data.get("eval_split")}
        return describe_data({**named, "videos": run.any_frame[0]["clips"]}) + f", {rest}" * bool(rest)
    return describe_data(run.data) if run.data else "videos that no record names"


def _headlines(groups: Mapping[str, Mapping[str, Run]]) -> list[tuple[str, str]]:
    """The best accuracy of each run, with its frame count; of many runs the tables say enough."""
    best = []
    for runs in groups.values():
        for name, run in runs.items():
            row = max(run.any_frame, key=lambda row: row["top1"])
            where = f" on {run.data['name']}" if len(groups) > 1 and run.data else ""
            best.append((f"{100 * row['top1']:.2f} %", f"{name}, at {row['frames']} frames{where}"))
    return best if len(best) <= TILES else []


def _accuracy(data: str, evaluated: Mapping[str, Run]) -> dict[str, Any]:
    """The section about runs that were evaluated on the same videos."""
    scores = {name: seed_statistics([run]) for name, run in evaluated.items()}
    frames = sorted({n for by_frames in scores.values() for n in by_frames})
    best: dict[tuple[str, int], list[float]] = {}
    for name, by_frames in scores.items():
        for n, (score, *_) in by_frames.items():
            best.setdefault((evaluated[name].target, n), []).append(score)
    several = any(len(values) > 1 for values in best.values())

    def cell(name: str, n: int) -> str:
        row = next((row for row in evaluated[name].any_frame if row["frames"] == n), None)
        if row is None:
            return "–"
        score, interval = scores[name][n][0], interval_of(row)
        values = best[evaluated[name].target, n]
        mark = " *" * (len(values) > 1 and score == max(values))
        return f"{score:.2f}{mark}" + (f" ({percent_range(*interval)})" if interval else "")

    videos = {row["clips"] for run in evaluated.values() for row in run.any_frame}
    note = "In brackets the 95 % interval of other videos of the same kind (Wilson), not of other trainings."
    note = "* the best at this frame count. " * several + note
    if len(videos) > 1:
        note += f" Not on the same videos: there are {' and '.join(f'{n:,}' for n in sorted(videos))} of them."
    if len(frames) > 1:
        plot = accuracy_plot({name: [run] for name, run in evaluated.items()}), "Top-1 accuracy against frames"
    else:
        plot = interval_plot(evaluated), f"Top-1 accuracy at {frames[0]} frames, with 95 % intervals"
    plots = [plot]
    if len({row["gflops"] for run in evaluated.values() for row in run.any_frame}) > 1:
        figure = cost_plot(evaluated, "gflops", "GFLOPs a clip")
        plots.append((figure, "Top-1 accuracy against cost; frame counts at the points"))
    timed = {  # only an evaluation measures time
        name: Run(run.name, any_frame=tuple(run.evaluation["frames"]))
        for name, run in evaluated.items()
        if any("milliseconds" in row for row in run.evaluation.get("frames", ()))
    }
    if timed:
        plots.append(
            (cost_plot(timed, "milliseconds", "milliseconds a clip, batch 1"), "Accuracy against measured time")
        )
    return {
        "data": data,
        "header": ("top-1 (%)", *(f"{n} frames" for n in frames)),
        "rows": [(name, *(cell(name, n) for n in frames)) for name in scores],
        "note": note,
        "plots": plots,
        "changes": _changes(evaluated),
    }


def _changes(evaluated: Mapping[str, Run]) -> list[dict[str, Any]]:
    """Tables of how the classes' accuracies change from the first run to each other one with the same classes."""
    groups: dict[tuple[str, frozenset[str]], list[str]] = {}
    for name, run in evaluated.items():
        if run.evaluation:
            groups.setdefault((run.target, frozenset(run.evaluation["classes"])), []).append(name)
    tables = []
    for first, *others in groups.values():
        for other in others:
            rows = [{row["frames"]: row for row in evaluated[name].evaluation["frames"]} for name in (first, other)]
            if common := rows[0].keys() & rows[1].keys():
                frames = max(common)
                before, after = (
                    class_shares(evaluated[name].evaluation["classes"], own[frames]["confusion"])
                    for name, own in zip((first, other), rows, strict=True)
                )
                changed = [_change(label, before[label], after[label]) for label in before if label in after and label]
                changed.sort(key=lambda entry: -abs(entry[0]))
                cells = [row for _, row in changed]
                whole = [_change("all classes", before[""], after[""])[1]]
                tables.append(
                    {
                        "title": f"From {first} to {other}, class by class at {frames} frames",
                        "header": ("class", "videos", f"{first} (%)", f"{other} (%)", "change (95 % interval)"),
                        "rows": whole + cells[:CHANGED],
                        "more": cells[CHANGED:],
                    }
                )
    return tables


def class_shares(classes: Sequence[str], confusion: Sequence[Sequence[int]]) -> dict[str, tuple[float, int]]:
    """The share of right answers and the number of videos of each class that has any, and of all of them as ""."""
    right, videos = dict.fromkeys(("", *classes), 0), dict.fromkeys(("", *classes), 0)
    for label, guess, count in confusion:
        for name in {"", classes[label]}:
            videos[name] += count
            right[name] += count * (label == guess)
    return {name: (right[name] / videos[name], videos[name]) for name in videos if videos[name] > 0}


def _change(label: str, before: tuple[float, int], after: tuple[float, int]) -> tuple[float, tuple[str, ...]]:
    """A class's change, and its row."""
    change, (low, high) = after[0] - before[0], newcombe(before, after)
    videos = f"{before[1]:,}" if before[1] == after[1] else f"{before[1]:,}, {after[1]:,}"
    text = (f"{100 * change:+.1f}" if change else "0.0").replace("-", "\u2212") + " *" * (low > 0 or high < 0)
    shares = (f"{100 * share:.1f}" for share, _ in (before, after))
    return change, (label, videos, *shares, f"{text} ({percent_range(low, high)})")


def _reconstructions(runs: Mapping[str, Run]) -> list[dict[str, Any]]:
    """A table for each set of masked videos: the errors of the pre-trainings that were tested on it."""
    groups: dict[tuple[str, float, bool], dict[str, Run]] = {}
    for name, run in runs.items():
        if record := run.reconstruction:
            key = record["data"].get("digest", name), record["mask_ratio"], record.get("by_cube", True)
            groups.setdefault(key, {})[name] = run
    sections = []
    for (_, mask_ratio, by_cube), tested in groups.items():
        errors = {
            name: {row["frames"]: f"{row['error']:.4f}" for row in run.reconstruction["frames"]}
            for name, run in tested.items()
        }
        frames = sorted({n for own in errors.values() for n in own})
        data = next(iter(tested.values())).reconstruction["data"]
        sections.append(
            {
                "header": ("reconstruction error", *(f"{n} frames" for n in frames)),
                "rows": [(name, *(own.get(n, "–") for n in frames)) for name, own in errors.items()],
                "note": f"{100 * mask_ratio:.0f} % of the places masked, on {describe_data(data)}; "
                f"colours {'by cube' if by_cube else 'as the network sees them'}.",
            }
        )
    return sections


def _curves(runs: Mapping[str, Run]) -> list[tuple[Any, str]]:
    return [
        (metric_plot(runs, name, label), caption)
        for name, label, caption in (
            ("train/loss", "training loss", "Training loss; tasks differ in what they add up"),
            ("train/accuracy", "training accuracy (%)", "Accuracy on training clips"),
            ("train/clips_per_second", "clips a second", "Speed of training"),
        )
        if any(len(run.series(name)[0]) for run in runs.values())
    ]


def _settings(runs: Mapping[str, Run]) -> list[tuple[str, ...]]:
    """The settings in which runs differ."""
    settings = {name: dict(flatten(run.recipe)) for name, run in runs.items()}
    paths = dict.fromkeys(path for values in settings.values() for path in values)
    rows = []
    for path in paths:
        values = [settings[name].get(path, "–") for name in runs]
        if len(set(values)) > 1:
            rows.append((path, *(value if len(value) <= LONG else value[: LONG - 1] + "…" for value in values)))
    return rows
