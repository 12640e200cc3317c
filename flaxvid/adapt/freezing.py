"""Freezing: parts of a network that training leaves as they are, to the last bit.

Setting a learning rate of zero is not enough: in training mode a batch norm goes on moving its running statistics, and
normalises by those of the batch, so that a frozen backbone answers otherwise than it did where it was trained. Here the
norms of a frozen part run as in evaluation, no gradient is computed for it, and the optimizer keeps nothing for it.
"""

import contextlib
import re
from collections.abc import Iterator, Sequence

from flax import linen as nn

from flaxvid import trees
from flaxvid.types import Variables

SHOWN = 40
"""Parts that an error lists."""


def is_frozen(path: str, patterns: Sequence[str]) -> bool:
    """Whether a variable stays as it is.

    Args:
        path: of the variable, with its collection: "params_4f/body/layer1_0/norm1/scale".
        patterns: regular expressions of paths below the collection, each for all that lies below as well: "body",
            "body/layer[12]_.*", "body/.*/kernel". So they hold for every collection: for statistics, for what
            `FrameFlexible` keeps for each frame count, for moving averages.
    """
    below = path.partition("/")[2]
    return any(re.fullmatch(f"(?:{pattern})(?:/.*)?", below) for pattern in patterns)


@contextlib.contextmanager
def keep_statistics(patterns: Sequence[str]) -> Iterator[None]:
    """Inside, batch norms whose statistics are frozen use them, in training too.

    It acts while tracing, as `layers.conv.direct_form` does: wrap what is traced, not the call of a jitted function.
    """

    def keep(call, args, kwargs, context):
        module = context.module
        if not isinstance(module, nn.BatchNorm) or "use_running_average" not in kwargs:
            return call(*args, **kwargs)
        statistics = "/".join(("batch_stats", *module.path, "mean"))
        return call(*args, **kwargs | ({"use_running_average": True} if is_frozen(statistics, patterns) else {}))

    with nn.intercept_methods(keep) if patterns else contextlib.nullcontext():
        yield


def check_frozen(variables: Variables, patterns: Sequence[str]) -> None:
    """Finds patterns that cannot be meant.

    Args:
        variables: of the model or of `FrameFlexible`, or their shapes.
        patterns: see `is_frozen`.

    Raises:
        ValueError: a pattern matches nothing, and the message lists the parts; or all of them leave nothing to train.
    """
    paths = list(trees.flatten(variables))
    for pattern in patterns:
        if not any(is_frozen(path, [pattern]) for path in paths):
            below = [path.split("/")[1:] for path in paths]
            parts = dict.fromkeys("/".join(names[:depth]) for depth in (1, 2) for names in below if len(names) > depth)
            shown = ", ".join([*parts][:SHOWN]) + ", ..." * (len(parts) > SHOWN)
            raise ValueError(
                f"freeze={pattern!r} matches no part of the network; they are {shown}, and what is in these"
            )
    if patterns and all(is_frozen(path, patterns) for path in paths if path.startswith("params")):
        raise ValueError(f"freeze={tuple(patterns)} leaves nothing to train: leave out the head")
