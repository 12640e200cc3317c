"""Makes the tables of docs/weights.md: whose files flaxvid reads and writes, and what each origin implies.

    python scripts/reproduce/weights.py --lists KEYS > docs/weights.md

The first table is the registry's own. `KEYS` is a folder of lists of keys, one `wild_ORIGIN_NETWORK.txt` for each
network: a line that begins with "#", then a key and its shape in each line, "conv1.weight [64, 3, 7, 7]". Each list is
read as if it were a file, and written again. Without them the page ends in front of the last table.
"""

import argparse
import ast
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ORIGINS = {
    "torchvision": ("torchvision", "`.pth`"),
    "pytorchvideo": ("pytorchvideo", "`.pyth`"),
    "pyslowfast": ("PySlowFast", "`.pyth`"),
    "caffe2": ("PySlowFast", "`.pkl` of Caffe2"),
    "mmaction2": ("mmaction2", "`.pth`"),
    "tsm": ("TSM's authors", "`.pth`, `.pth.tar`"),
    "ffn": ("FFN's authors", "`.pth.tar`"),
    "kenshohara": ("3D-ResNets (kenshohara)", "`.pth`"),
    "ig65m": ("IG-65M (moabitcoin)", "`.pth`"),
    "authors": ("their authors", "`.pth`, `.pyth`"),
    "transformers": ("transformers", "`.safetensors`, `.bin`"),
    "scenic": ("Scenic", "msgpack of flax"),
    "torch": ("`nn.LSTM`, `nn.GRU` on torchvision's ResNet", "`.pth`"),
}
"""What a format's name begins with: the origin, and the kind of its files."""

NOT_READ = {
    "hf5_vjepa2_vitl_ssv2": ("transformers", "V-JEPA 2", "flaxvid has no such network"),
    "hiera_base_16x224": ("Hiera's authors", "Hiera", "flaxvid has no such network"),
    "mmaction2_swin_t": ("mmaction2", "Video Swin", "flaxvid has no such network"),
    "mmaction2_uniformer_s": ("mmaction2", "UniFormer", "flaxvid has no such network"),
    "mmaction2_tsm_mobilenetv2": ("mmaction2", "TSM on MobileNetV2", "flaxvid's TSM stands on ResNets alone"),
    "movinet_pytorch_a0_base": ("MoViNet-pytorch", "MoViNet", "flaxvid has no such network"),
    "movinet_pytorch_a0_stream": ("MoViNet-pytorch", "MoViNet, streams", "flaxvid has no such network"),
}
"""Lists of keys that are not read: origin, network, and why."""

MODELS = {
    "ig65m_r2plus1d_34": "r2plus1d_r34",
    **{f"kenshohara_r2p1d{depth}": f"r2plus1d_resnet{depth}" for depth in (18, 34, 50)},
    **{f"kenshohara_r3d{depth}": f"r3d_resnet{depth}" for depth in (18, 34, 50, 101)},
    "mmaction2_ircsn_r152": "csn_r152",
    "mmaction2_mvit_s": "mvit_v2_s",
    "mmaction2_slowfast_r101_r50": "slowfast_r101",
    "mmaction2_slowfast_r50_4x16": "slowfast_r50",
    "mmaction2_slowonly_r50": "slow_r50",
    "mmaction2_slowonly_r101": "slow_r101",
    "mmaction2_timesformer_divst": "timesformer_base",
    "mmaction2_tsm_r50": "tsm_resnet50",
    "mmaction2_tsm_r50_nl": "tsm_nln_resnet50",
    "mmaction2_tsn_r50": "tsn_resnet50",
    "pyslowfast_c2_i3d_nln": "i3d_nln_r50",
    "pyslowfast_c2_slow_r50": "slow_r50",
    "pyslowfast_c2_slowfast_r101": "slowfast_r101",
    "pyslowfast_c2_slowfast_r101_50_50": "slowfast_r101_50_50",
    "pyslowfast_mvit_b_16x4": "mvit_base",
    "pyslowfast_mvit_b_32x3": "mvit_base_32x3",
    "pyslowfast_mvitv2_s": "mvit_v2_s",
    "pyslowfast_mvitv2_b": "mvit_v2_b",
    "pyslowfast_slowfast_r50_4x16": "slowfast_r50",
    "pytorchvideo_mvit_base_16x4": "mvit_base",
    "pytorchvideo_slowfast_16x8_r101_50_50": "slowfast_r101_50_50",
    "videomae_base_finetune": "videomae_base",
    "videomae_base_pretrain": "videomae_base",
    "videomaev2_small_finetune": "videomae_small",
    "videomaev2_base_finetune": "videomae_base",
}
"""The models of lists whose names do not end in theirs, behind the origin's."""

