"""Knowledge distillation (arXiv 1503.02531): a small network learns from the labels and from a trained one.

    python scripts/train.py --config configs/distill.py:motion_teacher --workdir runs/teacher
    python scripts/train.py --config configs/distill.py        the embedded data set; its teacher is runs/teacher
    python scripts/train.py --config configs/distill.py:motion_alone
    python scripts/train.py --config configs/distill.py:folder --config.data.root=DIR --config.task.teachers='("RUN",)'

On motion the teacher is a TSM on ResNet-18 at 8 frames of 32 pixels, and the student has half as many channels;
motion_alone trains the same student from the labels alone. On the other data sets the teacher is a network that you
trained there, and the student a TSM on ResNet-18 with ImageNet weights.

Several teachers, one of them a torch file, and what they see of a video:
    --config.task.teachers="('runs/one','slow.pth')" --config.task.teacher_models="('','slow_r50')"
    --config.task.teacher_frames="(16,8)" --config.task.teacher_sizes="(112,224)"
A student of another kind, with fewer frames, smaller clips: --config.model.name=x3d_s --config.task.frames="(4,)"
--config.model.image_size=112. Features instead of logits: --config.task.logit_weight=0 --config.task.feature_weight=1
--config.task.label_weight=1.

Arguments: motion (default), motion_teacher, motion_alone, ssv2, kinetics400, hmdb51, ucf101, folder.
"""

from flaxvid.tasks.distil import DistilRecipe
from flaxvid.train.presets import preset
from flaxvid.train.recipe import Recipe

MOTION = ("motion", "motion_teacher", "motion_alone")


def get_config(argument: str = "motion") -> Recipe:
    recipe = preset("motion" if argument in MOTION else argument)
    if argument in MOTION:
        # A ResNet-18 in minutes of a CPU.
        recipe.model.num_frames, recipe.model.image_size, recipe.data.clips.test_size = 8, 32, 32
        recipe.epochs, recipe.eval_frames = 3, (8,)
        recipe.model.options |= {"depths": (2, 2, 2, 2), "width": 64 if argument == "motion_teacher" else 32}
    else:
        recipe.model.name, recipe.model.weights = "tsm_resnet18", "torchvision/resnet18-imagenet1k-v1"
    if argument == "motion":
        recipe.task = DistilRecipe(teachers=("runs/teacher",))
    elif argument not in MOTION:
        recipe.task = DistilRecipe()
    return recipe
