"""Reads a trained network: from a run, one of its checkpoints, a file of flaxvid, or a torch file.

Evaluation, prediction, starting weights and `flaxvid.load` all come in here.
"""

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flaxvid.data.clips.cut import ClipConfig
from flaxvid.data.sources.class_names import as_classes
from flaxvid.evaluate.runtimes import RUNTIMES
from flaxvid.frames import FrameFlexible
from flaxvid.models.registry import create_model, get_spec
from flaxvid.models.video_model import VideoModel
from flaxvid.train.bundle import AGAIN, DESCRIPTION, WEIGHTS, is_bundle, read_bundle
from flaxvid.train.checkpoint import find_checkpoint, restore_variables
from flaxvid.train.network import Trained, check_classes, count_logits, make_recipe, private_counts
from flaxvid.train.recipe import ModelRecipe, read_recipe
from flaxvid.train.setup import count_classes, make_model, open_data
from flaxvid.train.state import averaged
from flaxvid.train.workdir import CLASSES_FILE, read_classes, run_folder
from flaxvid.types import Classes, Variables
from flaxvid.weights.download import resolve_weights
from flaxvid.weights.hub import is_on_hub, read_labels
from flaxvid.weights.known import KnownFile, full_name, known_of, model_of
from flaxvid.weights.native import check_fit, is_native, load_variables
from flaxvid.weights.readings import find_implied
from flaxvid.weights.torch import import_torch

_NO_PARTS = "expected a torch file for part {part!r}, got {path}, which holds one network: leave part out"


def load(
    path: str | Path,
    checkpoint: str | int = "latest",
    *,
    classes: Classes | None = None,
    model: str = "",
    overrides: Mapping[str, Any] | None = None,
    num_classes: int | Mapping[str, int] | None = None,
    part: str | None = None,
    headless: bool = False,
    runtime: str = "jax",
) -> Trained:
    """Loads the weights of a run (their moving averages, if it keeps them), of an export or of a file.

    Args:
        path: a run's folder, the folder of one of its checkpoints, a folder of `flaxvid.export_onnx`, a .safetensors
            file that flaxvid wrote, a torch file, a name of `flaxvid.list_weights`, or a file of the Hugging Face Hub,
            "hf://OWNER/REPO/FILE".
        checkpoint: of a run: "latest", "best" or a step; see `find_checkpoint`.
        classes: class names in the order of the logits; None takes those of the run or the file, or those that are
            known of published weights.
        model: name of the model, for a torch file or a folder of checkpoints alone. Others say it themselves.
        overrides: the model's options; what a torch file's origin implies is added.
        num_classes: of a torch file; another number than the file's gives a fresh head, None takes the file's.
        part: of a torch file that holds several networks, such as "ema"; see `load_model`.
        headless: whether a run of masked pre-training will do, whose variables have no head.
        runtime: what answers to videos: "jax", or for a folder of `export_onnx` "onnxruntime" or "openvino". These
            take the frame counts that were exported.

    Raises:
        FileNotFoundError: there is no such run, file or checkpoint.
        ConnectionError: the file cannot be fetched.
        ValueError: `model` is missing, `checkpoint` is given for a file, the number of `classes` is not the network's,
            there are no programs for the `runtime`, or the file is damaged or of another model.
    """
    path = Path(path)
    if part is not None and path.is_dir():
        raise ValueError(_NO_PARTS.format(path=path, part=part))
    if runtime != "jax":
        return _with_programs(load(path, checkpoint, classes=classes), path, runtime)
    if is_bundle(path) and checkpoint == "latest":
        return _from_bundle(path, classes)
    if path.is_dir() and not is_bundle(path):
        trained = _from_folder(path, checkpoint, classes, model, overrides)
        if trained.headless and not headless:
            raise ValueError(
                f"{path} is a masked pre-training, whose network has no classifier: fine-tune it first, with "
                f"--config.model.weights={path}"
            )
        return trained
    name, file = full_name(path, model), path
    if name is None and not is_bundle(path):
        try:
            file = resolve_weights(path, model)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"expected a run's folder or a .safetensors file, got no folder and {error}"
            ) from error
    if checkpoint != "latest":
        raise ValueError(
            f"expected a run's folder for checkpoint {checkpoint}, got the file or export {path}: leave it out"
        )
    if name is None and is_native(file):
        if part is not None:
            raise ValueError(_NO_PARTS.format(path=path, part=part))
        return _from_file(file, classes)
    model = model or model_of(name or "")
    if not model:
        raise ValueError(
            f"expected a run's folder or a .safetensors file that flaxvid wrote, got {path}: name the network of a "
            "torch file (--model tsm_resnet50), or turn it into a file of ours with scripts/import_torch.py"
        )
    imported = import_torch(model, name or file, num_classes=num_classes, part=part, overrides=overrides)
    plain = imported.model.model if isinstance(imported.model, FrameFlexible) else imported.model
    implied = find_implied(model, get_spec(model).formats[imported.format], {})
    known, clips = known_of(path, model), None
    if known is not None:
        implied |= known.options
        clips = known.clips
    if classes is None and not imported.fresh:
        classes = _published_classes(path, known, imported.num_classes)
    trained = _of_file(Path(name or path), plain, imported.variables, imported.frames, classes, implied, clips)
    trained.recipe.model.part = part or ""
    return dataclasses.replace(trained, fresh=imported.fresh)


