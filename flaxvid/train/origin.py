"""The network that starting weights are of, and the options that they imply."""

import dataclasses
import json
from typing import Any

from flaxvid.train.recipe import Recipe
from flaxvid.train.start import of_backbone
from flaxvid.train.trained import Trained, find_network

_OWN = {
    "num_classes", "num_frames", "image_size", "dropout", "classifier_std", "dtype", "remat", "cameras",
    "camera_dropout", "int8",
}  # fmt: skip
"""Options that a run chooses for itself."""


def with_network(recipe: Recipe) -> Recipe:
    """The recipe with the network of its weights, where it names none; prints which.

    Options, frame count and size that the recipe has stay.

    Raises:
        FileNotFoundError: there are no such weights.
        ValueError: it has no weights, or they do not say their network.
    """
    own = recipe.model
    if own.name:
        return recipe
    if not own.weights:
        raise ValueError(
            "the recipe names neither a network nor weights: --config.model.weights=PATH gives a run's folder or a "
            "file, --config.model.name=NAME a network"
        )
    origin = find_network(own.weights)
    options = {name: value for name, value in origin.options.items() if name not in _OWN} | own.options
    sizes = {name: getattr(own, name) or getattr(origin, name) for name in ("num_frames", "image_size")}
    print(f"{own.weights}: the network is {origin.name}{f' with {options}' if options else ''}")
    return dataclasses.replace(recipe, model=dataclasses.replace(own, name=origin.name, options=options, **sizes))


def with_implied(recipe: Recipe, trained: Trained | None) -> Recipe:
    """Adds the options that the starting weights imply and the recipe does not name; prints them.

    The network must compute what the weights' origin computes. Weights of its backbone imply options of the backbone;
    weights of another network, such as a 2-D one that is inflated, imply nothing.

    Args:
        recipe: the run's.
        trained: the weights, by `load_start`; None from scratch.
    """
    if trained is None or recipe.model.inflate:
        return recipe
    options, origin, backbone = dict(recipe.model.options), trained.recipe.model, of_backbone(recipe)
    if origin.name == recipe.model.name:
        options |= _find_missing(recipe, trained, options)
    elif backbone and origin.name == backbone.model.name:
        given = dict(options.get("backbone_options") or {})
        if missing := _find_missing(recipe, trained, given):
            options["backbone_options"] = given | missing
    return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, options=options))


def _find_missing(recipe: Recipe, trained: Trained, given: dict[str, Any]) -> dict[str, Any]:
    """The implied options that `given` does not have; prints what the weights imply."""
    weights, name, missing = recipe.model.weights, trained.recipe.model.name, {}
    for option, value in trained.recipe.model.options.items():
        if option in _OWN:
            continue
        if option not in given:
            print(f"{weights}: implies {option}={value!r}, which {name} gets")
            missing[option] = value
        elif json.dumps(given[option]) != json.dumps(value):
            print(f"{weights}: implies {option}={value!r}, but {name} gets the recipe's {given[option]!r}")
    return missing
