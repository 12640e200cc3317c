"""Prunes a trained run and trains it again: recipes for `train.loop.run` out of the run's own."""

import dataclasses
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from flaxvid.compress.channels import remove_channels
from flaxvid.train.network import Trained, save
from flaxvid.train.recipe import PruningRecipe, Recipe, read_recipe
from flaxvid.train.workdir import has_results

START_FILE = "pruned.safetensors"
"""In a run's folder: the network without the removed channels, which the run starts from."""


def retrained(trained: Trained, epochs: int | None = None, learning_rate: float | None = None, seed: int = 0) -> Recipe:
    """The recipe of a run that starts from what it has learnt and goes through its schedule once more.

    Nothing is frozen. The learning rate begins high again, which serves pruned networks better than a low one (arXiv
    2003.02389).

    Args:
        trained: the run.
        epochs: how long; the schedule is squeezed or stretched. None is as long as the run.
        learning_rate: another peak of the schedule; None is the run's.
        seed: of the new run.

    Raises:
        ValueError: `trained` is a file, which does not say how it was trained, or has no head.
    """
    if trained.folder is None or trained.headless:
        got = "a masked pre-training" if trained.headless else f"the file {trained.recipe.model.weights}"
        raise ValueError(
            f"expected a run's folder, whose recipe says how the network is trained, got {got}: fine-tune it first, "
            "with --config.model.weights"
        )
    run = trained.recipe
    epochs = epochs or run.epochs
    factor, optimizer = epochs / run.epochs, run.optimizer
    optimizer = dataclasses.replace(
        optimizer,
        learning_rate=optimizer.learning_rate if learning_rate is None else learning_rate,
        warmup_epochs=optimizer.warmup_epochs * factor,
        milestones=tuple(sorted({max(1, round(epoch * factor)) for epoch in optimizer.milestones})),
    )
    model = dataclasses.replace(run.model, weights=str(trained.folder), inflate="")
    return dataclasses.replace(
        run,
        model=model,
        optimizer=optimizer,
        epochs=epochs,
        freeze=(),
        unfreeze=(),
        seed=seed,
        pruning=PruningRecipe(),
        published="",
    )


def make_sparse(recipe: Recipe, sparsity: float, scope: Literal["global", "layer"] = "global") -> Recipe:
    """Removes the smallest weights in the first half of the epochs; arguments as in `PruningRecipe`."""
    return dataclasses.replace(recipe, pruning=PruningRecipe(sparsity, end=recipe.epochs / 2, scope=scope))


def make_thin(
    recipe: Recipe, trained: Trained, workdir: Path, share: float, multiple: int = 1
) -> tuple[Recipe, Trained]:
    """Removes channels of a run's network and writes what is left into `workdir`, unless a run has begun there.

    Args:
        recipe: of `retrained`.
        trained: the run.
        workdir: the folder of the new run.
        share, multiple: see `remove_channels`.

    Returns:
        The recipe that starts from the thinner network, and that network.

    Raises:
        ValueError: no channel would be removed, or a run with other channels has begun in `workdir`.
    """
    model, variables = remove_channels(trained.model, trained.variables, share, multiple)
    thin = dataclasses.replace(trained, model=model, variables=variables)
    inner = {block: tuple(counts) for block, counts in model.overrides["inner"].items()}
    if jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, dict(trained.variables)):
        raise ValueError(f"{share:g} of the channels, rounded to multiples of {multiple}, is none: raise the share")
    if not has_results(workdir):
        save(thin, workdir / START_FILE)
    elif read_recipe(workdir).model.options.get("inner") != inner:
        raise ValueError(f"{workdir} holds a run with other channels: give --workdir another folder")
    options = {**recipe.model.options, "inner": inner}
    return dataclasses.replace(
        recipe, model=dataclasses.replace(recipe.model, weights=str(workdir / START_FILE), options=options)
    ), thin
