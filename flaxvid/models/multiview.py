"""Several cameras of one scene, ``{"front": video, "left": video, "right": video}``, on any backbone of the zoo.

The backbone's stem and body see each camera alone. A fusion joins the cameras in one of three ways:

* "late": the head classifies each camera, and the logits are averaged. With a shared backbone the model cannot tell
  which camera saw what.
* "concat": the body's maps stand side by side on the channels, and a 1x1x1 convolution brings back their number.
* "attention": `CrossViewAttention` over the maps. This model is TS-CVA, temporal-spatial cross-view attention.

A camera that the dict lacks is missing. Late fusion averages the others, attention masks it, and concatenation puts
zeros in its place, which its kernel knows only after a training with `camera_dropout`.

A shared backbone keeps the names of its variables: variables of a model of one video fit "late" as they are, and lack
only "body/fusion" for the other two. Separate backbones are under "stem/front", "body/front", .... There is always one
head.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from flaxvid.layers.attention import Cameras, CrossViewAttention, Present
from flaxvid.layers.blocks import FrameMask, Grid
from flaxvid.layers.conv import Conv
from flaxvid.layers.heads import Logits
from flaxvid.models.options import Count, Flag, Kind, Rate, choice, require, several
from flaxvid.models.spec import Common, ModelSpec
from flaxvid.models.video_model import VideoModel, body_shapes

FUSIONS = ("attention", "concat", "late")
CAMERAS = ("front", "left", "right")


def fold(cameras: Mapping[str, Any]) -> Any:
    """Cameras as rows of one batch, (b * v, ...). Those of a sample are neighbours: a mesh need not move them."""
    return jax.tree.map(lambda *x: jnp.stack(x, axis=1).reshape(-1, *x[0].shape[1:]), *cameras.values())


def unfold(x: Any, count: int) -> Any:
    """The inverse of `fold`, with an axis of cameras: (b * v, ...) to (b, v, ...)."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, count, *leaf.shape[1:]), x)


def each_camera(frame_mask: FrameMask, count: int) -> FrameMask:
    """The mask of a folded batch: cameras of a sample share theirs."""
    return None if frame_mask is None else jnp.repeat(frame_mask, count, axis=0)


def drop_cameras(module: nn.Module, present: Present, rate: float, train: bool) -> Present:
    """In training, drops each camera of a sample by chance; a sample that would lose all of them keeps all."""
    if not train or not rate:
        return present
    kept = present & jax.random.bernoulli(module.make_rng("dropout"), 1 - rate, present.shape)
    return jnp.where(kept.any(axis=1, keepdims=True), kept, present)


class Concatenation(nn.Module):
    """Maps of the cameras side by side on the channels, and a 1x1x1 convolution; a missing camera's are zeros."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Cameras, present: Present, frame_mask: FrameMask = None) -> Grid:
        """The cameras' grids to one; it treats each frame alike, so padded ones need no mask."""
        x = jnp.where(present[:, :, None, None, None, None], x, 0)
        x, c = rearrange(x, "b v t h w c -> b t h w (v c)"), x.shape[-1]
        init = nn.initializers.lecun_normal()
        return Conv(c, (1, 1, 1), use_bias=True, dtype=self.dtype, kernel_init=init, name="conv")(x)


class PerCamera(nn.Module):
    """A stem or a body that sees every camera: one for all, to which they are rows of one batch, or one for each.

    Attributes:
        part: the backbone's.
        fusion: joins the cameras' grids; None leaves a dict of them.
    """

    part: nn.Module
    cameras: tuple[str, ...]
    separate: bool = False
    fusion: nn.Module | None = None
    camera_dropout: float = 0.0

    def setup(self):
        """A shared backbone's variables keep their names."""
        if not self.separate:
            nn.share_scope(self, self.part)

    @nn.compact
    def __call__(self, x: Mapping[str, Any], train: bool = False, frame_mask: FrameMask = None) -> Any:
        """Video or grids of the cameras that are there, to a dict of grids or, with a fusion, to one."""
        if self.separate:
            missing = sorted(set(self.cameras) - set(x))
            if self.is_initializing() and missing:
                raise ValueError(
                    f"init takes all cameras, for each has its own backbone: got none of {missing}, give a clip of each"
                )
            parts = {camera: self.part.clone(parent=self, name=camera) for camera in self.cameras}
            grids = {camera: parts[camera](clip, train, frame_mask) for camera, clip in x.items()}
        else:
            joint = unfold(self.part(fold(x), train, each_camera(frame_mask, len(x))), len(x))
            grids = {camera: jax.tree.map(lambda leaf, i=i: leaf[:, i], joint) for i, camera in enumerate(x)}
        if self.fusion is None:
            return grids
        blank = jnp.zeros_like(next(iter(grids.values())))
        stacked = jnp.stack([grids.get(camera, blank) for camera in self.cameras], axis=1)  # (b, v, t, h, w, c)
        present = jnp.broadcast_to(jnp.array([camera in grids for camera in self.cameras]), stacked.shape[:2])
        return self.fusion(stacked, drop_cameras(self, present, self.camera_dropout, train), frame_mask)


