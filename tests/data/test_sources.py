import json
import pickle

import numpy as np
import pytest

from flaxvid.data.decode import decode
from flaxvid.data.motion import MotionConfig
from flaxvid.data.sources import SOURCES, open_source


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def ids(source):
    return [(item["id"], item["label"]) for item in (source[i] for i in range(len(source)))]


def test_folder_with_split_folders(tmp_path):
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


def test_folder_with_a_hold_out(tmp_path):
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


def test_list(tmp_path):
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


def test_list_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected .*train.txt with lines `path label`.*; got no file"):
        open_source("list", tmp_path)
    write(tmp_path / "train.txt", *(f"{i}.mp4 {i}" for i in range(6)))
    touch(tmp_path, "0.mp4", "4.mp4")
    with pytest.raises(
        FileNotFoundError, match=r"expected 6 videos under .*, 4 are missing \(1.mp4, 2.mp4, 3.mp4, ...\)"
    ):
        open_source("list", tmp_path)
    write(tmp_path / "classes.txt", "a", "b")
    with pytest.raises(ValueError, match=r"expected labels from 0 to 1 \(2 classes\), got 2 for 2.mp4: correct"):
        open_source("list", tmp_path)
    write(tmp_path / "train.txt", "0.mp4 -1")
    with pytest.raises(ValueError, match=r"got -1 for 0.mp4"):
        open_source("list", tmp_path)
    write(tmp_path / "train.txt", "0.mp4")
    with pytest.raises(ValueError, match=r"expected lines `path label`, got '0.mp4' as entry 1"):
        open_source("list", tmp_path)
    write(tmp_path / "train.txt", "")
    with pytest.raises(ValueError, match="expected videos, got an empty list"):
        open_source("list", tmp_path)


@pytest.mark.parametrize("videos", [".", "UCF-101"])
@pytest.mark.parametrize("lists", [".", "ucfTrainTestlist"])
def test_ucf101(tmp_path, videos, lists):
    touch(
        tmp_path / videos,
        "Archery/v_Archery_g08_c01.avi",
        "Archery/v_Archery_g01_c01.avi",
        "Surfing/v_Surfing_g09_c01.avi",
    )
    write(tmp_path / lists / "classInd.txt", "1 Surfing", "2 Archery")
    write(tmp_path / lists / "trainlist02.txt", "Archery/v_Archery_g08_c01.avi 2", "Surfing/v_Surfing_g09_c01.avi 1")
    write(tmp_path / lists / "testlist02.txt", "Archery/v_Archery_g01_c01.avi")
    train, test = (open_source("ucf101", tmp_path, split, fold=2) for split in ("train", "test"))
    assert train.classes == ("Surfing", "Archery")
    assert ids(train) == [("Archery/v_Archery_g08_c01.avi", 1), ("Surfing/v_Surfing_g09_c01.avi", 0)]
    assert ids(test) == [("Archery/v_Archery_g01_c01.avi", 1)]
    with pytest.raises(FileNotFoundError, match=r"expected .*trainlist03.txt.*; got no file .*trainlist03.txt"):
        open_source("ucf101", tmp_path, fold=3)
    write(tmp_path / lists / "trainlist02.txt", "Archery/v_Archery_g08_c01.avi 1")
    with pytest.raises(ValueError, match=r"expected a class of classInd.txt and its number, got 'Archery/.* 1'"):
        open_source("ucf101", tmp_path, fold=2)


def test_ucf101_wrong_layout(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"v_<class>_g01_c01.avi.*trainlist01.txt.*got no classInd.txt"):
        open_source("ucf101", tmp_path)
    with pytest.raises(ValueError, match="expected split train or test, got 'val'"):
        open_source("ucf101", tmp_path, "val")


def test_hmdb51(tmp_path):
    touch(tmp_path, "run/a.avi", "run/b.avi", "run/c.avi", "sit/d.avi")
    write(tmp_path / "splits" / "run_test_split1.txt", "a.avi 1", "b.avi 2", "c.avi 0")
    write(tmp_path / "splits" / "sit_test_split1.txt", "d.avi 1")
    assert ids(open_source("hmdb51", tmp_path)) == [("run/a.avi", 0), ("sit/d.avi", 1)]
    assert ids(open_source("hmdb51", tmp_path, "test")) == [("run/b.avi", 0)]


