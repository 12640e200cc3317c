"""Fits trained variables to another network: another head, a time axis, several cameras."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flaxvid import trees
from flaxvid.models.spec import KeyTable
from flaxvid.types import Variables

FLAT_SIBLINGS = {
    "slow_r50": "tsn_resnet50",
    "res3dcnn": "tsn_resnet50",
    "r2plus1d_r50": "tsn_resnet50",
    "r3d_18": "tsn_resnet18",
    "r3d_18_se": "tsn_resnet18",
}
"""The 2-D networks of the same shape; `inflate` takes their files."""

RESNET_NAMES: KeyTable = (
    (r"stem/conv1/conv", r"stem/conv1"),
    (r"stem/conv1/norm", r"stem/norm1"),
    (r"body/(\w+)/conv_?[1a]/(conv|norm)", r"body/\1/\g<2>1"),
    (r"body/(\w+)/conv_?[2b](?:_spatial)?/(conv|norm)", r"body/\1/\g<2>2"),
    (r"body/(\w+)/conv_c/(conv|norm)", r"body/\1/\g<2>3"),
    (r"body/(\w+)/downsample/(conv|norm)", r"body/\1/downsample_\2"),
)
"""Names of modules in the 3-D ResNets, and in `resnet2d`; other names are the same."""

RULES = ("mean", "centre")
_NEW = re.compile(r"params/head/.*|\w+/body/.*/(se|\w+_temporal)/.*")
"""What starts anew where the 2-D network does not have it in this shape."""

ADDED = re.compile(r"\w+/body/(fusion|rnn|projection|projection_norm)/.*|params/head/.*")
"""What networks have beyond their backbones."""

_HEAD = re.compile(r"\w+/head/")
CLASSIFIER = re.compile(r"params/head/classifier(?:_([^/]+))?/\w+")
"""Parameters of a head with a number for each class on their last axis; the group is the target's name."""


def arrange_head(trained: Variables, columns: Mapping[str, Sequence[int] | None]) -> dict[str, Any]:
    """Reorders the classes of trained classifiers; leaves out the classifiers of other classes.

    `adopt` and `inflate` initialise what is left out.

    Args:
        trained: ordinary variables.
        columns: for each target ("" for a single one) the old number of each class wanted, or None if the classes are
            others. A classifier without an entry stays as it is.

    Raises:
        ValueError: the trained classifier has another number of classes.
    """
    variables = trees.flatten(trained)
    for path in list(variables):
        match = CLASSIFIER.fullmatch(path)
        if not match or (target := match[1] or "") not in columns:
            continue
        leaf, order = variables.pop(path), columns[target]
        if order is not None:
            if len(order) != leaf.shape[-1]:
                raise ValueError(
                    f"expected {path} of {len(order)} classes, as it has names, got {leaf.shape[-1]}: give the "
                    "names of its own classes"
                )
            variables[path] = leaf[..., np.asarray(order)]
    return trees.unflatten(variables)


def has_same_head(template: Variables, trained: Variables) -> bool:
    """Whether both heads are of one kind: they have the same parameters, whatever they classify."""

    def parts(variables: Variables) -> set[str]:
        return {path for path in trees.flatten(variables) if _HEAD.match(path) and not CLASSIFIER.fullmatch(path)}

    return parts(template) == parts(trained)


def adopt(template: Variables, trained: Variables) -> tuple[dict[str, Any], list[str]]:
    """Takes trained variables, but for a head that does not fit; of a head of another kind it takes nothing.

    Args:
        template: initialised variables of the model wanted.
        trained: ordinary variables of the same architecture.

    Returns:
        The variables, and the paths of the head's variables that stay as initialised.

    Raises:
        ValueError: anything outside the head differs in path or shape.
    """
    want, have = trees.flatten(template), trees.flatten(trained)
    if not has_same_head(template, trained):
        have = {path: leaf for path, leaf in have.items() if not _HEAD.match(path)}
    fresh = [path for path in want if path not in have or want[path].shape != have[path].shape]
    spare = [path for path in have if path not in want]
    wrong = [path for path in (*fresh, *spare) if not _HEAD.match(path)]
    if wrong:
        raise ValueError(
            f"these weights are of another architecture: {len(wrong)} parameters do not fit, such as "
            f"{', '.join(wrong[:4])}: create the model with the name and options that they were trained with"
        )
    return trees.unflatten({path: leaf if path in fresh else have[path] for path, leaf in want.items()}), fresh


