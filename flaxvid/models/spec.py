"""What the registry knows about a model."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from flaxvid.models.video_model import VideoModel

KeyTable = tuple[tuple[str, str], ...]
"""``(regex, replacement)`` renames from a module path of ours to the torch reference's, whole paths, first match."""


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """One name of the zoo.

    Attributes:
        build: makes the model; its keyword arguments are the overrides that the name accepts.
        variant: keyword arguments that make this name out of the family.
        torch_keys: tables of module renames by reference ("torchvision", ...); the first is the default for export.
        tiny: overrides that give the small sibling for tests.
    """

    build: Callable[..., VideoModel]
    variant: Mapping[str, Any]
    torch_keys: Mapping[str, KeyTable] = dataclasses.field(default_factory=dict)
    tiny: Mapping[str, Any] = dataclasses.field(default_factory=dict)
