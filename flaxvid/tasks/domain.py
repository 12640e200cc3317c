"""Domain adaptation: learning the labels of one domain for videos of another, which have none."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from flaxvid.losses.classification import cross_entropy
from flaxvid.losses.domain import coral, domain_cross_entropy, mmd, reverse_gradient
from flaxvid.losses.multitask import sum_over_targets
from flaxvid.models.video_model import VideoModel
from flaxvid.tasks.labelled import LabelledRecipe, LabelledTask, accuracy, mix_batch
from flaxvid.tasks.task import LossOutput, Share, init_model, mean_over_groups
from flaxvid.types import Batch, Variables, by_target

DISTANCES = {"coral": coral, "mmd": mmd}
STATE = "adaptation"
"""The collection with the number of steps so far; the task itself moves it."""


@dataclasses.dataclass
class DomainRecipe(LabelledRecipe):
    """Cross-entropy on the source domain, and features that are alike in both domains. `data.target` is the other.

    Attributes:
        method: what makes the features alike. "coral": equal covariances (arXiv 1607.01719). "mmd": no mean
            discrepancy (arXiv 1502.02791). "adversarial": a discriminator cannot tell them apart (DANN, arXiv
            1505.07818).
        weight: of that loss beside the cross-entropy; of "adversarial" the factor of the reversed gradient.
        ramp_steps: steps in which the weight grows from 0, as in DANN, ``2 / (1 + exp(-10 p)) - 1`` of it after the
            share p of these steps. 0 has the whole weight from the start.
        discriminator_width: channels of the discriminator's two hidden layers.
    """

    name: ClassVar[str] = "domain"
    method: str = "adversarial"
    weight: float = 1.0
    ramp_steps: int = 0
    discriminator_width: int = 256

    def problems(self) -> Iterator[str]:
        """Yields a line for each impossible value, which begins with the field's name."""
        yield from super().problems()
        if self.method not in (*DISTANCES, "adversarial"):
            yield f"method must be one of {', '.join(DISTANCES)}, adversarial, got {self.method!r}"
        if len(self.frames) > 1:
            yield f"frames must be one frame count such as (16,), got {tuple(self.frames)}"
        for name in ("weight", "ramp_steps"):
            if getattr(self, name) < 0:
                yield f"{name} must not be negative, got {getattr(self, name)}"
        if self.discriminator_width < 1:
            yield f"discriminator_width must be positive, got {self.discriminator_width}"

    def make(self, model: VideoModel) -> "DomainTask":
        """As `SupervisedRecipe.make`."""
        self.check_targets(model)
        return DomainTask(model, dataclasses.replace(self, frames=tuple(self.frames) or (model.clip.num_frames,)))


class Discriminator(nn.Module):
    """Says by features which domain they are of: positive logits for the target domain.

    Attributes:
        width: channels of the two hidden layers.
    """

    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "b c"]) -> Float[Array, " b"]:
        """Features to one logit each."""
        for _ in range(2):
            x = nn.relu(nn.Dense(self.width)(x))
        return nn.Dense(1)(x)[:, 0]


