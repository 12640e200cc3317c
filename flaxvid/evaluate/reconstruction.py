"""How well a network reconstructs masked video: its error, and pictures; in a run's folder reconstruction.json.

The masks of a test are fixed: each video has its own, the same at every test.
"""

import dataclasses
import functools
import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Float, Int, UInt8

from flaxvid.data.sources.open import Source
from flaxvid.evaluate.record import digest_videos
from flaxvid.losses.masked import cube_statistics, cut_cubes, join_cubes, reconstruction_errors
from flaxvid.models.masked import Decoder, Tubes, draw_tubes, reconstruct
from flaxvid.models.video_model import VideoModel
from flaxvid.report.page import write_page
from flaxvid.types import Batch, Variables
from flaxvid.writing import written_whole

SHOWN = 4
"""How many videos are drawn."""

COLUMNS, GAP, GREY = 8, 2, 0.5
"""Of a picture: frames, the gap between them in pixels, and the colour of masked cubes."""


class Masked(NamedTuple):
    """A network with its decoder, how much it is tested with, and what it predicts, as in `MaskedRecipe`."""

    model: VideoModel
    decoder: Decoder
    mask_ratio: float
    by_cube: bool


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """What a network does at one frame count.

    Attributes:
        error: mean squared error of what is predicted of the masked cubes; see `losses.masked`.
        clips: how many videos.
        index: positions in the source of some videos.
        pictures: of each of them three clips, colours in [0, 1]: the video, what the network saw, what it made of it.
    """

    error: float
    clips: int
    index: Int[np.ndarray, " n"]
    pictures: Float[np.ndarray, "n 3 t h w 3"]


def evaluate_reconstruction(
    masked: Masked,
    variables: Variables,
    batches: Iterable[Batch],
    frames: Sequence[int],
    put: Callable[[Batch], Batch] = lambda batch: batch,
) -> dict[int, Reconstruction]:
    """The reconstruction of every video at each frame count; the error of a video is the mean over its views.

    Args:
        masked: the network.
        variables: "params" and "params_decoder".
        batches: of `eval_batches`; labels play no part.
        frames: counts that the batches have.
        put: moves a batch to the devices.

    Raises:
        ValueError: no batch, or no video that could be read.
    """
    totals: dict[int, Any] = {}
    drawn: dict[int, Any] = {}
    for batch in batches:
        batch = put(batch)
        for count in frames:
            clips = batch["video"][count], batch["index"], batch["mask"]
            sums = _judge(masked, variables, *clips)
            totals[count] = jax.tree.map(jnp.add, totals[count], sums) if count in totals else sums
            if count not in drawn:
                drawn[count] = _draw(masked, variables, *clips)
    if not totals:
        raise ValueError("expected videos to evaluate, got none: choose another split or root")
    totals, drawn = multihost_utils.process_allgather((totals, drawn), tiled=True)
    found = {}
    for count, (error, clips) in totals.items():
        if not clips:
            raise ValueError("none of the videos could be read: check the data set's root and its files")
        index, mask, pictures = drawn[count]
        found[count] = Reconstruction(float(error / clips), int(clips), index[mask], pictures[mask])
    return found


def finish_reconstruction(
    reconstructions: Mapping[int, Reconstruction],
    source: Source,
    *,
    mask_ratio: float,
    by_cube: bool,
    origin: Mapping[str, Any],
    checkpoint: Mapping[str, Any],
    folder: Path,
    apart: bool = False,
) -> tuple[list[dict[str, Any]], Path]:
    """Writes reconstruction.json, pictures and the page into a run's folder; all processes call it.

    Args:
        reconstructions: of `source`.
        source: the videos.
        mask_ratio: part of the places that was masked.
        by_cube: what was predicted, as in `MaskedRecipe`.
        origin: where the videos come from: "root" and "split".
        checkpoint: whose weights they are: "name" and "step".
        folder: of the run.
        apart: gives the record a folder of its own in `folder`, evaluations/NAME, for the run's own record shall stay.

    Returns:
        The rows of the table, ``{"frames", "error", "clips"}``, and the folder of the record.
    """
    rows = [{"frames": count, "error": found.error, "clips": found.clips} for count, found in reconstructions.items()]
    if jax.process_index() > 0:
        return rows, folder
    record = {
        "mask_ratio": mask_ratio,
        "by_cube": by_cube,
        "data": {"name": source.name, **origin, "videos": len(source), "digest": digest_videos(source)},
        "checkpoint": dict(checkpoint),
        "frames": rows,
    }
    if apart:
        name = re.sub(r"\W+", "-", source.name).strip("-")
        folder = folder / "evaluations" / f"{name}-{record['data']['digest'][:8]}-step-{checkpoint['step']}"
    pictures, place = [], folder / "reconstructions"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for count, found in reconstructions.items():
        for position, picture in zip(found.index.tolist(), found.pictures, strict=True):
            path = place / f"{count}-{len(pictures):02d}.png"
            _save(path, lay_out(picture))
            name = path.relative_to(folder).as_posix()
            pictures.append({"id": str(source[position]["id"]), "frames": count, "picture": name})
    with written_whole(folder / "reconstruction.json") as path:
        path.write_text(json.dumps({**record, "pictures": pictures}, indent=1))
    write_page(folder)
    return rows, folder