def test_kinetics400(tmp_path):
    header = "label,youtube_id,time_start,time_end,split"
    write(
        tmp_path / "train.csv",
        header,
        "zumba,-xYz,5,15,train",
        "air drumming,abc,100,110,train",
        "zumba,gone,1,11,train",
    )
    write(tmp_path / "val.csv", header, "zumba,val,7,17,val")
    touch(
        tmp_path,
        "train/-xYz_000005_000015.mp4",
        "train/air drumming/abc_000100_000110.mp4",
        "val/val_000007_000017.mp4",
    )
    with pytest.warns(UserWarning, match="kinetics400 train: 1 of 3 videos are missing"):
        train = open_source("kinetics400", tmp_path)
    assert train.classes == ("air drumming", "zumba")
    assert ids(train) == [("train/-xYz_000005_000015.mp4", 1), ("train/air drumming/abc_000100_000110.mp4", 0)]
    assert ids(open_source("kinetics400", tmp_path, "validation")) == [("val/val_000007_000017.mp4", 1)]


LEFT, RIGHT = "Pushing something from left to right", "Pushing something from right to left"


def test_ssv2(tmp_path):
    (tmp_path / "labels").mkdir()
    touch(tmp_path, "20bn-something-something-v2/7.webm", "20bn-something-something-v2/8.webm")
    files = {"labels": {"Dropping something": "1", LEFT: "0", RIGHT: "2"}}
    files["train"] = [{"id": "7", "label": "x", "template": LEFT.replace("something", "[something]")}]
    files["validation"] = [{"id": "8", "template": "Dropping [something]"}]
    for name, content in files.items():
        (tmp_path / "labels" / f"{name}.json").write_text(json.dumps(content))
    train = open_source("ssv2", tmp_path)
    assert train.classes == (LEFT, "Dropping something", RIGHT)
    assert train.flip_labels == (2, 1, 0)
    assert ids(train) == [("7.webm", 0)]
    assert ids(open_source("ssv2", tmp_path, "validation")) == [("8.webm", 1)]


def test_ssv1(tmp_path):
    touch(tmp_path, "20bn-something-something-v1/7/00001.jpg")
    write(tmp_path / "something-something-v1-labels.csv", RIGHT, LEFT)
    write(tmp_path / "something-something-v1-train.csv", f"7;{LEFT}")
    train = open_source("ssv1", tmp_path)
    assert ids(train) == [("7", 1)]
    assert train.flip_labels == (1, 0)
    with pytest.raises(FileNotFoundError, match=r"expected .*something-something-v1-validation.csv .*got no file"):
        open_source("ssv1", tmp_path, "validation")


def test_names_and_options(tmp_path):
    with pytest.raises(
        ValueError, match=r"expected one of folder, .*ucf101, got 'ucf102': your own videos are `folder`"
    ):
        open_source("ucf102", tmp_path)
    with pytest.raises(ValueError, match="folder: expected no options, got fold: leave it out"):
        open_source("folder", tmp_path, fold=1)
    with pytest.raises(ValueError, match="list: expected lists, got fold"):
        open_source("list", tmp_path, fold=1, lists=tmp_path)
    with pytest.raises(ValueError, match="folder: expected the folder of the videos as root, got None"):
        open_source("folder", None)
    assert set(SOURCES) >= {"motion", "folder", "list", "ucf101"}


def test_motion(tmp_path):
    config = MotionConfig(size=16, num_frames=4, train=3, validation=1, test=2)
    sources = {
        split: open_source("motion", tmp_path, split, motion=config) for split in ("train", "validation", "test")
    }
    assert [len(source) for source in sources.values()] == [3, 1, 2]
    assert sources["train"].flip_labels is not None
    assert decode(sources["test"][1]["video"], [0, 3]).shape == (2, 16, 16, 3)


def test_pickles(tmp_path):
    touch(tmp_path, "train/run/b.mp4", "train/jump/c.mp4")
    source = open_source("folder", tmp_path)
    assert ids(pickle.loads(pickle.dumps(source))) == ids(source)


def test_real_ucf_lists(shared_data):
    train, test = (open_source("ucf101", shared_data / "ucf6-mini", split) for split in ("train", "test"))
    assert (len(train), len(test), len(train.classes)) == (108, 42, 6)
    np.testing.assert_array_equal(np.bincount([label for _, label in ids(train)]), 18)