def inflate(
    template: Variables, images: Variables, rule: str = "mean", names: KeyTable = RESNET_NAMES
) -> tuple[dict[str, Any], dict[str, str]]:
    """Makes variables of a 3-D network from a 2-D network of its shape (I3D, arXiv 1705.07750).

    Norms, biases and a head that fits are taken as they are. Trap: ImageNet networks want ImageNet's mean and
    deviation, which not every 3-D network has (options `mean` and `std` of `create_model`).

    Args:
        template: initialised variables of the 3-D network.
        images: ordinary variables of the 2-D network: of a run, or of `load_torch` by a name of `FLAT_SIBLINGS`.
        rule: "mean" repeats a kernel over time and divides it by its length: a still video gives what its frame gave,
            but for the ends, where the kernel sees zeros. "centre" puts the kernel into the middle of zeros: every
            frame gives what it gave as an image.
        names: renames of module paths, 3-D to 2-D.

    Returns:
        The variables, and the fate of each: ``{path: "inflated" or "taken" or "fresh"}``. Fresh ones are the
        template's: a head for other classes, squeeze-and-excitation, separate temporal convolutions.

    Raises:
        ValueError: variables have no counterpart, or one of another shape; all in one error.
    """
    if rule not in RULES:
        raise ValueError(f"expected a rule of {', '.join(RULES)}, got {rule!r}")
    have, variables, account, wrong = trees.flatten(images), {}, {}, []
    spare = {path for path in have if not path.startswith("params/head/")}
    for path, leaf in trees.flatten(template).items():
        source = have.get(image_path := _renamed(path, names))
        spare.discard(image_path)
        if source is not None and source.shape == leaf.shape:
            variables[path], account[path] = source, "taken"
        elif source is not None and leaf.ndim == 5 and source.shape == leaf.shape[1:]:
            variables[path], account[path] = _over_time(source, leaf.shape[0], rule), "inflated"
        elif _NEW.fullmatch(path):
            variables[path], account[path] = leaf, "fresh"
        else:
            wrong.append(f"{path} {leaf.shape} from {image_path} {'(none)' if source is None else source.shape}")
    if wrong or spare or "inflated" not in account.values():
        raise ValueError(
            f"these are no 2-D weights of this 3-D network: {len(wrong)} variables have no counterpart of their shape "
            f"({', '.join(wrong[:4])}), {len(spare)} are left over ({', '.join(sorted(spare)[:4])}): take those of a "
            "ResNet over frames (tsn_..., tsm_...) with the same block, depths and width"
        )
    return trees.unflatten(variables), account


def spread(template: Variables, trained: Variables, cameras: Sequence[str]) -> dict[str, Any]:
    """Makes variables of a network from those of its backbone; the rest stays as initialised.

    Args:
        template: initialised variables of the network, with one backbone or one for each camera.
        trained: ordinary variables of the backbone, without its head if the network has its own.
        cameras: names of the cameras; () for a network of one video.

    Raises:
        ValueError: a variable of the backbone has no counterpart of its shape.
    """
    have, variables, wrong = trees.flatten(trained), {}, []
    spare = set(have)
    of_a_camera = re.compile(rf"(\w+/(?:stem|body))/(?:{'|'.join(cameras)})/")
    for path, leaf in trees.flatten(template).items():
        source = path if path in have else of_a_camera.sub(r"\1/", path)
        variables[path] = have.get(source, leaf)
        spare.discard(source)
        if variables[path].shape != leaf.shape or not (source in have or ADDED.fullmatch(path)):
            wrong.append(path)
    if wrong := [*wrong, *sorted(spare)]:
        raise ValueError(
            f"expected weights of the backbone, got {len(wrong)} parameters that do not fit, such as "
            f"{', '.join(wrong[:4])}: give those of the same network with the same options"
        )
    return trees.unflatten(variables)


def _over_time(kernel: Float[Array, "h w i o"], length: int, rule: str) -> Float[Array, "t h w i o"]:
    if rule == "mean":
        return jnp.repeat(kernel[None], length, axis=0) / length
    return jnp.zeros((length, *kernel.shape), kernel.dtype).at[length // 2].set(kernel)


def _renamed(path: str, names: KeyTable) -> str:
    """A path with its module renamed by the first rule that matches."""
    collection, _, below = path.partition("/")
    module, _, leaf = below.rpartition("/")
    matches = ((re.fullmatch(pattern, module), replacement) for pattern, replacement in names)
    module = next((match.expand(replacement) for match, replacement in matches if match), module)
    return f"{collection}/{module}/{leaf}"
