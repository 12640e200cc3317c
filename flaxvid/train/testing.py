"""Tests a trained network on videos of the user's choice."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from flaxvid.adapt.statistics import reestimate_statistics
from flaxvid.adapt.test_time import minimise_entropy
from flaxvid.data.clips.cut import ClipConfig
from flaxvid.data.pipeline import eval_batches, steps_per_epoch, train_batches
from flaxvid.data.sources.account import check_labels
from flaxvid.data.sources.class_names import are_numbers, relabel
from flaxvid.data.sources.names import list_names
from flaxvid.data.sources.open import Source
from flaxvid.data.sources.without_labels import WithoutLabels
from flaxvid.evaluate.evaluator import Evaluations, evaluate_videos, join
from flaxvid.evaluate.runtimes import Program
from flaxvid.tasks.task import Findings
from flaxvid.train.mesh import make_mesh, put_batch
from flaxvid.train.recipe import DataRecipe
from flaxvid.train.setup import clip_config, count_classes, data_origin, open_data, tested_data
from flaxvid.train.trained import Trained
from flaxvid.types import Batch, Variables, by_target

ADAPTATIONS = {"adabn": reestimate_statistics, "tent": minimise_entropy}
"""Ways to adapt a network to videos without labels, by name."""


def choose_data(recipe: DataRecipe, name: str, changes: Mapping[str, Any]) -> DataRecipe:
    """The test videos: the run's, or those of another data set.

    Args:
        recipe: the run's.
        name: the other data set; "" is the run's.
        changes: fields with other values than the run's.

    Raises:
        ValueError: a weights file has no data set, and `name` is empty.
    """
    recipe = tested_data(recipe)
    if name and name != recipe.name:
        clips = ClipConfig(test_size=recipe.clips.test_size, short=recipe.clips.short)
        recipe = DataRecipe(name, clips=clips, cameras=recipe.cameras)
    if not recipe.name:
        raise ValueError("a weights file does not say which videos: add --data NAME --root FOLDER")
    return dataclasses.replace(recipe, missing="keep", **changes)  # missing videos are counted and named


def is_own(recipe: DataRecipe, data: DataRecipe) -> bool:
    """Whether chosen videos are the run's own test videos."""
    ours = dataclasses.replace(tested_data(recipe), missing="keep")
    return dataclasses.replace(data, root=ours.root) == ours and data_origin(data) == data_origin(ours)


def open_test(trained: Trained, data: DataRecipe, renames: Mapping[str, Mapping[str, str]]) -> Source:
    """Opens test videos and gives their labels the network's numbers: by name, or by number if it has no names.

    Args:
        trained: the network.
        data: the videos, those of `eval_split`.
        renames: see `relabel`.

    Raises:
        ValueError: the network does not know a class of the videos, or it has no names for `renames`.
    """
    source = open_data(data, data.eval_split)
    if trained.named:
        advice = (
            "leave out videos of classes that it never saw, and for classes of another name give --rename MAP.json, "
            '{"the data\'s name": "the network\'s", ...}'
        )
        if all(map(are_numbers, by_target(trained.classes).values())):
            advice += ", or the network's names by --classes FILE"
        source = relabel(source, trained.classes, "the network", advice, renames)
    elif renames:
        raise ValueError("expected --rename with the network's class names, got none of them: give --classes, too")
    elif count_classes(trained.classes) != count_classes(source.classes):
        names = [name for own in by_target(source.classes).values() for name in own]
        raise ValueError(
            f"expected videos of the network's {count_classes(trained.classes)} classes (their names are not known), "
            f"got {count_classes(source.classes)} classes in {source.name} ({list_names(names)}): give their names, "
            "in the order of the logits, by --classes FILE"
        )
    check_labels(source, fewest=1)
    return source


