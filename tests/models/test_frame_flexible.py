"""Every family learns `motion` frame-flexible, by the ordinary task: no model knows of frame flexibility."""

import functools

import jax
import optax
import pytest

from flaxvid import trees
from flaxvid.data.clips.cut import ClipConfig
from flaxvid.data.motion.build import MotionConfig
from flaxvid.data.pipeline import train_batches
from flaxvid.data.sources.open import open_source
from flaxvid.models.registry import create_tiny
from flaxvid.tasks.frame_flexible import FfnRecipe
from flaxvid.train.state import create_state
from flaxvid.train.step import train_step


@pytest.fixture(scope="module")
def motion(tmp_path_factory):
    config = MotionConfig(size=32, num_frames=64, train=8, validation=1, test=1)
    return open_source("motion", tmp_path_factory.mktemp("data"), motion=config)


@pytest.mark.parametrize(
    ("name", "options", "frames", "altered"),
    [
        *(
            (name, {"depths": (1, 1)}, (2, 4), 2)  # the first convolution of two blocks
            for name in ("slow_r50", "r3d_18_se", "r2plus1d_r18", "r2plus1d_r50", "x3d_s")
        ),
        ("slowfast_r50", {"depths": (1,)}, (16, 32, 64), 2),  # the paper's counts; a block in each pathway
        *((name, {"depth": 1}, (2, 4), 2) for name in ("videomae_small", "vivit_base")),
        ("timesformer_base", {"depth": 1}, (2, 4), 3),
    ],
)
def test_it_learns(name, options, frames, altered, motion):
    batch = next(train_batches(motion, ClipConfig(frames, 32), 8))
    model = create_tiny(name, **options, num_classes=16, dropout=0.0, classifier_std=0.1)
    task = FfnRecipe(frames).make(model)
    optimizer = optax.adam(5e-3)
    step = jax.jit(functools.partial(train_step, task=task, optimizer=optimizer))
    state = create_state(task.init(jax.random.key(0)), optimizer)
    gains = [path for path in trees.flatten(state.variables) if path.endswith("/gain")]
    assert len(gains) == altered * len(frames)
    losses = []
    for _ in range(12):
        state, metrics = step(state, {"video": batch["video"], "label": batch["label"]}, jax.random.key(1))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.8 * losses[0]
