"""A frozen stem and body run once over the training videos; the head is then trained on what they gave."""

import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.errors import InvalidRngError
from jax.sharding import Mesh
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flaxvid import trees
from flaxvid.data.clips import cut
from flaxvid.data.clips.cut import ClipConfig
from flaxvid.data.features import KeptFeatures, in_use, list_features, make_room, write_features
from flaxvid.data.pipeline import eval_batches
from flaxvid.data.sources.open import Source
from flaxvid.data.sources.subset import Subset
from flaxvid.models.video_model import VideoModel, blank_video
from flaxvid.train.mesh import divided, put_batch, replicated
from flaxvid.train.recipe import Recipe
from flaxvid.train.setup import clip_config, make_model
from flaxvid.types import Variables
from flaxvid.writing import cache_folder, locked

BACKBONE = ("stem", "body")


@dataclasses.dataclass(frozen=True)
class OnFeatures:
    """A model whose stem and body have run already: it takes what they gave, and applies the head.

    Attributes:
        model: the ordinary model.
        structure: of what its body gives, whose arrays are numbered.
    """

    model: VideoModel
    structure: Any

    def apply(self, variables: Variables, features: Any, **options: Any) -> Any:
        """As `VideoModel.apply`, with the arrays of features, ``{"0": ...}``, for video."""
        x = jax.tree.unflatten(self.structure, [features[str(number)] for number in range(len(features))])
        return self.model.apply(variables, x, method=_head, **options)


def check_features(recipe: Recipe, shapes: Variables) -> None:
    """Refuses to keep features that a step would change.

    Args:
        recipe: the run's, which keeps features.
        shapes: of its variables.

    Raises:
        ValueError: stem or body are not frozen, or draw at random.
    """
    moving = [
        path
        for path in trees.flatten(shapes)
        if trees.lies_in(path, BACKBONE) and not trees.lies_in(path, recipe.freeze)
    ]
    if moving:
        raise ValueError(
            f"feature_cache={recipe.feature_cache} needs a frozen stem and body, got {len(moving)} variables that are "
            f"trained, such as {moving[0]}: set freeze=('stem', 'body'), or feature_cache=0"
        )
    model = make_model(recipe, 1)
    run = functools.partial(model.apply, method=VideoModel.encode, train=True, mutable=["batch_stats"])
    try:
        jax.eval_shape(run, jax.eval_shape(model.init, jax.random.key(0), blank_video(model)), blank_video(model))
    except InvalidRngError:
        raise ValueError(
            f"feature_cache={recipe.feature_cache} needs a body that gives the same for the same clip, got one that "
            f"drops at random in training: switch its dropout off in model.options={recipe.model.options}"
        ) from None


@contextlib.contextmanager
def kept_features(
    recipe: Recipe, task: Any, variables: Variables, source: Source, mesh: Mesh, say: Callable[[str], None] = print
) -> Iterator[tuple[Any, KeptFeatures]]:
    """Computes the features that are not kept yet. Nobody removes them inside the block.

    Args:
        recipe: the run's.
        task: the run's.
        variables: the task's.
        source: the training videos.
        mesh: the devices.
        say: prints.

    Yields:
        The task that learns from features, and the features of all videos.

    Raises:
        ValueError: the features would take more than `recipe.feature_cache`.
    """
    model, variables = task.model, task.select(variables, task.frames[-1])
    clips = _views(recipe)
    programs = {count: _trace(model, count) for count in clips.frames}
    given = {count: program.out_info for count, program in programs.items()}
    learner = dataclasses.replace(task, model=OnFeatures(model, jax.tree.structure(given[task.frames[-1]])))
    needed = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(given))
    root = cache_folder() / "features"
    folder = root / _key(programs, variables, clips, recipe.data.cameras)
    root.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as use:
        with _only_one(root, say):
            folder.mkdir(exist_ok=True)
            use.enter_context(in_use(folder))
            kept = list_features(source, folder)
            missing, damaged = kept.find_missing()
            if damaged:
                say(f"{len(damaged)} files of kept features were damaged: {', '.join(map(str, damaged[:3]))}")
            make_room(root, folder, len(missing) * needed, int(recipe.feature_cache * 1e9))
            say(f"{len(source) - len(missing)} of {len(source)} videos have features in {folder}")
            unreadable = _compute(recipe, model, variables, source, missing, kept, mesh) if missing else set()
        yield learner, dataclasses.replace(kept, broken=kept.broken | unreadable)


