import pickle

import pytest

from flaxvid.data.clips.decode import decode
from flaxvid.data.motion.build import MotionConfig
from flaxvid.data.sources.open import SOURCES, open_source


def ids(source):
    return [(item["id"], item["label"]) for item in (source[i] for i in range(len(source)))]


def test_folder_with_split_folders(tmp_path, touch):
    touch(tmp_path, "train/run/b.mp4", "train/run/a.avi", "train/jump/c.webm", "train/jump/notes.txt", "test/run/d.mp4")
    train, test = (open_source("folder", tmp_path, split) for split in ("train", "test"))
    assert train.classes == test.classes == ("jump", "run")
    assert ids(train) == [("train/jump/c.webm", 0), ("train/run/a.avi", 1), ("train/run/b.mp4", 1)]
    assert ids(test) == [("test/run/d.mp4", 1)]
    assert train[0]["video"] == str(tmp_path / "train/jump/c.webm")
    assert train.flip_labels is None
    touch(tmp_path, "test/swim/e.mp4")
    with pytest.raises(ValueError, match=r"expected in .*test the classes of .*train, got also \['swim'\]"):
        open_source("folder", tmp_path, "test")


def test_folder_with_a_hold_out(tmp_path, touch):
    touch(tmp_path, *(f"{name}/{i:02d}.mp4" for name in ("turn_left", "turn_right") for i in range(20)))
    train, test = (open_source("folder", tmp_path, split) for split in ("train", "test"))
    assert (len(train), len(test)) == (32, 8)
    assert not set(ids(train)) & set(ids(test))
    assert sum(label for _, label in ids(test)) == 4
    assert train.flip_labels == (1, 0)
    assert ids(test) == ids(open_source("folder", tmp_path, "test"))
    touch(tmp_path, "turn_left/new.mp4")
    assert len(set(ids(open_source("folder", tmp_path, "test"))) ^ set(ids(test))) <= 2
    with pytest.raises(ValueError, match="expected split train or test"):
        open_source("folder", tmp_path, "val")


def test_folder_errors_show_the_layout(tmp_path):
    with pytest.raises(ValueError, match=r"expected .*/<class>/<video>.mp4, or .*; got no train videos in"):
        open_source("folder", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"expected .*<class>.*; got no folder"):
        open_source("folder", tmp_path / "none")


def test_list(tmp_path, touch, write):
    touch(tmp_path, "videos/a b.mp4", "videos/c.mp4", "videos/d.mp4")
    write(tmp_path / "train.txt", "# comment", "videos/a b.mp4 0", "", "videos/c.mp4 2")
    write(tmp_path / "test.txt", "videos/d.mp4 1")
    train, test = (open_source("list", tmp_path, split) for split in ("train", "test"))
    assert ids(train) == [("videos/a b.mp4", 0), ("videos/c.mp4", 2)]
    assert train.classes == test.classes == ("0", "1", "2")
    write(tmp_path / "lists" / "classes.txt", "jump", "look left")
    write(tmp_path / "lists" / "train.txt", "videos/c.mp4 1", "videos/d.mp4 jump")
    named = open_source("list", tmp_path, lists=tmp_path / "lists")
    assert ids(named) == [("videos/c.mp4", 1), ("videos/d.mp4", 0)]
    assert named.classes == ("jump", "look left")
    assert named.flip_labels == (0, None)


def test_list_with_commas(tmp_path, touch, write):
    touch(tmp_path, "a b.mp4", "c,d.mp4", "e.mp4", "#f.mp4")
    write(tmp_path / "train.csv", "path,label", "a b.mp4,1", '"c,d.mp4",0', "e.mp4, 2", "#f.mp4,0")
    write(tmp_path / "val.csv", "c,d.mp4 0", "e.mp4\t1")
    train, validation = (open_source("list", tmp_path, split) for split in ("train", "validation"))
    assert ids(train) == [("a b.mp4", 1), ("c,d.mp4", 0), ("e.mp4", 2), ("#f.mp4", 0)]
    assert ids(validation) == [("c,d.mp4", 0), ("e.mp4", 1)]
    assert validation.classes == ("0", "1", "2")
    write(tmp_path / "classes.txt", "look left", "look right")
    write(tmp_path / "train.csv", "e.mp4,look right")
    assert ids(open_source("list", tmp_path)) == [("e.mp4", 1)]


