"""Optimizer and learning-rate schedule out of a recipe, from optax's parts."""

import re
from typing import Any

import jax
import optax

from flaxvid import trees
from flaxvid.train.recipe import OptimizerRecipe, Rules

SHOWN = 12
"""Parameters that an error shows."""


def make_schedule(recipe: OptimizerRecipe, epochs: int, steps_per_epoch: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then "step", "cosine" or "constant" over what is left.

    The milestones of "step" count from the start of training, warm-up included; a cosine does with `cosine_from_start`.
    """
    total = epochs * steps_per_epoch
    warmup = round(recipe.warmup_epochs * steps_per_epoch)
    if recipe.schedule == "step":
        drops = {epoch * steps_per_epoch - warmup: 0.1 for epoch in recipe.milestones}
        main = optax.piecewise_constant_schedule(recipe.learning_rate, drops)
    elif recipe.schedule == "cosine":
        passed = warmup if recipe.cosine_from_start else 0
        cosine = optax.cosine_decay_schedule(recipe.learning_rate, max(1, total - warmup + passed))
        main = lambda step: cosine(step + passed)  # noqa: E731
    else:
        main = optax.constant_schedule(recipe.learning_rate)
    if not warmup:
        return main
    peak: Any = main(0) if recipe.schedule == "cosine" else recipe.learning_rate
    return optax.join_schedules([optax.linear_schedule(recipe.warmup_start, float(peak), warmup), main], [warmup])


def group_factors(params: Any, rules: Rules) -> tuple[dict[str, Any], dict[str, Any]]:
    """Learning-rate and weight-decay factors of every parameter, by the first rule that matches its path."""
    table = [(pattern, (rate, decay)) for pattern, rate, decay in rules]
    factors = trees.map_paths(lambda path, _: trees.first_match(table, path, (1.0, 1.0)), params)
    rates = trees.map_paths(lambda _, pair: pair[0], factors)
    decays = trees.map_paths(lambda _, pair: pair[1], factors)
    return rates, decays


def check_rules(params: Any, rules: Rules) -> None:
    """Finds parameter groups that cannot be meant.

    Args:
        params: the ``params*`` collections, or their shapes; those that are frozen, too.
        rules: of the recipe.

    Raises:
        ValueError: patterns that match no parameter; the message shows some that there are.
    """
    paths = list(trees.flatten(params))
    if unused := [pattern for pattern, *_ in rules if not any(re.fullmatch(pattern, path) for path in paths)]:
        shown = ", ".join(paths[:: max(1, len(paths) // SHOWN)][:SHOWN])
        raise ValueError(
            f"optimizer.rules: {', '.join(map(repr, unused))} matches no parameter as a whole path; there are {shown}, "
            "...: correct the pattern or leave the rule out"
        )


def make_optimizer(recipe: OptimizerRecipe, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The optimizer over ``{"params": ..., "params_4f": ...}``.

    SGD follows torch: decay joins the gradient before momentum, and the learning rate multiplies the momentum buffer.
    The gradient is clipped by its global norm before either.
    """

    def decay(updates, params):
        _, decays = group_factors(params, recipe.rules)
        return jax.tree.map(lambda u, p, factor: u + recipe.weight_decay * factor * p, updates, params, decays)

    def scale(updates, params):
        rates, _ = group_factors(params, recipe.rules)
        return jax.tree.map(lambda u, factor: factor * u, updates, rates)

    clip = optax.clip_by_global_norm(recipe.clip_norm) if recipe.clip_norm else optax.identity()
    if recipe.name == "sgd":
        middle = (optax.stateless(decay), optax.trace(recipe.momentum, recipe.nesterov))
    else:
        middle = (optax.scale_by_adam(), optax.stateless(decay))
    return optax.chain(clip, *middle, optax.stateless(scale), optax.scale_by_learning_rate(schedule))
