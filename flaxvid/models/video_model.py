"""`VideoModel`: a stem, a body and a head. Every model of the zoo is one; none inherits from another."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Num

from flaxvid.layers.heads import Logits
from flaxvid.layers.int8 import Ranges, int8_form
from flaxvid.models.inner import Axes
from flaxvid.types import ClipSpec

Video = Num[Array, "b t h w 3"] | Mapping[str, Num[Array, "b t h w 3"]]
"""A batch of clips; for a model of several cameras the clips of each camera, ``{"front": ..., "left": ...}``."""


class VideoModel(nn.Module):
    """A video classifier: ``head(body(stem(normalise(video))))``.

    Variables are ``{"params": {"stem", "body", "head"}, ...}`` for every architecture, so that freezing, new heads and
    weight import need no code of their own for each. The parts can be used apart:
    ``m = model.bind(variables); m.head(m.body(m.stem(x)))`` with `x` a normalised float video.

    Attributes:
        stem: float video (b, t, h, w, 3) to a grid (b, t, h, w, c).
        body: grid to grid.
        head: grid to logits; its `pool` gives the clip's feature.
        feature_dim: size of the pooled feature.
        clip: frame count, size and normalisation that the model was made for.
        altered: the kernels that `FrameFlexible` alters, ungrouped ones that alone consume their input, as pairs of a
            pattern (a regular expression of the whole path below "params") and the axis of the input channels: -2 of
            a `Conv` or `Dense`, 0 of a query, key or value of Flax's attention.
        cameras: names of the cameras whose videos the model takes, as a dict of them; () for a model of one video. A
            camera that a dict lacks is missing, and the model makes do with the others.
        multiple_of: what the frame count, the height and the width of a video must be multiples of.
        layers: the parameters of each layer, in order of depth, stem first: regular expressions of their whole paths
            below "params". What none of them names belongs to the last layer, the head.
        inner: the channels that only one block sees, as pairs of a pattern of the block's path below "params" and, for
            each of its rows of channels, what has an axis of them; see `models.inner`. The last name of that path is
            the block's name in the option `inner`.
        int8: what is rounded in a call, in `features` and in `encode`; see `models.spec.Common`.
        zoo_name: the name that `create_model` was given; "" for a model that was put together by hand.
        overrides: what else it was given. So a file can say how to make the model again.
    """

    stem: nn.Module
    body: nn.Module
    head: nn.Module
    feature_dim: int
    clip: ClipSpec = ClipSpec()
    altered: tuple[tuple[str, int], ...] = ()
    cameras: tuple[str, ...] = ()
    multiple_of: tuple[int, int, int] = (1, 1, 1)
    layers: tuple[str, ...] = ()
    inner: tuple[tuple[str, tuple[Axes, ...]], ...] = ()
    int8: Ranges | str | None = None
    # How a model was asked for makes no other model of it: equal ones share their compiled programs.
    zoo_name: str = dataclasses.field(default="", compare=False, repr=False)
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    @nn.nowrap
    def normalise(self, video: Video) -> Any:
        """uint8 video to zero mean and unit deviation by `clip`; floating-point video is taken as normalised
        already. Of several cameras each."""
        if isinstance(video, Mapping) or self.cameras:
            return {camera: self._normalise(clip) for camera, clip in _check_cameras(video, self.cameras).items()}
        return self._normalise(video)

    @nn.nowrap
    def for_cameras(self, video: Any) -> Any:
        """The same video, or what stands for it, for each of the cameras; itself for a model of one video."""
        return dict.fromkeys(self.cameras, video) if self.cameras else video

    @nn.nowrap
    def _normalise(self, video: Num[Array, "b t h w 3"]) -> Float[Array, "b t h w 3"]:
        if video.ndim != 5 or video.shape[-1] != 3:
            raise ValueError(
                f"video must be (batch, time, height, width, 3), got {tuple(video.shape)}: "
                "add the batch axis with video[None], or move the channels last"
            )
        if any(size % multiple for size, multiple in zip(video.shape[1:4], self.multiple_of, strict=True)):
            sizes, multiples = tuple(video.shape[1:4]), self.multiple_of
            nearest = tuple(-(-size // multiple) * multiple for size, multiple in zip(sizes, multiples, strict=True))
            raise ValueError(
                f"(time, height, width) of video must be multiples of {multiples}, got {sizes}: cut or pad it to "
                f"{nearest}, and mark added frames in frame_mask"
            )
        if jnp.issubdtype(video.dtype, jnp.floating):
            return video
        if video.dtype != jnp.uint8:
            raise ValueError(
                f"video must be uint8 or floating-point, got {video.dtype}: convert it with .astype(jnp.uint8)"
            )
        mean, std = jnp.asarray(self.clip.mean), jnp.asarray(self.clip.std)
        return (video.astype(jnp.float32) / 255 - mean) / std

    def __call__(
        self,
        video: Video,
        *,
        train: bool = False,
        frame_mask: Bool[Array, "b t"] | None = None,
    ) -> Logits:
        """Logits of a batch of clips.

        Args:
            video: uint8 RGB, or floating-point values normalised already; of several cameras a dict of them.
            train: batch statistics and dropout; needs ``mutable=["batch_stats"]`` and a "dropout" key in `rngs`.
            frame_mask: False for frames that only pad a shorter clip; they change nothing.

        Returns:
            (b, num_classes) in float32; a dict of them for a model with a dict of classes.
        """
        x = self.encode(video, train, frame_mask)
        with int8_form(self.int8):
            return self.head(x, train, frame_mask)

    def features(
        self,
        video: Video,
        *,
        train: bool = False,
        frame_mask: Bool[Array, "b t"] | None = None,
    ) -> Float[Array, "b c"]:
        """The pooled feature before the classifier, (b, feature_dim); arguments as in a call."""
        x = self.encode(video, train, frame_mask)
        with int8_form(self.int8):
            return self.head.pool(x, train, frame_mask)  # pyright: ignore[reportAttributeAccessIssue]

    def encode(self, video: Video, train: bool = False, frame_mask: Bool[Array, "b t"] | None = None) -> Any:
        """What the body gives for video, before the head; arguments as in a call."""
        with int8_form(self.int8):
            return self.body(self.stem(self.normalise(video), train, frame_mask), train, frame_mask)


def stage_layers(depths: Sequence[int]) -> tuple[str, ...]:
    """`VideoModel.layers` of residual stages with so many blocks: the stem, then block by block."""
    blocks = (rf"body/layer{stage}_{index}/.*" for stage, depth in enumerate(depths, 1) for index in range(depth))
    return (r"stem/.*", *blocks)


def clip_length(video: Any) -> int:
    """Frames of a clip (b, t, h, w, 3), the same for all its cameras."""
    return jax.tree.leaves(video)[0].shape[1]


def blank_video(model: VideoModel) -> Video:
    """A clip of the model's own size, in uint8, to make variables or shapes with."""
    size = model.clip.image_size
    return model.for_cameras(jnp.zeros((1, model.clip.num_frames, size, size, 3), jnp.uint8))


