"""CNN-GRU and CNN-LSTM: a ResNet sees each frame, a recurrent network reads the frames in order.

    python scripts/train.py --config configs/cnn_rnn.py           the embedded data set, on a laptop
    python scripts/train.py --config configs/cnn_rnn.py --config.model.name=cnn_lstm
    python scripts/train.py --config configs/cnn_rnn.py:folder --config.data.root=FOLDER
    python scripts/train.py --config configs/cnn_rnn.py:folder --config.data.root=FOLDER --config.freeze='()'

With ucf101, hmdb51 and folder the ResNet starts from ImageNet and is frozen, parameters and statistics
(`freeze = ("stem", r"body/layer\\d+_\\d+")`): the recurrent layers and the head are trained alone. An empty `freeze`
trains all of it; ("stem", r"body/layer[12]_\\d+") is in between. `model.weights` may be a run of the ResNet
(tsn_resnet50, ...) as well, or of the whole network. Nobody has published a result of exactly this network.

Arguments: motion (default), ucf101_small, ucf101, hmdb51, folder, folder_small.
"""

import dataclasses

from flaxvid.train.presets import preset
from flaxvid.train.recipe import ModelRecipe, OptimizerRecipe, Recipe

FROZEN = ("stem", r"body/layer\d+_\d+")


def get_config(dataset: str = "motion") -> Recipe:
    recipe = preset(dataset)
    if recipe.model.options.get("width"):
        backbone = {name: recipe.model.options[name] for name in ("width", "depths")}
        options = {"backbone": "resnet18", "backbone_options": backbone, "hidden_dim": 64, "num_layers": 1}
        recipe.model = dataclasses.replace(recipe.model, name="cnn_gru", options={**options, "classifier_std": 0.1})
        return recipe
    options = {"backbone": "resnet50", "hidden_dim": 512, "num_layers": 2}
    recipe.model = ModelRecipe("cnn_gru", "torchvision/resnet50-imagenet1k-v1", num_frames=16, options=options)
    recipe.optimizer = OptimizerRecipe("adamw", 1e-3, weight_decay=0.05, schedule="cosine", warmup_epochs=1)
    recipe.freeze = FROZEN
    return recipe
