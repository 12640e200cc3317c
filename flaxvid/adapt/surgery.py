"""Changing parts of trained variables."""

import re
from typing import Any

import jax.numpy as jnp

from flaxvid import trees
from flaxvid.types import Variables

_IMAGE_PATHS = (
    (r"(.*)/conv_a/conv/kernel", r"\1/conv1/kernel"),
    (r"(.*)/conv_b(?:_spatial)?/conv/kernel", r"\1/conv2/kernel"),
    (r"(.*)/conv_c/conv/kernel", r"\1/conv3/kernel"),
    (r"(.*)/conv_a/norm/(\w+)", r"\1/norm1/\2"),
    (r"(.*)/conv_b(?:_spatial)?/norm/(\w+)", r"\1/norm2/\2"),
    (r"(.*)/conv_c/norm/(\w+)", r"\1/norm3/\2"),
    (r"(.*)/conv(\d)/conv/kernel", r"\1/conv\2/kernel"),
    (r"(.*)/conv(\d)/norm/(\w+)", r"\1/norm\2/\3"),
    (r"(.*)/downsample/(conv|norm)/(\w+)", r"\1/downsample_\2/\3"),
)
"""What a variable of a 3-D ResNet is called in the 2-D one."""


def adopt(template: Variables, trained: Variables) -> tuple[dict[str, Any], list[str]]:
    """Trained variables for another number of classes: everything but a head that does not fit.

    Args:
        template: freshly initialised variables of the model wanted.
        trained: ordinary variables of the same architecture.

    Returns:
        The variables, and the paths of the head's parameters that were left as initialised.

    Raises:
        ValueError: anything outside the head differs in path or shape.
    """
    want, have = trees.flatten(template), trees.flatten(trained)
    fresh = [path for path in want if path not in have or want[path].shape != have[path].shape]
    spare = [path for path in have if path not in want]
    wrong = [path for path in (*fresh, *spare) if not path.startswith("params/head/")]
    if wrong:
        raise ValueError(
            f"these weights are of another architecture: {len(wrong)} parameters do not fit, such as "
            f"{', '.join(wrong[:4])}: create the model with the name and options that they were trained with"
        )
    return trees.unflatten({path: leaf if path in fresh else have[path] for path, leaf in want.items()}), fresh


def inflate(template: Variables, image: Variables) -> tuple[dict[str, Any], list[str]]:
    """Variables of a 3-D ResNet out of those of a 2-D one, which it then is for a video that stands still (I3D).

    A kernel over t frames is the 2-D one t times, divided by t (arXiv 1705.07750). At a clip's first and last frames,
    where such a kernel sees zeros outside, even a still video looks fainter than the image.

    Args:
        template: freshly initialised variables of the 3-D network, such as slow_r50.
        image: variables of the 2-D network of the same depth, such as those of tsn_resnet50 with ImageNet's weights.

    Returns:
        The variables, and the paths of those that were left as initialised: the head where it does not fit, and what
        the 2-D network does not have, such as squeeze-and-excitation or R(2+1)D's temporal convolutions.

    Raises:
        ValueError: a tensor of the 2-D network's stem or body has no place in the 3-D one.
    """
    have, inflated, fresh = trees.flatten(image), {}, []
    unused = {path for path in have if "/head/" not in path}
    for path, leaf in trees.flatten(template).items():
        matches = ((re.fullmatch(pattern, path), replacement) for pattern, replacement in _IMAGE_PATHS)
        source = next((match.expand(replacement) for match, replacement in matches if match), path)
        flat = have.get(source)
        if flat is not None and leaf.ndim == 5:
            flat = jnp.broadcast_to(flat / leaf.shape[0], (leaf.shape[0], *flat.shape))
        if flat is None or flat.shape != leaf.shape:
            inflated[path] = leaf
            fresh.append(path)
        else:
            inflated[path] = flat
            unused.discard(source)
    if unused:
        raise ValueError(
            f"{len(unused)} tensors of the 2-D network have no place in this one, such as "
            f"{', '.join(sorted(unused)[:4])}: take a 2-D ResNet of its depth and width"
        )
    return trees.unflatten(inflated), fresh