FORMATS = {
    "mmaction2_c2d_r50": "mmaction2",
    "mmaction2_ircsn_r152": "mmaction2_sports1m",
    "mmaction2_tsm_r50_nl": "mmaction2_dot_product",
    "pyslowfast_c2d_r50": "pyslowfast",
}
"""The formats of lists whose keys leave several."""

HEAD = """# Origins and formats

`scripts/reproduce/weights.py` makes this page out of the formats themselves. [Weights of others](import.md) says how
files are loaded and written, and that {known} published ones have names.

A format is chosen by keys and shapes. Where these leave two whose networks compute different things, an error shows the
call for each, such as `format="mmaction2_sports1m"`. No tensor tells of these:

- mmaction2's CSN sees the pixels of ImageNet if it began with IG-65M, and others if it began from scratch or with
  Sports-1M.
- mmaction2's I3D and TSM with non-local blocks weigh by "dot_product" or by "embedded_gaussian".
- C2D has a max-pool behind its first stage, or not. PySlowFast's published `.pkl` has none, mmaction2 publishes both.
- mmaction2's small MViTv2 of Something-Something v2 has ImageNet's pixels, and networks that were fine-tuned with
  transformers' `VivitImageProcessor` as it is by default see pixels from -3 to 1. Give `mean` and `std`;
  `mvit_v2_s/mmaction2/ssv2` has the right ones.

## What is read and written

What is read but for some tensors is written without them: they are no part of our network, such as a table of positions
that is computed.

| origin | file | network | format | read | written | what it implies |
|---|---|---|---|---|---|---|
"""

MISSING = """
## What is not read

| origin | network | why |
|---|---|---|
"""

CHECKED = """
## Checked on lists of keys

Each list has the keys and shapes of one network, made by its origin's own code. Every tensor finds its place, but for
those that are left out by name: the decoder of a pre-training, which `load_pretraining` reads, and computed positions.
What is written has the same keys and shapes.

| list | network | format | tensors read | left out |
|---|---|---|---:|---:|
"""


def origin_of(format: str) -> str:
    """What a format's name begins with."""
    return format.partition("_")[0]


def shorten(names: list[str]) -> str:
    """Names as they stand in the table: "`x3d_{xs,s,m,l}`"."""
    groups: dict[str, list[str]] = {}
    for name in names:
        start = re.match(r".*?_(?:resnet(?=\d)|r(?=\d))?", name)
        groups.setdefault(start[0] if start else name, []).append(name)
    return ", ".join(
        f"`{start}{{{','.join(name.removeprefix(start) for name in group)}}}`" if len(group) > 1 else f"`{group[0]}`"
        for start, group in groups.items()
    )


def as_words(overrides: Mapping[str, Any]) -> str:
    """What a format implies, as it stands in the table."""
    from flaxvid.models.spec import IMAGENET

    pixels = ["ImageNet's pixels"] if overrides.get("mean") == IMAGENET["mean"] else []
    options = {option: value for option, value in overrides.items() if not pixels or option not in IMAGENET}
    return ", ".join([*pixels, *(f"`{option}={value!r}`" for option, value in options.items())])


