"""Mixup, cutmix and random erasing: on the device, on normalised video, one draw for all frames, frame counts and
cameras of a scene."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy.special import betaincinv

from flaxvid.models.video_model import Video, VideoModel
from flaxvid.types import Batch, by_target

Labels = Int[Array, " b"] | Float[Array, "b k"] | Mapping[str, Any]

ERASED_AREA = (0.02, 1 / 3)
ERASED_ASPECT = (0.3, 1 / 0.3)


@dataclasses.dataclass(frozen=True)
class Mixing:
    """What is done to a batch of training clips; nothing by default.

    A video is mixed with its neighbour in the whole batch (rows 0 and 1, 2 and 3, ...; the last of an odd number stays
    as it is), which on a mesh is on the same device as long as each has an even number of rows. Where both mixup and
    cutmix are on, chance chooses one for each video.

    Attributes:
        mixup: Parameter of the Beta distribution that the share of a video is drawn from (arXiv 1710.09412); 0: off.
        cutmix: The same, for a box of the neighbour's frames (arXiv 1905.04899); 0: off.
        erasing: Probability that a box of a video is replaced by noise (arXiv 1708.04896), the same in all its frames.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    erasing: float = 0.0

    def __post_init__(self):
        if min(self.mixup, self.cutmix) < 0 or not 0 <= self.erasing <= 1:
            raise ValueError(f"expected mixup >= 0, cutmix >= 0 and erasing in [0, 1], got {self}")

    def mix(self, model: VideoModel, batch: Batch, key: Array) -> tuple[dict[int, Video], Labels]:
        """The batch's video and labels: as they are, or normalised and mixed, with a share of the label for each class.

        Where one of two mixed videos has no label (-1), the mixture has none: no shares.

        Args:
            model: Normalises, and knows the number of classes.
            batch: Training batch.
            key: Of this step.
        """
        video, labels = dict(batch["video"]), batch["label"]
        if not (self.mixup or self.cutmix or self.erasing):
            return video, labels
        video = {n: model.normalise(clips) for n, clips in video.items()}
        b, _, h, w, _ = jax.tree.leaves(video)[0].shape
        erase_key, noise_key, mix_key = jax.random.split(key, 3)
        if self.erasing:
            erased = erased_boxes(erase_key, self.erasing, b, h, w)[:, None, :, :, None]
            noise = jax.random.normal(noise_key, (b, 1, h, w, 3))
            video = jax.tree.map(lambda clips: jnp.where(erased, noise, clips), video)
        if self.mixup or self.cutmix:
            own = self.weights(mix_key, b, h, w)
            video = jax.tree.map(lambda clips: _blend(clips, own[:, None, :, :, None]), video)
            share, classes = own.mean((1, 2))[:, None], by_target(model.head.num_classes)  # pyright: ignore
            mixed = {t: _mixed_labels(hard, classes[t], share) for t, hard in by_target(labels).items()}
            labels = mixed if isinstance(labels, Mapping) else mixed[""]
        return video, labels

    def weights(self, key: Array, b: int, h: int, w: int) -> Float[Array, "b h w"]:
        """What part of each pixel stays a video's own: the same everywhere for mixup, 0 in a box and else 1 for
        cutmix."""
        choice_key, mixup_key, cutmix_key, box_key = jax.random.split(key, 4)
        mixed, cut = jnp.ones((b, h, w)), jnp.ones((b, h, w))
        if self.mixup:
            mixed *= draw_shares(mixup_key, self.mixup, b)[:, None, None]
        if self.cutmix:
            side = jnp.sqrt(1 - draw_shares(cutmix_key, self.cutmix, b))
            centre = jax.random.uniform(box_key, (2, b))
            y, x = centre - side / 2
            cut -= inside(y * h, x * w, side * h, side * w, h, w)
        if self.mixup and self.cutmix:
            return jnp.where(jax.random.bernoulli(choice_key, shape=(b, 1, 1)), mixed, cut)
        return mixed if self.mixup else cut


UNMIXED = Mixing()


def draw_shares(key: Array, parameter: float, b: int) -> Float[Array, " b"]:
    """Draws from a Beta distribution with both parameters the same, by its quantiles.

    `jax.random.beta` repeats until all draws are accepted, and on a mesh the devices would wait for each other.
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
    """Which pixels of (h, w) have their centres in boxes, given in pixels; parts outside the frame are no part."""
    y, x = jnp.arange(h) + 0.5, jnp.arange(w) + 0.5
    rows = (y >= top[:, None]) & (y < (top + height)[:, None])
    columns = (x >= left[:, None]) & (x < (left + width)[:, None])
    return rows[:, :, None] & columns[:, None, :]


def _mixed_labels(labels: Int[Array, " b"], classes: int, share: Float[Array, "b 1"]) -> Float[Array, "b k"]:
    """Each class's share of each row; none at all where either video of a mixture has no label."""
    missing = (labels < 0).astype(jnp.float32)[:, None]
    known = (missing == 0) & ((_blend(missing, jnp.zeros_like(share)) == 0) | (share == 1))
    return jnp.where(known, _blend(jax.nn.one_hot(labels, classes), share), 0)


def _blend(x: Float[Array, "b ..."], own: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """Each row with its neighbour's."""
    even = x.shape[0] // 2 * 2
    swapped = x[:even].reshape(-1, 2, *x.shape[1:])[:, ::-1].reshape(even, *x.shape[1:])
    return own * x + (1 - own) * jnp.concatenate([swapped, x[even:]])
