"""Changed weight files: read exactly or refused by the one error. No hang, no crash, no code that runs, little memory.

A sample by default; ``FLAXVID_FUZZ=2000`` tries as many files, ``pytest -s`` shows the counts and the peak memory.
"""

import collections
import io
import json
import os
import pickle
import random
import re
import struct
import subprocess
import sys
import zipfile

import numpy as np
from safetensors.numpy import save, save_file

from flaxvid import trees
from flaxvid.models.registry import create_tiny
from flaxvid.weights.native import WeightsInfo, save_variables
from flaxvid.weights.torch_file import write_torch_file

FILES = int(os.environ.get("FLAXVID_FUZZ", "300"))
MEGABYTES = 256
"""What reading any of the files, of some 50 kB, may take."""
SECONDS = 10

READER = """
import json, resource, signal, sys, warnings
from pathlib import Path
import jax.numpy, numpy as np
from flaxvid import trees
from flaxvid.weights.native import is_native, load_variables
from flaxvid.weights.tensors import read_tensors
import safetensors.numpy

folder, megabytes, seconds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
deeds = []
guarded = ("os.system", "os.mkdir", "os.exec", "os.fork", "os.posix", "os.spawn", "os.re", "subprocess.", "shutil.",
           "socket.", "ctypes.", "pickle.", "tempfile.")
sys.addaudithook(lambda event, arguments: deeds.append(event) if event.startswith(guarded) else None)
warnings.simplefilter("ignore")


def read(path):
    if is_native(path):
        return {key: np.asarray(leaf) for key, leaf in trees.flatten(load_variables(path)[0]).items()}
    return read_tensors(path)


def differences(found, right):
    count = 0
    for key in right.keys() | found.keys():
        a, b = found.get(key), right.get(key)
        if a is None or b is None or a.shape != b.shape:
            count += 1
        else:
            count += int((a.view(f"u{a.itemsize}") != b.view(f"u{b.itemsize}")).sum())
    return count


originals = {path.stem: read(path) for path in sorted(folder.glob("original-*"))}
deeds.clear()
limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + (megabytes << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
status = lambda name: int(Path("/proc/self/status").read_text().partition(name + ":")[2].split()[0])
before = status("VmRSS")
for line in (folder / "list.json").read_text().splitlines():
    name, kind = json.loads(line)
    print(json.dumps([name]), flush=True)
    signal.alarm(seconds)
    try:
        outcome = ["read", differences(read(folder / name), originals[f"original-{kind}"])]
    except Exception as error:
        outcome = [type(error).__name__, str(error)]
    signal.alarm(0)
    print(json.dumps([name, *outcome, sorted(set(deeds))]), flush=True)
    deeds.clear()
print(json.dumps((status("VmHWM") - before) >> 10))
"""


def random_tensors(rng):
    shapes = {"conv1.weight": (8, 3, 7, 7), "bn1.weight": (8,), "layer1.0.conv1.weight": (16, 8, 3, 3), "fc.bias": (5,)}
    return {key: rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}


def originals(folder, write_legacy):
    """One small file of each kind, by kind. Where torch is, it writes its own."""
    rng = np.random.default_rng(0)
    save_file(random_tensors(rng), folder / "original-safetensors.safetensors")
    variables = create_tiny("tsm_resnet18", depths=(1,)).init(
        __import__("jax").random.key(0), np.zeros((1, 2, 32, 32, 3), np.uint8)
    )
    small = dict(list(trees.flatten(variables).items())[:8])
    info = WeightsInfo("tsm_resnet18", {"depths": [1], "num_classes": 2}, None, ("a", "b"))
    save_variables(folder / "original-native.safetensors", trees.unflatten(small), info)
    (folder / "original-caffe2.pkl").write_bytes(pickle.dumps({"blobs": {**random_tensors(rng), "model_iter": 3}}, 2))
    np.savez(folder / "original-npz.npz", **random_tensors(rng))
    try:
        import torch
    except ImportError:
        write_torch_file(folder / "original-zip.pth", random_tensors(rng))
        write_legacy(folder / "original-legacy.pth", random_tensors(rng))
        return
    for kind, new in (("zip", True), ("legacy", False)):
        state = {key: torch.from_numpy(tensor) for key, tensor in random_tensors(rng).items()}
        state["half"] = torch.ones(7, dtype=torch.bfloat16)
        state["turned"] = torch.arange(24.0).reshape(4, 6).t()
        state["bn1.num_batches_tracked"] = torch.tensor(3)
        content = {"state_dict": collections.OrderedDict(state), "epoch": 3, "optimizer": {"state": {0: {"a": [1.5]}}}}
        torch.save(content, folder / f"original-{kind}.pth", _use_new_zipfile_serialization=new)


