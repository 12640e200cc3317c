"""VideoMAE's pre-training (arXiv 2203.12602): an encoder sees a few cubes of a clip, a small decoder predicts the rest.

The encoder is stem and body of an ordinary `VideoModel` (`models.vit`), run on the visible tokens alone. All that
pre-training adds, the norm behind the encoder as well, is in the `Decoder`, whose variables are a collection of their
own: a body that was pre-trained has the same parameters as one that is fine-tuned.

The masks are tubes: the same places are masked at all times, for a place that is masked now and seen in the next frame
gives itself away.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from flaxvid.layers.blocks import Strides
from flaxvid.layers.position import fit_positions, sine_cosine
from flaxvid.models.video_model import VideoModel
from flaxvid.models.vit import Body, MakeBlock


class Tubes(NamedTuple):
    """Which tokens of each clip are visible and which are masked, counted along t, h and w, in ascending order."""

    visible: Int[Array, "b k"]
    hidden: Int[Array, "b m"]


def count_hidden(places: int, mask_ratio: float) -> int:
    """How many places of a frame are masked: the ratio's part of them, rounded down."""
    return int(places * mask_ratio)


def draw_tubes(key: Array, clips: int, grid: Strides, mask_ratio: float) -> Tubes:
    """Draws the places that are masked, for each clip anew, equally many in all.

    Args:
        key: of the draw.
        clips: b, how many.
        grid: tokens along t, h and w.
        mask_ratio: part of the places that is masked.
    """
    times, places = grid[0], math.prod(grid[1:])
    seen = places - count_hidden(places, mask_ratio)
    order = jnp.argsort(jax.random.uniform(key, (clips, places)), axis=1)

    def through_time(chosen: Int[Array, "b n"]) -> Int[Array, "b tn"]:
        tokens = jnp.arange(times)[:, None] * places + jnp.sort(chosen, axis=1)[:, None]
        return tokens.reshape(clips, -1)

    return Tubes(through_time(order[:, :seen]), through_time(order[:, seen:]))


class Decoder(nn.Module):
    """From the encoder's visible tokens to the pixels of the masked cubes, by narrow blocks that see all places.

    Attributes:
        block: makes a `Block` of the decoder's width.
        depth: number of blocks.
        width: channels of its tokens.
        pixels: numbers that are predicted of a cube.
        table: (t, h, w) of the grid that positions are made for, the encoder's.
        dtype: compute type; predictions are float32.
        encoder_epsilon: of the norm behind the encoder.
        norm_epsilon: of the norm behind the blocks.
    """

    block: MakeBlock
    depth: int
    width: int
    pixels: int
    table: Strides
    dtype: jnp.dtype = jnp.float32
    encoder_epsilon: float = 1e-12
    norm_epsilon: float = 1e-5

    @nn.compact
    def __call__(
        self, x: Float[Array, "b k c"], tubes: Tubes, grid: Strides, train: bool = False
    ) -> Float[Array, "b m p"]:
        """Visible tokens of a (t, h, w) grid to predictions, in the order of `tubes.hidden`."""
        dense = functools.partial(nn.Dense, kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype)
        norm = functools.partial(nn.LayerNorm, dtype=self.dtype)
        x = norm(epsilon=self.encoder_epsilon, name="encoder_norm")(x)
        x = dense(self.width, use_bias=False, name="encoder_to_decoder")(x)
        mask_token = self.param("mask_token", nn.initializers.normal(0.02), (self.width,))
        table = jnp.asarray(sine_cosine(math.prod(self.table), self.width)).reshape(*self.table, self.width)
        table = fit_positions(table, *grid).reshape(-1, self.width)
        visible, hidden = x + table[tubes.visible], mask_token + table[tubes.hidden]
        x = jnp.concatenate([visible, hidden], axis=1).astype(self.dtype)
        for index in range(self.depth):
            x = self.block(name=f"block_{index}")(x, train)
        x = norm(epsilon=self.norm_epsilon, name="norm")(x[:, visible.shape[1] :])
        return dense(self.pixels, name="head")(x).astype(jnp.float32)


def make_decoder(model: VideoModel, width: int = 0, depth: int = 4) -> Decoder:
    """The decoder for a vision transformer: its blocks are the encoder's, narrower and with fewer heads of one size.

    Args:
        model: with the body of `models.vit`, which can leave tokens out.
        width: channels of the decoder's tokens; 0 is half of the encoder's, as in the paper.
        depth: number of blocks; the paper has 4, and 12 for the large encoder.

    Raises:
        ValueError: the network is another, or its heads do not divide the width.
    """
    body = model.body
    if not isinstance(body, Body):
        raise ValueError(
            f"masked pre-training needs a network whose body can leave tokens out, got {type(body).__name__} of "
            f"{type(body).__module__}: take videomae_small, videomae_base or videomae_large"
        )
    block: Any = body.block
    heads, hidden = block.args
    width, head = width or model.feature_dim // 2, model.feature_dim // heads
    if width % head:
        raise ValueError(f"decoder_width must be a multiple of {head}, the size of the encoder's heads, got {width}")
    return Decoder(
        functools.partial(block.func, width // head, width * hidden // model.feature_dim, **block.keywords),
        depth,
        width,
        pixels=3 * math.prod(model.multiple_of),
        table=body.table,
        dtype=block.keywords["dtype"],
        encoder_epsilon=block.keywords["norm_epsilon"],
        norm_epsilon=model.head.norm_epsilon,  # pyright: ignore[reportAttributeAccessIssue]
    )


def reconstruct(
    model: VideoModel,
    decoder: Decoder,
    variables: Any,
    video: Float[Array, "b t h w 3"],
    tubes: Tubes,
    *,
    train: bool = False,
    rngs: Any = None,
) -> Float[Array, "b m p"]:
    """Predicts the masked cubes of normalised video; the body runs on the visible tokens alone.

    Args:
        model: gives stem and body.
        decoder: of `make_decoder`.
        variables: "params" of the model, which needs no head, and "params_decoder".
        video: normalised; its sizes are multiples of `model.multiple_of`.
        tubes: which tokens are visible.
        train: dropping of branches; needs a "dropout" key in `rngs` where there is any.
        rngs: see above.

    Returns:
        Normalised pixels of each masked cube, along t, h, w and colour; see `losses.masked`.
    """
    params = variables["params"]
    x: Any = model.stem.apply({"params": params["stem"]}, video, train)
    tokens = model.body.apply({"params": params["body"]}, x, train, keep=tubes.visible, rngs=rngs)
    predictions: Any = decoder.apply(
        {"params": variables["params_decoder"]}, tokens, tubes, x.shape[1:4], train, rngs=rngs
    )
    return predictions
