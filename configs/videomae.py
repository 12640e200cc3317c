"""VideoMAE (arXiv 2203.12602): a vision transformer learns from video without labels, then from few with labels.

    python scripts/train.py --config configs/videomae.py:pretrain --workdir runs/mae
    python scripts/train.py --config configs/videomae.py:finetune --config.model.weights=runs/mae
    python scripts/train.py --config configs/videomae.py:finetune --workdir runs/scratch

The first learns to fill in masked cubes of the embedded data set and uses no label; the page of its run shows what it
makes of them. The second learns the labels of the first 80 of these clips, 5 of each class; the third does so with the
same network from scratch. `--config.data.motion.train=160 --config.epochs=60` has twice the labels in as many steps.
The default, motion, is the network from scratch with all labels. What is to be filled in is the colours as the network
sees them (`task.by_cube=False`): by cube, the noise of these clips would outweigh the rest.

kinetics400_pretrain and kinetics400 follow the paper's recipes for ViT-B; their values were not checked against its
appendix. The short side of a test video is mmaction2's.

Arguments: motion (default), pretrain, finetune, kinetics400_pretrain, kinetics400, folder.
"""

from flaxvid.data.clips.cut import Augmentation
from flaxvid.tasks.masked import MaskedRecipe
from flaxvid.tasks.supervised import SupervisedRecipe
from flaxvid.train.presets import preset
from flaxvid.train.recipe import ModelRecipe, OptimizerRecipe, Recipe

SMALL = {"width": 64, "depth": 3, "num_heads": 4, "patch_size": 8}
PUBLISHED = {
    "kinetics400_pretrain": "VideoMAE ViT-B, 800 epochs, then fine-tuned on Kinetics-400, top-1 with 5 x 3 views: 80.0",
    "kinetics400": "VideoMAE ViT-B pre-trained for 800 epochs, top-1 with 5 x 3 views: 80.0 (1600 epochs: 81.5)",
}


def get_config(dataset: str = "motion") -> Recipe:
    if dataset in ("motion", "pretrain", "finetune"):
        return _motion(dataset)
    recipe = preset(dataset.removesuffix("_pretrain"))
    recipe.published = PUBLISHED.get(dataset, "")
    recipe.model = ModelRecipe("videomae_base")
    recipe.eval_frames = ()
    recipe.data.clips.sampling, recipe.data.clips.interval = "dense", 4
    if dataset == "kinetics400_pretrain":
        recipe.task = MaskedRecipe(mask_ratio=0.9)
        recipe.optimizer = OptimizerRecipe(
            "adamw", 6e-4, weight_decay=0.05, schedule="cosine", warmup_epochs=40, b2=0.95, clip_norm=0.0
        )
        recipe.batch_size, recipe.epochs, recipe.eval_every, recipe.checkpoint_every = 1024, 800, 20, 20
        return recipe
    recipe.task = SupervisedRecipe(label_smoothing=0.1, mixup=0.8, cutmix=1.0, erasing=0.25)
    recipe.model.options = {"drop_path": 0.1}
    recipe.optimizer = OptimizerRecipe(
        "adamw", 2e-3, weight_decay=0.05, schedule="cosine", warmup_epochs=5, clip_norm=0.0, layer_decay=0.75
    )
    recipe.data.clips.augmentation = Augmentation(crop="resized", randaugment=2, magnitude=9.0, deviation=0.5)
    recipe.data.clips.repeats, recipe.data.clips.clips, recipe.data.clips.crops = 2, 5, 3
    recipe.data.clips.test_size = 224
    recipe.batch_size, recipe.epochs = 512, 75
    if dataset == "folder":
        recipe.optimizer.learning_rate, recipe.batch_size, recipe.epochs = 1.25e-4, 32, 50
    return recipe


def _motion(stage: str) -> Recipe:
    """Sized for two CPU cores."""
    recipe = preset("motion")
    recipe.model = ModelRecipe("videomae_base", num_frames=8, image_size=40, options={**SMALL})
    recipe.optimizer.learning_rate, recipe.optimizer.weight_decay = 1e-3, 0.05
    recipe.optimizer.warmup_epochs = 0.5
    recipe.batch_size, recipe.eval_frames = 16, ()
    if stage == "pretrain":
        recipe.task = MaskedRecipe(mask_ratio=0.75, decoder_depth=1, by_cube=False)
        recipe.optimizer.learning_rate, recipe.epochs = 3e-3, 30
    if stage == "finetune":
        recipe.data.motion["train"] = 80
        recipe.optimizer.learning_rate = 3e-3
        recipe.epochs, recipe.optimizer.warmup_epochs = 120, 5
        recipe.eval_every = recipe.checkpoint_every = 20
    return recipe
