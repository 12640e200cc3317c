"""Lists with a column of labels for each target, from the file to the batch and into a stored data set."""

import numpy as np
import pytest

from flaxvid.data.clips.cut import ClipConfig
from flaxvid.data.pipeline import eval_batches, train_batches
from flaxvid.data.prepare.run import Preparation, prepare
from flaxvid.data.sources.open import open_source
from flaxvid.data.sources.subset import random_subset

ROWS = [("a", "look left", 0), ("b", "look right", 2), ("c", "jump", 1), ("d", "look right", 0)]


@pytest.fixture(scope="module")
def root(motion_data, tmp_path_factory, write):
    """Four videos, a training list of all and a test list of two."""
    from flaxvid.data.motion.build import MotionConfig, build_motion, motion_source

    root = tmp_path_factory.mktemp("targets")
    config = MotionConfig(size=32, num_frames=16, train=24, validation=8, test=8)
    source = motion_source(build_motion(motion_data, config), "train")
    for index, (name, *_) in enumerate(ROWS):
        (root / f"{name}.mp4").write_bytes(source[index]["video"])
    write(root / "train.csv", "path,action,actor", "# a comment", *(f"{n}.mp4,{a}, {b}" for n, a, b in ROWS))
    write(root / "test.csv", "path,action,actor", "b.mp4,look right,1", '"c.mp4",jump,0')
    return root


def labels(source):
    return [(item["id"], item["label"]) for item in (source[i] for i in range(len(source)))]


def test_names_are_sorted_and_numbers_count(root):
    train, test = (open_source("list", root, split) for split in ("train", "test"))
    assert train.classes == test.classes == {"action": ("jump", "look left", "look right"), "actor": ("0", "1", "2")}
    assert labels(train)[:2] == [("a.mp4", {"action": 1, "actor": 0}), ("b.mp4", {"action": 2, "actor": 2})]
    assert labels(test) == [("b.mp4", {"action": 2, "actor": 1}), ("c.mp4", {"action": 0, "actor": 0})]
    assert train.flip_labels == {"action": (0, 2, 1), "actor": None}
    assert random_subset(train, 2).classes == train.classes


def test_labels_are_dicts_in_batches(root):
    source = open_source("list", root)
    config = ClipConfig((2, 4), 32, 32, flip=True, repeats=2)
    batches = train_batches(source, config, 8)
    seen = [next(batches) for _ in range(6)]
    mirrored = 0
    for batch in seen:
        assert {name: (own.shape, own.dtype) for name, own in batch["label"].items()} == dict.fromkeys(
            ("action", "actor"), ((8,), np.int32)
        )
        assert batch["video"][4].shape == (8, 4, 32, 32, 3)
        for row, index in enumerate(batch["index"]):
            own = source[int(index)]["label"]
            assert batch["label"]["actor"][row] == own["actor"]
            assert batch["label"]["action"][row] in (own["action"], source.flip_labels["action"][own["action"]])
            mirrored += batch["label"]["action"][row] != own["action"]
    assert 0 < mirrored < 36


def test_evaluation_pads_every_target(root):
    *_, last = eval_batches(open_source("list", root, "test"), ClipConfig((2,), 32, 32), 3)
    assert last["mask"].tolist() == [True, True, False]
    assert {name: own.tolist() for name, own in last["label"].items()} == {"action": [2, 0, 0], "actor": [1, 0, 0]}


def test_a_stored_data_set_keeps_them(root, tmp_path):
    source = open_source("list", root)
    prepare({"train": source}, tmp_path / "stored", Preparation(shard_size=3), workers=1)
    stored = open_source("tfds", tmp_path / "stored", "train")
    assert stored.classes == source.classes
    assert labels(stored) == labels(source)
    assert stored.flip_labels == source.flip_labels


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("path,action,actor", "a.mp4,jump"), r"expected 3 columns \(path, action, actor\), got \['a.mp4', 'jump'\]"),
        (("path,action,mood", "a.mp4,jump,1"), "expected the columns path, action, actor of train.csv"),
        (
            ("path,action,actor", "a.mp4,swim,1"),
            "expected action to be one of jump, look left, look right, as in train",
        ),
        (("path,action,actor", "a.mp4,jump,x"), "expected actor to be one of 0, 1, 2, as in train.csv, got x"),
        (("path,action,actor",), "expected videos, got an empty list"),
    ],
)
def test_slips_in_a_list(root, tmp_path, lines, message, write):
    (tmp_path / "train.csv").write_text((root / "train.csv").read_text())
    write(tmp_path / "test.csv", *lines)
    with pytest.raises(ValueError, match=message):
        open_source("list", root, "test", lists=tmp_path)
