"""Slow, the slow pathway of SlowFast as a network of its own (arXiv 1812.03982).

    python scripts/train.py --config configs/slow.py           the embedded data set, on a laptop
    python scripts/train.py --config configs/slow.py:kinetics400 --config.data.root=FOLDER

The recipe of Kinetics-400 is PySlowFast's SLOW_8x8_R50, but that its warm-up starts at 0.01 and ours at zero, that the
last norm of a block starts at zero there, that it resizes the short side to 256-320 pixels where we cut the same parts
out of it, and that it re-estimates the norms' statistics before evaluation.

Arguments: motion (default), kinetics400, ssv2, folder.
"""

import dataclasses

from flaxvid.train.presets import preset
from flaxvid.train.recipe import ModelRecipe, OptimizerRecipe, Recipe

PUBLISHED = {
    "kinetics400": "slow_r50 8x8 of pytorchvideo, top-1 with 10 x 3 views: 74.58",
    "ssv2": "slow_r50 8x8 of pytorchvideo from Kinetics-400, top-1: 60.04",
}


def get_config(dataset: str = "motion") -> Recipe:
    recipe = preset(dataset)
    recipe.published = PUBLISHED.get(dataset, "")
    recipe.task.frames = (8,)
    if recipe.model.options.get("width"):
        options = {"width": 16, "depths": (1, 1, 1, 1), "classifier_std": 0.1}
        recipe.model = dataclasses.replace(recipe.model, name="slow_r50", num_frames=8, options=options)
        return recipe
    recipe.model = ModelRecipe("slow_r50", num_frames=8, image_size=224, dropout=0.5)
    if dataset == "kinetics400":
        recipe.data = dataclasses.replace(
            recipe.data, sampling="dense", interval=8, scales=(0.875, 0.8, 0.7), eval_clips=10, eval_crops=3
        )
        recipe.optimizer = OptimizerRecipe("sgd", 0.1, 0.9, 1e-4, "cosine", warmup_epochs=34, clip_norm=0)
        recipe.batch_size, recipe.epochs = 64, 196
    return recipe
