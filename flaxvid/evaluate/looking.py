"""Where in a clip a network looked: Grad-CAM (Selvaraju et al., arXiv 1610.02391), for every family.

Grad-CAM takes a feature map, weighs its channels by the mean gradient of a class's logit, adds them up, and keeps what
is positive: the places that speak for the class.

The feature map is that of the deepest layer whose places still move the logit; `VideoModel.layers` names the layers, so
no family has code of its own here. In a ResNet it is the last block's, or of small frames that of a block before, which
is not as coarse. Behind the last block of a transformer only the class token counts, so it is that of the block before.
A recurrent network sees one feature a frame, and a fusion joins the cameras, so it is that of the backbone below. Of
several maps, such as SlowFast's two, the sum is taken.
"""

import functools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int, UInt8

from flaxvid import trees
from flaxvid.models.video_model import Video, VideoModel
from flaxvid.types import Variables, by_target

PLACES = 4
"""The fewest places of a map along height and along width: a coarser one does not tell where."""

COLUMNS, HEIGHT, GAP = 8, 96, 2
"""Of a picture: the most frames, their height and the gap between them in pixels."""


def look(
    model: VideoModel, variables: Variables, video: Video, classes: Int[np.ndarray, " b"], target: str = ""
) -> Float[np.ndarray, "b t h w"] | dict[str, Float[np.ndarray, "b t h w"]]:
    """Tells for every place of every frame how much it speaks for a class: from 0 to 1, a clip's highest.

    Zeros everywhere mean that nothing speaks for the class. Clips run one after the other, in the memory of one.

    Args:
        model: the ordinary model.
        variables: its ordinary variables.
        video: clips as in a call of the model, (b, t, h, w, 3); of several cameras a dict of them.
        classes: for each clip the class whose logit is explained.
        target: the target that has these classes, if there are several.

    Returns:
        A map of each clip; of several cameras a dict of them.

    Raises:
        ValueError: there is not one class for each clip, the network has no such target or class, or it has no layer
            with `PLACES` along height and width.
    """
    if not len(classes) or {len(own) for own in jax.tree.leaves(video)} != {len(classes)}:
        got = [len(own) for own in jax.tree.leaves(video)]
        raise ValueError(f"expected one class for each clip, got {len(classes)} for {got} clips: give as many")
    model = model.clone(int8=None)  # what is rounded has no gradient
    clips = [jax.tree.map(lambda own, row=row: jnp.asarray(own[row : row + 1]), video) for row in range(len(classes))]
    logits, shapes = _run.eval_shape(model, variables, clips[0], {})
    known = {name: own.shape[-1] for name, own in logits.items()}
    if target not in known or not all(0 <= number < known[target] for number in classes):
        raise ValueError(f"expected classes of {known}, got {list(classes)} of target {target!r}: correct them")
    for pattern in reversed(model.layers or ("stem/.*", "body/.*")):
        if not (grids := _grids(shapes, pattern, tuple(video) if model.cameras else ())):
            continue
        zeros = {
            grid.path: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes[grid.path]) for grid in grids
        }
        answers = [
            _weigh(zeros, model, variables, clip, jnp.asarray(number), target, grids)
            for clip, number in zip(clips, classes, strict=True)
        ]
        if any(moved for _, moved in answers):
            maps = [_to_one(jax.device_get(own)) for own, _ in answers]
            joined = {camera: np.concatenate([own[camera] for own in maps]) for camera in maps[0]}
            return joined if model.cameras else joined[""]
    raise ValueError(
        f"expected a layer whose map has {PLACES} x {PLACES} places or more, got none: give larger frames, or a model "
        "whose `layers` name its blocks"
    )


def draw_look(
    clip: UInt8[np.ndarray, "t h w 3"], maps: Float[np.ndarray, "t h w"]
) -> UInt8[np.ndarray, "height width 3"]:
    """Some frames of a clip side by side in grey, the brighter the more a place speaks for the class."""
    from matplotlib import colormaps

    chosen = np.linspace(0, len(clip) - 1, min(len(clip), COLUMNS)).round().astype(int)
    grey = clip[chosen].mean(axis=-1, keepdims=True) / 255
    frames = 0.5 * grey + 0.5 * colormaps["inferno"](maps[chosen])[..., :3]
    width = max(1, round(HEIGHT * clip.shape[2] / clip.shape[1]))
    resized = np.asarray(jax.image.resize(frames, (len(chosen), HEIGHT, width, 3), "linear"))
    pixels = (255 * resized.clip(0, 1)).round().astype(np.uint8)
    padded = np.pad(pixels, ((0, 0), (0, 0), (0, GAP), (0, 0)), constant_values=255)
    return np.concatenate(list(padded), axis=1)[:, :-GAP]


