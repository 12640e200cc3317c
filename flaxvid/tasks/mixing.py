"""Mixup, cutmix and random erasing, on the device and on normalised video.

All frames, frame counts and cameras of a video get the same draw.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy.special import betaincinv

from flaxvid.models.video_model import Video, VideoModel
from flaxvid.types import Batch, by_target

Labels = Int[Array, " b"] | Float[Array, "b k"]

ERASED_AREA = (0.02, 1 / 3)
ERASED_ASPECT = (0.3, 1 / 0.3)


def mix(
    model: VideoModel, batch: Batch, key: Array, *, mixup: float = 0.0, cutmix: float = 0.0, erasing: float = 0.0
) -> tuple[dict[int, Video], dict[str, Labels]]:
    """Mixes and erases video, and mixes the labels of each target; all stays as it is where nothing is on.

    A video is mixed with its neighbour: rows 0 and 1, 2 and 3, ...; the last of an odd number stays as it is. On a mesh
    neighbours are on one device if each has an even number of rows. Mixed labels are shares of each class. A mixture
    has no label, no shares, if one of its two videos has none (-1).

    Args:
        model: normalises the video, and has the number of classes.
        batch: the training batch.
        key: the step's key.
        mixup, cutmix, erasing: see `LabelledRecipe`.
    """
    video, labels = dict(batch["video"]), by_target(batch["label"])
    if not (mixup or cutmix or erasing):
        return video, labels
    video = {n: model.normalise(clips) for n, clips in video.items()}
    b, _, h, w, _ = jax.tree.leaves(video)[0].shape
    erase_key, noise_key, mix_key = jax.random.split(key, 3)
    if erasing:
        erased = erased_boxes(erase_key, erasing, b, h, w)[:, None, :, :, None]
        noise = jax.random.normal(noise_key, (b, 1, h, w, 3))
        video = jax.tree.map(lambda clips: jnp.where(erased, noise, clips), video)
    if mixup or cutmix:
        own = own_parts(mix_key, b, h, w, mixup=mixup, cutmix=cutmix)
        video = jax.tree.map(lambda clips: _blend(clips, own[:, None, :, :, None]), video)
        share, classes = own.mean((1, 2))[:, None], by_target(model.head.num_classes)  # pyright: ignore
        labels = {target: _mixed_labels(hard, classes[target], share) for target, hard in labels.items()}
    return video, labels


def own_parts(key: Array, b: int, h: int, w: int, *, mixup: float = 0.0, cutmix: float = 0.0) -> Float[Array, "b h w"]:
    """The part of each pixel that a video keeps: for mixup the same everywhere, for cutmix 0 in a box and else 1."""
    choice_key, mixup_key, cutmix_key, box_key = jax.random.split(key, 4)
    blended, cut = jnp.ones((b, h, w)), jnp.ones((b, h, w))
    if mixup:
        blended *= draw_shares(mixup_key, mixup, b)[:, None, None]
    if cutmix:
        side = jnp.sqrt(1 - draw_shares(cutmix_key, cutmix, b))
        centre = jax.random.uniform(box_key, (2, b))
        y, x = centre - side / 2
        cut -= inside(y * h, x * w, side * h, side * w, h, w)
    if mixup and cutmix:
        return jnp.where(jax.random.bernoulli(choice_key, shape=(b, 1, 1)), blended, cut)
    return blended if mixup else cut


def draw_shares(key: Array, parameter: float, b: int) -> Float[Array, " b"]:
    """Draws from a symmetric Beta distribution by its quantiles.

    `jax.random.beta` repeats until it accepts all draws, and on a mesh the devices would wait for each other.
    """
    quantiles = betaincinv(parameter, parameter, (np.arange(4096) + 0.5) / 4096)
    return jnp.asarray(quantiles, jnp.float32)[jax.random.randint(key, (b,), 0, len(quantiles))]


def erased_boxes(key: Array, probability: float, b: int, h: int, w: int) -> Bool[Array, "b h w"]:
    """Draws boxes within the frames, for some of the videos."""
    chance_key, area_key, aspect_key, place_key = jax.random.split(key, 4)
    area = jax.random.uniform(area_key, (b,), minval=ERASED_AREA[0], maxval=ERASED_AREA[1]) * h * w
    low, high = jnp.log(jnp.array(ERASED_ASPECT))
    aspect = jnp.exp(jax.random.uniform(aspect_key, (b,), minval=low, maxval=high))  # height over width
    height, width = jnp.minimum(jnp.sqrt(area * aspect), h), jnp.minimum(jnp.sqrt(area / aspect), w)
    down, right = jax.random.uniform(place_key, (2, b))
    boxes = inside(down * (h - height), right * (w - width), height, width, h, w)
    return boxes & jax.random.bernoulli(chance_key, probability, (b, 1, 1))


def inside(
    top: Float[Array, " b"],
    left: Float[Array, " b"],
    height: Float[Array, " b"],
    width: Float[Array, " b"],
    h: int,
    w: int,
) -> Bool[Array, "b h w"]:
    """Which pixels have their centres in boxes, given in pixels; a box may reach beyond the frame."""
    y, x = jnp.arange(h) + 0.5, jnp.arange(w) + 0.5
    rows = (y >= top[:, None]) & (y < (top + height)[:, None])
    columns = (x >= left[:, None]) & (x < (left + width)[:, None])
    return rows[:, :, None] & columns[:, None, :]


def _mixed_labels(labels: Int[Array, " b"], classes: int, share: Float[Array, "b 1"]) -> Float[Array, "b k"]:
    """Each class's share of each row; all are 0 where a video of the mixture has no label."""
    missing = (labels < 0).astype(jnp.float32)[:, None]
    known = (missing == 0) & ((_blend(missing, jnp.zeros_like(share)) == 0) | (share == 1))
    return jnp.where(known, _blend(jax.nn.one_hot(labels, classes), share), 0)


def _blend(x: Float[Array, "b ..."], own: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """Each row with its neighbour's."""
    even = x.shape[0] // 2 * 2
    swapped = x[:even].reshape(-1, 2, *x.shape[1:])[:, ::-1].reshape(even, *x.shape[1:])
    return own * x + (1 - own) * jnp.concatenate([swapped, x[even:]])