def rows() -> Iterator[tuple[str, ...]]:
    """The first table's cells: networks that one origin saves in the same way are one row."""
    from flaxvid.models.registry import SPECS

    alike: dict[tuple[str, str, str, tuple[str, ...]], list[str]] = {}
    for name, spec in SPECS.items():
        for format, known in spec.formats.items():
            way = spec.build.__module__, format, as_words(known.overrides), known.unused
            alike.setdefault(way, []).append(name)
    for way in sorted(alike, key=lambda way: list(ORIGINS).index(origin_of(way[1]))):
        _, format, implied, unused = way
        origin, file = ORIGINS[origin_of(format)]
        read, written = "yes", "yes"
        if format.endswith("pretraining"):
            read = "yes; the decoder by `load_pretraining`"
        elif unused:
            read, written = f"all but {', '.join(f'`{pattern}`' for pattern in unused)}", "without"
        yield origin, file, shorten(alike[way]), f"`{format}`", read, written, implied


def page() -> str:
    """The page in front of the last table."""
    from flaxvid.weights.known import KNOWN

    text = HEAD.format(known=len(KNOWN)) + "".join(f"| {' | '.join(cells)} |\n" for cells in rows())
    return text + MISSING + "".join(f"| {' | '.join(cells)} |\n" for cells in NOT_READ.values())


def read_list(path: Path) -> dict[str, Any]:
    """Zeros for each key of a list, which take no memory."""
    import numpy as np

    tensors = {}
    for line in path.read_text().splitlines():
        if line and not line.startswith("#"):
            key, _, shape = line.partition(" ")
            dtype = np.int64 if key.endswith("num_batches_tracked") else np.float32
            tensors[key] = np.broadcast_to(dtype(0), ast.literal_eval(shape))
    return tensors


def model_of(name: str) -> str:
    """The model that a list of keys is of."""
    return MODELS.get(name, name.partition("_")[2])


def check_list(name: str, tensors: Mapping[str, Any]) -> tuple[str, ...]:
    """The last table's cells for a list of keys.

    Raises:
        ValueError: a tensor has no place, or what is written differs from the list.
    """
    from flaxvid import trees
    from flaxvid.weights.torch import import_torch, to_torch

    model, counters = model_of(name), {key for key in tensors if key.endswith("num_batches_tracked")}
    classes = 2 if name.endswith("pretrain") else None  # it has no head
    with warnings.catch_warnings(action="ignore"):
        read = import_torch(model, tensors, format=FORMATS.get(name), num_classes=classes)
    keys = {key for found in read.keys.values() for key in found}
    if lost := tensors.keys() - keys - counters - set(read.left_out):
        raise ValueError(f"{name}: no place for {sorted(lost)}")
    flat = {path: leaf for path, leaf in trees.flatten(read.variables).items() if path in read.keys}
    state_dict = to_torch(model, trees.unflatten(flat), read.format, overrides=read.implied)
    written = {key: array.shape for key, array in state_dict.items()}
    wanted = {key: tensors[key].shape for key in keys | counters}
    if differ := [key for key in written.keys() | wanted.keys() if written.get(key) != wanted.get(key)]:
        raise ValueError(f"{name}: {sorted(differ)} are written otherwise")
    return f"`{name}`", f"`{model}`", f"`{read.format}`", str(len(keys)), str(len(read.left_out) or "")


def main() -> None:
    """Prints the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lists", type=Path, help="a folder of lists of keys")
    args = parser.parse_args()
    print(page(), end="")
    if args.lists is None:
        return
    print(CHECKED, end="")
    for path in sorted(args.lists.glob("wild_*.txt")):
        name, tensors = path.stem.removeprefix("wild_"), read_list(path)
        print(name, file=sys.stderr)
        if name not in NOT_READ:
            print(f"| {' | '.join(check_list(name, tensors))} |", flush=True)


if __name__ == "__main__":
    main()