class _Grid(NamedTuple):
    """Where a layer gives a feature map: which of a module's outputs it is, the camera whose map it is, "" where all
    cameras are rows of one batch, and its shape (rows, t, h, w, c)."""

    path: str
    number: int
    camera: str
    shape: tuple[int, ...]

    def read(self, out: Any) -> Float[Array, "rows t h w c"]:
        """The map out of the module's outputs. Tokens stand in a row, the class token, if any, first."""
        leaf = jax.tree.leaves(out)[self.number].astype(jnp.float32)
        if leaf.ndim == 3:
            leaf = leaf[:, leaf.shape[1] - math.prod(self.shape[:4]) // leaf.shape[0] :]
        return leaf.reshape(self.shape)


CAUGHT, ADDED, OUT = "caught", "added", "__out__"
"""The collections of what modules gave and of what is added to it, and the name in both."""


@functools.partial(jax.jit, static_argnames="model")
def _run(
    model: VideoModel, variables: Variables, clip: Video, added: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The logits of each target, and what every module gave, by path; to some of it something is added."""
    inside: list[str] = []
    paths: dict[str, None] = {}

    def catch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module, path = context.module, "/".join(context.module.path)
        # A module may share its path with one inside it; the outer one counts.
        if context.method_name != "__call__" or path in inside:
            return call(*args, **kwargs)
        inside.append(path)
        out = call(*args, **kwargs)
        inside.remove(path)
        paths[path] = None
        if module.has_variable(ADDED, OUT):
            out = jax.tree.map(jnp.add, out, module.get_variable(ADDED, OUT))
        module.put_variable(CAUGHT, OUT, out)  # as a variable it also comes out of a block that is computed twice
        return out

    nested = trees.unflatten({f"{path}/{OUT}": out for path, out in added.items()})
    with nn.intercept_methods(catch):
        logits, updated = model.apply({**variables, ADDED: nested}, clip, mutable=[CAUGHT])
    caught = {path: _at(updated[CAUGHT], path) for path in paths}
    return by_target(logits), caught


def _at(tree: Any, path: str) -> Any:
    return functools.reduce(lambda tree, name: tree[name], [*filter(None, path.split("/")), OUT], tree)


def _grids(shapes: Mapping[str, Any], pattern: str, cameras: tuple[str, ...]) -> tuple[_Grid, ...]:
    """The feature maps of a layer that are not too coarse; () unless there is one of each camera."""
    spaces = [leaf.shape[1:4] for out in shapes.values() for leaf in jax.tree.leaves(out) if len(leaf.shape) == 5]
    spaces = [space for space in dict.fromkeys(spaces) if min(space[1:]) >= PLACES]
    matches = [path for path in shapes if re.fullmatch(pattern, f"{path}/x")]
    modules = [path for path in matches if not any(path.startswith(f"{other}/") for other in matches)]
    grids = []
    for path in modules:
        for number, (keys, leaf) in enumerate(jax.tree.leaves_with_path(shapes[path])):
            names = {*path.split("/"), *(str(getattr(key, "key", "")) for key in keys)}
            camera = next((name for name in cameras if name in names), "")
            rows = 1 if camera else max(1, len(cameras))
            if shape := next(_as_grid(leaf.shape, rows, spaces), None):
                grids.append(_Grid(path, number, camera, shape))
    seen = {grid.camera for grid in grids}
    return tuple(grids) if "" in seen or (cameras and seen == set(cameras)) else ()


def _as_grid(shape: tuple[int, ...], rows: int, spaces: list[tuple[int, ...]]) -> Iterator[tuple[int, ...]]:
    """The shape (rows, t, h, w, c) that an output may be read as: of tokens, all of a clip or all of a frame."""
    if len(shape) == 5 and shape[0] == rows and shape[1:4] in spaces:
        yield shape
    elif len(shape) == 3:
        for t, h, w in spaces:
            if (shape[0], shape[1] - t * h * w) in ((rows, 0), (rows, 1)) or (
                (shape[0], shape[1] - h * w) in ((rows * t, 0), (rows * t, 1))
            ):
                yield rows, t, h, w, shape[2]


@functools.partial(jax.jit, static_argnames=("model", "target", "grids"))
def _weigh(
    zeros: Mapping[str, Any],
    model: VideoModel,
    variables: Variables,
    clip: Video,
    number: Array,
    target: str,
    grids: tuple[_Grid, ...],
) -> tuple[dict[str, Float[Array, "1 t h w"]], Array]:
    """The maps of one clip, before what is negative is left out, and whether the grids move the logit at all."""

    def logit(added: Mapping[str, Any]) -> tuple[Array, dict[str, Any]]:
        logits, caught = _run(model, variables, clip, added)
        return logits[target][0, number], {path: caught[path] for path in added}

    slopes, outs = jax.grad(logit, has_aux=True)(zeros)
    maps: dict[str, Any] = {}
    moved = jnp.array(False)
    names = list(clip) if isinstance(clip, Mapping) else [""]
    size = jax.tree.leaves(clip)[0].shape[1:4]
    for grid in grids:
        x, slope = grid.read(outs[grid.path]), grid.read(slopes[grid.path])
        # The sum over the places, not their mean: so a fine and a coarse map add up in the same unit.
        weighed = (x * slope.sum(axis=(1, 2, 3), keepdims=True)).sum(axis=-1)
        large = jax.image.resize(weighed, (len(weighed), *size), "linear")
        for row, camera in enumerate([grid.camera] if grid.camera else names):
            maps[camera] = maps.get(camera, 0) + large[row : row + 1]
        moved |= jnp.any(slope != 0)
    return maps, moved


def _to_one(maps: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What is positive, over the highest of all cameras."""
    positive = {camera: own.clip(0) for camera, own in maps.items()}
    highest = max(own.max() for own in positive.values()) or 1.0
    return {camera: own / highest for camera, own in positive.items()}
