"""Distillation (arXiv 1503.02531, 1412.6550): a student learns from the labels and from trained networks."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flaxvid.layers.heads import Logits
from flaxvid.layers.int8 import int8_form
from flaxvid.losses.classification import HardOrMixed, cross_entropy
from flaxvid.losses.distillation import feature_loss, logit_loss, mean_probabilities
from flaxvid.losses.multitask import sum_over_targets
from flaxvid.models.video_model import Video, VideoModel
from flaxvid.tasks.labelled import LabelledRecipe, LabelledTask, accuracy, mix_batch
from flaxvid.tasks.task import LossOutput, Metrics, Share, init_model, mean_over_groups
from flaxvid.types import Batch, Variables, by_target


@dataclasses.dataclass
class DistilRecipe(LabelledRecipe):
    """A student learns from teachers, whose classes are the data's. The student is the recipe's network.

    Clips are cut at the largest size that the student or a teacher takes; the others get them smaller. All see the same
    crop. Of several teachers the student learns the mean of their probabilities, and the features of each.

    Attributes:
        frames: the frame count of the student's clips, one; () is that of the clip that the network is made for.
        teachers: what each teacher is read from: a run's folder, a file of flaxvid, or a torch file.
        teacher_models: the name of each teacher's network, "" where the file says it; () where all files do.
        teacher_frames: the frame count of each teacher's clips; () is the largest that each was trained at.
        teacher_sizes: the image size of each teacher's clips, in pixels; () is the one that each was made for.
        temperature: of the probabilities that are compared; see `logit_loss`.
        label_weight: factor of the cross-entropy with the labels.
        logit_weight: factor of `logit_loss`.
        feature_weight: factor of `feature_loss`; 0 compares no features. Where the widths differ a linear projection
            is learnt with it, the collection `params_projection`.
    """

    name: ClassVar[str] = "distil"
    teachers: tuple[str, ...] = ()
    teacher_models: tuple[str, ...] = ()
    teacher_frames: tuple[int, ...] = ()
    teacher_sizes: tuple[int, ...] = ()
    temperature: float = 4.0
    label_weight: float = 0.1
    logit_weight: float = 0.9
    feature_weight: float = 0.0

    def problems(self) -> Iterator[str]:
        """Yields a line for each impossible value, which begins with the field's name."""
        yield from super().problems()
        if len(self.frames) > 1:
            yield f"frames must be one frame count such as (8,), got {tuple(self.frames)}"
        for name in ("teacher_models", "teacher_frames", "teacher_sizes"):
            own = getattr(self, name)
            if own and len(own) != len(self.teachers):
                yield f"{name} must have one for each of the {len(self.teachers)} teachers, or none, got {tuple(own)}"
        for name in ("teacher_frames", "teacher_sizes"):
            if min(getattr(self, name), default=1) < 1:
                yield f"{name} must be positive, got {tuple(getattr(self, name))}"
        if self.temperature <= 0:
            yield f"temperature must be positive, got {self.temperature}"
        weights = {name: getattr(self, name) for name in ("label_weight", "logit_weight", "feature_weight")}
        for name, weight in weights.items():
            if weight < 0:
                yield f"{name} must not be negative, got {weight}"
        if not self.logit_weight and not self.feature_weight:
            yield "logit_weight and feature_weight are both 0, and the teachers teach nothing: raise one of them"

    def make(self, model: VideoModel, teachers: Sequence["Teacher"] = ()) -> "Distillation":
        """As `SupervisedRecipe.make`; without `teachers` the task can be asked for the student's shapes alone."""
        self.check_targets(model)
        recipe = dataclasses.replace(self, frames=tuple(self.frames) or (model.clip.num_frames,))
        return Distillation(model, recipe, tuple(teachers))


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A trained network that teaches.

    Attributes:
        model: the ordinary model.
        variables: its ordinary variables for `frames`; the order of its classes is the data's.
        frames: the frame count of its clips.
        image_size: height and width of its clips, pixels.
    """

    model: VideoModel
    variables: Variables
    frames: int
    image_size: int


@dataclasses.dataclass(frozen=True)
class Distillation(LabelledTask):
    """The student's variables are ordinary ones.

    Those of the teachers are the collections `teacher_0`, `teacher_1`, ..., which nobody changes and no checkpoint
    holds.
    """

    model: VideoModel
    recipe: DistilRecipe
    teachers: tuple[Teacher, ...] = ()

    @property
    def frames(self) -> tuple[int, ...]:
        """The frame counts that each batch must hold, ascending."""
        return tuple(sorted({*self.recipe.frames, *(teacher.frames for teacher in self.teachers)}))

    @property
    def image_size(self) -> int:
        """Height and width of the clips of a batch."""
        return max(self.model.clip.image_size, *(teacher.image_size for teacher in self.teachers), 1)

    def init(self, key: Array, plain: Variables | None = None) -> dict[str, Any]:
        """Random variables, or `plain`; with the projections, and the teachers' variables as they are."""
        model_key, *keys = jax.random.split(key, 1 + len(self.teachers))
        variables = init_model(self.model, model_key) if plain is None else dict(plain)
        projections = {}
        for number, (own, teacher) in enumerate(zip(keys, self.teachers, strict=True)):
            variables[f"teacher_{number}"] = dict(teacher.variables)
            ours, theirs = self.model.feature_dim, teacher.model.feature_dim
            if ours != theirs and self.recipe.feature_weight:
                kernel = jax.nn.initializers.lecun_normal()(own, (ours, theirs))
                projections[f"teacher_{number}"] = {"kernel": kernel, "bias": jnp.zeros(theirs)}
        return variables | ({"params_projection": projections} if projections else {})

    def divide(self, batch: Batch, key: Array, groups: int = 1) -> list[Share]:
        """One share: every clip is the student's and all teachers'."""
        return [mix_batch(self.recipe, self.model, batch, key)]

    @mean_over_groups
    def share_loss(self, variables: Variables, share: Share, key: Array) -> LossOutput:
        """The loss of some rows: that of the logits, summed over the targets, and that of the features."""
        (count,), video = self.recipe.frames, share["video"]
        (logits, features), updated = self.model.apply(
            self.select(variables, count),
            self.fit(video[count], self.model, self.model.clip.image_size),
            train=True,
            rngs={"dropout": jax.random.fold_in(key, count)},
            mutable=["batch_stats"],
            method=logits_and_features,
        )
        taught: list[Any] = [
            teacher.model.apply(
                variables[f"teacher_{number}"],
                self.fit(video[teacher.frames], teacher.model, teacher.image_size),
                method=logits_and_features,
            )
            for number, teacher in enumerate(self.teachers)
        ]
        pairs = {
            target: (own, [by_target(theirs).get(target) for theirs, _ in taught])
            for target, own in by_target(logits).items()
        }
        loss, metrics = sum_over_targets(
            lambda pair, label: self.judge(*pair, *label), pairs, share["label"], self.recipe.target_weights
        )
        if self.recipe.feature_weight:
            projections = variables.get("params_projection", {})
            distances = [
                feature_loss(_project(features, projections.get(f"teacher_{number}")), theirs)
                for number, (_, theirs) in enumerate(taught)
            ]
            metrics["feature_distance"] = sum(distances, start=jnp.zeros(())) / len(distances)
            loss += self.recipe.feature_weight * metrics["feature_distance"]
        return loss, (dict(updated), {**metrics, "loss": loss})

    def judge(
        self,
        logits: Float[Array, "b k"],
        teachers: Sequence[Float[Array, "b k"]],
        labels: HardOrMixed,
        weights: Float[Array, " b"] | None = None,
    ) -> tuple[Float[Array, ""], Metrics]:
        """One target's loss by labels and by the teachers' logits, its parts, and the accuracies."""
        recipe = self.recipe
        parts = {"ce": cross_entropy(logits, labels, recipe.label_smoothing, weights)}
        loss, accuracies = recipe.label_weight * parts["ce"], {"accuracy": accuracy(logits, labels, weights)}
        if recipe.logit_weight:
            parts["kl"] = logit_loss(logits, teachers, recipe.temperature)
            loss += recipe.logit_weight * parts["kl"]
            accuracies["teacher_accuracy"] = accuracy(mean_probabilities(teachers), labels, weights)
        return loss, {**accuracies, **parts}

    def fit(self, video: Video, model: VideoModel, size: int) -> Video:
        """Clips of a batch as a network takes them: at its size, and normalised by its own mean and deviation.

        Mixed clips are normalised by the student's.
        """
        return jax.tree.map(lambda clip: _fit(clip, self.model, model, size), video)

    def select(self, variables: Variables, num_frames: int) -> Variables:
        """The student's variables, the same for every frame count."""
        return {name: variables[name] for name in ("params", "batch_stats") if name in variables}


