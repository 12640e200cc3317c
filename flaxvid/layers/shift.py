"""Temporal shift (Lin, Gan, Han, "TSM: Temporal Shift Module for Efficient Video Understanding", arXiv 1811.08383).

A share of the channels moves one frame on, so that a 2-D convolution behind it sees its neighbours in time, at no cost
in parameters or multiply-adds.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Num

from flaxvid.layers.blocks import mask_frames


def _fold(channels: int, shift_div: int) -> int:
    if shift_div < 1:
        raise ValueError(f"shift_div must be at least 1, got {shift_div}: 8 shifts an eighth of the channels each way")
    return channels // shift_div


@functools.partial(jax.jit, static_argnames="shift_div")
def temporal_shift(x: Num[Array, "b t h w c"], shift_div: int = 8) -> Num[Array, "b t h w c"]:
    """Bi-directional shift: the first ``c // shift_div`` channels come from the next frame, as many from the frame
    before.

    Zeros enter at both ends of the clip, never the other end's frame, so that no clip sees a false neighbour.

    Args:
        x: activations; axis 1 is time, the last axis channels. Any number of axes lies between.
        shift_div: one part in `shift_div` of the channels moves each way.

    Returns:
        The shifted activations, same shape and dtype: ``out[:, t, ..., :fold] = x[:, t + 1, ..., :fold]`` and
        ``out[:, t, ..., fold:2 * fold] = x[:, t - 1, ..., fold:2 * fold]``.
    """
    fold = _fold(x.shape[-1], shift_div)
    end = jnp.zeros_like(x[:, :1, ..., :fold])
    from_next = jnp.concatenate([x[:, 1:, ..., :fold], end], axis=1)
    from_previous = jnp.concatenate([end, x[:, :-1, ..., fold : 2 * fold]], axis=1)
    return jnp.concatenate([from_next, from_previous, x[..., 2 * fold :]], axis=-1)


@functools.partial(jax.jit, static_argnames="shift_div")
def causal_shift(
    x: Num[Array, "b t h w c"], previous: Num[Array, "b 1 h w fold"] | None = None, shift_div: int = 8
) -> tuple[Num[Array, "b t h w c"], Num[Array, "b 1 h w fold"]]:
    """Uni-directional shift for streams: the first ``c // shift_div`` channels come from the frame before.

    Args:
        x: the next frames of a stream, one or more.
        previous: what the call before returned as its second value; None at the start of a stream (zeros).
        shift_div: one part in `shift_div` of the channels moves.

    Returns:
        The shifted activations, and the part of the last frame that the next call needs.
    """
    fold = _fold(x.shape[-1], shift_div)
    moving = x[..., :fold]
    if previous is None:
        previous = jnp.zeros_like(moving[:, :1])
    history = jnp.concatenate([previous, moving], axis=1)
    return jnp.concatenate([history[:, :-1], x[..., fold:]], axis=-1), history[:, -1:]


class TemporalShift(nn.Module):
    """`temporal_shift` as a layer, or with `causal` its uni-directional form, which can run on a stream.

    To stream, apply the model with ``mutable=["cache"]`` and hand each call the cache that the one before returned;
    frame by frame then gives the activations of the whole clip. A bi-directional checkpoint is of no use in the causal
    graph.
    """

    shift_div: int = 8
    causal: bool = False

    @nn.compact
    def __call__(
        self, x: Num[Array, "b t h w c"], frame_mask: Bool[Array, "b t"] | None = None
    ) -> Num[Array, "b t h w c"]:
        """Shifts; frames where `frame_mask` is False count as lying outside the clip, that is as zeros."""
        x = mask_frames(x, frame_mask)
        if not self.causal:
            return temporal_shift(x, self.shift_div)
        streaming = self.is_mutable_collection("cache") and not self.is_initializing()
        previous = self.get_variable("cache", "previous") if self.has_variable("cache", "previous") else None
        x, previous = causal_shift(x, previous, self.shift_div)
        if streaming:
            self.put_variable("cache", "previous", previous)
        return x
