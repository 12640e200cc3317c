"""Masked pre-training (VideoMAE, arXiv 2203.12602): the network learns from video without labels."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flaxvid.data.clips.cut import ClipConfig
from flaxvid.data.sources.open import Source
from flaxvid.evaluate import reconstruction
from flaxvid.losses.masked import reconstruction_errors
from flaxvid.models.masked import Decoder, Tubes, count_hidden, draw_tubes, make_decoder, reconstruct
from flaxvid.models.video_model import VideoModel
from flaxvid.tasks.task import Findings, LossOutput, Share, count_rows, init_model, mean_over_groups
from flaxvid.types import Batch, Variables


@dataclasses.dataclass
class MaskedRecipe:
    """Predicting the masked cubes of clips from the others. The network it is for is a vision transformer.

    Attributes:
        frames: the frame count of the training clips, one; () is that of the clip that the network is made for.
        mask_ratio: part of the places that is masked, the same ones at all times; the paper has 0.9.
        decoder_width: channels of the decoder's tokens; 0 is half of the encoder's.
        decoder_depth: blocks of the decoder; the paper has 4, and 12 for the large encoder.
        by_cube: what is predicted: True is each colour less its mean in the cube, over its deviation there, as in the
            paper; False is the colours as the network sees them, where cubes of mere noise would outweigh the others.
    """

    name: ClassVar[str] = "masked"
    frames: tuple[int, ...] = ()
    mask_ratio: float = 0.9
    decoder_width: int = 0
    decoder_depth: int = 4
    by_cube: bool = True

    def problems(self) -> Iterator[str]:
        """Finds values that cannot be: a line each, which begins with the field's name."""
        if len(self.frames) > 1 or min(self.frames, default=1) < 1:
            yield f"frames must be one positive frame count such as (16,), got {tuple(self.frames)}"
        if not 0 < self.mask_ratio < 1:
            yield f"mask_ratio must lie in (0, 1), got {self.mask_ratio}"
        if self.decoder_width < 0:
            yield f"decoder_width must not be negative, got {self.decoder_width}: 0 is half of the encoder's"
        if self.decoder_depth < 1:
            yield f"decoder_depth must be positive, got {self.decoder_depth}"

    def make(self, model: VideoModel) -> "MaskedTask":
        """The task for a model.

        Raises:
            ValueError: an option cannot be, or the model's body cannot leave tokens out.
        """
        for problem in self.problems():
            raise ValueError(problem)
        task = MaskedTask(model, dataclasses.replace(self, frames=tuple(self.frames) or (model.clip.num_frames,)))
        _, *sides = task.grid
        places = math.prod(sides)
        if not 0 < count_hidden(places, self.mask_ratio) < places:
            raise ValueError(
                f"task.mask_ratio={self.mask_ratio} masks {count_hidden(places, self.mask_ratio)} of the "
                f"{' x '.join(map(str, sides))} places of a frame: choose one that masks some and leaves some"
            )
        return task


