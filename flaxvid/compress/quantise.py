"""int8 after training: real clips show how large the inputs of each layer are, and the network rounds to that.

Weights have a scale for each channel out, inputs one for each layer. See `layers.int8` for the rounding, and for what
stays in floating point.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from flaxvid.layers.int8 import KEPT, Ranges, at_operands, find_qwix, is_kept
from flaxvid.layers.shift import TemporalShift
from flaxvid.models.registry import create_model
from flaxvid.models.video_model import Video, VideoModel
from flaxvid.types import Variables


def calibrate(
    model: VideoModel, variables: Variables, clips: Iterable[Video], kept: Sequence[str] = KEPT
) -> dict[str, tuple[float, float]]:
    """Measures the inputs of the layers: the mean over the clips of each clip's smallest and largest value.

    So rare extremes are cut off, but not those of shortcuts, whose error no kernel averages: their range is that of all
    clips. A layer that only sees zeros is left out. A tensor that several layers read, shifted or not, has one range,
    so that runtimes round it once.

    Args:
        model: of `create_model`.
        variables: its ordinary variables.
        clips: batches of uint8 video, as the network will see it; some dozens of clips are enough.
        kept: patterns of paths of layers that are not to be rounded.

    Returns:
        The ranges, for `quantise`.

    Raises:
        ValueError: there are no clips, every layer is kept, or a pattern of your own matches none.
        ImportError: qwix is not installed, so that the network could not be run.
    """
    find_qwix()
    plain = create_model(model.zoo_name, **{**model.overrides, "int8": None, "remat": False})
    shortcuts: set[str] = set()

    @jax.jit
    def measure(variables: Variables, video: Any) -> dict[str, tuple[jax.Array, jax.Array]]:
        found: dict[str, tuple[jax.Array, jax.Array]] = {}
        layers: list[str] = []
        shifts: list[tuple[jax.Array, jax.Array]] = []

        def remember(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            y = call(*args, **kwargs)
            if isinstance(context.module, TemporalShift) and context.method_name == "__call__":
                shifts.append((args[0], y))
            return y

        def note(path: str, x: jax.Array, kernel: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
            layers.append(path)
            if not is_kept(path, kept):
                if kernel is None:
                    shortcuts.add(path)
                (source,) = [before for before, behind in shifts if behind is x] or [x]
                each = source.reshape(x.shape[0], -1).astype(jnp.float32)
                found[path] = jnp.minimum(each.min(axis=1), 0), jnp.maximum(each.max(axis=1), 0)
            return x, kernel

        with nn.intercept_methods(remember), at_operands(note):
            plain.apply(variables, video)
        for pattern in kept:
            if pattern not in KEPT and not any(is_kept(path, [pattern]) for path in layers):
                raise ValueError(
                    f"expected patterns of layers to keep, got {pattern!r}, which matches none: the layers are "
                    + ", ".join(layers)
                )
        return found

    batches = [jax.device_get(measure(variables, video)) for video in clips]
    if not batches:
        raise ValueError("expected clips to calibrate with, got none")
    extremes = {
        path: [np.concatenate(parts) for parts in zip(*(batch[path] for batch in batches), strict=True)]
        for path in batches[0]
    }
    uncut = {extremes[path][1].tobytes() for path in shortcuts}  # who reads the same tensor has the same extremes
    ranges = {}
    for path, (lows, highs) in extremes.items():
        low, high = (lows.min(), highs.max()) if highs.tobytes() in uncut else (lows.mean(), highs.mean())
        if low < high:
            ranges[path] = float(low), float(high)
    if not ranges:
        raise ValueError(f"nothing is left to round beside {', '.join(kept)}: keep fewer layers")
    return ranges


def quantise(model: VideoModel, ranges: Ranges) -> VideoModel:
    """The same network in int8: it computes with rounded inputs and kernels, from the same variables."""
    return create_model(model.zoo_name, **{**model.overrides, "int8": ranges})
