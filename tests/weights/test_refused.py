"""What is no file of plain, finite floats is refused by one error that names it; what is unusual is read exactly."""

import json
import pickle
import struct
import tarfile

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import flaxvid
from flaxvid import trees
from flaxvid.frames import FrameFlexible
from flaxvid.models.registry import create_tiny
from flaxvid.train.trained import load
from flaxvid.weights.native import WeightsInfo, is_native, load_variables, save_variables
from flaxvid.weights.tensors import read_tensors

ONES = np.ones((2, 3), np.float32)


# In memory


def in_itself():
    mapping = {"w": ONES}
    mapping["model"] = mapping
    return mapping


def deep():
    mapping = {"w": ONES}
    for _ in range(100_000):
        mapping = {"state_dict": mapping}
    return mapping


class Endless(dict):
    def __getitem__(self, key):
        return Endless(w=ONES)

    def get(self, key, default=None):
        return self[key] if key == "model" else default


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (in_itself(), "more than 8 deep, or one that holds itself"),
        (deep(), "more than 8 deep"),
        (Endless(), "more than 8 deep"),
        ({"w": ONES.astype(np.int8)}, "w is int8, expected float32"),
        ({"w": ONES > 0}, "w is bool"),
        ({"w": ONES.astype(np.uint8), "v": ONES + 1j}, r"2 tensors .* w is uint8.*; v is complex64"),
        ({"w": ONES.astype(ml_dtypes.float8_e4m3fn)}, "w is float8_e4m3fn"),
        ({"w": ONES.astype(object)}, "w is object"),
        ({"w": np.array(["a"])}, "w is str"),
        ({"w": np.ma.masked_array(ONES, ONES > 0)}, "w is masked"),
        ({"w": jax.ShapeDtypeStruct((2,), np.int32)}, "w is int32"),
        ({"w": ONES * np.float64(1e300)}, "w has numbers beyond those of float32"),
        ({"w": np.array([1, np.nan, np.inf], np.float16)}, r"NaN or infinite in 1 tensors, such as w \(2 of 3\)"),
        ({3: ONES}, "names of tensors for keys, got 3"),
        ({("a", "b"): ONES}, "names of tensors for keys, got a tuple"),
        ({"a\x1b[2J": ONES}, r"got 'a\\x1b\[2J'"),
        ({"w" * 5000: ONES}, "got 'www"),
        ({"w": [1.0]}, "got 'w': pass the part"),
    ],
)
def test_mappings(mapping, message, refused):
    refused(mapping, message)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4", ml_dtypes.bfloat16])
def test_floats_of_other_widths_are_read_exactly(dtype):
    read = read_tensors({"w": np.arange(6).astype(dtype), "empty": np.zeros((0, 3), dtype), "one": np.ones((), dtype)})
    np.testing.assert_array_equal(read["w"], np.arange(6, dtype=np.float32))
    assert [leaf.dtype for leaf in read.values()] == [np.float32] * 3
    assert (read["empty"].shape, read["one"].shape) == ((0, 3), ())


def test_nan_and_infinity_where_they_are_wanted(tmp_path, refused):
    odd = np.array([1, np.nan, np.inf, -np.inf], np.float32)
    np.testing.assert_array_equal(read_tensors({"w": odd}, allow_nonfinite=True)["w"], odd)
    model = create_tiny("tsm_resnet18", depths=(1,))
    variables = jax.tree.map(np.array, model.init(jax.random.key(0), np.zeros((1, 2, 32, 32, 3), np.uint8)))
    variables["params"]["stem"]["conv1"]["kernel"][0, 0, 0, 0] = np.nan
    options = {"width": 8, "depths": (1,)}
    file = tmp_path / "torch.safetensors"
    save_file(flaxvid.to_torch("tsm_resnet18", variables), file)
    refused(file, "NaN or infinite", lambda path: flaxvid.load_torch("tsm_resnet18", path, overrides=options))
    read = flaxvid.load_torch("tsm_resnet18", file, overrides=options, allow_nonfinite=True)
    np.testing.assert_array_equal(
        read["params"]["stem"]["conv1"]["kernel"], variables["params"]["stem"]["conv1"]["kernel"]
    )
    file = tmp_path / "ours.safetensors"
    save_variables(file, variables, WeightsInfo("tsm_resnet18", {"depths": [1]}))
    refused(file, "NaN or infinite.*; allow_nonfinite=True takes them", load_variables)
    assert np.isnan(load_variables(file, allow_nonfinite=True)[0]["params"]["stem"]["conv1"]["kernel"]).any()


