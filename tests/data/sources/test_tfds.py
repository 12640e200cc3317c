"""Data sets that TFDS has prepared, written here by TFDS itself."""

import json
import pickle
import subprocess
import sys

import av
import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.dataset_info import DatasetIdentity

from flaxvid.data.clips.decode import VideoError
from flaxvid.data.motion.build import MotionConfig, build_motion
from flaxvid.data.sources.open import open_source

CLASSES = ["turn left", "turn right", "sit"]


def picture(level, codec, side=24):
    """One encoded grey image."""
    encoder = av.codec.CodecContext.create(codec, "w")
    encoder.width = encoder.height = side
    encoder.pix_fmt, encoder.framerate = {"png": "rgb24", "mjpeg": "yuvj420p"}[codec], 12
    frame = av.VideoFrame.from_ndarray(np.full((side, side, 3), level, np.uint8), format="rgb24")
    return b"".join(
        bytes(packet) for packet in (*encoder.encode(frame.reformat(format=encoder.pix_fmt)), *encoder.encode())
    )


def store(folder, name, version, features, splits, file_format="array_record", per_shard=2):
    """Lets TFDS write examples where `tfds build` would put them."""
    folder.mkdir(parents=True)
    identity = DatasetIdentity(name=name, version=tfds.core.Version(version), data_dir=str(folder), module_name="test")
    info = tfds.core.DatasetInfo(
        builder=identity, features=tfds.features.FeaturesDict(features), disable_shuffling=True
    )
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard=per_shard, file_format=file_format)
    writer.initialize_splits(list(splits))
    for split, examples in splits.items():
        for example in examples:
            writer.add_examples({split: [example]})
    writer.close_all()


@pytest.fixture(params=["png", "mjpeg"])
def frames_set(request, tmp_path):
    """What `tfds build ucf101/ucf101_1 --file_format array_record` leaves: every frame is an image."""
    folder = tmp_path / "ucf101" / "ucf101_1" / "2.0.0"
    label = tfds.features.ClassLabel(names=CLASSES)
    examples = [
        {"video": [picture(20 * v + 10 * f, request.param) for f in range(3)], "label": v % 3} for v in range(5)
    ]
    features = {"video": tfds.features.Sequence(tfds.features.Text()), "label": label}
    store(folder, "ucf101", "2.0.0", features, {"train": examples, "test": examples[:1]})
    described = json.loads((folder / "features.json").read_text())  # the constructor of Video wants TensorFlow
    described["featuresDict"]["features"]["video"] = {
        "pythonClassName": "tensorflow_datasets.core.features.video_feature.Video",
        "video": {"shape": {"dimensions": ["-1", "256", "256", "3"]}, "dtype": "uint8", "encodingFormat": "png"},
    }
    (folder / "features.json").write_text(json.dumps(described))
    return tmp_path


@pytest.mark.parametrize("name", ["tfds:ucf101", "tfds:ucf101/ucf101_1", "tfds:ucf101/ucf101_1:2.0.0", "tfds"])
def test_video_stored_frame_by_frame(frames_set, name, ask):
    source = pickle.loads(pickle.dumps(open_source(name, frames_set)))
    assert (len(source), source.classes, source.flip_labels) == (5, tuple(CLASSES), (1, 0, 2))
    assert [source[i]["label"] for i in range(5)] == [0, 1, 2, 0, 1]
    assert source[3]["id"] == "ucf101 train 3"
    video = ask(source[3]["video"], range)
    assert video.shape == (3, 24, 24, 3)
    np.testing.assert_allclose(video.mean(axis=(1, 2, 3)), [60, 70, 80], atol=2)  # JPEG rounds
    assert len(open_source(name, frames_set, "test")) == 1
    part = open_source(name, frames_set, "train[1:3]")
    assert [part[i]["label"] for i in range(len(part))] == [1, 2]


