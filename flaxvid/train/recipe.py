"""Recipes: typed dataclasses, the whole of what a run is made from."""

import dataclasses
import json
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from flaxvid.data.clips.cut import Augmentation, ClipConfig
from flaxvid.train.groups import DECAY_RULES, Rules, renew
from flaxvid.train.limits import find_problems
from flaxvid.writing import read_json


@dataclasses.dataclass
class ModelRecipe:
    """Which network.

    Attributes:
        name: one of `flaxvid.list_models`.
        weights: start from these: a run's folder, a .safetensors file, a torch file, or a known name such as
            "torchvision/resnet50-imagenet1k-v1"; for a network of several cameras its own or its backbone's; "" trains
            from scratch.
        num_frames, image_size, dropout, dtype, remat: overrides of `create_model`.
        options: further overrides, by name.
        inflate: `weights` are those of a 2-D network, a ResNet's run or file: "mean" or "centre" says how its kernels
            get a time axis, see `adapt.surgery.inflate`; "" for weights of the network itself.
    """

    name: str = "tsm_resnet50"
    weights: str = ""
    num_frames: int = 8
    image_size: int = 224
    dropout: float = 0.5
    dtype: str = "float32"
    remat: bool = False
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    inflate: str = ""


@dataclasses.dataclass
class DataRecipe:
    """Which clips, and how they are sampled.

    Attributes:
        name: "motion", "folder", "list", "ucf101", ...
        root: the data set's folder; "" is the cache folder for "motion", which is built there on first use.
        cameras: their names, for a network of several cameras; `root` has a folder for each of them, of the same
            kind and with the same file names, and "motion" is drawn from the front, left and right. () is one video.
        train_split, eval_split: of the data set.
        validation_split: evaluated during training, which chooses the best checkpoint; "" is the split "validation",
            where the data has one. With that of `eval_split` the best is chosen on the videos of the final table.
        test_size: short side of a test video before its centre crop; 0 is the usual image_size * 256 / 224.
        scales: sides of the multi-scale crop, as parts of the short side.
        flip: mirror training clips where the labels allow it.
        short: what a video with fewer frames than wanted means: "error", it counts as broken, or "repeat" its frames.
        missing: what listed videos that are not there mean: "error" before the start, or "keep", they count as broken.
        max_broken: the share of training videos that may turn out broken; they are replaced and named, more of them
            stop the run.
        sampling, interval: "segment", a frame from each of equal parts of the video; "dense", frames `interval` apart;
            or "even", always the same frames, from the first to the last.
        eval_clips, eval_crops: views of a test video: clips, and crops of each (1, 3, 5 or 10).
        crop: of training clips: "multiscale" (by `scales`) or "resized" (any part of the frame, by `area`, `aspect`).
        area, aspect: least and largest part of the frame, and least and largest width over height, of a resized crop.
        colour_jitter: largest changes of brightness, contrast, saturation and hue.
        randaugment, magnitude: operations of RandAugment on each training clip (0: none), and their magnitude of 10.
        repeats: clips of each video in a training batch; `batch_size` counts them all.
        shuffle_frames: put the frames of each clip in random order, a baseline that knows no order.
        num_threads: that decode.
        num_workers: processes that decode; 0 decodes in this one.
        fold: which of the official splits ("ucf101", "hmdb51"), from 1; 0 for data sets that have no such splits.
        lists: folder of the list files, where it is not found by itself.
        group: keeps the videos of one scene on the same side of a hold-out ("folder", "list"): a regular expression
            with one group that finds the scene in their paths, or a column of the list; "" holds out single videos.
        motion: fields of `MotionConfig`, for "motion".
    """

    name: str = "motion"
    root: str = ""
    cameras: tuple[str, ...] = ()
    train_split: str = "train"
    eval_split: str = "test"
    validation_split: str = ""
    test_size: int = 0
    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
    flip: bool = False
    short: str = "error"
    missing: str = "error"
    max_broken: float = 0.1
    sampling: str = "segment"
    interval: int = 8
    eval_clips: int = 1
    eval_crops: int = 1
    crop: str = "multiscale"
    area: tuple[float, ...] = (0.08, 1.0)
    aspect: tuple[float, ...] = (0.75, 4 / 3)
    colour_jitter: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    randaugment: int = 0
    magnitude: float = 9.0
    repeats: int = 1
    shuffle_frames: bool = False
    num_threads: int = 2
    num_workers: int = 0
    fold: int = 0
    lists: str = ""
    group: str = ""
    motion: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class TaskRecipe:
    """What is learnt.

    Attributes:
        name: "ffn" or "supervised".
        frames: frame counts of the training clips.
        weight, distil: of FFN's distillation; see `FrameFlexibleTask`.
        alteration, private_norms: see `FrameFlexible`.
        sampling, share: of supervised training with several counts; see `Supervised`.
        target_weights: of the losses where the data's labels are of several targets, ``{"actor": 0.5}``; 1 for the
            others.
        label_smoothing: of the cross-entropy.
        mixup, cutmix, erasing: of training clips on the device, 0 for none; see `Mixing`.
    """

    name: str = "ffn"
    frames: tuple[int, ...] = (4, 8, 16)
    weight: float = 1.0
    distil: bool = True
    alteration: str = "normal"
    private_norms: bool = True
    sampling: str = "proportional"
    share: float = 0.5
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    erasing: float = 0.0
    target_weights: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class OptimizerRecipe:
    """How it is learnt.

    Attributes:
        name: "sgd" (with momentum, torch's order of decay and momentum) or "adamw".
        learning_rate: the peak, at the recipe's batch size.
        momentum: of SGD.
        weight_decay: added to the gradient (SGD) or to the step (AdamW).
        schedule: "step", "cosine" or "constant".
        milestones: epochs at which "step" multiplies the rate by 0.1.
        warmup_epochs: of linear warm-up; parts of an epoch are allowed.
        warmup_start: the rate that warm-up begins with.
        cosine_from_start: the cosine begins at epoch 0, and warm-up rises to where it is by then, as in PySlowFast;
            else it begins after the warm-up, at the peak.
        nesterov: SGD's momentum looks ahead, as torch's `nesterov=True`.
        clip_norm: the largest global gradient norm; 0 clips nothing.
        accumulate: parts that a batch is computed in, one after the other, to save memory.
        ema: decay of the moving average that is evaluated, after a warm-up; 0 keeps none.
        rules: parameter groups, `(group, learning-rate factor, weight-decay factor)`; see `train.groups`.
    """

    name: str = "sgd"
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "step"
    milestones: tuple[int, ...] = (20, 40)
    warmup_epochs: float = 0.0
    warmup_start: float = 0.0
    cosine_from_start: bool = False
    nesterov: bool = False
    clip_norm: float = 20.0
    accumulate: int = 1
    ema: float = 0.0
    rules: Rules = DECAY_RULES


