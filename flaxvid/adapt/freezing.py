"""Freezing: training leaves parts of a network as they are, to the last bit.

A learning rate of zero is not enough: in training a batch norm normalises by the batch and moves its running
statistics. Here the norms of a frozen part run as in evaluation, and neither gradient nor optimizer state is computed.
"""

import contextlib
import re
from collections.abc import Iterator, Sequence

from flax import linen as nn

from flaxvid import trees
from flaxvid.layers.norm import BatchNorm
from flaxvid.types import Variables

SHOWN = 40
"""The most parts that an error lists."""


def is_frozen(path: str, patterns: Sequence[str]) -> bool:
    """Whether a variable stays as it is.

    Args:
        path: of the variable, with its collection: "params_4f/body/layer1_0/norm1/scale".
        patterns: regular expressions of paths without the collection, so they hold for all collections. Each freezes
            all that lies below it: "body", "body/layer[12]_.*", "body/.*/kernel".
    """
    below = path.partition("/")[2]
    return any(re.fullmatch(f"(?:{pattern})(?:/.*)?", below) for pattern in patterns)


@contextlib.contextmanager
def keep_statistics(patterns: Sequence[str]) -> Iterator[None]:
    """Makes batch norms with frozen statistics use them in training too.

    It acts while JAX traces: wrap the function that is traced, not the call of a jitted one.
    """

    def keep(call, args, kwargs, context):
        module = context.module
        if isinstance(module, BatchNorm) and is_frozen("/".join(("batch_stats", *module.path, "mean")), patterns):
            return call(args[0])
        return call(*args, **kwargs)

    with nn.intercept_methods(keep) if patterns else contextlib.nullcontext():
        yield


def check_frozen(variables: Variables, patterns: Sequence[str]) -> None:
    """Checks patterns against a network.

    Args:
        variables: of the model or of `FrameFlexible`, or their shapes.
        patterns: see `is_frozen`.

    Raises:
        ValueError: a pattern matches nothing, and the message lists the parts; or nothing is left to train.
    """
    paths = list(trees.flatten(variables))
    for pattern in patterns:
        if not any(is_frozen(path, [pattern]) for path in paths):
            below = [path.split("/")[1:] for path in paths]
            parts = dict.fromkeys("/".join(names[:depth]) for depth in (1, 2) for names in below if len(names) > depth)
            shown = ", ".join([*parts][:SHOWN]) + ", ..." * (len(parts) > SHOWN)
            raise ValueError(
                f"freeze={pattern!r} matches no part of the network: its parts are {shown}, and what is in these"
            )
    if patterns and all(is_frozen(path, patterns) for path in paths if path.startswith("params")):
        raise ValueError(f"freeze={tuple(patterns)} leaves nothing to train: leave out the head")