def lay_out(clips: Float[np.ndarray, "3 t h w 3"]) -> UInt8[np.ndarray, "height width 3"]:
    """Three clips one below the other, some frames of each side by side."""
    t = clips.shape[1]
    chosen = clips[:, np.linspace(0, t - 1, min(t, COLUMNS)).round().astype(int)]
    pixels = (255 * np.clip(chosen, 0, 1)).round().astype(np.uint8)
    padded = np.pad(pixels, ((0, 0), (0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=255)
    return padded.transpose(0, 2, 1, 3, 4).reshape(3 * padded.shape[2], -1, 3)[:-GAP, :-GAP]


def _tubes(masked: Masked, index: Int[Array, " b"], grid: tuple[int, int, int]) -> Tubes:
    """Each video's own mask."""
    keys = jax.vmap(lambda position: jax.random.fold_in(jax.random.key(0), position))(index.astype(jnp.uint32))
    return Tubes(*(x[:, 0] for x in jax.vmap(lambda key: draw_tubes(key, 1, grid, masked.mask_ratio))(keys)))


def _predict(
    masked: Masked, variables: Variables, video: UInt8[Array, "b t h w 3"], index: Int[Array, " b"]
) -> tuple[Tubes, Float[Array, "b m p"]]:
    model = masked.model
    t, h, w = (size // multiple for size, multiple in zip(video.shape[1:4], model.multiple_of, strict=True))
    tubes = _tubes(masked, index, (t, h, w))
    return tubes, reconstruct(model, masked.decoder, variables, model.normalise(video), tubes)


@functools.partial(jax.jit, static_argnames="masked")
def _judge(masked: Masked, variables: Variables, video: Array, index: Array, mask: Array) -> tuple[Array, Array]:
    """The sum of the errors, and how many videos; the views of a video run one after the other."""
    errors = []
    for view in range(video.shape[1]):
        clips = video[:, view]
        tubes, predictions = _predict(masked, variables, clips, index)
        seen = clips / 255.0 if masked.by_cube else masked.model.normalise(clips)
        errors.append(reconstruction_errors(predictions, seen, tubes.hidden, masked.model.multiple_of, masked.by_cube))
    return jnp.where(mask, jnp.stack(errors).mean(axis=0), 0).sum(), mask.sum()


@functools.partial(jax.jit, static_argnames="masked")
def _draw(masked: Masked, variables: Variables, video: Array, index: Array, mask: Array) -> tuple[Array, Array, Array]:
    """Position, whether it could be read, and pictures of the first few videos.

    By cube, the network predicts pixels less their cube's mean and over its deviation. Both are taken from the video
    here: a picture shows the pattern that the network makes of a cube, not its colour.
    """
    clips, patch = video[:SHOWN, 0], masked.model.multiple_of
    tubes, predictions = _predict(masked, variables, clips, index[:SHOWN])
    cubes = cut_cubes(clips / 255.0, patch)
    rows = jnp.arange(len(cubes))[:, None]
    predicted = predictions.reshape(*tubes.hidden.shape, -1, 3)
    if masked.by_cube:
        mean, deviation = (x[rows, tubes.hidden] for x in cube_statistics(cubes))
    else:
        mean, deviation = jnp.asarray(masked.model.clip.mean), jnp.asarray(masked.model.clip.std)
    made = predicted * deviation + mean
    three = cubes, cubes.at[rows, tubes.hidden].set(GREY), cubes.at[rows, tubes.hidden].set(made)
    t, h, w = (size // multiple for size, multiple in zip(clips.shape[1:4], patch, strict=True))
    return index[:SHOWN], mask[:SHOWN], jnp.stack([join_cubes(one, patch, (t, h, w)) for one in three], axis=1)


def _save(path: Path, picture: UInt8[np.ndarray, "h w 3"]) -> None:
    from matplotlib.image import imsave

    imsave(path, picture)
