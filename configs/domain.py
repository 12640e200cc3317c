"""Domain adaptation on the embedded data set: labels in its usual look, tests in another one, "shifted".

    python scripts/train.py --config configs/domain.py:adversarial
    python scripts/train.py --config configs/domain.py:source --workdir runs/domain-source
    python scripts/evaluate.py runs/domain-source --adapt tent

The target domain has other light, colours and noise, and a camera that shakes; training sees its videos without their
labels. coral and mmd make the features of both domains alike, adversarial asks a discriminator. source learns from the
source domain alone; scripts/evaluate.py adapts it to the test videos, by adabn or tent. target learns from the labels
of the target domain, which is what adaptation does without.

On videos of your own: --config.data.name=folder --config.data.root=FOLDER --config.data.target="{'root': 'OTHER'}".

Arguments: adversarial (default), coral, mmd, source, target.
"""

from flaxvid.data.motion.build import MotionConfig
from flaxvid.tasks.domain import DomainRecipe
from flaxvid.train.presets import preset
from flaxvid.train.recipe import Recipe

SHIFTED = {"domain": "shifted", "seed": 1}
WEIGHTS = {"coral": 100.0, "mmd": 1.0, "adversarial": 0.3}


def get_config(method: str = "adversarial") -> Recipe:
    if method not in (*WEIGHTS, "source", "target"):
        raise ValueError(f"unknown method {method!r}: this config has {', '.join(WEIGHTS)}, source, target")
    recipe = preset("motion")
    recipe.model.num_frames, recipe.eval_frames, recipe.epochs = 8, (8,), 3
    recipe.data.target = {"motion": {**SHIFTED}}
    if method == "target":
        recipe.data.target, recipe.data.motion = {}, recipe.data.motion | SHIFTED
    if method in WEIGHTS:
        steps = recipe.epochs * MotionConfig().train // recipe.batch_size
        recipe.task = DomainRecipe(method=method, weight=WEIGHTS[method], ramp_steps=steps)
    return recipe
