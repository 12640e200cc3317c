"""X3D: XS, S, M and L (arXiv 2004.04730).

    python scripts/train.py --config configs/x3d.py            the embedded data set, on a laptop
    python scripts/train.py --config configs/x3d.py:m --config.data.root=FOLDER
    python scripts/train.py --config configs/x3d.py:s_folder --config.data.root=FOLDER --config.model.weights=FILE

A size alone is Kinetics-400 by PySlowFast's recipe, but that its warm-up starts at 0.01 and ours at zero, that it has
Nesterov's momentum, that it resizes the short side to 8/7 to 10/7 of the crop where we cut the same parts out of it,
that it tests at larger crops, and that it re-estimates the norms' statistics before evaluation. A size before a data
set is that size's clip with the data set's own recipe, meant for published weights. A data set alone is from scratch
and small enough for a CPU: X3D-S at 13 frames of 56 pixels for your own videos in class folders, or the hundred real
ones of ucf101_small.

Arguments: motion (default), xs, s, m, l, ucf101_small, folder, s_folder.
"""

import dataclasses

from flaxvid.train.presets import preset
from flaxvid.train.recipe import ModelRecipe, OptimizerRecipe, Recipe

CLIPS = {"xs": (4, 160, 12), "s": (13, 160, 6), "m": (16, 224, 5), "l": (16, 312, 5)}
"""Frames, pixels, and frames from one to the next."""

PUBLISHED = {
    "xs": "x3d_xs 4x12 of pytorchvideo, top-1 with 10 x 3 views of 182 pixels: 69.12",
    "s": "x3d_s 13x6 of pytorchvideo, top-1 with 10 x 3 views of 182 pixels: 73.33",
    "m": "x3d_m 16x5 of pytorchvideo, top-1 with 10 x 3 views of 256 pixels: 75.94",
    "l": "x3d_l 16x5 of pytorchvideo, top-1 with 10 x 3 views of 356 pixels: 77.44",
}


def get_config(argument: str = "motion") -> Recipe:
    size, _, dataset = argument.partition("_")
    if size not in CLIPS:
        return small(argument)
    frames, pixels, interval = CLIPS[size]
    recipe = preset(dataset or "kinetics400")
    recipe.model = ModelRecipe(f"x3d_{size}", num_frames=frames, image_size=pixels, dropout=0.5)
    recipe.task.frames = recipe.eval_frames = (frames,)
    if not dataset:
        recipe.data = dataclasses.replace(
            recipe.data, sampling="dense", interval=interval, scales=(0.875, 0.8, 0.7), eval_clips=10, eval_crops=3
        )
        rules = ((r".*norm.*", 1.0, 0.0),)
        rate, recipe.batch_size, recipe.epochs = (0.05, 64, 256) if size == "l" else (0.1, 128, 300)
        recipe.optimizer = OptimizerRecipe("sgd", rate, 0.9, 5e-5, "cosine", (), 35, clip_norm=0, rules=rules)
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
    like.model = ModelRecipe("x3d_s", num_frames=13, image_size=56, dropout=0.5, options={"classifier_std": 0.1})
    like.task.frames = like.eval_frames = (13,)
    return like
