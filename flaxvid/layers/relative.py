"""Positions of a query and a key relative to each other along time, height and width (arXiv 2112.01526, section 4.1).

A table has an entry for each distance, from 1 - n to n - 1 for n places. It is stretched linearly over other numbers of
places. Along time it is stretched for each clip by its own valid frames, so that padding changes nothing.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flaxvid.layers.blocks import FrameMask, Strides


def relative_scores(
    queries: Float[Array, "b n d"],
    tables: Sequence[Float[Array, "_ d"]],
    query_size: Strides,
    key_size: Strides,
    mask: FrameMask = None,
) -> Float[Array, "b n m"]:
    """What the distance between query and key adds to the score: the query times the tables' entries, summed.

    Args:
        queries: of a grid, one row a head.
        tables: for time, height and width.
        query_size: (t, h, w) of the queries' grid.
        key_size: (t, h, w) of the keys' grid.
        mask: (b, t), False for times that only pad; they must stand behind the others.
    """
    x = queries.reshape(-1, *query_size, queries.shape[-1])
    times = relative_times(tables[0], query_size[0], mask)
    rows = relative_places(tables[1], query_size[1], key_size[1])
    columns = relative_places(tables[2], query_size[2], key_size[2])
    along_t = jnp.einsum("bthwd,tkd->bthwk" if mask is None else "bthwd,btkd->bthwk", x, times)
    along_h = jnp.einsum("bthwd,hkd->bthwk", x, rows)
    along_w = jnp.einsum("bthwd,wkd->bthwk", x, columns)
    scores = along_t[..., :, None, None] + along_h[..., None, :, None] + along_w[..., None, None, :]
    return scores.reshape(*queries.shape[:2], -1)


def relative_places(table: Float[Array, "_ d"], queries: int, keys: int) -> Float[Array, "q k d"]:
    """The entries for queries and keys along height or width, of which the fewer stand further apart."""
    longest = max(queries, keys)
    query, key = np.arange(queries)[:, None], np.arange(keys)
    entry = query * longest // queries + (keys - 1 - key) * longest // keys  # of a table for the longest
    stretch = len(table) / (2 * longest - 1)
    return _between(table, (entry + 0.5) * stretch - 0.5)


def relative_times(table: Float[Array, "_ d"], times: int, mask: FrameMask = None) -> Float[Array, "*b t t d"]:
    """The entries for queries and keys along time: (t, t, d), or (b, t, t, d) with a mask."""
    distance = np.arange(times)[:, None] - np.arange(times)
    middle = (len(table) - 1) // 2
    if mask is None:
        return _between(table, distance * (len(table) / (2 * times - 1)) + middle)
    valid = jnp.maximum(1, mask.sum(axis=1))[:, None, None]
    return _between(table, distance * (len(table) / (2 * valid - 1)) + middle)


def _between(table: Float[Array, "n d"], at: Array | np.ndarray) -> Float[Array, "... d"]:
    """The table's entries at any places, by linear interpolation; beyond an end, that end."""
    table = jnp.asarray(table)
    at = jnp.clip(jnp.asarray(at, jnp.float32), 0, len(table) - 1)
    low = jnp.floor(at).astype(jnp.int32)
    share = (at - low)[..., None].astype(table.dtype)
    return table[low] * (1 - share) + table[jnp.minimum(low + 1, len(table) - 1)] * share