@dataclasses.dataclass(frozen=True)
class DomainTask(LabelledTask):
    """One network for both domains; clips of both run through it together, so its norms see both.

    A training batch has the videos of the target domain beside it: ``{"video": ..., "label": ..., "target": {"video":
    ...}}``. An adversarial task has the discriminator's parameters in the collection `params_discriminator`.
    """

    model: VideoModel
    recipe: DomainRecipe

    @property
    def frames(self) -> tuple[int, ...]:
        """The one frame count."""
        return tuple(self.recipe.frames)

    @functools.cached_property
    def discriminator(self) -> Discriminator:
        """Tells the domains apart, or tries to."""
        return Discriminator(self.recipe.discriminator_width)

    def init(self, key: Array, plain: Variables | None = None) -> dict[str, Any]:
        """Random variables, or `plain`, with a new discriminator."""
        model_key, own_key = jax.random.split(key)
        variables = init_model(self.model, model_key) if plain is None else dict(plain)
        variables[STATE] = {"steps": jnp.zeros((), jnp.int32)}
        if self.recipe.method == "adversarial":
            own = jax.jit(self.discriminator.init)(own_key, jnp.zeros((1, self.model.feature_dim)))
            variables["params_discriminator"] = own["params"]
        return variables

    def divide(self, batch: Batch, key: Array, groups: int = 1) -> list[Share]:
        """One share: the labelled clips, and beside each a clip of the target domain."""
        return [{**mix_batch(self.recipe, self.model, batch, key), "target": batch["target"]["video"]}]

    @mean_over_groups
    def share_loss(self, variables: Variables, share: Share, key: Array) -> LossOutput:
        """The loss of some rows of both domains."""
        ((count, source),), target = share["video"].items(), share["target"][self.frames[0]]
        source, target = self.model.normalise(source), self.model.normalise(target)
        # Neighbours in the batch are one of each domain: on a mesh no row moves to another device.
        both = jax.tree.map(lambda *x: jnp.stack(x, axis=1).reshape(-1, *x[0].shape[1:]), source, target)
        (features, logits), updated = self.model.apply(
            self.select(variables, count),
            both,
            train=True,
            rngs={"dropout": jax.random.fold_in(key, count)},
            mutable=["batch_stats"],
            method=_features_and_logits,
        )
        loss, metrics = sum_over_targets(
            lambda z, label: self._judge(z, *label),
            {name: z[::2] for name, z in by_target(logits).items()},
            share["label"],
            self.recipe.target_weights,
        )
        weight = self.weight_after(variables[STATE]["steps"])
        distance, said = self._compare(variables, features[::2], features[1::2], weight)
        loss += distance
        return loss, (dict(updated), {**metrics, **said, "domain_weight": weight, "loss": loss})

    def _judge(self, logits: Any, labels: Any, weights: Any) -> Any:
        loss = cross_entropy(logits, labels, self.recipe.label_smoothing, weights)
        return loss, {"accuracy": accuracy(logits, labels, weights), "ce": loss}

    def _compare(
        self, variables: Variables, source: Float[Array, "b c"], target: Float[Array, "b c"], weight: Float[Array, ""]
    ) -> tuple[Float[Array, ""], Mapping[str, Array]]:
        """What is added to the loss for features that are not alike, and its metrics."""
        if self.recipe.method != "adversarial":
            distance = DISTANCES[self.recipe.method](source, target)
            return weight * distance, {"domain_loss": distance}
        own: Any = {"params": variables["params_discriminator"]}
        of_source, of_target = (
            jnp.asarray(self.discriminator.apply(own, reverse_gradient(x, weight))) for x in (source, target)
        )
        loss = domain_cross_entropy(of_source, of_target)
        right = ((of_source < 0).mean() + (of_target > 0).mean()) / 2
        return loss, {"domain_loss": loss, "domain_accuracy": right}

    def weight_after(self, steps: Array) -> Float[Array, ""]:
        """The weight of the domains' loss after so many steps."""
        if not self.recipe.ramp_steps:
            return jnp.float32(self.recipe.weight)
        share = jnp.minimum(1.0, steps / self.recipe.ramp_steps)
        return self.recipe.weight * (2 / (1 + jnp.exp(-10 * share)) - 1)

    def after(self, variables: dict[str, Any], step: Array) -> dict[str, Any]:
        """Counts the step."""
        return {**variables, STATE: {"steps": (step + 1).astype(jnp.int32)}}

    def select(self, variables: Variables, num_frames: int) -> Variables:
        """The same variables for every frame count."""
        return {name: variables[name] for name in ("params", "batch_stats") if name in variables}


def _features_and_logits(model: VideoModel, x: Any, train: bool) -> Any:
    """The pooled features and the logits of normalised video."""
    x = model.body(model.stem(x, train), train)
    return model.head.pool(x, train), model.head(x, train)  # pyright: ignore[reportAttributeAccessIssue]
