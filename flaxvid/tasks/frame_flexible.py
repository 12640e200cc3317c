"""Training one network for every frame count (FFN, arXiv 2303.14817)."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flaxvid.frames import FrameFlexible
from flaxvid.layers.heads import Logits
from flaxvid.losses.classification import HardOrMixed
from flaxvid.losses.distillation import ffn_loss, label_loss
from flaxvid.losses.multitask import sum_over_targets
from flaxvid.models.video_model import VideoModel
from flaxvid.tasks.labelled import LabelledRecipe, LabelledTask, accuracy, mix_batch
from flaxvid.tasks.task import LossOutput, Metrics, Share, in_groups, init_model
from flaxvid.types import Batch, Variables, by_target


@dataclasses.dataclass
class FfnRecipe(LabelledRecipe):
    """FFN: every video at all frame counts in one step. The longest clip learns the label and teaches the others.

    Attributes:
        weight: factor of the distillation terms.
        distil: False gives every frame count the label instead, the paper's ablation.
        alteration: how the gains of altered kernels start; see `FrameFlexible`.
        private_norms: whether each frame count has its own norms; see `FrameFlexible`.
    """

    name: ClassVar[str] = "ffn"
    frames: tuple[int, ...] = (4, 8, 16)
    weight: float = 1.0
    distil: bool = True
    alteration: str = "normal"
    private_norms: bool = True

    def problems(self) -> Iterator[str]:
        """Yields a line for each impossible value, which begins with the field's name."""
        yield from super().problems()
        if len(self.frames) < 2:
            yield (
                f"frames: FFN needs two frame counts or more, got {tuple(self.frames)}: name more, or take a config of "
                "one count such as configs/tsm.py"
            )
        if self.weight < 0:
            yield f"weight must not be negative, got {self.weight}"
        try:
            FrameFlexible(model=None, alteration=self.alteration)  # pyright: ignore[reportArgumentType]
        except ValueError as error:
            yield str(error)

    def make(self, model: VideoModel) -> "FrameFlexibleTask":
        """As `SupervisedRecipe.make`."""
        self.check_targets(model)
        return FrameFlexibleTask(model, self)


@dataclasses.dataclass(frozen=True)
class FrameFlexibleTask(LabelledTask):
    """All frame counts of a video in one step, one after the other: on CPU one packed pass is slower."""

    model: VideoModel
    recipe: FfnRecipe

    @functools.cached_property
    def flexible(self) -> FrameFlexible:
        """The model for all frame counts."""
        return FrameFlexible(self.model, tuple(self.recipe.frames), self.recipe.alteration, self.recipe.private_norms)

    @property
    def frames(self) -> tuple[int, ...]:
        """The frame counts that each batch must hold, ascending."""
        return self.flexible.frames

    def init(self, key: Array, plain: Variables | None = None) -> dict[str, Any]:
        """Random variables, or `plain` specialised; frame-flexible ones stay as they are."""
        if plain is not None and plain.keys() - {"params", "batch_stats"}:
            return dict(plain)
        model_key, gain_key = jax.random.split(key)
        return self.flexible.specialise(init_model(self.model, model_key) if plain is None else plain, gain_key)

    def divide(self, batch: Batch, key: Array, groups: int = 1) -> list[Share]:
        """One share: every video has all counts."""
        return [mix_batch(self.recipe, self.model, batch, key)]

    def share_loss(self, variables: Variables, share: Share, key: Array, groups: int = 1) -> LossOutput:
        """The loss of some rows, summed over the targets. Only the loss has a gradient.

        Gradients are computed count by count, so that activations of one count at a time are in memory.
        """
        # Counts that share norms move the same statistics, the longest last; it could not be the first to learn.
        loss = _loss if self.recipe.private_norms else _at_once
        return loss(self, dict(variables), share, key, groups)

    def forward(
        self, variables: dict[str, Any], video: Mapping[int, Any], key: Array, groups: int
    ) -> tuple[dict[int, Logits], dict[str, Any]]:
        """Logits at the counts of `video`, and the collections that training moves; `groups` as in `share_loss`."""

        def apply(video: Mapping[int, Any], key: Array) -> Any:
            return self.flexible.apply(variables, video, train=True, rngs={"dropout": key}, mutable=True)

        if groups == 1:
            return apply(video, key)
        logits, updated = in_groups(apply, video, key, groups)
        logits = jax.tree.map(lambda z: z.reshape(-1, z.shape[-1]), logits)
        return logits, jax.tree.map(lambda x: x.mean(axis=0), updated)

    def judge_targets(self, logits: Mapping[int, Logits], share: Share) -> tuple[Float[Array, ""], Metrics]:
        """The loss of all targets at all counts, and its parts."""
        by_count = {count: by_target(z) for count, z in logits.items()}
        targets = {target: {count: z[target] for count, z in by_count.items()} for target in by_count[self.frames[0]]}
        loss, metrics = sum_over_targets(
            lambda z, label: self.judge(z, *label), targets, share["label"], self.recipe.target_weights
        )
        return loss, {**metrics, "loss": loss}

    def judge(
        self,
        logits: Mapping[int, Float[Array, "b k"]],
        labels: HardOrMixed,
        weights: Float[Array, " b"] | None = None,
    ) -> tuple[Float[Array, ""], Metrics]:
        """One target's loss at all counts, its parts, and the accuracies."""
        smoothing = self.recipe.label_smoothing
        if self.recipe.distil:
            loss, parts = ffn_loss(
                logits,
                labels,
                self.recipe.weight,
                label_smoothing=smoothing,
                frames=self.frames,
                label_weights=weights,
            )
        else:
            loss, parts = label_loss(logits, labels, label_smoothing=smoothing, label_weights=weights)
        accuracies = {f"accuracy_{count}": accuracy(z, labels, weights) for count, z in logits.items()}
        return loss, {"accuracy": accuracies[f"accuracy_{self.frames[-1]}"], **parts, **accuracies}

    def select(self, variables: Variables, num_frames: int) -> dict[str, Any]:
        """Ordinary variables for one frame count."""
        return self.flexible.select(variables, num_frames)


