"""Recipes: typed dataclasses that say all of a run."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal, get_origin, get_type_hints

from flaxvid.data.clips.cut import ClipConfig
from flaxvid.tasks.distil import DistilRecipe
from flaxvid.tasks.domain import DomainRecipe
from flaxvid.tasks.frame_flexible import FfnRecipe
from flaxvid.tasks.masked import MaskedRecipe
from flaxvid.tasks.supervised import SupervisedRecipe
from flaxvid.train.fields import choices
from flaxvid.train.groups import DECAY_RULES, Rules, renew
from flaxvid.writing import read_json

TASKS = {kind.name: kind for kind in (SupervisedRecipe, FfnRecipe, MaskedRecipe, DistilRecipe, DomainRecipe)}
"""The recipes of tasks, by name."""


@dataclasses.dataclass
class ModelRecipe:
    """Which network.

    Attributes:
        name: one of `flaxvid.list_models`; "" is the network that `weights` say that they are of, with its options. A
            torch file and weights of images do not say it.
        weights: what training starts from: a run's folder, a .safetensors file, a torch file, or a name of
            `flaxvid.list_weights`. They are the network's own or its backbone's. "" trains from scratch.
        num_frames, image_size, dropout: see `models.spec.Common`; None is the network's own value.
        dtype, remat: see `models.spec.Common`.
        int8_training: round inputs and kernels as int8 does, so that scripts/quantise.py costs less accuracy later.
        options: the network's other options, by name.
        inflate: how the kernels of a 2-D ResNet's `weights` get a time axis: "mean" or "centre", see
            `adapt.surgery.inflate`; "" where `weights` are not of a 2-D network.
        part: which part of `weights` is read, such as "ema", where a torch file holds several networks; else "".
    """

    name: str = "tsm_resnet50"
    weights: str = ""
    num_frames: int | None = None
    image_size: int | None = None
    dropout: float | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    int8_training: bool = False
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    inflate: Literal["", "mean", "centre"] = ""
    part: str = ""


@dataclasses.dataclass
class DataRecipe:
    """Which videos.

    Attributes:
        name: "motion", "folder", "list", "ucf101", ...
        root: the data set's folder; "" is the cache folder for "motion", which is built there on first use.
        cameras: names of the cameras, for a network of several. `root` has a folder for each camera, with the same
            file names in all; "motion" has front, left and right. () is one video.
        train_split: the split that training takes.
        eval_split: the split that the final test takes.
        validation_split: the split that is evaluated during training and chooses the best checkpoint; "" is
            "validation", where the data has one. If it is `eval_split`, too, the best one was chosen on the videos of
            the final table.
        clips: how clips are cut from the videos.
        missing: what happens if listed videos are not there: "error" stops before the start, "keep" counts them as
            broken.
        max_broken: the share of training videos that may be broken. Broken videos are replaced and named; more of them
            stop the run.
        num_threads: threads that decode, in each decoding process.
        num_workers: processes that decode; 0 decodes in the main process. Another number gives other batches.
        fold: the official split ("ucf101", "hmdb51"), from 1; 0 for data sets without such splits.
        lists: folder of the list files, where it is not found by itself.
        group: keeps the videos of one scene on the same side of a hold-out ("folder", "list"): a regular expression
            whose one group finds the scene in a path, or a column of the list; "" holds out single videos.
        motion: fields of `MotionConfig`, for "motion".
        target: another domain, which the network is tested on, and adapted to by the task "domain": the fields that
            differ there, such as {"root": FOLDER} or {"motion": {"domain": "shifted"}}. Training reads no label of it.
    """

    name: str = "motion"
    root: str = ""
    cameras: tuple[str, ...] = ()
    train_split: str = "train"
    eval_split: str = "test"
    validation_split: str = ""
    clips: ClipConfig = dataclasses.field(default_factory=ClipConfig)
    missing: Literal["error", "keep"] = "error"
    max_broken: float = 0.1
    num_threads: int = 2
    num_workers: int = 0
    fold: int = 0
    lists: str = ""
    group: str = ""
    motion: dict[str, Any] = dataclasses.field(default_factory=dict)
    target: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class OptimizerRecipe:
    """How the network learns.

    Attributes:
        name: "sgd" (torch's order of decay and momentum) or "adamw".
        learning_rate: the peak of the schedule, at the recipe's batch size.
        momentum: momentum of SGD.
        weight_decay: this times the parameters is added to the gradient (SGD) or to the step (AdamW).
        schedule: the learning rate after the warm-up: "step", "cosine" or "constant".
        milestones: epochs at which "step" multiplies the rate by 0.1.
        warmup_epochs: epochs of linear warm-up; parts of an epoch are allowed.
        warmup_start: the rate at the beginning of the warm-up.
        cosine_from_start: the cosine begins at epoch 0 and the warm-up rises to meet it, as in PySlowFast; else the
            cosine begins after the warm-up, at the peak.
        nesterov: SGD's momentum looks ahead, as torch's `nesterov=True`.
        b2: how slowly AdamW forgets the squares of gradients; masked pre-training takes 0.95. Its mean of gradients has
            always 0.9.
        clip_norm: the largest global gradient norm; 0 clips nothing.
        accumulate: parts of a batch that are computed one after the other, to save memory. The gradient is the whole
            batch's, but norms see one part at a time.
        ema: decay of the moving average that is evaluated, see `train.step.warmed_decay`; 0 keeps none.
        rules: parameter groups, `(group, learning-rate factor, weight-decay factor)`; see `train.groups`.
        layer_decay: factor of the learning rate from each layer to the one below it, beside that of `rules`; 1 is off.
        decay_to_start: parts that weight decay pulls to where they started and not to zero (L2-SP, arXiv 1802.01483),
            as patterns of their paths: ("stem", "body") of a trained network. `rules` say what decays at all.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["step", "cosine", "constant"] = "step"
    milestones: tuple[int, ...] = (20, 40)
    warmup_epochs: float = 0.0
    warmup_start: float = 0.0
    cosine_from_start: bool = False
    nesterov: bool = False
    b2: float = 0.999
    clip_norm: float = 20.0
    accumulate: int = 1
    ema: float = 0.0
    rules: Rules = DECAY_RULES
    layer_decay: float = 1.0
    decay_to_start: tuple[str, ...] = ()


@dataclasses.dataclass
class PruningRecipe:
    """Which weights training removes; see `compress.prune`.

    Attributes:
        sparsity: share of the weights that is removed in the end; 0 prunes nothing.
        begin, end: epochs at which pruning begins, and at which the share is reached; parts of an epoch are allowed.
            What is left of the training makes up for it.
        every: steps between prunings.
        scope: "global" compares the weights of all kernels, "layer" removes the same share of each kernel.
        keep: parts that lose nothing, as patterns as in `freeze`; frozen parts lose nothing either.
    """

    sparsity: float = 0.0
    begin: float = 0.0
    end: float = 1.0
    every: int = 50
    scope: Literal["global", "layer"] = "global"
    keep: tuple[str, ...] = ("stem", "head")


@dataclasses.dataclass
class Recipe:
    """A run.

    Attributes:
        model: which network.
        data: which videos.
        task: what is learnt.
        optimizer: how the network learns.
        pruning: which weights are removed in training.
        batch_size: training clips in a step, over all devices and hosts.
        epochs: passes over the training videos.
        freeze: parts whose parameters and statistics stay as they are, to the last bit, as patterns of their paths:
            ("stem", "body") trains the head alone; see `adapt.freezing`.
        unfreeze: gradual unfreezing, pairs of epochs and a pattern: ((5, "body/layer4_.*"), (10, "body")) lets a part
            of what is frozen learn after 5 epochs, and more after 10. What learns already keeps its optimizer state.
        feature_cache: gigabytes of disk for the features of frozen networks. A frozen stem and body then run once over
            the training videos, whose clips are `data.clips.fixed`, and the head is trained on what they gave; the
            files stay for later runs with the same weights, clips and videos. 0 keeps none.
        norm_groups: parts of a batch that norms see one by one; running statistics are the mean over the parts. 1 is
            the whole batch, over all devices. As many as devices spare the communication.
        fsdp: devices that keep the parameters, their averages and the optimizer's state together, a part each; 1 keeps
            all of it on each device. It must divide the number of devices; see `train.sharding`.
        tensor: devices that compute each attention and mlp of a transformer together, some heads and channels each; 1
            is off. It must divide the devices of a process, the heads, and what fsdp leaves of the devices.
        seed: the seed of initialisation, sampling and dropout.
        eval_batch_size: videos in a step of evaluation.
        eval_frames: frame counts of the any-frame table at the end; () is the task's.
        eval_every: epochs between evaluations on the validation split, with one view of each video at the task's frame
            counts; 0 tests at the end only.
        checkpoint_every: epochs between checkpoints; the last epoch and every evaluation have one in any case.
        keep: how many of the latest checkpoints stay, beside the best one.
        keep_every: epochs between checkpoints that stay for ever; 0 keeps none of them.
        log_every: steps between entries in the log; an entry is the mean of the steps since the last one.
        trackers: what gets the entries beside TensorBoard: ("wandb",), ("mlflow",) or both; see `train.trackers`.
        published: what the paper reports for this recipe, a text for the run's page.
    """

    model: ModelRecipe = dataclasses.field(default_factory=ModelRecipe)
    data: DataRecipe = dataclasses.field(default_factory=DataRecipe)
    task: SupervisedRecipe | FfnRecipe | MaskedRecipe | DistilRecipe | DomainRecipe = dataclasses.field(
        default_factory=FfnRecipe
    )
    optimizer: OptimizerRecipe = dataclasses.field(default_factory=OptimizerRecipe)
    pruning: PruningRecipe = dataclasses.field(default_factory=PruningRecipe)
    batch_size: int = 32
    epochs: int = 50
    freeze: tuple[str, ...] = ()
    unfreeze: tuple[tuple[int, str], ...] = ()
    feature_cache: float = 0.0
    norm_groups: int = 1
    fsdp: int = 1
    tensor: int = 1
    seed: int = 0
    eval_batch_size: int = 32
    eval_frames: tuple[int, ...] = (4, 6, 8, 10, 12, 14, 16)
    eval_every: int = 1
    checkpoint_every: int = 1
    keep: int = 3
    keep_every: int = 0
    log_every: int = 20
    trackers: tuple[Literal["wandb", "mlflow"], ...] = ()
    published: str = ""


FILLED = {"data.clips.frames": "task.frames and eval_frames", "data.clips.image_size": "model.image_size"}
"""Fields that stay empty in a recipe, and the fields that say them instead."""

OLD_NAMES = {
    "data.views": "data.cameras",
    "data.eval_clips": "data.clips.clips",
    "data.eval_crops": "data.clips.crops",
    **{
        f"data.{name}": f"data.clips.{name}"
        for name in ("test_size", "scales", "flip", "short", "sampling", "interval", "repeats", "shuffle_frames")
    },
    **{
        f"data.{name}": f"data.clips.augmentation.{name}"
        for name in ("crop", "area", "aspect", "colour_jitter", "randaugment", "magnitude")
    },
    "task.task_weights": "task.target_weights",
    "model.options.view_dropout": "model.options.camera_dropout",
    "model.options.freeze_norms": "freeze",
}
"""The old names of fields, and the new ones."""


def to_json(recipe: Recipe) -> str:
    """A recipe as JSON."""
    fields = dataclasses.asdict(recipe)
    return json.dumps(fields | {"task": {"name": recipe.task.name, **fields["task"]}}, indent=2)


def read_recipe(workdir: Path) -> Recipe:
    """Reads the recipe of a run's folder; fields that it does not have yet get their defaults.

    Raises:
        ValueError: recipe.json is damaged, or has fields or values that this version does not know.
    """
    file = workdir / "recipe.json"
    saved = read_json(file, dict)
    recipe = _from_json(Recipe, _renamed(saved), str(file))
    recipe.optimizer.rules = renew(recipe.optimizer.rules)
    return recipe


def _renamed(saved: dict[str, Any]) -> dict[str, Any]:
    """A saved recipe with the new names."""
    for old, new in OLD_NAMES.items():
        (*folders, name), (*places, new_name) = old.split("."), new.split(".")
        holder: Any = saved
        for folder in folders:
            holder = holder.get(folder) if isinstance(holder, dict) else None
        if not isinstance(holder, dict) or name not in holder:
            continue
        value, place = holder.pop(name), saved
        if name == "freeze_norms":
            parts = "body" if saved["model"].get("name", "").startswith(("tsm_", "tsn_")) else "(stem|body)"
            value = [*saved.get("freeze", ()), *[rf"{parts}/.*norm\w*"] * bool(value)]
        if name == "test_size":
            value = value or None
        for part in places:
            place = place.setdefault(part, {})
        place[new_name] = value
    return saved


def _from_json(kind: Any, saved: Any, where: str) -> Any:
    """A dataclass of the fields of a JSON object."""
    hints = get_type_hints(kind)
    values = {}
    for name, value in saved.items():
        if name not in hints:
            raise ValueError(
                f"{where}: {kind.__name__} has no field {name!r}: if a newer version wrote it, update flaxvid"
            )
        own = choices(hints[name])
        nested = [one for one in own if dataclasses.is_dataclass(one)]
        expected: Any = dict if nested else get_origin(own[0]) or own[0]
        expected = str if expected is Literal else expected
        # JSON has no tuples, and in configs numbers and booleans stand for each other.
        fits = {dict: dict, tuple: list, str: str}.get(expected, (int, float))
        if not isinstance(value, fits) and (nested or value is not None):
            raise ValueError(
                f"{where}: expected {name} of {kind.__name__} to be like {expected.__name__}, got {value!r:.60}: put a "
                "whole copy there"
            )
        if isinstance(value, dict) and len(nested) > 1:
            value, nested = _task(value, where)
        values[name] = _from_json(nested[0], value, where) if nested else _tupled(value)
    return kind(**values)


def _task(saved: dict[str, Any], where: str) -> tuple[dict[str, Any], list[Any]]:
    """The fields of a saved task, and its class. Old recipes have the fields of all tasks in one."""
    if saved.get("name") not in TASKS:
        raise ValueError(
            f"{where}: expected the name of task as one of {', '.join(TASKS)}, got {saved.get('name')!r}: if a newer "
            "version wrote it, update flaxvid"
        )
    kind = TASKS[saved["name"]]
    own = {field.name for field in dataclasses.fields(kind)}
    others = {field.name for other in TASKS.values() for field in dataclasses.fields(other)} - own
    return {name: value for name, value in saved.items() if name not in {"name", *others}}, [kind]


def _tupled(value: Any) -> Any:
    """A JSON value with tuples for its lists."""
    if isinstance(value, dict):
        return {name: _tupled(one) for name, one in value.items()}
    return tuple(map(_tupled, value)) if isinstance(value, list) else value
