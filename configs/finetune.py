"""Your own videos in class folders, on a network that is trained already.

    python scripts/train.py --config configs/finetune.py --config.model.weights=WEIGHTS --config.data.root=FOLDER

WEIGHTS is a run's folder, a file of flaxvid, a name of published weights such as slow_r50/pytorchvideo/kinetics400, or
a torch file. The last, and weights of images such as torchvision/resnet50-imagenet1k-v1, do not say their network: add
--config.model.name=tsm_resnet50. The network keeps its frame count, its size and its options. A 3-D network starts from
the file of a 2-D one with --config.model.name=slow_r50 --config.model.inflate=mean.

all trains the whole network, the slower the deeper a layer lies. head trains a new classifier alone, on features that
the rest computes once. gradual begins with the classifier and unfreezes the body, then the stem. l2_sp pulls the
weights back to where they started.

Arguments: all (default), head, gradual, l2_sp.
"""

import dataclasses

from flaxvid.tasks.supervised import SupervisedRecipe
from flaxvid.train.presets import preset
from flaxvid.train.recipe import ModelRecipe, OptimizerRecipe, Recipe

WAYS = ("all", "head", "gradual", "l2_sp")


def get_config(way: str = "all") -> Recipe:
    if way not in WAYS:
        raise ValueError(f"unknown way {way!r}: this config has {', '.join(WAYS)}")
    recipe = preset("folder")
    recipe.model, recipe.eval_frames = ModelRecipe(""), ()
    recipe.task = SupervisedRecipe(label_smoothing=0.1)
    recipe.optimizer = OptimizerRecipe(
        "adamw", 1e-3, weight_decay=0.05, schedule="cosine", warmup_epochs=2, clip_norm=5.0, layer_decay=0.75
    )
    recipe.epochs = 30
    if way == "head":
        recipe.freeze, recipe.feature_cache = ("stem", "body"), 10.0
        recipe.data.clips = dataclasses.replace(recipe.data.clips, flip=False, fixed=True)
        recipe.optimizer.layer_decay, recipe.optimizer.clip_norm = 1.0, 0.0
    if way == "gradual":
        recipe.freeze, recipe.unfreeze = ("stem", "body"), ((5, "body"), (10, "stem"))
    if way == "l2_sp":
        recipe.optimizer.learning_rate, recipe.optimizer.layer_decay, recipe.optimizer.weight_decay = 3e-4, 1.0, 0.1
        recipe.optimizer.decay_to_start = ("stem", "body")
    return recipe