def test_the_newest_version_of_one_set(tmp_path):
    features = {"video": tfds.features.Text(), "label": tfds.features.ClassLabel(num_classes=2)}
    for version, count in (("1.9.0", 1), ("1.10.0", 2)):
        examples = [{"video": b"v", "label": i} for i in range(count)]
        store(tmp_path / "clips" / version, "clips", version, features, {"train": examples})
    assert len(open_source("tfds:clips", tmp_path)) == 2
    assert len(open_source("tfds:clips:1.9.0", tmp_path)) == 1
    assert open_source("tfds", tmp_path / "clips" / "1.9.0").classes == ("0", "1")
    store(tmp_path / "other" / "1.0.0", "other", "1.0.0", features, {"train": [{"video": b"v", "label": 0}]})
    with pytest.raises(ValueError, match=r"expected one data set, got several in .*: .* tfds:clips, tfds:other"):
        open_source("tfds", tmp_path)


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected .*ucf101.*dataset_info.json, got none: .*tfds build"):
        open_source("tfds:ucf101", tmp_path)
    features = {"video": tfds.features.Text(), "label": tfds.features.Scalar(np.int64)}
    store(tmp_path / "a" / "1.0.0", "a", "1.0.0", features, {"train": [{"video": b"v", "label": 0}]})
    with pytest.raises(ValueError, match=r"one ClassLabel, got label: Scalar, video: Text: choose another"):
        open_source("tfds:a", tmp_path)
    with pytest.raises(ValueError, match=r"tfds a: expected split train, got 'test': there is none"):
        open_source("tfds:a", tmp_path, "test")
    info = tmp_path / "a" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match=r"expected ArrayRecord files in .*, got tfrecord.*--file_format array_record"):
        open_source("tfds:a", tmp_path)


def test_damaged_shards(tmp_path):
    features = {"video": tfds.features.Text(), "label": tfds.features.ClassLabel(num_classes=2)}
    examples = [{"video": np.random.default_rng(i).bytes(20_000), "label": 0} for i in range(4)]
    store(tmp_path / "a" / "1.0.0", "a", "1.0.0", features, {"train": examples})
    shard = tmp_path / "a" / "1.0.0" / "a-train.array_record-00001"
    content = shard.read_bytes()
    damaged = bytearray(content)
    damaged[10_000] ^= 255  # inside the third video
    shard.write_bytes(damaged)
    source = open_source("tfds:a", tmp_path)
    assert [source[i]["video"] == examples[i]["video"] for i in (0, 1, 3)] == [True, True, True]
    with pytest.raises(VideoError, match=r"a train: record 2 is damaged; .*-00001 is missing or damaged: copy"):
        source[2]
    for wrong in (content[:-40_000], content[: 65536 + 100], b""):
        shard.write_bytes(wrong)
        with pytest.raises(OSError, match=r"tfds: .*a-train.array_record-00001 is missing or damaged: copy it again"):
            open_source("tfds:a", tmp_path)
    shard.unlink()
    with pytest.raises(OSError, match=r"tfds: .*a-train.array_record-00001 is missing or damaged: copy it again"):
        open_source("tfds:a", tmp_path)
    shard.write_bytes((tmp_path / "a" / "1.0.0" / "a-train.array_record-00000").read_bytes())
    assert len(open_source("tfds:a", tmp_path)) == 4  # as many records: ArrayRecord cannot know better


def test_motion_is_such_a_set(tmp_path):
    folder = build_motion(tmp_path, MotionConfig(size=16, num_frames=4, train=3, validation=1, test=2), workers=1)
    motion, stored = open_source("motion", tmp_path, motion=MotionConfig(16, 4, 3, 1, 2)), open_source("tfds", folder)
    assert [motion[i] for i in range(3)] == [stored[i] for i in range(3)]
    assert (motion.classes, motion.flip_labels) == (stored.classes, stored.flip_labels)


def test_no_tensorflow(frames_set):
    code = (
        "import sys\nfrom flaxvid.data.sources.open import open_source\n"
        "open_source('tfds:ucf101', sys.argv[1])[0]\nassert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(frames_set)], check=True)