NUMBERS = (0, 1, 2, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)
PICKLED = [
    b"cposix\nmkdir\nX\x08\x00\x00\x00was_here\x85R", b"cos\nsystem\nX\x02\x00\x00\x00ls\x85R",
    b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R", b"ctorch\nFloatTensor\nJ\xff\xff\xff\x7f\x85R",
    b"r\xff\xff\xff\x7f", b"\x8b\xff\xff\xff\x7f", b"\x8a\x09" + b"\xff" * 8 + b"\x7f",
    b"J\xff\xff\xff\x7f", b"J\xff\xff\xff\xff", b"0)q\x00" + b"0h\x00h\x00\x86q\x00" * 40, b"h\x01", b"K\x00",
    b"R", b"b", b"\x81", b"Q", b"u", b"s", b"(", b"}", b".", b"N", b"\x85", b"\x86", b"t",
]  # fmt: skip


def flip(data, rng):
    """Some bits, half of the time in what describes the tensors; as many changes as were made."""
    count = rng.choice((1, 1, 2, 8))
    for _ in range(count):
        at = (
            rng.randrange(len(data))
            if rng.random() < 0.5
            else rng.choice((rng.randrange(600), -1 - rng.randrange(900)))
        )
        data[at % len(data)] ^= 1 << rng.randrange(8)
    return count


def cut(data, rng):
    del data[rng.randrange(len(data)) :]


def splice(data, rng, other):
    at, length = rng.randrange(len(data)), rng.randrange(1, 400)
    start = rng.randrange(len(other))
    data[at : at + rng.choice((0, length))] = rng.choice((data, other))[start : start + rng.choice((0, length))]


def change_number(data, rng):
    """A field of a zip's headers, a header's length, a number in JSON."""
    marks = [match.start() for match in re.finditer(rb"PK[\1\3\5\6][\2\4\6\7]", data)]
    width = rng.choice((2, 4, 8))
    number = (rng.choice(NUMBERS) % (1 << 8 * width)).to_bytes(width, "little")
    if marks:
        at = rng.choice(marks) + rng.randrange(4, 46)
        data[at : at + width] = number
    elif data[8:9] == b"{" and rng.random() < 0.7:
        found = list(re.finditer(rb"\d+", data[: 8 + int.from_bytes(data[:8], "little")]))
        match = rng.choice(found)
        changed = str(rng.choice((*NUMBERS, int(match[0]) + 1, -1))).encode()
        data[match.start() : match.end()] = changed
        length = int.from_bytes(data[:8], "little") + len(changed) - len(match[0])
        data[:8] = length.to_bytes(8, "little")
    else:
        at = rng.choice((0, rng.randrange(len(data))))
        data[at : at + width] = number


