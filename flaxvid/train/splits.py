"""The videos of a run: training, validation, test."""

from typing import NamedTuple

import jax

from flaxvid.data.buckets import Buckets, describe_buckets, sort_by_length
from flaxvid.data.sources.account import check_labels, describe_splits
from flaxvid.data.sources.class_names import relabel
from flaxvid.data.sources.open import Source
from flaxvid.data.sources.splits import NoSplitError
from flaxvid.data.sources.without_labels import WithoutLabels
from flaxvid.tasks.domain import DomainRecipe
from flaxvid.tasks.labelled import LabelledRecipe
from flaxvid.train.recipe import Recipe
from flaxvid.train.setup import clip_config, open_data, tested_data


class Splits(NamedTuple):
    """The sources of a run; a class has the same number in all.

    Attributes:
        train: the network learns from these.
        validation: these choose the best checkpoint; None for no evaluation during training.
        test: the final table is of these; with a target domain they are of it.
        target: training videos of the target domain, without their labels; None for a task that has no use for them.
        buckets: the training videos by length, where the task asks for it.
    """

    train: Source
    validation: Source | None
    test: Source
    target: Source | None = None
    buckets: Buckets | None = None


def open_splits(recipe: Recipe) -> Splits:
    """Opens the recipe's splits and prints what they hold; see `DataRecipe` for which they are.

    Raises:
        ValueError: the data has no such split, or its labels do not fit those of the training videos.
    """
    data, note = recipe.data, ""
    tested = tested_data(data)
    test = f"target {tested.eval_split}" if data.target else data.eval_split
    sources = {data.train_split: open_data(data, data.train_split), test: open_data(tested, tested.eval_split)}
    chosen = data.validation_split or "validation"
    if recipe.eval_every and chosen not in sources:
        try:
            sources[chosen] = open_data(data, chosen)
        except NoSplitError:
            if data.validation_split:
                raise
            note = (
                f"no evaluation during training: {data.name} has no validation split; make one, or name another split "
                f'as data.validation_split ("{data.eval_split}" chooses the best checkpoint on the test videos)'
            )
    first, advice = sources[data.train_split], "give it training videos, or correct its labels"
    labelled = isinstance(recipe.task, LabelledRecipe)
    check_labels(first, fewest=2 if labelled else 0)
    for split in [split for split in sources if split != data.train_split]:
        sources[split] = relabel(sources[split], first.classes, first.name, advice)
        check_labels(sources[split], fewest=1 if labelled else 0)
    target = None
    if isinstance(recipe.task, DomainRecipe):
        target = WithoutLabels(open_data(tested, tested.train_split))
        note = "\n".join(filter(None, (note, f"target domain: {len(target)} training videos, without labels")))
    if jax.process_index() == 0:
        shown = dict.fromkeys((data.train_split, chosen, test))
        account = describe_splits({split: sources[split] for split in shown if split in sources})
        for text in filter(None, (account, note)):
            print(text)
    return Splits(
        first,
        sources.get(chosen) if recipe.eval_every else None,
        sources[test],
        target,
        _buckets(recipe, first) if getattr(recipe.task, "sampling", "") == "bucketed" else None,
    )


def _buckets(recipe: Recipe, source: Source) -> Buckets:
    """The training videos by length."""
    videos = recipe.batch_size // recipe.data.clips.repeats
    buckets = sort_by_length(source, clip_config(recipe, recipe.task.frames), videos, recipe.data.num_threads)
    if jax.process_index() == 0:
        print(describe_buckets(buckets, videos))
    return buckets
