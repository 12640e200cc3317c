"""Optimizer, learning-rate schedule and pruning schedule out of a recipe."""

from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from flaxvid import trees
from flaxvid.compress.prune import Pruning
from flaxvid.train.groups import group_factors, layer_factors
from flaxvid.train.recipe import OptimizerRecipe, PruningRecipe, Recipe


def make_schedule(recipe: OptimizerRecipe, epochs: int, steps_per_epoch: int) -> optax.Schedule:
    """The learning rate by step: linear warm-up, then "step", "cosine" or "constant" over what is left.

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
    if warmup:
        peak: Any = main(0) if recipe.schedule == "cosine" else recipe.learning_rate
        rising = optax.linear_schedule(recipe.warmup_start, float(peak), warmup)
        main = optax.join_schedules([rising, main], [warmup])
    # Of one type whatever the schedule: a Python number's weak type would make another program of the step.
    return lambda step: jnp.asarray(main(step), jnp.float32)


def make_optimizer(
    recipe: OptimizerRecipe,
    norms: Collection[str] | None = None,
    layers: Sequence[str] = (),
    frozen: Sequence[Sequence[str]] = (),
) -> optax.GradientTransformation:
    """The optimizer over ``{"params": ..., "params_4f": ...}``, at a learning rate of 1.

    `train_step` multiplies the updates by the rate, so the compiled step is the same for all rates and schedules. That
    comes last in torch's SGD too: decay joins the gradient before momentum, and the rate multiplies the momentum
    buffer. The gradient is clipped by its global norm before either.

    Args:
        recipe: which optimizer.
        norms: the network's, by `trees.norm_modules`; None finds them in the parameters that are trained, which is not
            enough where a norm is frozen in part.
        layers: the network's, `VideoModel.layers`, for `recipe.layer_decay`.
        frozen: patterns of what is frozen, in each phase so far of gradual unfreezing; () without it.
    """

    def scale(updates, params):
        rates, _ = group_factors(params, recipe.rules, norms)
        depths = layer_factors(params, layers, recipe.layer_decay)
        return jax.tree.map(lambda u, factor, depth: factor * depth * u, updates, rates, depths)

    decay = _decay(recipe, norms)
    clip = optax.clip_by_global_norm(recipe.clip_norm) if recipe.clip_norm else optax.identity()
    if recipe.name == "sgd":
        middle = (decay, optax.trace(recipe.momentum, recipe.nesterov))
    else:
        middle = (_adam(frozen, recipe.b2), decay)
    # A schedule, for its counter: checkpoints have had it since the rate was a part of the optimizer.
    down = optax.scale_by_schedule(lambda _: -1.0)
    return optax.chain(clip, *middle, optax.stateless(scale), down)


def make_pruning(recipe: PruningRecipe, steps_per_epoch: int) -> Pruning | None:
    """The pruning schedule in steps; None if nothing is pruned."""
    if not recipe.sparsity:
        return None
    begin, end = (round(epochs * steps_per_epoch) for epochs in (recipe.begin, recipe.end))
    return Pruning(recipe.sparsity, begin, max(begin + 1, end), recipe.every, recipe.scope)


def parts_kept(recipe: Recipe) -> tuple[str, ...]:
    """Patterns of the parts that pruning leaves as they are."""
    return (*recipe.pruning.keep, *recipe.freeze)


def _decay(recipe: OptimizerRecipe, norms: Collection[str] | None) -> optax.GradientTransformation:
    """Adds weight decay to the updates: towards zero, or for `recipe.decay_to_start` towards the start.

    The state is that start: the values of these parameters when they began to learn.
    """

    def to_start(params):
        return trees.split(params, lambda path: trees.lies_in(path, recipe.decay_to_start))[0]

    def add(updates, params, start):
        _, decays = group_factors(params, recipe.rules, norms)
        away = trees.merge(params, jax.tree.map(jnp.subtract, to_start(params), start))
        return jax.tree.map(lambda u, p, factor: u + recipe.weight_decay * factor * p, updates, away, decays)

    if not recipe.decay_to_start:
        return optax.stateless(lambda updates, params: add(updates, params, {}))
    return optax.GradientTransformation(
        to_start, lambda updates, state, params=None: (add(updates, params, state), state)
    )


def _adam(frozen: Sequence[Sequence[str]], b2: float) -> optax.GradientTransformation:
    """Adam, in which each release of gradual unfreezing has a count of steps of its own.

    Adam corrects its young averages by the count. With the count of the others, the first steps of what was just
    released would be three times too long.
    """
    if not frozen:
        return optax.scale_by_adam(b2=b2)

    def phases(params):
        """The phase in which each parameter began to learn."""
        began = {
            path: str(next(phase for phase, parts in enumerate(frozen) if not trees.lies_in(path, parts)))
            for path in trees.flatten(params)
        }
        return trees.unflatten(began)

    return optax.partition({str(phase): optax.scale_by_adam(b2=b2) for phase in range(len(frozen))}, phases)