def adapt(trained: Trained, source: Source, clips: ClipConfig, way: str, batch_size: int = 0) -> dict[int, Variables]:
    """Ordinary variables for each frame count of `clips`, adapted to videos whose labels are not read.

    Args:
        trained: the network.
        source: the videos.
        clips: how they are cut; one view of each is taken, always the same.
        way: one of `ADAPTATIONS`.
        batch_size: the most clips in a batch; 0 is the recipe's for evaluation. All batches have equally many, in
            random order; what does not divide is left out.

    Raises:
        ValueError: the network answers by exported programs, or has nothing that `way` adapts.
    """
    if trained.runtime != "jax":
        raise ValueError(f"{way} changes the weights of a network, got programs in {trained.runtime}: use jax")
    batches = -(-len(source) // (batch_size or trained.recipe.eval_batch_size))
    rows = len(source) // batches
    plain = ClipConfig(
        (), clips.image_size, clips.test_size, short=clips.short, sampling=clips.sampling, interval=clips.interval,
        fixed=True,
    )  # fmt: skip
    return {
        count: ADAPTATIONS[way](
            trained.model,
            trained.select(count),
            _Videos(WithoutLabels(source), dataclasses.replace(plain, frames=(count,)), rows),
        )
        for count in clips.frames
    }


@dataclasses.dataclass(frozen=True)
class _Videos:
    """The clips of all videos in random order, the same each time that they are read."""

    source: Source
    clips: ClipConfig
    rows: int

    def __iter__(self) -> Iterator[Any]:
        stream = train_batches(self.source, self.clips, self.rows)
        for _ in range(steps_per_epoch(self.source, self.rows)):
            yield next(stream)["video"][self.clips.frames[0]]


def evaluate_passes(
    trained: Trained,
    source: Source,
    passes: Sequence[ClipConfig],
    *,
    plain: Mapping[int, Variables | Program] | None = None,
    batch_size: int,
    num_threads: int,
    advance: Callable[[int], None],
) -> Evaluations:
    """Evaluates a network in one or several passes over the videos.

    Args:
        trained: the network.
        source: the videos.
        passes: the clips of each pass, see `Protocol.passes`.
        plain: what answers at each frame count, such as the variables of `adapt`; None is the network's own.
        batch_size: clips in a step; 0 is the recipe's.
        num_threads: threads that decode; 0 is the recipe's.
        advance: is called with the number of videos of each batch.
    """
    videos, put = _plan(trained, passes[0], batch_size, advance)
    evaluations = []
    for clips in passes:
        batches = eval_batches(source, clips, videos, num_threads=num_threads or trained.recipe.data.num_threads)
        answering = {n: plain[n] if plain else trained.answering(n) for n in clips.frames}
        evaluations.append(evaluate_videos(trained.model, answering, batches, put=put))
    return join(evaluations)


def evaluate_masked(
    trained: Trained,
    source: Source,
    clips: ClipConfig,
    *,
    batch_size: int,
    num_threads: int,
    advance: Callable[[int], None],
) -> Findings:
    """Evaluates a masked pre-training: how well it reconstructs the videos.

    Args:
        trained: the run.
        source: the videos; their labels play no part.
        clips: how they are cut.
        batch_size, num_threads, advance: as in `evaluate_passes`.

    Raises:
        ValueError: the frames of a patch do not divide a frame count.
    """
    times = trained.model.multiple_of[0]
    if wrong := [count for count in clips.frames if count % times]:
        raise ValueError(f"frames must be multiples of {times}, the frames of a patch, got {wrong}: give others")
    videos, put = _plan(trained, clips, batch_size, advance)
    batches = eval_batches(source, clips, videos, num_threads=num_threads or trained.recipe.data.num_threads)
    return trained.recipe.task.make(trained.model).evaluate(trained.variables, batches, clips.frames, put)


def _plan(
    trained: Trained, clips: ClipConfig, batch_size: int, advance: Callable[[int], None]
) -> tuple[int, Callable[[Batch], Batch]]:
    """How many videos a step has, and what moves a batch to the devices."""
    mesh = make_mesh()
    at_once = (batch_size or trained.recipe.eval_batch_size) // clips.views

    def put(batch: Batch) -> Batch:
        advance(int((batch["index"] >= 0).sum()))
        return put_batch(batch, mesh)

    return max(mesh.size, at_once - at_once % mesh.size), put


def calibration_clips(trained: Trained, source: Source, num_threads: int = 0) -> Iterator[Any]:
    """Yields batches of clips as a test sees them, one of each video that can be read.

    Args:
        trained: the network; its first frame count is that of the clips.
        source: the videos.
        num_threads: threads that decode; 0 is the recipe's.
    """
    recipe, frames = trained.recipe, trained.frames[0]
    clips = dataclasses.replace(clip_config(recipe, (frames,)), clips=1, crops=1, short="repeat")
    batch_size = min(recipe.eval_batch_size, len(source))
    for batch in eval_batches(source, clips, batch_size, num_threads=num_threads or recipe.data.num_threads):
        if batch["mask"].any():
            yield jax.tree.map(lambda views, real=batch["mask"]: views[real, 0], batch["video"][frames])