def change_pickle(data, rng):
    """Other opcodes, under a checksum that is right."""
    zipped = data[:2] == b"PK"
    if zipped:
        archive = zipfile.ZipFile(io.BytesIO(data))
        members = {info.filename: bytearray(archive.read(info)) for info in archive.infolist()}
        pickled = next(content for name, content in members.items() if name.endswith("data.pkl"))
    else:
        pickled = data
    most = len(pickled) if zipped else 900
    for _ in range(rng.choice((1, 1, 3))):
        at = rng.randrange(2, most)
        opcode = rng.choice(PICKLED)
        pickled[at : at + rng.choice((0, 1, len(opcode)))] = (
            opcode if rng.random() < 0.7 else bytes([rng.randrange(256)])
        )
    if zipped:
        written = io.BytesIO()
        with zipfile.ZipFile(written, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
            for name, content in members.items():
                archive.writestr(name, bytes(content))
        data[:] = written.getvalue()


def change_metadata(data, rng):
    """Another text where a file of ours says what it is."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    text = bytearray(header.get("__metadata__", {}).get("flaxvid", "{}").encode())
    rng.choice(
        (lambda: cut(text, rng), lambda: splice(text, rng, b'[{"a": null}, -1, 1e999, "x"]'), lambda: flip(text, rng))
    )()
    header["__metadata__"] = {"flaxvid": text.decode("latin-1")}
    written = json.dumps(header).encode()
    data[: 8 + length] = struct.pack("<Q", len(written)) + written


def changed(kind, data, rng, other):
    """A changed copy, how, and how many values may differ: None where nobody can know."""
    ways = ["flip", "flip", "cut", "splice", "number"] + (["pickle"] * 2 if kind in ("zip", "legacy", "caffe2") else [])
    way = rng.choice([*ways, "metadata"] if kind == "native" else ways)
    data, flips = bytearray(data), None
    if way == "flip":
        flips = flip(data, rng)
    elif way == "cut":
        cut(data, rng)
    elif way == "splice":
        splice(data, rng, other)
    elif way == "number":
        change_number(data, rng)
    elif way == "pickle":
        change_pickle(data, rng)
    else:
        change_metadata(data, rng)
    return bytes(data), way, flips


def test_changed_files_are_read_exactly_or_refused(tmp_path, write_legacy):
    originals(tmp_path, write_legacy)
    sources = {path.stem.removeprefix("original-"): path for path in sorted(tmp_path.glob("original-*"))}
    kinds = {kind: path.read_bytes() for kind, path in sources.items()}
    rng, made = random.Random(0), {}
    with (tmp_path / "list.json").open("w") as listing:
        for number in range(FILES):
            kind = list(kinds)[number % len(kinds)]
            data, way, flips = changed(kind, kinds[kind], rng, rng.choice(list(kinds.values())))
            name = f"{number}{sources[kind].suffix}"
            (tmp_path / name).write_bytes(data)
            made[name] = kind, way, flips
            listing.write(json.dumps([name, kind]) + "\n")
    done = subprocess.run(
        [sys.executable, "-c", READER, str(tmp_path), str(MEGABYTES), str(SECONDS)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        timeout=60 + FILES,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"{lines[-1:]} {made.get(str(lines[-1][0])) if lines else ''}: {done.stderr[-2000:]}"
    peak, results = lines[-1], [line for line in lines[:-1] if len(line) > 1]
    assert len(results) == FILES
    assert not (tmp_path / "was_here").exists()
    counts = collections.Counter()
    for name, outcome, what, deeds in results:
        kind, way, flips = made[name]
        assert not deeds, (name, kind, way, deeds)
        counts[kind, "refused" if outcome != "read" else "the same" if what == 0 else "others"] += 1
        if outcome != "read":
            assert outcome == "ValueError", (name, kind, way, outcome, what)
            assert name in what, (name, kind, way, what)
        elif way == "cut":
            raise AssertionError(f"{name} ({kind}) was cut off and read")
        elif kind in ("zip", "npz") and way != "pickle":  # each storage has a checksum
            assert what == 0, (name, kind, way, what)
        elif (
            flips is not None and kind != "caffe2"
        ):  # there one bit is the order of an array's bytes  # no checksum: a value, a name or a type for each bit
            assert what <= 2 * flips, (name, kind, way, what, flips)
    print(f"\n{FILES} files, peak {peak} MB above the start: {dict(sorted(counts.items()))}")
    assert counts["safetensors", "refused"] > FILES // 20
    assert peak < MEGABYTES


def test_the_sample_has_no_file_that_is_refused_unchanged(tmp_path, write_legacy):
    """Else the test above would be of nothing."""
    from flaxvid.weights.native import load_variables
    from flaxvid.weights.tensors import read_tensors

    originals(tmp_path, write_legacy)
    for path in tmp_path.glob("original-*"):
        assert load_variables(path)[0] if "native" in path.name else read_tensors(path)
    assert (
        save(random_tensors(np.random.default_rng(0))) == (tmp_path / "original-safetensors.safetensors").read_bytes()
    )