@dataclasses.dataclass
class Recipe:
    """A run.

    Attributes:
        model, data, task, optimizer: its parts.
        batch_size: training clips in a step, over all devices and hosts.
        epochs: passes over the training videos.
        freeze: parts that stay as they are, parameters and statistics, as patterns of their paths: ("stem", "body")
            trains the head alone; see `adapt.freezing`.
        norm_groups: groups of a batch that are normalised by their own statistics; 1 is the whole batch, over all
            devices, and as many as there are devices spare the communication.
        seed: of initialisation, sampling and dropout.
        eval_batch_size: videos in a step of evaluation.
        eval_frames: frame counts of the any-frame table at the end.
        eval_every: epochs between evaluations on the validation split, one view of each video at the task's frame
            counts; 0 evaluates on the test split at the end only.
        checkpoint_every: epochs between checkpoints; the last epoch always has one, and so has every evaluation.
        keep: the latest checkpoints that stay, beside the best one that was evaluated.
        keep_every: epochs whose checkpoints stay for ever; 0 keeps none of them.
        log_every: steps between entries in the log, each the mean of the steps since the one before.
        published: what the paper reports for this recipe, as text for the run's page.
    """

    model: ModelRecipe = dataclasses.field(default_factory=ModelRecipe)
    data: DataRecipe = dataclasses.field(default_factory=DataRecipe)
    task: TaskRecipe = dataclasses.field(default_factory=TaskRecipe)
    optimizer: OptimizerRecipe = dataclasses.field(default_factory=OptimizerRecipe)
    batch_size: int = 32
    epochs: int = 50
    freeze: tuple[str, ...] = ()
    norm_groups: int = 1
    seed: int = 0
    eval_batch_size: int = 32
    eval_frames: tuple[int, ...] = (4, 6, 8, 10, 12, 14, 16)
    eval_every: int = 1
    checkpoint_every: int = 1
    keep: int = 3
    keep_every: int = 0
    log_every: int = 20
    published: str = ""


