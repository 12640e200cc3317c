"""TS-CVA: cross-view attention over three cameras of one scene, and what it is compared with.

    python scripts/train.py --config configs/ts_cva.py           scenes of the embedded data set, on a laptop
    python scripts/train.py --config configs/ts_cva.py --config.model.options.fusion=late
    python scripts/train.py --config configs/ts_cva.py --config.data.cameras='("front",)' --workdir runs/front
    python scripts/train.py --config configs/ts_cva.py:folder --config.data.root=FOLDER

Fusions are attention, concat and late. FOLDER has a folder for each camera, with a folder of videos for each class in
it; files of one scene have the same name: FOLDER/front/jump/a.mp4, FOLDER/left/jump/a.mp4, ... Other cameras than
front, left and right are named by --config.data.cameras. Weight decay leaves alone what the attention knows of each
camera, its embedding and its projection (`DECAY_RULES`). Nobody has published a result of this network on data that can
be had.

Arguments: motion (default), folder.
"""

import dataclasses

from flaxvid.train.presets import preset
from flaxvid.train.recipe import ModelRecipe, OptimizerRecipe, Recipe

CAMERAS = ("front", "left", "right")


def get_config(dataset: str = "motion") -> Recipe:
    recipe = preset(dataset)
    recipe.data.cameras, recipe.data.clips.flip = CAMERAS, False
    options = {"fusion": "attention", "separate": False, "camera_dropout": 0.2}
    if recipe.model.options.get("width"):
        backbone = {**recipe.model.options, "depths": (1, 1, 1)}
        options |= {"backbone": "tsm_resnet18", "backbone_options": backbone}
        recipe.model = dataclasses.replace(
            recipe.model, name="ts_cva", num_frames=8, image_size=32, dropout=0.0, options=options
        )
        recipe.data.motion = {**recipe.data.motion, "size": 32, "num_frames": 16, "train": 3000, "test": 1024}
        recipe.data.clips.test_size, recipe.eval_frames = 32, ()
        recipe.epochs = 6
        return recipe
    options |= {"backbone": "r3d_18", "backbone_options": {}}
    recipe.model = ModelRecipe("ts_cva", dropout=0.5, options=options)
    recipe.optimizer = OptimizerRecipe("adamw", 1e-4, weight_decay=0.05, schedule="cosine", warmup_epochs=1)
    return recipe