def logits_and_features(model: VideoModel, video: Video, train: bool = False) -> tuple[Logits, Float[Array, "b c"]]:
    """The logits of a clip and its pooled feature; a method for `VideoModel.apply`."""
    x = model.encode(video, train)
    with int8_form(model.int8):
        return model.head(x, train, None), model.head.pool(x, train, None)  # pyright: ignore[reportAttributeAccessIssue]


def _project(features: Float[Array, "b c"], projection: Variables | None) -> Float[Array, "b d"]:
    return features if projection is None else features @ projection["kernel"] + projection["bias"]


def _fit(clip: Array, student: VideoModel, model: VideoModel, size: int) -> Array:
    b, t, h, w, c = clip.shape
    mixed, ours, theirs = jnp.issubdtype(clip.dtype, jnp.floating), student.clip, model.clip
    same_colours = not mixed or (ours.mean, ours.std) == (theirs.mean, theirs.std)
    if (h, w) == (size, size) and same_colours:
        return clip
    colours = clip * jnp.asarray(ours.std) + jnp.asarray(ours.mean) if mixed else clip / jnp.float32(255)
    colours = jax.image.resize(colours, (b, t, size, size, c), "linear")  # smooths where it makes clips smaller
    return (colours - jnp.asarray(theirs.mean)) / jnp.asarray(theirs.std)