def to_json(recipe: Recipe) -> str:
    """A recipe as text."""
    return json.dumps(dataclasses.asdict(recipe), indent=2)


def read_recipe(workdir: Path) -> Recipe:
    """The recipe of a run's folder; fields that are younger than it have their defaults.

    Raises:
        ValueError: recipe.json is damaged, or has fields or values that no recipe of this version has.
    """
    file = workdir / "recipe.json"
    recipe = _from_json(Recipe, read_json(file, dict), str(file))
    recipe.optimizer.rules = renew(recipe.optimizer.rules)
    return recipe


def _from_json(kind: Any, saved: Any, where: str) -> Any:
    """A dataclass of the fields of a JSON object."""
    hints = get_type_hints(kind)
    values = {}
    for name, value in saved.items():
        if name not in hints:
            raise ValueError(f"{where}: {kind.__name__} has no field {name!r}: was it written by a newer version?")
        nested = dataclasses.is_dataclass(hints[name])
        expected = dict if nested else get_origin(hints[name]) or hints[name]
        # JSON has no tuples, and its numbers and truths stand for each other in configs.
        fits = {dict: dict, tuple: list, str: str}.get(expected, (int, float))
        if not isinstance(value, fits) and (nested or value is not None):
            raise ValueError(
                f"{where}: expected {name} of {kind.__name__} to be like {expected.__name__}, got {value!r:.60}: put a "
                "whole copy there"
            )
        values[name] = _from_json(hints[name], value, where) if nested else value
    return kind(**values)


def clip_config(recipe: Recipe, frames: tuple[int, ...]) -> ClipConfig:
    """How clips of these frame counts are cut from the recipe's videos."""
    data = recipe.data
    return ClipConfig(
        frames=tuple(frames),
        image_size=recipe.model.image_size,
        test_size=data.test_size or None,
        scales=tuple(data.scales),
        flip=data.flip,
        short=data.short,  # pyright: ignore[reportArgumentType]
        sampling=data.sampling,  # pyright: ignore[reportArgumentType]
        interval=data.interval,
        clips=data.eval_clips,
        crops=data.eval_crops,
        augmentation=Augmentation(
            crop=data.crop,  # pyright: ignore[reportArgumentType]
            area=tuple(data.area),  # pyright: ignore[reportArgumentType]
            aspect=tuple(data.aspect),  # pyright: ignore[reportArgumentType]
            colour_jitter=tuple(data.colour_jitter),  # pyright: ignore[reportArgumentType]
            randaugment=data.randaugment,
            magnitude=data.magnitude,
        ),
        repeats=data.repeats,
        shuffle_frames=data.shuffle_frames,
    )


def check(recipe: Recipe) -> None:
    """Finds what is wrong with a recipe before any work is done.

    Raises:
        ValueError: every problem, a line each.
    """
    if problems := find_problems(recipe, clip_config):
        raise ValueError("the recipe cannot run:\n  " + "\n  ".join(problems))
