"""Tables of positions, fitted to any frame count and size; and which tokens of a padded clip count.

Space is resized for all clips of a batch alike. Time is resized for each clip by its own valid frames, so that padding
changes nothing.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from flaxvid.layers.blocks import FrameMask


def sine_cosine(length: int, channels: int) -> Float[np.ndarray, "n c"]:
    """Fixed positions (arXiv 1706.03762, section 3.5): sines in even channels, cosines in odd ones."""
    angles = np.arange(length)[:, None] / 10000 ** (np.arange(channels) // 2 * 2 / channels)
    return np.where(np.arange(channels) % 2, np.cos(angles), np.sin(angles)).astype(np.float32)


def resize_space(table: Float[Array, "*t h0 w0 c"], height: int, width: int) -> Float[Array, "*t h w c"]:
    """A table of places for another height and width, by cubic interpolation; the same table for its own.

    Where the size shrinks, the kernel widens, so that no place is skipped.
    """
    shape = (*table.shape[:-3], height, width, table.shape[-1])
    return table if table.shape == shape else jax.image.resize(table, shape, "cubic")


def resize_time(
    table: Float[Array, "t0 ..."], frames: int, mask: Bool[Array, "b t"] | None = None
) -> Float[Array, "b t ..."]:
    """A table of times for another number of frames, by linear interpolation between its entries.

    Of n valid frames, the i-th stands at ``(i + 0.5) * t0 / n - 0.5`` of the table, or at its nearest end. So each clip
    spans the whole table, and n = t0 gives the table itself.

    Args:
        table: an entry for each of t0 times.
        frames: t, tokens along time.
        mask: False for tokens that only pad their clip; what they get means nothing.

    Returns:
        (b, t, ...), or (1, t, ...) without a mask.
    """
    t0 = table.shape[0]
    if mask is None:
        if frames == t0:
            return table[None]
        mask = jnp.ones((1, frames), bool)
    place = jnp.cumsum(mask, axis=1) - 1
    count = jnp.maximum(1, mask.sum(axis=1, keepdims=True))
    at = jnp.clip((place + 0.5) * t0 / count - 0.5, 0, t0 - 1)
    weights = jnp.maximum(0, 1 - jnp.abs(at[..., None] - jnp.arange(t0)))  # (b, t, t0)
    return jnp.einsum("btk,k...->bt...", weights, table, precision="highest")


def fit_positions(
    table: Float[Array, "t0 h0 w0 c"], frames: int, height: int, width: int, mask: Bool[Array, "b t"] | None = None
) -> Float[Array, "b t h w c"]:
    """A table of places and times for another grid; see `resize_space` and `resize_time`."""
    return resize_time(resize_space(table, height, width), frames, mask)


def token_mask(frame_mask: FrameMask, frames: int) -> FrameMask:
    """The mask of a grid of patches from that of its clip: a token counts if any frame of its patch does.

    Raises:
        ValueError: `frames` does not divide the clip's frames.
    """
    if frame_mask is None:
        return None
    if frame_mask.shape[1] % frames:
        raise ValueError(
            f"frame_mask has {frame_mask.shape[1]} frames, which {frames} patches along time do not divide: pass the "
            "mask of the clip, one entry a frame"
        )
    return frame_mask.reshape(frame_mask.shape[0], frames, -1).any(axis=-1)


def token_keys(mask: FrameMask, places: int, before: int = 0) -> Bool[Array, "b n"] | None:
    """The mask of a grid's tokens in one row, from that of its times: each has so many places.

    Args:
        mask: (b, t), False for times that only pad; None for none such.
        places: tokens of each time.
        before: tokens in front of the grid's, such as a class token; they always count.
    """
    if mask is None:
        return None
    return jnp.pad(jnp.repeat(mask, places, axis=1), ((0, 0), (before, 0)), constant_values=True)
