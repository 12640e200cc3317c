"""Freezing: training leaves parts of a network as they are, to the last bit.

A learning rate of zero is not enough: in training a batch norm normalises by the batch and moves its running
statistics. Here the norms of a frozen part run as in evaluation, and neither gradient nor optimizer state is computed.
"""

import contextlib
from collections.abc import Iterator, Sequence

from flax import linen as nn

from flaxvid import trees
from flaxvid.layers.norm import BatchNorm
from flaxvid.types import Variables

Unfreeze = Sequence[tuple[int, str]]
"""Pairs of epochs and a pattern: after so many epochs what the pattern names learns, too."""

SHOWN = 40
"""The most parts that an error lists."""


def frozen_after(freeze: Sequence[str], unfreeze: Unfreeze, epochs: float) -> tuple[str, ...]:
    """The patterns of what is frozen after so many epochs of gradual unfreezing (arXiv 1801.06146, section 3.3).

    Args:
        freeze: patterns of what is frozen at first.
        unfreeze: ``(epochs, pattern)``: after so many epochs what the pattern names learns, too.
        epochs: that have passed.
    """
    free = "".join(rf"(?!(?:{pattern})(?:/.*)?\Z)" for after, pattern in unfreeze if after <= epochs)
    return tuple(f"{free}(?:{pattern})" if free else pattern for pattern in freeze)


@contextlib.contextmanager
def keep_statistics(patterns: Sequence[str]) -> Iterator[None]:
    """Makes batch norms with frozen statistics use them in training too.

    It acts while JAX traces: wrap the function that is traced, not the call of a jitted one.
    """

    def keep(call, args, kwargs, context):
        module = context.module
        if isinstance(module, BatchNorm) and trees.lies_in("/".join(("batch_stats", *module.path, "mean")), patterns):
            return call(args[0])
        return call(*args, **kwargs)

    with nn.intercept_methods(keep) if patterns else contextlib.nullcontext():
        yield


def check_frozen(variables: Variables, patterns: Sequence[str], unfreeze: Unfreeze = ()) -> None:
    """Checks patterns against a network.

    Args:
        variables: of the model or of `FrameFlexible`, or their shapes.
        patterns: of what is frozen at first; see `trees.lies_in`.
        unfreeze: see `frozen_after`.

    Raises:
        ValueError: a pattern matches nothing, and the message lists the parts; or nothing is left to train; or there is
            nothing to unfreeze.
    """
    check_parts(variables, patterns, "freeze")
    paths = list(trees.flatten(variables))
    if patterns and all(trees.lies_in(path, patterns) for path in paths if path.startswith("params")):
        raise ValueError(f"freeze={tuple(patterns)} leaves nothing to train: leave out the head")
    check_parts(variables, [pattern for _, pattern in unfreeze], "unfreeze")
    for number, (epochs, pattern) in enumerate(unfreeze):
        still = frozen_after(patterns, unfreeze[:number], epochs)
        if not any(trees.lies_in(path, still) and trees.lies_in(path, [pattern]) for path in paths):
            raise ValueError(
                f"unfreeze={(epochs, pattern)} frees nothing: what it names learns already; leave it out, or freeze it"
            )


def check_parts(variables: Variables, patterns: Sequence[str], name: str) -> None:
    """Refuses patterns that match no part of a network; the message lists the parts.

    Args:
        variables: of the network, or their shapes.
        patterns: see `trees.lies_in`.
        name: of the recipe's field.
    """
    paths = list(trees.flatten(variables))
    for pattern in patterns:
        if not any(trees.lies_in(path, [pattern]) for path in paths):
            below = [path.split("/")[1:] for path in paths]
            parts = dict.fromkeys("/".join(names[:depth]) for depth in (1, 2) for names in below if len(names) > depth)
            shown = ", ".join([*parts][:SHOWN]) + ", ..." * (len(parts) > SHOWN)
            raise ValueError(
                f"{name}={pattern!r} matches no part of the network: its parts are {shown}, and what is in these"
            )
