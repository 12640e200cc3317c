"""Recipes for TSM on each data set, as the authors of TSM and FFN publish them; the configs start from these."""

import dataclasses

from flaxvid.data.clips.cut import Augmentation, ClipConfig
from flaxvid.data.motion.build import MotionConfig
from flaxvid.tasks.supervised import SupervisedRecipe
from flaxvid.train.groups import FFN_RULES, NORM_RULES
from flaxvid.train.recipe import DataRecipe, ModelRecipe, OptimizerRecipe, Recipe

SMALL = {"width": 16, "depths": (1, 1, 1, 1), "classifier_std": 0.1}
"""Options of a ResNet that trains from scratch on a CPU."""


def _imagenet(frames: int) -> ModelRecipe:
    return ModelRecipe("tsm_resnet50", "torchvision/resnet50-imagenet1k-v1", num_frames=frames)


def _flipped() -> ClipConfig:
    return ClipConfig(flip=True, short="repeat")


def _something(version: str) -> Recipe:
    """arXiv 2303.14817, section 4.1, and its code; no flip, for labels say left and right."""
    return Recipe(
        model=_imagenet(16),
        data=DataRecipe(f"ssv{version}", eval_split="validation", clips=ClipConfig(short="repeat"), num_workers=8),
        optimizer=OptimizerRecipe("sgd", 0.01, 0.9, 5e-4, "step", (20, 40), clip_norm=20.0, rules=FFN_RULES),
        batch_size=32,
        epochs=50,
    )


def ssv1() -> Recipe:
    """Something-Something v1."""
    return _something("1")


def ssv2() -> Recipe:
    """Something-Something v2."""
    return _something("2")


def kinetics400() -> Recipe:
    """Kinetics-400: as Something-Something, with less decay and with flips."""
    recipe = _something("2")
    recipe.data = DataRecipe("kinetics400", eval_split="validation", clips=_flipped(), num_workers=8)
    recipe.optimizer.weight_decay = 1e-4
    return recipe


def hmdb51() -> Recipe:
    """HMDB51, split 1, with the settings of Something-Something: the FFN paper names no others."""
    recipe = _something("2")
    recipe.data = DataRecipe("hmdb51", clips=_flipped(), fold=1, num_workers=8)
    return recipe


def ucf101() -> Recipe:
    """UCF-101, split 1: TSM's fine-tuning (arXiv 1811.08383, section 5.1), with all norms frozen but the first.

    The authors start from Kinetics-400; give such a file as ``--config.model.weights=FILE``.
    """
    recipe = hmdb51()
    recipe.data = dataclasses.replace(recipe.data, name="ucf101")
    recipe.model.dropout = 0.8
    recipe.freeze = (r"body/.*norm\w*",)
    recipe.optimizer = dataclasses.replace(recipe.optimizer, learning_rate=0.001, milestones=(10, 20))
    recipe.epochs = 25
    return recipe


def ucf101_small() -> Recipe:
    """About a hundred real videos in UCF-101's layout, from scratch, on a laptop's CPU."""
    return Recipe(
        model=ModelRecipe(
            "tsm_resnet18",
            num_frames=16,
            image_size=56,
            dropout=0.3,
            options={**SMALL},
        ),
        data=DataRecipe("ucf101", clips=_flipped(), fold=1),
        optimizer=OptimizerRecipe("adamw", 2e-3, weight_decay=0.05, schedule="cosine", warmup_epochs=2, clip_norm=5.0),
        batch_size=9,
        eval_batch_size=14,
        epochs=80,
        checkpoint_every=10,
    )


def folder() -> Recipe:
    """Your own videos in class folders, ``--config.data.root=FOLDER``."""
    return Recipe(
        model=_imagenet(16),
        data=DataRecipe("folder", clips=_flipped()),
        optimizer=OptimizerRecipe("sgd", 0.005, schedule="cosine", warmup_epochs=1, rules=FFN_RULES),
        batch_size=16,
        eval_batch_size=16,
        epochs=25,
    )


def folder_small() -> Recipe:
    """Your own videos in class folders, as `ucf101_small`: from scratch, on a laptop's CPU."""
    recipe = ucf101_small()
    recipe.data = DataRecipe("folder", clips=_flipped())
    return recipe