def _published_classes(path: Path, known: KnownFile | None, number: Any) -> Classes | None:
    """The class names that are known of a published file, or that stand beside it on the Hub."""
    if known is not None and known.classes:
        return known.class_names
    address = path if known is None else known.url
    labels = read_labels(address) if is_on_hub(address) else None
    return labels if labels is not None and len(labels) == number else None


def find_network(path: str | Path) -> ModelRecipe:
    """The network that a run's folder, a file of flaxvid or a name of published weights says that they are of.

    Raises:
        FileNotFoundError: there is no such run or file.
        ConnectionError: the file cannot be fetched.
        ValueError: the weights do not say it, as those of torch.
    """
    path = Path(path)
    if folder := run_folder(path):
        return read_recipe(folder).model
    if model_of(full_name(path) or ""):
        return load(path).recipe.model
    if not path.is_dir() and is_native(file := resolve_weights(path)):
        _, info = load_variables(file)
        own = dict(info.overrides)
        return ModelRecipe(info.model, str(path), own.get("num_frames"), own.get("image_size"), options=own)
    raise ValueError(
        f"{path} does not say which network it is of, as runs and files of flaxvid do: name it, such as "
        "--config.model.name=tsm_resnet50"
    )


def _from_bundle(folder: Path, classes: Classes | None) -> Trained:
    bundle = read_bundle(folder)
    if WEIGHTS not in bundle.files:
        raise ValueError(
            f"expected an export with {WEIGHTS}, got {folder}, of a model made by hand: open its programs by "
            "flaxvid.evaluate.runtimes.open_program"
        )
    trained = _from_file(bundle.path(WEIGHTS), classes)
    if classes is None and bundle.classes != (trained.classes if trained.named else None):
        raise ValueError(
            f"expected the class names of {WEIGHTS} in {folder / DESCRIPTION}, got others: {AGAIN}, or give names of "
            "your own by classes= or --classes FILE"
        )
    return trained


