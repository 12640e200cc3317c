"""R(2+1)D-18 (arXiv 1711.11248).

    python scripts/train.py --config configs/r2plus1d.py       the embedded data set, on a laptop
    python scripts/train.py --config configs/r2plus1d.py:kinetics400 --config.data.root=FOLDER

The recipe of Kinetics-400 is torchvision's: 45 epochs of SGD with a rate of 0.01 for every 24 clips (theirs was trained
on 64 GPUs with 24 each), ten epochs of warm-up, decay on all parameters. What differs: theirs draws five clips of each
video in an epoch, ours one; its 16 frames come at 15 a second, ours are every second one; it resizes to 128 x 171
pixels and cuts 112 anywhere, we at one of 13 places, and the middle from 128 with the aspect kept at the test.

Arguments: motion (default), kinetics400, folder.
"""

import dataclasses

from flaxvid.train.presets import SMALL, preset
from flaxvid.train.recipe import ModelRecipe, OptimizerRecipe, Recipe

PUBLISHED = {
    "kinetics400": "r2plus1d_18 of torchvision, top-1 with five clips of 16 frames a video: 67.46; "
    "r2plus1d_r50 of pytorchvideo (16x4): 76.01; R(2+1)D-34 of mmaction2: 69.76 (8x8), 75.46 (32x2)",
}


def get_config(dataset: str = "motion") -> Recipe:
    recipe = preset(dataset)
    recipe.published = PUBLISHED.get(dataset, "")
    if recipe.model.options.get("width"):
        recipe.model = dataclasses.replace(recipe.model, name="r2plus1d_r18", options={**SMALL})
        return recipe
    recipe.model = ModelRecipe("r2plus1d_r18")
    if dataset == "kinetics400":
        recipe.data.clips = dataclasses.replace(
            recipe.data.clips, sampling="dense", interval=2, test_size=128, scales=(0.875,), clips=5
        )
        recipe.optimizer = OptimizerRecipe(
            "sgd", 0.01, 0.9, 1e-4, "step", (20, 30, 40), 10, warmup_start=1e-5, clip_norm=0, rules=()
        )
        recipe.batch_size, recipe.epochs = 24, 45
    return recipe