def motion() -> Recipe:
    """The embedded data set, sized for two CPU cores and from scratch."""
    settings = {
        name: value for name, value in dataclasses.asdict(MotionConfig()).items() if name not in ("camera", "domain")
    }
    return Recipe(
        model=ModelRecipe(
            "tsm_resnet18",
            num_frames=16,
            image_size=40,
            dropout=0.0,
            options={**SMALL, "shift_div": 4},
        ),
        data=DataRecipe("motion", clips=ClipConfig(test_size=40, scales=(1.0, 0.9)), motion=settings),
        optimizer=OptimizerRecipe(
            "adamw", 2e-3, weight_decay=0.02, schedule="cosine", warmup_epochs=0.15, clip_norm=5.0
        ),
        batch_size=8,
        eval_batch_size=64,
        epochs=5,
        log_every=50,
    )


def pyslowfast(learning_rate: float, weight_decay: float, warmup_epochs: float) -> OptimizerRecipe:
    """PySlowFast's optimizer: Nesterov's momentum, a cosine from epoch 0, decay on all but the norms, no clipping."""
    return OptimizerRecipe(
        "sgd",
        learning_rate,
        0.9,
        weight_decay,
        "cosine",
        (),
        warmup_epochs,
        warmup_start=0.01,
        cosine_from_start=True,
        nesterov=True,
        clip_norm=0.0,
        rules=NORM_RULES,
    )


def small_transformer(recipe: Recipe, name: str, attention: str) -> Recipe:
    """The recipe of a small data set, such as "motion" or "folder_small", for a transformer from scratch on a CPU."""
    options = {"width": 96, "depth": 4, "num_heads": 4, "patch_size": 8, "attention": attention}
    recipe.model = dataclasses.replace(recipe.model, name=name, options=options)
    recipe.optimizer = dataclasses.replace(recipe.optimizer, learning_rate=1e-3, weight_decay=0.05, clip_norm=1.0)
    return recipe


def fine_tuned(recipe: Recipe) -> Recipe:
    """The recipe of a data set for a trained transformer, as VideoMAE's authors and others fine-tune theirs.

    Layer-wise rate decay, drop-path, label smoothing, mixup and cutmix, RandAugment and repeated augmentation (arXiv
    2203.12602). The rate is for a batch of 64.
    """
    vary = Augmentation("resized", randaugment=4, magnitude=7.0, deviation=0.5)
    recipe.model.options |= {"drop_path": 0.1}
    recipe.task = SupervisedRecipe(label_smoothing=0.1, mixup=0.8, cutmix=1.0)
    recipe.data.clips = dataclasses.replace(recipe.data.clips, augmentation=vary, repeats=2)
    recipe.optimizer = OptimizerRecipe(
        "adamw", 2.5e-4, weight_decay=0.05, schedule="cosine", warmup_epochs=5, clip_norm=0.0, layer_decay=0.75
    )
    recipe.freeze, recipe.batch_size, recipe.epochs = (), 64, 50
    return recipe


def probed(recipe: Recipe) -> Recipe:
    """The recipe of a data set for an attentive head on a trained network that stays as it is (arXiv 2404.08471)."""
    recipe.model.options |= {"head": "attention"}
    recipe.optimizer = OptimizerRecipe("adamw", 1e-3, weight_decay=0.01, schedule="cosine", clip_norm=0.0)
    recipe.freeze, recipe.batch_size, recipe.epochs = ("stem", "body"), 64, 20
    return recipe


PRESETS = {
    "motion": motion,
    "ssv1": ssv1,
    "ssv2": ssv2,
    "kinetics400": kinetics400,
    "hmdb51": hmdb51,
    "ucf101": ucf101,
    "ucf101_small": ucf101_small,
    "folder": folder,
    "folder_small": folder_small,
}


def preset(name: str) -> Recipe:
    """The recipe of a data set for a plain TSM at 16 frames.

    Raises:
        ValueError: no such name; the message lists them.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown data set {name!r}: this config has {', '.join(PRESETS)}")
    recipe = PRESETS[name]()
    recipe.task = SupervisedRecipe()
    return recipe