@dataclasses.dataclass(frozen=True)
class MaskedTask:
    """The stem and the body of a network learn with a decoder, whose parameters are the collection `params_decoder`.

    The network's head has no part in it, and the variables have none.

    Attributes:
        model: the ordinary model.
        recipe: the options.
    """

    model: VideoModel
    recipe: MaskedRecipe

    @functools.cached_property
    def decoder(self) -> Decoder:
        """What predicts the masked cubes."""
        return make_decoder(self.model, self.recipe.decoder_width, self.recipe.decoder_depth)

    @property
    def frames(self) -> tuple[int, ...]:
        """The frame count that each batch must hold."""
        return tuple(self.recipe.frames)

    @property
    def image_size(self) -> int:
        """Height and width of the clips of a batch, pixels."""
        return self.model.clip.image_size

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens of a training clip along time, height and width."""
        _check = self.decoder  # says what is wrong with another network, whose patch is none
        size = self.model.clip.image_size
        t, h, w = self.model.multiple_of
        return self.frames[0] // t, size // h, size // w

    def init(self, key: Array, plain: Variables | None = None) -> dict[str, Any]:
        """Random variables, or stem and body of `plain` with a new decoder."""
        model_key, decoder_key = jax.random.split(key)
        params = (init_model(self.model, model_key) if plain is None else plain)["params"]
        tubes = draw_tubes(decoder_key, 1, self.grid, self.recipe.mask_ratio)
        tokens = jnp.zeros((1, tubes.visible.shape[1], self.model.feature_dim))
        decoder = jax.jit(self.decoder.init, static_argnums=3)(decoder_key, tokens, tubes, self.grid)
        return {"params": {part: params[part] for part in ("stem", "body")}, "params_decoder": decoder["params"]}

    def loss(self, variables: Variables, batch: Batch, key: Array) -> LossOutput:
        """The reconstruction error of a whole batch."""
        (share,) = self.divide(batch, key)
        return self.share_loss(variables, share, key)

    def divide(self, batch: Batch, key: Array, groups: int = 1) -> list[Share]:
        """One share: every clip with a mask of its own, drawn from the step's key."""
        video = batch["video"][self.frames[0]]
        times, *sides = (n // m for n, m in zip(video.shape[1:4], self.model.multiple_of, strict=True))
        tubes = draw_tubes(key, count_rows(video), (times, *sides), self.recipe.mask_ratio)
        return [{"video": video, "tubes": tubes}]

    @mean_over_groups
    def share_loss(self, variables: Variables, share: Share, key: Array) -> LossOutput:
        """The mean squared error of the masked cubes of some clips."""
        x, tubes = self.model.normalise(share["video"]), Tubes(*share["tubes"])
        predictions = reconstruct(
            self.model, self.decoder, variables, x, tubes, train=True, rngs={"dropout": jax.random.fold_in(key, 1)}
        )
        clip, by_cube = self.model.clip, self.recipe.by_cube
        colours = x * jnp.asarray(clip.std) + jnp.asarray(clip.mean) if by_cube else x
        loss = reconstruction_errors(predictions, colours, tubes.hidden, self.model.multiple_of, by_cube).mean()
        return loss, ({}, {"loss": loss})

    def after(self, variables: dict[str, Any], step: Array) -> dict[str, Any]:
        """The same variables."""
        return variables

    def select(self, variables: Variables, num_frames: int) -> Variables:
        """Stem and body, the same for every frame count."""
        return {"params": variables["params"]}

    def evaluate(
        self,
        variables: Variables,
        batches: Iterable[Batch],
        frames: tuple[int, ...],
        put: Callable[[Batch], Batch] = lambda batch: batch,
    ) -> Findings:
        """The reconstruction error at each frame count under fixed masks; the score is their mean, negative.

        The details are what `evaluate_reconstruction` returns.
        """
        masked = reconstruction.Masked(self.model, self.decoder, self.recipe.mask_ratio, self.recipe.by_cube)
        found = reconstruction.evaluate_reconstruction(masked, variables, batches, frames, put)
        metrics = {f"reconstruction_error_{count}": one.error for count, one in found.items()}
        return Findings(metrics, -float(np.mean([*metrics.values()])), found)

    def finish(
        self,
        findings: Findings,
        source: Source,
        clips: ClipConfig,
        *,
        origin: Mapping[str, Any],
        checkpoint: Mapping[str, Any],
        folder: Path,
    ) -> list[dict[str, Any]]:
        """Writes the errors and some reconstructions into the run's folder."""
        rows, _ = reconstruction.finish_reconstruction(
            findings.details,
            source,
            mask_ratio=self.recipe.mask_ratio,
            by_cube=self.recipe.by_cube,
            origin=origin,
            checkpoint=checkpoint,
            folder=folder,
        )
        return rows
