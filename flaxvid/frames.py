"""One network for every frame count: Frame Flexible Network (Zhang et al., arXiv 2303.14817), for any model of the zoo.

A network trained at 16 frames fails at 4: its statistics and kernels expect frames at the pace of 16. FFN shares all
convolutions and gives each frame count private norms and a private gain on the input channels of chosen kernels.

Here that is a function of variables: `FrameFlexible.select` merges one frame count's private collections into ordinary
variables of the ordinary model.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from flaxvid import trees
from flaxvid.layers.heads import Logits
from flaxvid.models.video_model import Video, VideoModel, clip_length, init_variables
from flaxvid.types import Variables

GAIN_INITS = {
    "normal": lambda key, channels: 1e-3 * jax.random.normal(key, (channels,)),
    "kaiming": lambda key, channels: (2 / channels) ** 0.5 * jax.random.normal(key, (channels,)),
    "zeros": lambda key, channels: jnp.zeros((channels,)),
}


@dataclasses.dataclass(frozen=True)
class FrameFlexible:
    """A model with private norms and weight alteration for each of several frame counts.

    Variables are ``params`` (shared), ``params_4f``, ``batch_stats_4f``, ``params_8f``, ... Private are all norms of
    `trees.norm_modules` with their statistics, and a `gain` next to each altered kernel, one number for each input
    channel: the kernel in use is ``W * (1 + gain)``. That is exactly FFN's depthwise 1x1 adapter with its skip
    connection (arXiv 2303.14817, eq. 8).

    Attributes:
        model: any model of the zoo.
        frames: the frame counts with private variables, ascending.
        alteration: how the gains start: "normal" (deviation 1e-3, the paper's), "kaiming" (deviation sqrt(2 /
            channels), the effect of the authors' code), "zeros", or "none" for no weight alteration.
        private_norms: False shares the norms too, the paper's ablation.
    """

    model: VideoModel
    frames: tuple[int, ...] = (4, 8, 16)
    alteration: str = "normal"
    private_norms: bool = True

    def __post_init__(self):
        counts = tuple(sorted(set(self.frames)))
        if not counts or counts[0] < 1:
            raise ValueError(f"frames must be positive frame counts such as (4, 8, 16), got {self.frames}")
        object.__setattr__(self, "frames", counts)
        if self.alteration not in (*GAIN_INITS, "none"):
            raise ValueError(f"alteration must be one of {', '.join(GAIN_INITS)} or none, got {self.alteration!r}")

    def nearest(self, num_frames: int) -> int:
        """The trained frame count nearest to `num_frames`; of two at the same distance the larger."""
        return min(self.frames, key=lambda count: (abs(count - num_frames), -count))

    def init(self, key: Array, video: Video) -> dict[str, Any]:
        """Random variables; `video` may have any frame count."""
        model_key, gain_key = jax.random.split(key)
        plain = init_variables(self.model, model_key, video)
        return self.specialise(plain, gain_key)

    def specialise(self, plain: Variables, key: Array | None = None) -> dict[str, Any]:
        """Makes frame-flexible variables from ordinary ones: each frame count gets a copy of the norms.

        Args:
            plain: variables of the model.
            key: for the gains. Without a key they start at zero, and `select` gives back `plain` exactly.
        """
        private_modules = trees.norm_modules(plain) if self.private_norms else ()
        norms, shared = trees.split(plain["params"], lambda path: path.rpartition("/")[0] in private_modules)
        variables: dict[str, Any] = {"params": shared}
        if not self.private_norms and "batch_stats" in plain:
            variables["batch_stats"] = plain["batch_stats"]
        kernels = self._altered_kernels(shared)
        for count in self.frames:
            gains = {}
            for number, (path, channels) in enumerate(kernels.items()):
                name = "zeros" if key is None else self.alteration
                leaf_key = jax.random.fold_in(jax.random.PRNGKey(0) if key is None else key, count * 65536 + number)
                gains[path.removesuffix("kernel") + "gain"] = GAIN_INITS[name](leaf_key, channels)
            private = trees.merge(norms, trees.unflatten(gains))
            if private:
                variables[f"params_{count}f"] = jax.tree.map(jnp.array, private)
            if self.private_norms and "batch_stats" in plain:
                variables[f"batch_stats_{count}f"] = jax.tree.map(jnp.array, plain["batch_stats"])
        return variables

    def select(self, variables: Variables, num_frames: int) -> dict[str, Any]:
        """The ordinary variables for the `nearest` frame count.

        Altered kernels are computed before any cast: in bfloat16, 1 + 1e-3 is 1.
        """
        count = self.nearest(num_frames)
        if f"params_{count}f" not in variables and (self.private_norms or self.alteration != "none"):
            raise ValueError(
                f"variables have no params_{count}f but {', '.join(sorted(variables))}: "
                "specialise(variables) makes frame-flexible ones from ordinary ones"
            )
        private = trees.flatten(variables.get(f"params_{count}f", {}))
        params = trees.flatten(variables["params"])
        for path, leaf in private.items():
            if path.endswith("/gain"):
                kernel_path = path.removesuffix("gain") + "kernel"
                # A kernel without a pattern is another model's, such as the 2-D one that a 3-D one starts from.
                kernel, axis = params[kernel_path], trees.first_match(self.model.altered, kernel_path, -2)
                others = [i for i in range(kernel.ndim) if i != axis % kernel.ndim]
                params[kernel_path] = kernel * jnp.expand_dims(1 + leaf, others)
            else:
                params[path] = leaf
        plain: dict[str, Any] = {"params": trees.unflatten(params)}
        stats = f"batch_stats_{count}f" if self.private_norms else "batch_stats"
        if stats in variables:
            plain["batch_stats"] = variables[stats]
        return plain

    def apply(
        self,
        variables: Variables,
        clips: Mapping[int, Video],
        *,
        train: bool = False,
        rngs: Mapping[str, Array] | None = None,
        mutable: bool = False,
    ) -> Any:
        """Applies the model to clips of several frame counts, each with its own variables.

        Args:
            variables: of `init` or `specialise`.
            clips: ``{4: (b, 4, h, w, 3), ...}``, or dicts of cameras; in evaluation any count, by `nearest`.
            train: whether to use batch statistics and dropout.
            rngs: ``{"dropout": key}``; the frame count is folded into each key.
            mutable: whether to return the updated statistics ``{"batch_stats_4f": ..., ...}``, too.

        Returns:
            ``{4: logits, ...}``, or that and the updated collections.

        Raises:
            ValueError: a clip's length is not its key, or in training a count has no private variables.
        """
        lengths = [clip_length(clip) for clip in clips.values()]
        if lengths != list(clips):
            expected, got = (" and ".join(map(str, counts)) for counts in (clips, lengths))
            raise ValueError(
                f"frames={tuple(clips)} need clips of {expected} frames, got {got}: sample with frames={tuple(lengths)}"
            )
        untrained = set(clips) - set(self.frames)
        if train and untrained:
            raise ValueError(
                f"training takes clips of frames={self.frames}, got {tuple(clips)}: drop {sorted(untrained)} or make "
                f"FrameFlexible(model, frames={tuple(sorted({*self.frames, *clips}))})"
            )
        logits: dict[int, Logits] = {}
        updated: dict[str, Any] = {}
        for count, clip in clips.items():
            keys = {name: jax.random.fold_in(key, count) for name, key in (rngs or {}).items()}
            # Without private norms all counts move the same statistics, one after the other.
            plain = self.select({**variables, **updated}, count)
            out: Any = self.model.apply(
                plain, clip, train=train, rngs=keys, mutable=["batch_stats"] if train else False
            )
            if train:
                logits[count], state = out
                if "batch_stats" in state:
                    name = f"batch_stats_{count}f" if self.private_norms else "batch_stats"
                    updated[name] = state["batch_stats"]
            else:
                logits[count] = out
        return (logits, updated) if mutable else logits

    def _altered_kernels(self, params: Mapping[str, Any]) -> dict[str, int]:
        """The input channels of each altered kernel, by path; refuses patterns that match anything else."""
        if self.alteration == "none":
            return {}
        flat = trees.flatten(params)
        channels = {}
        for pattern, axis in self.model.altered:
            matches = {path: leaf.shape for path, leaf in flat.items() if re.fullmatch(pattern, path)}
            wrong = [
                path
                for path, shape in matches.items()
                if not (path.endswith("/kernel") and -len(shape) <= axis < len(shape) and shape[axis] > 1)
            ]
            if wrong or not matches:
                raise ValueError(
                    f"altered pattern {pattern!r} must match ungrouped kernels with their input channels on axis "
                    f"{axis}, got {', '.join(wrong) or 'no parameter'}: correct the model's `altered`"
                )
            channels |= {path: shape[axis] for path, shape in matches.items()}
        return channels
