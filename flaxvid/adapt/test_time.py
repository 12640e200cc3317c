"""Adapting a trained network to the videos that it is tested on, without their labels."""

import contextlib
from collections.abc import Iterable, Iterator

import jax
import optax
from flax import linen as nn
from jaxtyping import Array, UInt8

from flaxvid import trees
from flaxvid.adapt.statistics import reestimate_statistics
from flaxvid.layers.norm import BatchNorm
from flaxvid.losses.domain import entropy
from flaxvid.models.video_model import VideoModel
from flaxvid.types import Variables, by_target


def minimise_entropy(
    model: VideoModel,
    variables: Variables,
    clips: Iterable[UInt8[Array, "b t h w 3"]],
    learning_rate: float = 1e-3,
) -> dict[str, Variables]:
    """Makes the answers to these clips sure, by the scales and biases of the norms alone (TENT, arXiv 2006.10726).

    Each batch moves them by one step of Adam down the entropy of its answers, with batch norms normalising by the
    batch. In the end the statistics are measured anew on all clips. Everything else stays.

    Trap: the classes must come mixed, for a batch of one class moves all answers to it.

    Args:
        model: the network.
        variables: its ordinary variables.
        clips: batches of one frame count, in random order; they are read twice, so no generator will do.
        learning_rate: of Adam.

    Raises:
        ValueError: a network without norms, or no clips.
    """
    norms = trees.norm_modules(variables)
    moving, fixed = trees.split(variables["params"], lambda path: path.rpartition("/")[0] in norms)
    if not moving:
        raise ValueError("expected a network with norms that have a scale or a bias, got one without: TENT moves these")
    optimizer = optax.adam(learning_rate)

    @jax.jit
    def step(moving, state, video):
        def loss(moving):
            with batch_statistics():
                logits, _ = model.apply(
                    {**variables, "params": trees.merge(fixed, moving)}, video, mutable=["batch_stats"]
                )
            return sum(map(entropy, by_target(logits).values()))

        updates, state = optimizer.update(jax.grad(loss)(moving), state)
        return optax.apply_updates(moving, updates), state

    state = optimizer.init(moving)
    for video in clips:
        moving, state = step(moving, state, video)
    adapted = {**variables, "params": trees.merge(fixed, moving)}
    return reestimate_statistics(model, adapted, clips) if "batch_stats" in variables else adapted


@contextlib.contextmanager
def batch_statistics() -> Iterator[None]:
    """Makes batch norms normalise by the batch, as in training, while all else runs as in evaluation.

    It acts while JAX traces, as `adapt.freezing.keep_statistics`.
    """

    def use(call, args, kwargs, context):
        if isinstance(context.module, BatchNorm):
            return call(args[0], True, *args[2:], **{name: own for name, own in kwargs.items() if name != "train"})
        return call(*args, **kwargs)

    with nn.intercept_methods(use):
        yield
