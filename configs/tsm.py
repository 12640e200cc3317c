"""TSM at one frame count (arXiv 1811.08383), and the baselines that FFN is compared with.

    python scripts/train.py --config configs/tsm.py
    python scripts/train.py --config configs/tsm.py --config.task.frames='(4,)' --workdir runs/tsm-4

Arguments: motion (default), ssv1, ssv2, kinetics400, hmdb51, ucf101, ucf101_small, folder, folder_small;
ssv2_cosine is Something-Something v2 with batch 8 and a cosine schedule.
"""

from flaxvid.train.presets import preset
from flaxvid.train.recipe import Recipe

PUBLISHED = {
    "ssv1": "TSM-R50 trained at 16 frames, top-1 at 4 / 8 / 16 frames (arXiv 2303.14817): 20.60 / 37.36 / 48.55",
    "ssv2": "TSM-R50 trained at 16 frames, top-1 at 4 / 8 / 16 frames (arXiv 2303.14817): 31.52 / 51.55 / 61.02",
    "kinetics400": "TSM-R50 at 4 / 8 / 16 frames, trained separately (arXiv 2303.14817): 66.25 / 70.38 / 73.16",
    "hmdb51": "TSM-R50 at 4 / 8 / 16 frames, trained separately (arXiv 2303.14817): 44.74 / 46.77 / 48.30",
}


def get_config(dataset: str = "motion") -> Recipe:
    if dataset == "ssv2_cosine":
        recipe = preset("ssv2")
        recipe.batch_size = 8
        recipe.optimizer.learning_rate = 0.01 * 8 / 32
        recipe.optimizer.schedule = "cosine"
        return recipe
    recipe = preset(dataset)
    recipe.published = PUBLISHED.get(dataset, "")
    return recipe
