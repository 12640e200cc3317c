"""TimeSformer-B, divided, joint and space-only attention (arXiv 2102.05095).

    python scripts/train.py --config configs/timesformer.py    the embedded data set, on a laptop
    python scripts/train.py --config configs/timesformer.py:kinetics400 --config.data.root=FOLDER
    python scripts/train.py --config configs/timesformer.py:folder --config.data.root=FOLDER --config.model.weights=FILE
    python scripts/train.py --config configs/timesformer.py:probe --config.data.root=FOLDER --config.model.weights=FILE

The recipe of Kinetics-400 is mmaction2's: optimizer, schedule, batch, drop-path, frames, pixels and views are the same.
What differs: they start from an image network of ImageNet-21k, for which no file is known here, so that without
`model.weights` ours starts from scratch and will not reach their result; they resize the short side to any size from
256 to 320 pixels and cut 224 anywhere, where we cut one of three such sizes at one of 13 places.

folder and ucf101 fine-tune a trained network on your own videos as transformers for video are today: AdamW with a
learning rate that falls from layer to layer, mixup and cutmix, RandAugment, two clips of each video in a batch. probe
trains the attentive head alone, on a frozen network. Both need `model.weights`. ucf101_small and folder_small are
from scratch and small enough for a CPU.

Arguments: motion (default), kinetics400, kinetics400_joint, kinetics400_space, ucf101, ucf101_small, folder,
folder_small, probe.
"""

import dataclasses

from flaxvid.train.presets import fine_tuned, preset, probed, small_transformer
from flaxvid.train.recipe import ModelRecipe, OptimizerRecipe, Recipe

PUBLISHED = {
    "kinetics400": "mmaction2's TimeSformer from ImageNet-21k, top-1 with 1 x 3 views: 77.69",
    "kinetics400_joint": "mmaction2's TimeSformer, joint attention, from ImageNet-21k, top-1 with 1 x 3 views: 76.95",
    "kinetics400_space": "mmaction2's TimeSformer, space alone, from ImageNet-21k, top-1 with 1 x 3 views: 76.93",
}
HALVES = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
"""Pixels from -1 to 1."""


def get_config(argument: str = "motion") -> Recipe:
    dataset, _, attention = argument.rpartition("_")
    if attention not in ("joint", "space"):
        dataset, attention = argument, "divided"
    recipe = preset("folder" if dataset == "probe" else dataset)
    recipe.published = PUBLISHED.get(argument, "")
    if recipe.model.options.get("width"):
        return small_transformer(recipe, "timesformer_base", attention)
    recipe.model, recipe.eval_frames = ModelRecipe("timesformer_base", options={"attention": attention}), ()
    if dataset != "kinetics400":
        return probed(recipe) if dataset == "probe" else fine_tuned(recipe)
    recipe.model.options |= {**HALVES, "drop_path": 0.1}
    recipe.data.clips = dataclasses.replace(
        recipe.data.clips, sampling="dense", interval=32, scales=(0.875, 0.8, 0.7), test_size=224, crops=3
    )
    recipe.optimizer = OptimizerRecipe(
        "sgd", 0.005, 0.9, 1e-4, "step", (5, 10), nesterov=True, clip_norm=40.0, rules=(("other", 1.0, 0.0),)
    )
    recipe.batch_size, recipe.epochs = 64, 15
    return recipe