def _compute(
    recipe: Recipe,
    model: VideoModel,
    variables: Variables,
    source: Source,
    missing: Sequence[int],
    kept: KeptFeatures,
    mesh: Mesh,
) -> set[int]:
    """Writes the features of the missing videos; gives those that cannot be read."""
    same, rows = replicated(mesh), divided(mesh)
    encode = functools.partial(model.apply, method=VideoModel.encode)
    run = jax.jit(encode, in_shardings=(same, rows), out_shardings=rows)
    variables, unreadable = jax.device_put(variables, same), set()
    batches = eval_batches(
        Subset(source, tuple(missing)),
        _views(recipe),
        recipe.eval_batch_size,
        num_threads=recipe.data.num_threads,
        num_workers=recipe.data.num_workers,
    )
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns) as progress:
        bar = progress.add_task("Computing features", total=len(missing))
        for batch in batches:
            clips = jax.tree.map(lambda views: views[:, 0], batch["video"])
            given = {count: run(variables, put_batch(clip, mesh)) for count, clip in clips.items()}
            arrays = jax.device_get({count: jax.tree.leaves(one) for count, one in given.items()})
            for row, position in enumerate(batch["index"]):
                if batch["broken"][row] >= 0:
                    unreadable.add(missing[batch["broken"][row]])
                elif position >= 0:
                    own = {count: {str(i): leaf[row] for i, leaf in enumerate(one)} for count, one in arrays.items()}
                    write_features(kept.folder / kept.names[missing[position]], own)
            progress.advance(bar, int((batch["index"] >= 0).sum()))
    return unreadable


def _views(recipe: Recipe) -> ClipConfig:
    """The rules of the clips whose features are computed."""
    return dataclasses.replace(clip_config(recipe, recipe.task.frames), clips=1, crops=1)


def _key(programs: Mapping[int, Any], variables: Variables, clips: ClipConfig, cameras: Sequence[str]) -> str:
    """Names what features follow from, but for the videos.

    That is the network's program and weights, the rules and the source of how clips are cut, and the libraries.
    """
    libraries = [*map(metadata.version, ("jax", "jaxlib", "av", "numpy")), jax.default_backend()]
    digest = hashlib.sha256(json.dumps((dataclasses.asdict(clips), cameras, libraries)).encode())
    for program in programs.values():
        digest.update(program.lower().as_text().encode())
    for file in sorted(Path(cut.__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    for path, leaf in sorted(trees.flatten(variables).items()):
        if trees.lies_in(path, BACKBONE):
            array = np.asarray(leaf)
            digest.update(f"{path} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:32]


def _trace(model: VideoModel, num_frames: int) -> Any:
    """The program that gives what a model's body gives for a clip, before it is compiled."""
    clip = jax.tree.map(
        lambda video: jax.ShapeDtypeStruct((1, num_frames, *video.shape[2:]), video.dtype), blank_video(model)
    )
    variables = jax.eval_shape(model.init, jax.random.key(0), clip)
    return jax.jit(functools.partial(model.apply, method=VideoModel.encode)).trace(variables, clip)


@contextlib.contextmanager
def _only_one(root: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Waits until no other process computes features or makes room."""
    with contextlib.ExitStack() as held:
        if not held.enter_context(locked(root / ".lock")):
            say(f"waits for another process that computes features in {root}")
            held.enter_context(locked(root / ".lock", wait=True))
        yield


def _head(model: VideoModel, x: Any, train: bool = False) -> Any:
    """The logits of what the body gave."""
    return model.head(x, train)