def test_missing_videos_may_be_kept(tmp_path, touch, write):
    touch(tmp_path, "a.mp4")
    write(tmp_path / "train.txt", "a.mp4 0", "b.mp4 1")
    write(tmp_path / "test.txt", "b.mp4 0")
    assert ids(open_source("list", tmp_path, missing="keep")) == [("a.mp4", 0), ("b.mp4", 1)]
    with pytest.raises(FileNotFoundError, match=r"1 are missing \(b.mp4\): check .* the layout is .*test.txt"):
        open_source("list", tmp_path, "test", missing="keep")
    with pytest.raises(ValueError, match='expected missing="error" or "keep", got \'drop\''):
        open_source("list", tmp_path, missing="drop")


def test_list_errors(tmp_path, touch, write):
    with pytest.raises(FileNotFoundError, match=r"expected .*train.txt .* lines `path label` or `path,label`.*; got"):
        open_source("list", tmp_path)
    write(tmp_path / "train.txt", *(f"{i}.mp4 {i}" for i in range(6)))
    touch(tmp_path, "0.mp4", "4.mp4")
    with pytest.raises(
        FileNotFoundError, match=r"expected 6 videos under .*, 4 are missing \(1.mp4, 2.mp4, 3.mp4, ... \(4 in all\)\)"
    ):
        open_source("list", tmp_path)
    write(tmp_path / "classes.txt", "a", "b")
    with pytest.raises(ValueError, match=r"expected labels from 0 to 1 \(2 classes\), got 2 for 2.mp4: correct"):
        open_source("list", tmp_path)
    write(tmp_path / "train.txt", "0.mp4 -1")
    with pytest.raises(ValueError, match=r"got -1 for 0.mp4"):
        open_source("list", tmp_path)
    write(tmp_path / "train.txt", "0.mp4")
    with pytest.raises(ValueError, match=r"expected lines `path label` or `path,label`, got '0.mp4' as entry 1"):
        open_source("list", tmp_path)
    write(tmp_path / "train.txt", "")
    with pytest.raises(ValueError, match="expected videos, got an empty list"):
        open_source("list", tmp_path)


def test_names_and_options(tmp_path):
    with pytest.raises(
        ValueError, match=r"expected one of diving48, .*ucf101 or tfds:NAME, got 'ucf102': your own videos are `folder`"
    ):
        open_source("ucf102", tmp_path)
    with pytest.raises(ValueError, match="folder: expected no options, got fold: leave it out"):
        open_source("folder", tmp_path, fold=1)
    with pytest.raises(ValueError, match="list: expected lists, got fold"):
        open_source("list", tmp_path, fold=1, lists=tmp_path)
    with pytest.raises(ValueError, match="tfds: expected no options, got fold: leave it out"):
        open_source("tfds", tmp_path, fold=1)
    with pytest.raises(ValueError, match="got 'folder:mine'"):
        open_source("folder:mine", tmp_path)
    with pytest.raises(ValueError, match="folder: expected the folder of the videos as root, got None"):
        open_source("folder", None)
    assert set(SOURCES) >= {"motion", "folder", "list", "tfds", "ucf101"}


def test_motion(tmp_path):
    config = MotionConfig(size=16, num_frames=4, train=3, validation=1, test=2)
    sources = {
        split: open_source("motion", tmp_path, split, motion=config) for split in ("train", "validation", "test")
    }
    assert [len(source) for source in sources.values()] == [3, 1, 2]
    assert sources["train"].flip_labels is not None
    assert decode(sources["test"][1]["video"], [0, 3]).shape == (2, 16, 16, 3)


def test_pickles(tmp_path, touch):
    touch(tmp_path, "train/run/b.mp4", "train/jump/c.mp4")
    source = open_source("folder", tmp_path)
    assert ids(pickle.loads(pickle.dumps(source))) == ids(source)
