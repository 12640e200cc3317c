"""ViViT-B/16x2, joint and factorised encoder (arXiv 2103.15691).

    python scripts/train.py --config configs/vivit.py          the embedded data set, on a laptop
    python scripts/train.py --config configs/vivit.py:motion_factorised
    python scripts/train.py --config configs/vivit.py:motion_flexible
    python scripts/train.py --config configs/vivit.py:kinetics400 --config.data.root=FOLDER --config.model.weights=FILE
    python scripts/train.py --config configs/vivit.py:folder --config.data.root=FOLDER --config.model.weights=FILE
    python scripts/train.py --config configs/vivit.py:probe --config.data.root=FOLDER --config.model.weights=FILE

motion_flexible is FFN (arXiv 2303.14817) on the network of motion_factorised: one for 4, 8 and 16 frames.

The recipes of Kinetics-400 are those of Scenic's configs, with half the rate for the factorised encoder: optimizer,
schedule, batch, frames and views are the same. What differs: they start from an image network of ImageNet-21k, for
which no file is known here, so that without `model.weights` ours starts from scratch and will not reach their result;
they also vary the colours; their short side is any from 0.9 to 1.33 times 256 pixels, where we cut one of four such
sizes at one of 13 places.

folder and ucf101 fine-tune a trained network on your own videos as transformers for video are today: AdamW with a
learning rate that falls from layer to layer, mixup and cutmix, RandAugment, two clips of each video in a batch. probe
trains the attentive head alone, on a frozen network. Both need `model.weights`. ucf101_small and folder_small are
from scratch and small enough for a CPU.

Arguments: motion (default), motion_factorised, motion_flexible, kinetics400, kinetics400_factorised, ucf101,
ucf101_small, folder, folder_small, probe.
"""

import dataclasses

from flaxvid.tasks.frame_flexible import FfnRecipe
from flaxvid.train.presets import fine_tuned, preset, probed, small_transformer
from flaxvid.train.recipe import ModelRecipe, OptimizerRecipe, Recipe

PUBLISHED = {
    "kinetics400": "Scenic's ViViT-B/16x2 from ImageNet-21k, top-1 with 4 x 3 views: 79.9",
    "kinetics400_factorised": "Scenic's ViViT-B/16x2, factorised, from ImageNet-21k, top-1 with 4 x 3 views: 78.4",
}


def get_config(argument: str = "motion") -> Recipe:
    if argument == "motion_flexible":
        recipe = get_config("motion_factorised")
        recipe.task = FfnRecipe(weight=0.2)  # at 1.0 what few frames are to learn drowns the labels
        return recipe
    dataset, _, attention = argument.rpartition("_")
    if attention != "factorised":
        dataset, attention = argument, "joint"
    recipe = preset("folder" if dataset == "probe" else dataset)
    recipe.published = PUBLISHED.get(argument, "")
    if recipe.model.options.get("width"):
        recipe = small_transformer(recipe, "vivit_base", attention)
        if attention == "factorised":
            recipe.model.options |= {"width": 64, "depth": 2, "temporal_depth": 2}
            recipe.epochs = 8 if dataset == "motion" else recipe.epochs
        return recipe
    recipe.model, recipe.eval_frames = ModelRecipe("vivit_base", options={"attention": attention}), ()
    if dataset != "kinetics400":
        return probed(recipe) if dataset == "probe" else fine_tuned(recipe)
    recipe.data.clips = dataclasses.replace(
        recipe.data.clips, sampling="dense", interval=2, scales=(0.97, 0.875, 0.77, 0.66), clips=4, crops=3
    )
    rate = 0.1 if attention == "joint" else 0.05
    recipe.optimizer = OptimizerRecipe(
        "sgd", rate, 0.9, 0.0, "cosine", (), warmup_epochs=2.5, cosine_from_start=True, clip_norm=1.0
    )
    recipe.batch_size, recipe.epochs = 64, 30
    return recipe