# Files that are something else


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 123\n", "Git LFS pointer.*git lfs pull"),
        (b"\xef\xbb\xbf\n <!DOCTYPE html><html>404</html>", "is a web page"),
        (b'{"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}', "an index of several files"),
        (b"conv1.weight 0.5 0.25\n", "is a text file that begins with 'conv1.weight"),
        (b"\x1f\x8b\x08\0\0\0", "is compressed by gzip"),
        (b"\x89HDF\r\n\x1a\n\0", "is an HDF5 file"),
        (b"\x93NUMPY\x01\0v\0{'descr'", "is one NumPy array"),
        (b"\0" * 700, "is damaged"),
        (bytes(range(256)) * 3, "is damaged"),
        (b"PK\x05\x06" + b"\0" * 18, "is a zip archive, but torch did not write it"),
        (pickle.dumps({"w": 1}), "must hold tensors by name.*got 'w'"),
        (pickle.dumps({"w": ONES.astype(object)}), "w of 'O8': convert it to float32"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_other_files(tmp_path, content, message, suffix, refused):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    refused(path, message)


def test_other_archives_and_folders(tmp_path, refused):
    (tmp_path / "w.onnx").write_bytes(b"\x08\x07\x12\x07pytorch")
    refused(tmp_path / "w.onnx", "is an ONNX file")
    with tarfile.open(tmp_path / "w.pth.tar", "w") as archive:
        archive.add(tmp_path / "w.onnx", "w.onnx")
    refused(tmp_path / "w.pth.tar", "is a tar archive")
    (tmp_path / "empty.pth").touch()
    refused(tmp_path / "empty.pth", "is empty: fetch it again")
    for reader in (read_tensors, load_variables, lambda path: flaxvid.load_torch("tsn_resnet18", path)):
        with pytest.raises(FileNotFoundError, match=r"no weights file at .*: it is a folder"):
            reader(tmp_path)


def test_the_content_says_what_a_file_is(tmp_path):
    save_file({"w": ONES}, tmp_path / "w.pth")
    np.testing.assert_array_equal(read_tensors(tmp_path / "w.pth")["w"], ONES)
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.ones(2)}, tmp_path / "w.safetensors")
    np.testing.assert_array_equal(read_tensors(tmp_path / "w.safetensors")["w"], np.ones(2))


# safetensors


def write_safetensors(path, header, body=b"\0" * 8, length=None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + body)


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
TWICE = b'{"w": %b, "w": %b}' % (json.dumps(ENTRY).encode(), json.dumps({**ENTRY, "shape": [1, 2]}).encode())


