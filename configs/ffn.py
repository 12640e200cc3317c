"""FFN on TSM: one network for every frame count (arXiv 2303.14817).

    python scripts/train.py --config configs/ffn.py            the embedded data set, on a laptop
    python scripts/train.py --config configs/ffn.py:ssv2 --config.data.root=FOLDER

Arguments: motion (default), ssv1, ssv2, kinetics400, hmdb51, ucf101, ucf101_small, folder, folder_small.
"""

from flaxvid.tasks.frame_flexible import FfnRecipe
from flaxvid.train.presets import preset
from flaxvid.train.recipe import Recipe

PUBLISHED = {
    "ssv1": "TSM-R50 FFN, top-1 at 4 / 8 / 16 frames: 42.85 / 48.20 / 50.79",
    "ssv2": "TSM-R50 FFN, top-1 at 4 / 8 / 16 frames: 56.07 / 61.86 / 63.61",
    "kinetics400": "TSM-R50 FFN, top-1 at 4 / 8 / 16 frames: 68.96 / 72.33 / 74.35",
    "hmdb51": "TSM-R50 FFN, top-1 at 4 / 8 / 16 frames: 45.67 / 47.67 / 48.80",
}


def get_config(dataset: str = "motion") -> Recipe:
    recipe = preset(dataset)
    recipe.task = FfnRecipe()
    recipe.published = PUBLISHED.get(dataset, "")
    return recipe
