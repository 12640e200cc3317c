"""Parameter groups: which parameters have a learning rate or a weight decay of their own.

A rule is ``(group, rate factor, decay factor)``. Of the rules that name a parameter the first counts; a parameter that
no rule names has the factors 1, 1. A group is one of these kinds, or several of them with "|" between:

* "norm": all parameters of norms, whatever they are called; see `trees.norm_modules`.
* "classifier": all parameters of the head's classifiers, one for each target of the labels; "classifier.kernel" and
  "classifier.bias" are their parts.
* "kernel", "bias", "gain": the parameters of that name, wherever they are. Gains are `FrameFlexible`'s.
* "other": what is none of these, such as position tables, embeddings, a learned temperature.

Any other text is a regular expression of the whole path: ``r"params\\w*/body/layer[12]_.*"``.

``(("norm|bias", 1.0, 0.0), ("classifier", 10.0, 1.0))`` decays neither norms nor biases, and trains the classifier's
kernel ten times as fast.
"""

import re
from collections.abc import Collection, Sequence
from typing import Any

from flaxvid import trees

Rules = tuple[tuple[str, float, float], ...]

DECAY_RULES: Rules = (("norm", 1.0, 0.0), ("bias|other", 1.0, 0.0))
"""Kernels and FFN's gains decay, and nothing else. So what TS-CVA knows of each camera does not: an embedding, and a
projection that starts as the identity."""

NORM_RULES: Rules = (("norm", 1.0, 0.0),)
"""All but the norms decays, as in PySlowFast."""

FFN_RULES: Rules = (
    ("classifier.kernel", 5.0, 1.0),
    ("classifier.bias", 10.0, 0.0),
    ("norm|other", 1.0, 0.0),
    ("bias", 2.0, 0.0),
)
"""The parameter groups of TSM's and FFN's authors: a faster classifier, and decay where `DECAY_RULES` have it."""

FORMER = {
    r".*norm.*": "norm",
    r".*/(bias|own|which)": "bias|other",
    r"params/head/classifier\w*/kernel": "classifier.kernel",
    r"params/head/classifier\w*/bias": "classifier.bias",
    r".*norm.*|.*/(own|which)": "norm|other",
    r".*/bias": "bias",
}
"""The groups of the rules above in recipes that older versions wrote, and what they are now."""

NAMED = ("kernel", "bias", "gain")
KINDS = ("norm", "classifier", "classifier.kernel", "classifier.bias", *NAMED, "other")
SHOWN = 12
"""Parameters that an error shows."""


def renew(rules: Rules) -> Rules:
    """Rules of an older version's recipe as this version writes them; all networks have the same factors by both."""
    return tuple((FORMER.get(group, group), *factors) for group, *factors in rules)  # pyright: ignore[reportReturnType]


def parameter_kinds(params: Any, norms: Collection[str] | None = None) -> dict[str, set[str]]:
    """The kinds of every parameter, by path.

    Args:
        params: the ``params*`` collections, or their shapes.
        norms: the network's, where `params` are not all of its parameters; None finds them in `params`.
    """
    norms = trees.norm_modules(params) if norms is None else norms
    kinds = {}
    for path in trees.flatten(params):
        module, _, name = path.partition("/")[2].rpartition("/")
        found = {name} & {*NAMED}
        if module in norms:
            found.add("norm")
        if module == "head/classifier" or module.startswith("head/classifier_"):
            found |= {"classifier", f"classifier.{name}"}
        kinds[path] = found or {"other"}
    return kinds


def group_factors(
    params: Any, rules: Rules, norms: Collection[str] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Learning-rate and weight-decay factors of every parameter; `params` and `norms` as in `parameter_kinds`."""
    kinds = parameter_kinds(params, norms)

    def factors(path: str) -> tuple[float, float]:
        named = ((rate, decay) for group, rate, decay in rules if _is_named(group, path, kinds[path]))
        return next(named, (1.0, 1.0))

    pairs = {path: factors(path) for path in kinds}
    rates, decays = ({path: pair[i] for path, pair in pairs.items()} for i in (0, 1))
    return trees.unflatten(rates), trees.unflatten(decays)


def layer_factors(params: Any, layers: Sequence[str], decay: float) -> dict[str, Any]:
    """Learning-rate factors of every parameter by its depth: ``decay ** (layers above its own)``.

    So a pretrained network's early layers move little (layer-wise rate decay, arXiv 2106.08254, section 3.2). The
    last layer, with the head in it, has the factor 1. What `FrameFlexible` keeps for each frame count has the factor of
    the layer that it stands in.

    Args:
        params: the ``params*`` collections, or their shapes.
        layers: the network's, `VideoModel.layers`.
        decay: 1 for none.

    Raises:
        ValueError: there is a decay, and the network names no layers.
    """
    if decay != 1 and not layers:
        raise ValueError(
            f"optimizer.layer_decay={decay} needs a network that names its layers, got none in VideoModel.layers: name "
            "them, or set it to 1"
        )
    rates = [(pattern, decay ** (len(layers) - index)) for index, pattern in enumerate(layers)]
    paths = trees.flatten(params)
    return trees.unflatten({path: trees.first_match(rates, path.partition("/")[2], 1.0) for path in paths})


def check_rules(params: Any, rules: Rules) -> None:
    """Finds parameter groups that cannot be meant.

    Args:
        params: the ``params*`` collections, or their shapes; those that are frozen, too.
        rules: of the recipe.

    Raises:
        ValueError: groups without any parameter; the message shows what there is.
    """
    kinds = parameter_kinds(params)
    unused = [group for group, *_ in rules if not any(_is_named(group, path, own) for path, own in kinds.items())]
    if unused:
        paths = list(kinds)
        shown = ", ".join(paths[:: max(1, len(paths) // SHOWN)][:SHOWN])
        there = ", ".join(kind for kind in KINDS if any(kind in own for own in kinds.values()))
        raise ValueError(
            f"optimizer.rules: {', '.join(map(repr, unused))} matches no parameter, neither as a kind nor as a whole "
            f"path; there are the kinds {there}, and paths such as {shown}, ...: correct the rule or leave it out"
        )


def _is_named(group: str, path: str, kinds: set[str]) -> bool:
    names = set(group.split("|"))
    return bool(names & kinds) if names <= {*KINDS} else re.fullmatch(group, path) is not None