@pytest.mark.parametrize(
    ("header", "options", "message"),
    [
        ({}, {"body": b""}, "got an empty mapping"),
        ({"w": ENTRY}, {"length": 1 << 40}, "header claims 1099511627776 bytes"),
        ({"w": ENTRY}, {"length": 1 << 20}, "is damaged"),
        ({"w": ENTRY}, {"length": 3}, "is damaged"),
        ({"w": ENTRY}, {"body": b"\0" * 7}, "is damaged"),
        ({"w": ENTRY}, {"body": b"\0" * 9}, "is damaged"),
        ({"w": ENTRY, "v": ENTRY}, {}, "is damaged"),
        (TWICE, {}, "its header names a tensor twice"),
        ({"w": {**ENTRY, "shape": [1 << 62, 4]}}, {}, "is damaged"),
        ({"w": {**ENTRY, "shape": [0, 1 << 62], "data_offsets": [0, 0]}}, {"body": b""}, "is damaged"),
        ({"w": {**ENTRY, "shape": [1] * 70 + [2]}}, {}, "is damaged"),
        ({"w": {**ENTRY, "shape": [-2]}}, {}, "is damaged"),
        ({"w": {**ENTRY, "dtype": "F33"}}, {}, "is damaged"),
        (b"{" * 100_000, {}, "is damaged"),
        (b"[" * 100_000, {}, "is damaged"),
        ({"a\nb": ENTRY}, {}, r"got 'a\\nb'"),
        ({"w/" * 5000: ENTRY}, {}, "names of tensors for keys"),
        *[
            ({"w": {**ENTRY, "dtype": kind, "shape": shape}}, {}, f"got w as {kind}: convert 1 tensors to float32")
            for kind, shape in (("I8", [8]), ("U8", [8]), ("BOOL", [8]), ("C64", [1]), ("F8_E4M3", [8]), ("I64", [1]))
        ],
    ],
)
def test_damaged_and_odd_safetensors(tmp_path, header, options, message, refused):
    write_safetensors(tmp_path / "w.safetensors", header, **options)
    refused(tmp_path / "w.safetensors", message)


# Files of ours


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged"),
        ("[" * 100_000, "is damaged"),
        ("[1]", "must say its model, overrides, frames, classes"),
        ('{"model": "tsm_resnet18", "colour": 1}', "must say its model"),
        ("{}", "a model that flaxvid cannot make"),
        ('{"model": "resnet99"}', "cannot make: unknown model 'resnet99'"),
        ('{"model": 3}', "cannot make"),
        ('{"model": ["a"]}', "cannot make"),
        ('{"model": "tsm_resnet18", "overrides": {"with": 3}}', "cannot make: tsm_resnet18 has no option with"),
        ('{"model": "tsm_resnet18", "overrides": [1]}', "cannot make"),
        ('{"model": "tsm_resnet18", "overrides": {"num_classes": "x"}}', "cannot make"),
        ('{"model": "tsm_resnet18", "overrides": {"depths": [1000000000]}}', "1 tensors for 1000000000 blocks"),
        ('{"model": "vivit_base", "overrides": {"depth": 1000000000}}', "1 tensors for 1000000000 blocks"),
        ('{"model": "vivit_base", "overrides": {"temporal_depth": 1000000000}}', "1 tensors for 1000000000 blocks"),
        ('{"model": "cnn_gru", "overrides": {"num_layers": 1000000000}}', "1 tensors for 1000000000 blocks"),
        ('{"model": "tsm_resnet18", "overrides": {"depths": "many"}}', "cannot make: depths must be"),
        ('{"model": "ts_cva", "overrides": {"backbone_options": {"depths": [9]}}}', "1 tensors for 9 blocks"),
        ('{"model": "tsm_resnet18", "frames": 4}', "must have frame counts"),
        ('{"model": "tsm_resnet18", "frames": [4, 0]}', "must have frame counts"),
        ('{"model": "tsm_resnet18", "frames": [4.5]}', "must have frame counts"),
        ('{"model": "tsm_resnet18", "classes": [1, 2]}', "must have lists of class names"),
        ('{"model": "tsm_resnet18", "classes": "ab"}', "must have lists of class names"),
    ],
)
def test_our_files_with_other_metadata(tmp_path, text, message, refused):
    path = tmp_path / "w.safetensors"
    save_file({"params/stem/conv1/kernel": ONES}, path, metadata={"flaxvid": text})
    assert is_native(path)
    refused(path, message, load_variables)
    refused(path, message, load)


