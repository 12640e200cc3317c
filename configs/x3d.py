"""X3D: XS, S, M and L (arXiv 2004.04730).

    python scripts/train.py --config configs/x3d.py            the embedded data set, on a laptop
    python scripts/train.py --config configs/x3d.py:m --config.data.root=FOLDER
    python scripts/train.py --config configs/x3d.py:s_folder --config.data.root=FOLDER --config.model.weights=FILE

A size alone is Kinetics-400 by PySlowFast's recipe: optimizer, schedule, decay and initialisation are the same. What
differs: the first stage's shortcut has a norm there (`shortcut_norm=True`), here as in pytorchvideo none; its norms see
the 16 clips of a GPU (L: 8), ours the whole batch (`norm_groups=8` is theirs); it resizes the short side to any size
from about 8/7 to 10/7 of the crop and cuts anywhere, where we cut one of three such sizes at one of 13 places, height
and width not always alike; its frames are as far apart at 30 frames a second as ours are as they were filmed; it tests
crops of about 8/7 of the size that it trains with, we of that size; and it re-estimates the norms' statistics from 200
batches before evaluation.

A size before a data set is that size's clip with the data set's own recipe, meant for published weights. A data set
alone is from scratch and small enough for a CPU: X3D-S at 13 frames of 56 pixels for your own videos in class folders,
or the hundred real ones of ucf101_small.

Arguments: motion (default), xs, s, m, l, ucf101_small, folder, s_folder.
"""

import dataclasses

from flaxvid.train.presets import preset, pyslowfast
from flaxvid.train.recipe import ModelRecipe, Recipe

INTERVALS = {"xs": 12, "s": 6, "m": 5, "l": 5}
"""Frames from one of a clip to the next."""

PUBLISHED = {
    "xs": "x3d_xs 4x12 of pytorchvideo, top-1 with 10 x 3 views of 182 pixels: 69.12",
    "s": "x3d_s 13x6 of pytorchvideo, top-1 with 10 x 3 views of 182 pixels: 73.33",
    "m": "x3d_m 16x5 of pytorchvideo, top-1 with 10 x 3 views of 256 pixels: 75.94",
    "l": "x3d_l 16x5 of pytorchvideo, top-1 with 10 x 3 views of 356 pixels: 77.44",
}


def get_config(argument: str = "motion") -> Recipe:
    size, _, dataset = argument.partition("_")
    if size not in INTERVALS:
        return small(argument)
    recipe = preset(dataset or "kinetics400")
    recipe.model, recipe.eval_frames = ModelRecipe(f"x3d_{size}"), ()
    if not dataset:
        recipe.data.clips = dataclasses.replace(
            recipe.data.clips, sampling="dense", interval=INTERVALS[size], scales=(0.875, 0.8, 0.7), clips=10, crops=3
        )
        rate, recipe.batch_size, recipe.epochs = (0.05, 64, 256) if size == "l" else (0.1, 128, 300)
        recipe.model.options = {"zero_init": True}
        recipe.optimizer = pyslowfast(rate, 5e-5, warmup_epochs=35)
        recipe.published = PUBLISHED[size]
    return recipe


def small(dataset: str) -> Recipe:
    """From scratch, on a CPU."""
    recipe = preset(dataset)
    if dataset == "motion":
        options = {"width": 16, "depths": (1, 2, 2), "head_features": 256, "classifier_std": 0.1}
        recipe.model = dataclasses.replace(recipe.model, name="x3d_s", options=options)
        return recipe
    like = preset("ucf101_small")
    like.data = recipe.data
    like.model = ModelRecipe("x3d_s", image_size=56, options={"classifier_std": 0.1})
    like.eval_frames = ()
    return like