def _with_programs(trained: Trained, folder: Path, runtime: str) -> Trained:
    bundle = read_bundle(folder) if is_bundle(folder) else None
    kinds = ("onnx", "stream.onnx") if bundle and runtime in RUNTIMES else ()
    files = [{n: bundle.path(name) for n, name in bundle.programs.get(kind, {}).items()} for kind in kinds if bundle]
    if not any(files):
        raise ValueError(
            f"expected a folder with ONNX programs for {' or '.join(RUNTIMES)}, got {folder} for {runtime}: write one "
            f"by scripts/export.py {folder} FOLDER"
        )
    programs, streams = files
    counts = tuple(sorted(programs or streams))
    recipe = dataclasses.replace(trained.recipe, eval_frames=counts)
    return dataclasses.replace(
        trained, frames=counts, recipe=recipe, runtime=runtime, programs=programs, streams=streams
    )


def name_classes(trained: Trained) -> Trained:
    """Adds class names to a run of an older version, which has none: those of its data set.

    Raises:
        FileNotFoundError: the data set is not there.
        ValueError: it has another number of classes.
    """
    if trained.named or trained.folder is None:
        return trained
    file, data = trained.folder / CLASSES_FILE, trained.recipe.data
    warnings.warn(
        f"{trained.folder} has no {CLASSES_FILE}: its class names are taken from its data set as it is now",
        stacklevel=2,
    )
    try:
        classes = open_data(data, data.eval_split).classes
    except OSError as error:
        raise FileNotFoundError(
            f"expected class names in {file} or in the run's data set, got neither ({error}): give a file with a name "
            "a line"
        ) from error
    return dataclasses.replace(trained, classes=check_classes(classes, trained.variables, trained.folder), named=True)


def _from_folder(
    path: Path, checkpoint: str | int, classes: Classes | None, name: str, overrides: Mapping[str, Any] | None
) -> Trained:
    folder = run_folder(path)
    if folder is None and not name:
        raise FileNotFoundError(
            f"expected a run's folder with recipe.json, or a .safetensors file, got {path}: train a run first"
        )
    saved = find_checkpoint(path, checkpoint)
    variables = averaged(restore_variables(saved))
    if folder is None and "head" not in variables["params"]:
        raise ValueError(
            f"expected checkpoints of a classifier in {path}, got a masked pre-training: give its run's folder"
        )
    if folder is None:  # checkpoints alone
        model = create_model(name, **{**(overrides or {}), "num_classes": count_logits(variables)})
        return _of_file(path, model, variables, private_counts(variables), classes)
    recipe = read_recipe(folder)
    known = classes or read_classes(folder)
    if "head" in variables["params"]:
        number, names = count_logits(variables), check_classes(known, variables, path) if known else ()
    else:
        names = as_classes(known or ("none",))
        number = count_classes(names)
    return Trained(
        make_model(recipe, number),
        variables,
        tuple(sorted(recipe.task.frames)),
        names,
        recipe,
        folder,
        named=bool(known),
        checkpoint={"name": str(checkpoint), "step": int(saved.name)},
    )


def _from_file(path: Path, classes: Classes | None) -> Trained:
    variables, info = load_variables(path)
    model = create_model(info.model, **{**info.overrides, "num_classes": count_logits(variables)})
    frames = info.frames or info.clips.frames
    trained = _of_file(path, model, variables, frames, classes or info.classes, info.overrides, info.clips)
    flexible = FrameFlexible(model, trained.frames, private_norms="batch_stats" not in variables)
    check_fit(path, variables, flexible, plain=not info.frames)
    return trained


def _of_file(
    path: Path,
    model: VideoModel,
    variables: Variables,
    frames: tuple[int, ...] | None,
    classes: Classes | None,
    options: Mapping[str, Any] | None = None,
    clips: ClipConfig | None = None,
) -> Trained:
    """The network of a file; `options` are what its origin implies."""
    counts = tuple(frames or (model.clip.num_frames,))
    recipe = make_recipe(model, counts, flexible=bool(private_counts(variables)), clips=clips)
    recipe.model = dataclasses.replace(recipe.model, weights=str(path), options=dict(options or {}))
    names = check_classes(classes, variables, path) if classes else ()
    return Trained(model, variables, counts, names, recipe)