def test_our_files_with_other_tensors(tmp_path, refused):
    path, said = tmp_path / "w.safetensors", {"flaxvid": '{"model": "tsm_resnet18"}'}
    for tensors, message in (
        ({"w": ONES}, "has no parameters"),
        ({"params/a": ONES, "params/a/b": ONES}, "is damaged"),
        ({"params/a": ONES.astype(np.int8)}, "has params/a in int8, and its options do not say why"),
    ):
        save_file(tensors, path, metadata=said)
        refused(path, message, load_variables)
    save_file({"params/a": ONES}, path, metadata=said)
    path.write_bytes(path.read_bytes()[:-1])
    for reader in (is_native, load_variables, load, read_tensors):
        refused(path, "is damaged", reader)


@pytest.mark.parametrize("frames", [None, (2, 4)])
def test_our_files_must_fit_the_model_that_they_name(tmp_path, frames, refused):
    """Statistics of one number would be broadcast without a word."""
    model = create_tiny("tsm_resnet18", depths=(1,))
    variables = model.init(jax.random.key(0), np.zeros((1, 2, 32, 32, 3), np.uint8))
    if frames:
        variables = FrameFlexible(model, frames).specialise(variables)
    collection = f"batch_stats{'_4f' if frames else ''}"
    info = WeightsInfo("tsm_resnet18", {"depths": [1], "width": 8, "image_size": 32, "num_frames": 2}, frames)
    path = tmp_path / "w.safetensors"
    save_variables(path, variables, info)
    assert load(path).frames == (frames or (2,))
    mean = f"{collection}/stem/norm1/mean"
    flat = trees.flatten(variables)
    for changed, message in (
        ({mean: np.zeros(1, np.float32)}, r"norm1/mean \(expected \(8,\), got \(1,\)\)"),
        ({mean: None}, r"norm1/mean \(expected \(8,\), got None\)"),
        ({f"{collection}/stem/norm9/mean": ONES}, r"norm9/mean \(expected None, got \(2, 3\)\)"),
    ):
        kept = {key: leaf for key, leaf in {**flat, **changed}.items() if leaf is not None}
        save_variables(path, trees.unflatten(kept), info)
        refused(path, f"1 variables differ, such as .*{message}", load)


@pytest.mark.parametrize("head", [np.ones((), np.float32), np.ones((0, 64), np.float32)])
def test_a_classifier_without_rows(head):
    state_dict = {"fc.weight": head, "conv1.weight": np.ones((8, 3, 7, 7), np.float32)}
    with pytest.raises(ValueError, match="does not fit tsn_resnet18"):
        flaxvid.load_torch("tsn_resnet18", state_dict)


def test_frame_counts_without_end(refused):
    model = create_tiny("tsm_resnet18", depths=(1,))
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 2, 32, 32, 3), np.uint8))
    shapes = jax.eval_shape(FrameFlexible(model, (7,)).specialise, shapes)
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    names = flaxvid.to_torch("tsm_resnet18", variables)
    many = {name.replace("_7.", f"_{count}."): leaf for count in range(1000) for name, leaf in names.items()}
    refused(
        many,
        "the state_dict has variables for 1000 frame counts, expected 32 or fewer",
        lambda source: flaxvid.load_torch("tsm_resnet18", source, overrides={"width": 8, "depths": (1,)}),
    )


def test_a_file_of_ours_is_no_torch_file(tmp_path):
    model = create_tiny("tsm_resnet18", depths=(1,))
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 2, 32, 32, 3), np.uint8))
    save_variables(tmp_path / "ours.safetensors", variables, WeightsInfo("tsm_resnet18", {}))
    with pytest.raises(ValueError, match=r"got .*ours\.safetensors, which flaxvid wrote: use flaxvid.load"):
        flaxvid.load_model("tsm_resnet18", tmp_path / "ours.safetensors")
