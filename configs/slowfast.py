"""SlowFast 8x8 and 4x16, ResNet-50 and -101 (arXiv 1812.03982).

    python scripts/train.py --config configs/slowfast.py       the embedded data set, on a laptop
    python scripts/train.py --config configs/slowfast.py:kinetics400 --config.data.root=FOLDER

The recipe of Kinetics-400 is PySlowFast's SLOWFAST_8x8_R50: optimizer, schedule, decay and initialisation are the same.
What differs: its norms see the 8 clips of a GPU, ours the whole batch of 64 (`norm_groups=8` is theirs); it resizes the
short side to any size from 256 to 320 pixels and cuts 224 anywhere, where we cut one of three such sizes at one of 13
places, height and width not always alike; its frames are 2 apart at 30 frames a second, ours as they were filmed; it
tests crops of 256 pixels, we of 224; and it re-estimates the norms' statistics from 200 batches before evaluation.

With ffn, one network for three frame counts (arXiv 2303.14817), each spread over the whole video: 16, 32 and 64 on
Kinetics-400, as in that paper, or on another data set (ssv2_ffn, say).

Arguments: motion (default), motion_ffn, kinetics400, kinetics400_4x16, kinetics400_r101, kinetics400_ffn, ssv2, folder.
"""

import dataclasses

from flaxvid.tasks.frame_flexible import FfnRecipe
from flaxvid.train.presets import SMALL, preset, pyslowfast
from flaxvid.train.recipe import ModelRecipe, Recipe

PUBLISHED = {
    "kinetics400": "slowfast_r50 8x8 of pytorchvideo, top-1 with 10 x 3 views: 76.94; PySlowFast, 196 epochs: 77.0",
    "kinetics400_4x16": "slowfast_r50 4x16 of pytorchvideo, top-1 with 10 x 3 views: 75.34; PySlowFast: 75.6",
    "kinetics400_r101": "slowfast_r101 8x8 of pytorchvideo, top-1 with 10 x 3 views: 77.90",
    "ssv2": "slowfast_r50 8x8 of pytorchvideo from Kinetics-400, top-1: 61.68",
}

VARIANTS = ("4x16", "r101", "ffn")


def get_config(argument: str = "motion") -> Recipe:
    dataset, _, variant = argument.rpartition("_")
    if variant not in VARIANTS:
        dataset, variant = argument, ""
    recipe, ffn = preset(dataset), variant == "ffn"
    recipe.published = PUBLISHED.get(argument, "")
    if dataset == "motion":
        recipe.model = dataclasses.replace(recipe.model, name="slowfast_r50", options={**SMALL})
        recipe.task = FfnRecipe() if ffn else recipe.task
        return recipe
    recipe.eval_frames = (16, 24, 32, 40, 48, 56, 64) if ffn else ()
    options = {"alpha": 8, "fusion_kernel": 5} if variant == "4x16" else {}
    name = "slowfast_r101" if variant == "r101" else "slowfast_r50"
    recipe.model = ModelRecipe(name, options=options)
    if ffn:
        recipe.task, recipe.model.num_frames = FfnRecipe((16, 32, 64)), 64
    if dataset == "kinetics400":
        sampling = {} if ffn else {"sampling": "dense", "interval": 2, "clips": 10, "crops": 3}
        recipe.data.clips = dataclasses.replace(recipe.data.clips, scales=(0.875, 0.8, 0.7), **sampling)
        recipe.model.options = {**options, "zero_init": True}
        recipe.optimizer = pyslowfast(0.1, 1e-4, warmup_epochs=34)
        recipe.batch_size, recipe.epochs = 64, 196
    return recipe
