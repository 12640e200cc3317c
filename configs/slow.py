"""Slow, the slow pathway of SlowFast as a network of its own (arXiv 1812.03982).

    python scripts/train.py --config configs/slow.py           the embedded data set, on a laptop
    python scripts/train.py --config configs/slow.py:kinetics400 --config.data.root=FOLDER

The recipe of Kinetics-400 is PySlowFast's SLOW_8x8_R50: optimizer, schedule, decay and initialisation are the same.
What differs: its norms see the 8 clips of a GPU, ours the whole batch of 64 (`norm_groups=8` is theirs); it resizes the
short side to any size from 256 to 320 pixels and cuts 224 anywhere, where we cut one of three such sizes at one of 13
places, height and width not always alike; its frames are 8 apart at 30 frames a second, ours as they were filmed; it
tests crops of 256 pixels, we of 224; and it re-estimates the norms' statistics from 200 batches before evaluation.

Arguments: motion (default), kinetics400, ssv2, folder.
"""

import dataclasses

from flaxvid.train.presets import SMALL, preset, pyslowfast
from flaxvid.train.recipe import ModelRecipe, Recipe

PUBLISHED = {
    "kinetics400": "slow_r50 8x8 of pytorchvideo, top-1 with 10 x 3 views: 74.58",
    "ssv2": "slow_r50 8x8 of pytorchvideo from Kinetics-400, top-1: 60.04",
}


def get_config(dataset: str = "motion") -> Recipe:
    recipe = preset(dataset)
    recipe.published = PUBLISHED.get(dataset, "")
    if recipe.model.options.get("width"):
        recipe.model = dataclasses.replace(recipe.model, name="slow_r50", num_frames=8, options={**SMALL})
        return recipe
    recipe.model = ModelRecipe("slow_r50")
    if dataset == "kinetics400":
        recipe.data.clips = dataclasses.replace(
            recipe.data.clips, sampling="dense", interval=8, scales=(0.875, 0.8, 0.7), clips=10, crops=3
        )
        recipe.model.options = {"zero_init": True}
        recipe.optimizer = pyslowfast(0.1, 1e-4, warmup_epochs=34)
        recipe.batch_size, recipe.epochs = 64, 196
    return recipe