class MeanHead(nn.Module):
    """The backbone's head on each camera, and the mean of their logits."""

    head: nn.Module
    camera_dropout: float = 0.0

    def setup(self):
        """The head's variables keep their names."""
        nn.share_scope(self, self.head)

    @property
    def num_classes(self) -> int | Mapping[str, int]:
        """The head's."""
        return self.head.num_classes  # pyright: ignore[reportAttributeAccessIssue]

    def pool(self, x: Mapping[str, Any], train: bool = False, frame_mask: FrameMask = None) -> Float[Array, "b c"]:
        """The mean of the cameras' features."""
        mask = each_camera(frame_mask, len(x))
        pooled = self.head.pool(fold(x), train, mask)  # pyright: ignore[reportAttributeAccessIssue]
        return unfold(pooled, len(x)).mean(axis=1)

    @nn.compact
    def __call__(self, x: Mapping[str, Any], train: bool = False, frame_mask: FrameMask = None) -> Logits:
        """The cameras' grids to logits."""
        logits = unfold(self.head(fold(x), train, each_camera(frame_mask, len(x))), len(x))
        shape = jax.tree.leaves(logits)[0].shape[:2]
        kept = drop_cameras(self, jnp.ones(shape, bool), self.camera_dropout, train)
        return jax.tree.map(lambda z: z.mean(axis=1, where=kept[..., None]), logits)


def _camera_names(names: Any) -> tuple[str, ...]:
    names = several(str)(names)
    require(len(set(names)) == len(names) and all(map(str.isidentifier, names)))
    require(not {"part", "fusion"} & set(names))  # a body has submodules of these names
    return names


CAMERA_NAMES = Kind(f"distinct names that can be part of a parameter's, such as {CAMERAS}", _camera_names)


def build(
    common: Common,
    *,
    backbone: VideoModel,
    cameras: Annotated[tuple[str, ...], CAMERA_NAMES] = CAMERAS,
    fusion: Annotated[str, choice(*FUSIONS)] = "attention",
    separate: Flag = False,
    camera_dropout: Rate = 0.0,
    heads: Count = 4,
) -> VideoModel:
    """A model of several cameras out of one of a single video, whose parts it takes as they are.

    Args:
        common: what every model takes; the backbone has its share of it already.
        backbone: any model; for "concat" and "attention" its stem and body must give one grid.
        cameras: names of the cameras, in the order in which "concat" and "attention" know them.
        fusion: "attention", "concat" or "late".
        separate: a stem and a body for each camera, instead of the same for all.
        camera_dropout: in training, the share of the cameras that samples do without, so that the model knows what to
            do without them at the test.
        heads: of the attention.

    Raises:
        ValueError: the backbone takes several cameras itself, or its maps cannot be joined.
    """
    if backbone.cameras or (fusion != "late" and not gives_one_grid(backbone)):
        what = "takes several cameras itself" if backbone.cameras else "makes more of a clip than one grid"
        fix = "take a model of one video" if backbone.cameras else 'use fusion="late" or another backbone'
        raise ValueError(f"the backbone {what}, which fusion={fusion!r} cannot join: {fix}")
    late = fusion == "late"
    join = {
        "attention": CrossViewAttention(heads, dtype=common.dtype, norm_epsilon=common.norm_epsilon),
        "concat": Concatenation(common.dtype),
        "late": None,
    }[fusion]
    return VideoModel(
        stem=PerCamera(backbone.stem, cameras, separate),
        body=PerCamera(backbone.body, cameras, separate, join, 0.0 if late else camera_dropout),
        head=MeanHead(backbone.head, camera_dropout) if late else backbone.head,
        feature_dim=backbone.feature_dim,
        clip=backbone.clip,
        altered=tuple(
            (re.sub(r"^(stem|body)/", r"\1/\\w+/", path) if separate else path, axis) for path, axis in backbone.altered
        ),
        cameras=cameras,
        multiple_of=backbone.multiple_of,
        layers=(
            *(re.sub(r"\b(stem|body)/", r"\1/\\w+/", path) if separate else path for path in backbone.layers),
            *([] if late else [r"body/fusion/.*"]),
        ),
    )


def gives_one_grid(model: VideoModel) -> bool:
    """Whether the body makes one grid of a clip: not several as SlowFast's does, and no class token beside it."""
    grid = body_shapes(model)
    return hasattr(grid, "ndim") and grid.ndim == 5


TINY = {
    "backbone": "tsm_resnet18",
    "backbone_options": {"width": 8, "depths": (1, 1, 1, 1)},
    "num_classes": 5,
    "num_frames": 4,
    "image_size": 32,
}

SPECS = {
    # Clip, dropout and the classifier's deviation are the backbone's. Layer norms have a smaller epsilon.
    "ts_cva": ModelSpec(build, {"norm_epsilon": 1e-6}, backbone="res3dcnn", tiny=TINY),
}
