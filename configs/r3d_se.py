"""R3D-18 with squeeze-and-excitation, to recognise emotions or anything else in your own videos.

    python scripts/train.py --config configs/r3d_se.py         the embedded data set, on a laptop
    python scripts/train.py --config configs/r3d_se.py:folder --config.data.root=FOLDER
    python scripts/train.py --config configs/r3d_se.py:folder --config.data.root=FOLDER --config.task.frames='(32,)'

FOLDER holds a folder of videos for each class. `task.frames` is the clip's size: so many frames evenly from the first
to the last, repeated where a video has fewer. Weights of R3D-18 make a start; see `flaxvid.models.r3d.build_r3d`.
ucf101_small is for the hundred real videos of the tests, from scratch on a CPU.

Nobody publishes a result of this network. R3D-18 without squeeze-and-excitation has 63.20 on Kinetics-400
(torchvision, five clips of 16 frames a video).

Arguments: motion (default), ucf101_small, folder, folder_small.
"""

import dataclasses

from flaxvid.train.presets import SMALL, preset
from flaxvid.train.recipe import ModelRecipe, OptimizerRecipe, Recipe


def get_config(dataset: str = "motion") -> Recipe:
    recipe = preset(dataset)
    recipe.data.clips = dataclasses.replace(recipe.data.clips, sampling="even", short="repeat")
    if recipe.model.options.get("width"):
        recipe.model = dataclasses.replace(recipe.model, name="r3d_18_se", options={**SMALL})
        return recipe
    recipe.model = ModelRecipe("r3d_18_se", dropout=0.5)
    recipe.optimizer = OptimizerRecipe("adamw", 1e-4, weight_decay=0.05, schedule="cosine", warmup_epochs=1)
    return recipe