def body_shapes(model: VideoModel) -> Any:
    """The shapes of what the body gives for a clip of the model's own size, without computing it."""
    size = model.clip.image_size
    video = jax.ShapeDtypeStruct((1, model.clip.num_frames, size, size, 3), jnp.float32)
    run = functools.partial(model.init_with_output, method=lambda parts, x: parts.body(parts.stem(x)))
    return jax.eval_shape(run, jax.random.key(0), video)[0]


def init_variables(model: VideoModel, key: Array, video: Video) -> dict[str, Any]:
    """`model.init`, compiled; on CPU without optimisation, for it runs once, and XLA needs ten times as long with it.

    Args:
        model: the network.
        key: of the random parameters.
        video: only its shape and type matter.
    """
    # Compiler options are for the outermost jit only.
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((key, video))):
        return dict(model.init(key, video))
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(model.init, compiler_options=options)(key, video)


def _check_cameras(video: Video, cameras: tuple[str, ...]) -> Mapping[str, Num[Array, "b t h w 3"]]:
    """The cameras as they are, or what is wrong with them."""
    if not cameras:
        raise ValueError(
            f"this model takes one video, got cameras {', '.join(video)}: give it one of them, or make a model of "
            'several cameras such as "ts_cva"'
        )
    known = ", ".join(cameras)
    if not isinstance(video, Mapping) or not video:
        got = "no camera" if isinstance(video, Mapping) else f"a video of {tuple(video.shape)}"
        raise ValueError(
            f"this model takes a dict of the cameras {known}, got {got}: name it, {{{cameras[0]!r}: video}}"
        )
    unknown = [camera for camera in video if camera not in cameras]
    if unknown:
        raise ValueError(
            f"this model knows the cameras {known}, got {', '.join(unknown)}: rename it, or make the model with "
            f"cameras={(*cameras, *unknown)}"
        )
    shapes = {camera: tuple(clip.shape) for camera, clip in video.items()}
    if len(set(shapes.values())) > 1:
        got = ", ".join(f"{shape} of {camera}" for camera, shape in shapes.items())
        raise ValueError(
            f"the cameras of a scene must have one shape (b, t, h, w, 3), got {got}: cut the same frames, at the same "
            "size, from each"
        )
    return video
