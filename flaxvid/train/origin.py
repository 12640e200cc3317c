"""What the weights that a run starts from imply for its network, before that is made."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flaxvid.models.registry import get_spec
from flaxvid.train.recipe import Recipe
from flaxvid.weights.download import resolve_weights
from flaxvid.weights.native import WeightsInfo, is_native, load_variables
from flaxvid.weights.torch import find_implied

_OWN = {
    "num_classes", "num_frames", "image_size", "dropout", "classifier_std", "dtype", "remat", "cameras",
    "camera_dropout",
}  # fmt: skip
"""Options that a run chooses for itself, whatever it starts from."""


def with_implied(recipe: Recipe) -> Recipe:
    """The recipe with the options that the file of `model.weights` implies, but for those that the recipe names itself.

    A network that starts from weights has to compute what their origin computes, or it starts from something else. Says
    what it added, and what the recipe has otherwise. The weights of a network of several cameras may be its backbone's.
    A run's folder adds nothing, and neither does a 2-D file that is inflated.

    Raises:
        ValueError: the file cannot be read, or two origins may have written it.
        FileNotFoundError: there is none.
    """
    model = recipe.model
    if not model.weights or model.inflate or Path(model.weights).is_dir():
        return recipe
    path, options = resolve_weights(model.weights), dict(model.options)
    info = load_variables(path)[1] if is_native(path) else None
    backbone = options.get("backbone", get_spec(model.name).backbone)
    if not backbone or (info and info.model == model.name):
        options |= _find_missing(model.weights, info, path, model.name, options)
    else:
        given = dict(options.get("backbone_options") or {})
        if missing := _find_missing(model.weights, info, path, backbone, given):
            options["backbone_options"] = given | missing
    return dataclasses.replace(recipe, model=dataclasses.replace(model, options=options))


def _find_missing(
    weights: str, info: WeightsInfo | None, path: Path, name: str, given: Mapping[str, Any]
) -> dict[str, Any]:
    """What a file implies for a model and `given` does not say; what is implied is printed."""
    if info is None:
        implied = find_implied(name, path, given) if get_spec(name).formats else {}
    else:
        implied = info.overrides if info.model == name else {}
    missing = {}
    for option, value in implied.items():
        if option in _OWN:
            continue
        if option not in given:
            print(f"{weights}: implies {option}={value!r}, which {name} gets")
            missing[option] = value
        elif json.dumps(given[option]) != json.dumps(value):
            print(f"{weights}: implies {option}={value!r}, but {name} gets the recipe's {given[option]!r}")
    return missing