def _at_once(task: FrameFlexibleTask, variables: dict[str, Any], share: Share, key: Array, groups: int) -> LossOutput:
    logits, updated = task.forward(variables, share["video"], key, groups)
    loss, metrics = task.judge_targets(logits, share)
    return loss, (updated, metrics)


def _count_by_count(
    task: FrameFlexibleTask, variables: dict[str, Any], share: Share, key: Array, groups: int
) -> tuple[LossOutput, dict[str, Any]]:
    """The loss, and its gradient: of each count in turn, with the logits of the others held.

    The longest is first, for it teaches the others. No count needs logits of a shorter one, so zeros stand for them.
    """
    values, share, key = jax.tree.map(lambda leaf: leaf.value, (variables, share, key))
    leaves, tree = jax.tree.flatten(values)
    moving = {place: leaf.value for place, leaf in enumerate(jax.tree.leaves(variables)) if leaf.perturbed}
    gradient: dict[int, Array] = {}
    logits: dict[int, Logits] = {}
    updated: dict[str, Any] = {}

    def loss_of(moving: dict[int, Array], clip: dict[int, Any]) -> tuple[Array, Any]:
        variables = tree.unflatten([moving.get(place, leaf) for place, leaf in enumerate(leaves)])
        own, state = task.forward(variables, clip, key, groups)
        blank = jax.tree.map(jnp.zeros_like, *own.values())
        known: dict[int, Any] = {**dict.fromkeys(share["video"], blank), **logits, **own}
        return task.judge_targets(known, share)[0], (own, state)

    for count in sorted(share["video"], reverse=True):
        if logits:
            # Else XLA may compute a count before the one before it is done, and keep the activations of both.
            gradient, share = jax.lax.optimization_barrier((gradient, share))
        own_gradient, (own, state) = jax.grad(loss_of, has_aux=True)(moving, {count: share["video"][count]})
        gradient = jax.tree.map(jnp.add, gradient, own_gradient) if logits else own_gradient
        logits |= own
        updated |= state
    loss, metrics = task.judge_targets(logits, share)
    return (loss, (updated, metrics)), tree.unflatten([gradient.get(place) for place in range(len(leaves))])


def _scaled(task: FrameFlexibleTask, groups: int, gradient: dict[str, Any], cotangents: Any) -> tuple[Any, None, None]:
    return jax.tree.map(lambda leaf: cotangents[0] * leaf, gradient), None, None


_loss = jax.custom_vjp(_at_once, nondiff_argnums=(0, 4))
_loss.defvjp(_count_by_count, _scaled, symbolic_zeros=True)
