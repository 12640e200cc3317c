"""Published weights by name: where each file is, what network it is of, and what its origin says of it.

``slow_r50/pytorchvideo/kinetics400`` is a model, an origin, and a data set with a variant of the weights, if any. Where
the model is known otherwise, ``pytorchvideo/kinetics400`` will do. ``torchvision/resnet50-imagenet1k-v1`` is of images;
several models start from it.

The names stand in `known.toml`, the classes of the data sets in `classes/`.
"""

import dataclasses
import difflib
import fnmatch
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flaxvid.data.clips.cut import ClipConfig

_HERE = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class KnownFile:
    """A file with a name of its own.

    Attributes:
        url: where it is; on the Hugging Face Hub ``hf://OWNER/REPO@REVISION/FILE``.
        sha256: in hex, or its first digits; "" where the origin publishes none. torchvision and mmaction2 publish
            eight, in the file name. They catch a damaged or mixed-up file, but not a forger's; against that stand HTTPS
            and a reader that runs no code.
        largest: fetches no more bytes than this, whatever the server says or sends.
        top1: percent, as the origin publishes it; None where it does not.
        protocol: how the origin measured it.
        classes: which `class_names` the head has, in the origin's order; "" where that order is not known.
        licence: under which the origin publishes the file. CC-BY-NC forbids commercial use.
        source: the page that publishes it.
        interval: from one frame of a clip to the next, in frames; 0 takes them evenly from the whole video.
        format: of the model's formats, where the file's keys leave several; None detects it.
        options: of `create_model`, which the file does not show and its network has.
    """

    url: str
    sha256: str = ""
    largest: int = 2 << 30
    top1: float | None = None
    protocol: str = ""
    classes: str = ""
    licence: str = ""
    source: str = ""
    interval: int = 0
    format: str | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def file_name(self) -> str:
        """The last part of the URL."""
        return self.url.rpartition("/")[-1]

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names of the classes in the order of the file's logits; None where that order is not known."""
        return class_names(self.classes) if self.classes else None

    @property
    def clips(self) -> "ClipConfig":
        """How a test of the network cuts clips."""
        from flaxvid.data.clips.cut import ClipConfig  # imports PyAV

        return ClipConfig(sampling="dense", interval=self.interval) if self.interval else ClipConfig()


def class_names(name: str) -> tuple[str, ...]:
    """The classes of a data set, in the order that the head of the file in `classes/` says.

    Args:
        name: "kinetics400", "kinetics600", "kinetics700", "ssv1", "ssv2", "ucf101" or "hmdb51".

    Raises:
        ValueError: another name.
    """
    names = sorted(path.stem for path in (_HERE / "classes").glob("*.txt"))
    if name not in names:
        raise ValueError(f"expected a list of classes, {', '.join(names)}, got {name!r}")
    lines = (_HERE / "classes" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return tuple(line for line in lines if not line.startswith("#"))


def list_weights(pattern: str = "*") -> list[str]:
    """The names of published weights, sorted; `pattern` is a shell pattern such as "slow*" or "*/kinetics400*"."""
    return sorted(fnmatch.filter(KNOWN, pattern))


def find_weights(name: str) -> KnownFile:
    """What is known of published weights: URL, licence, accuracy, class names.

    Raises:
        ValueError: no such name; the message lists the nearest ones.
    """
    if name not in KNOWN:
        raise ValueError(f"unknown weights {name!r}: {nearest(name)}")
    return KNOWN[name]


def nearest(name: str | Path, model: str = "") -> str:
    """What the user of an unknown name should do."""
    own = list_weights(f"{model}/*") if model else []
    near = difflib.get_close_matches(f"{model}/{name}", own, 2, 0.75) or difflib.get_close_matches(str(name), KNOWN, 2)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"known names are {next(iter(KNOWN))} and {len(KNOWN) - 1} more, which flaxvid.list_weights() gives"


def full_name(name: str | Path, model: str = "") -> str | None:
    """The full name of published weights, which may lack the model's; None for anything else, such as a path."""
    spelt = Path(name).as_posix()
    return next((full for full in (spelt, f"{model}/{spelt}") if full in KNOWN), None)


def model_of(name: str) -> str:
    """The model that published weights are of; "" where several start from them."""
    return name.partition("/")[0] if name.count("/") == 2 else ""


def known_of(name: str | Path, model: str) -> KnownFile | None:
    """What is known of weights that were published for a model; None for all others."""
    full = full_name(name, model)
    return KNOWN[full] if full is not None and model_of(full) == model else None


def _read() -> dict[str, KnownFile]:
    tables = tomllib.loads((_HERE / "known.toml").read_text(encoding="utf-8"))
    known = {}
    for name, entry in tables["weights"].items():
        origin = dict(tables["origins"][name.split("/")[-2]])
        url = origin.pop("root") + entry.pop("file")
        classes = name.rpartition("/")[-1].partition("-")[0] if model_of(name) else ""
        options = {option: tuple(it) if isinstance(it, list) else it for option, it in entry.get("options", {}).items()}
        known[name] = KnownFile(url, **{"classes": classes, **origin, **entry, "options": options})
    return known


KNOWN = _read()
