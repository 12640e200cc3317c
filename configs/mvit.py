"""MViT-B 16x4 and 32x3 (arXiv 2104.11227), MViTv2-S 16x4 (arXiv 2112.01526).

    python scripts/train.py --config configs/mvit.py           the embedded data set, on a laptop
    python scripts/train.py --config configs/mvit.py:kinetics400 --config.data.root=FOLDER
    python scripts/train.py --config configs/mvit.py:folder --config.data.root=FOLDER --config.model.weights=FILE
    python scripts/train.py --config configs/mvit.py:probe --config.data.root=FOLDER --config.model.weights=FILE

The recipe of Kinetics-400 is PySlowFast's, from scratch, at 16 of its shards: 512 clips of 256 videos, and the rate
that this makes. Optimizer, schedule, decay, mixing, erasing and RandAugment's numbers are the same; those of its 32x3,
which has 24 blocks, serve for our 16. What differs: its cosine ends at a hundredth of the peak, ours at 0; its
RandAugment has a few operations that ours has not; its frames are as far apart at 30 frames a second as ours are as
they were filmed.

folder and ucf101 fine-tune a trained network on your own videos, probe trains the attentive head alone, on a frozen
network. Both need `model.weights`. ucf101_small and folder_small are from scratch and small enough for a CPU.

Arguments: motion (default), kinetics400, kinetics400_32x3, kinetics400_v2, ucf101, ucf101_small, folder,
folder_small, probe.
"""

import dataclasses

from flaxvid.data.clips.cut import Augmentation
from flaxvid.tasks.supervised import SupervisedRecipe
from flaxvid.train.presets import fine_tuned, preset, probed
from flaxvid.train.recipe import ModelRecipe, OptimizerRecipe, Recipe

PUBLISHED = {
    "kinetics400": "PySlowFast's MViT-B 16x4, top-1 with 5 x 1 views: 78.4",
    "kinetics400_32x3": "pytorchvideo's MViT-B 32x3, top-1 with 5 x 1 views: 80.30",
    "kinetics400_v2": "PySlowFast's MViTv2-S 16x4, top-1 with 5 x 1 views: 81.0",
}


def get_config(argument: str = "motion") -> Recipe:
    dataset, _, variant = argument.rpartition("_")
    if variant not in ("32x3", "v2"):
        dataset, variant = argument, ""
    recipe = preset("folder" if dataset == "probe" else dataset)
    recipe.published = PUBLISHED.get(argument, "")
    if recipe.model.options.get("width"):
        options = {"width": 32, "depth": 4, "stages": (1, 3), "key_stride": 4, "drop_path": 0.0}
        recipe.model = dataclasses.replace(recipe.model, name="mvit_base", options=options)
        recipe.optimizer = dataclasses.replace(recipe.optimizer, learning_rate=1e-3, weight_decay=0.05, clip_norm=1.0)
        return recipe
    recipe.model = ModelRecipe("mvit_v2_s" if variant == "v2" else "mvit_base")
    recipe.eval_frames = ()
    if dataset != "kinetics400":
        return probed(recipe) if dataset == "probe" else fine_tuned(recipe)
    long = variant == "32x3"
    recipe.model.num_frames = 32 if long else None
    recipe.model.options = {"drop_path": 0.3 if long else 0.2}
    recipe.task = SupervisedRecipe(label_smoothing=0.1, mixup=0.8, cutmix=1.0, erasing=0.25)
    vary = Augmentation("resized", randaugment=4, magnitude=7.0, deviation=0.5)
    recipe.data.clips = dataclasses.replace(
        recipe.data.clips, sampling="dense", interval=3 if long else 4, augmentation=vary, repeats=2, clips=5
    )
    recipe.optimizer = OptimizerRecipe(
        "adamw",
        1.6e-3,
        weight_decay=0.05,
        schedule="cosine",
        warmup_epochs=30,
        warmup_start=1.6e-5,
        clip_norm=1.0,
        rules=(("norm|bias", 1.0, 0.0),),
    )
    recipe.batch_size, recipe.epochs = 512, 200
    return recipe
