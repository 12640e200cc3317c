"""Layouts of class folders: what is recognised, and what could be meant in two ways."""

import os

import pytest

from flaxvid.data.sources.account import check_labels, describe_splits
from flaxvid.data.sources.open import open_source
from flaxvid.data.sources.splits import split_of


def both(root):
    return [open_source("folder", root, split) for split in ("train", "test")]


def classes_of(source):
    return sorted({path.split("/")[-2] for path in source.paths})


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *((name, "train") for name in ("train", "Train", "TRAINING", "train_set", "training-videos", "TrainData")),
        *((name, "validation") for name in ("val", "Valid", "VALIDATION", "validate", "val_videos", "valid set")),
        *((name, "test") for name in ("test", "Testing", "TEST", "testset", "test_split", "testlist")),
        *((name, None) for name in ("trains", "contest", "value", "running", "train station", "validated", "tests")),
    ],
)
def test_spellings_of_splits(name, split):
    assert split_of(name) == split


@pytest.mark.parametrize(("train", "test"), [("Train", "Test"), ("training", "testing"), ("TRAIN_SET", "test-set")])
def test_split_folders_in_any_spelling(tmp_path, train, test, touch):
    touch(tmp_path, f"{train}/run/a.mp4", f"{train}/jump/b.mp4", f"{test}/run/c.mp4", "annotations/info.txt")
    sources = both(tmp_path)
    assert [source.classes for source in sources] == [("jump", "run")] * 2
    assert [source.paths for source in sources] == [
        (f"{train}/jump/b.mp4", f"{train}/run/a.mp4"),
        (f"{test}/run/c.mp4",),
    ]
    assert f"left out of {tmp_path}, because they are no splits or have no videos: annotations" in sources[0].notes
    assert open_source("folder", tmp_path, "Training").paths == sources[0].paths


@pytest.mark.parametrize("name", ["val", "Valid", "validation"])
def test_validation_is_the_test_where_there_is_none(tmp_path, name, touch):
    touch(tmp_path, "train/run/a.mp4", "train/jump/b.mp4", f"{name}/run/c.mp4")
    test = open_source("folder", tmp_path, "test")
    assert test.paths == (f"{name}/run/c.mp4",)
    note = f"folder {tmp_path} has no test split: its validation split is the test"
    assert note in test.notes
    assert open_source("folder", tmp_path, "validation").paths == test.paths
    touch(tmp_path, "test/jump/d.mp4")
    test = open_source("folder", tmp_path, "test")
    assert test.paths == ("test/jump/d.mp4",)
    assert note not in test.notes
    assert len(open_source("folder", tmp_path, "all")) == 4


def test_a_split_that_is_not_there(tmp_path, touch):
    touch(tmp_path, "test/run/a.mp4", "test/jump/b.mp4")
    assert open_source("folder", tmp_path, "test").classes == ("jump", "run")
    with pytest.raises(ValueError, match="expected split test, got 'train': there is none"):
        open_source("folder", tmp_path, "train")
    touch(tmp_path, "train/run/c.mp4", "train/jump/d.mp4")
    with pytest.raises(ValueError, match="expected split train or test, got 'validation': there is none"):
        open_source("folder", tmp_path, "validation")
    (tmp_path / "train/run/c.mp4").unlink()
    (tmp_path / "train/jump/d.mp4").unlink()
    with pytest.raises(ValueError, match=r"expected split .*|got no train videos|two class folders"):
        open_source("folder", tmp_path, "train")


AMBIGUOUS = {
    "class folders beside split folders": (
        ["train/run/a.mp4", "train/jump/b.mp4", "run/c.mp4", "jump/d.mp4"],
        r"got train beside jump, run in .*Either train is a split: .*Or all 3 are classes: rename train",
    ),
    "a class that is called train": (
        ["bus/a.mp4", "car/b.mp4", "train/c.mp4"],
        r"got train beside bus, car in .*Either train is a split: .*Or all 3 are classes",
    ),
    "the test alone beside class folders": (
        ["run/a.mp4", "jump/b.mp4", "Test/run/c.mp4", "test_set/jump/c.mp4"],
        r"got Test, test_set beside jump, run in .*Either Test, test_set are splits: ",
    ),
    "an empty split folder beside class folders": (
        ["run/a.mp4", "jump/b.mp4", "val/x.txt"],
        r"got val beside jump, run",
    ),
    "two spellings": (
        ["Train/run/a.mp4", "Train/jump/b.mp4", "train/run/c.mp4", "test/run/d.mp4"],
        r"expected one folder of train videos in .*, got Train and train\. Either one is an old copy.*Or they",
    ),
    "two words": (
        ["train/run/a.mp4", "train/jump/b.mp4", "val/run/c.mp4", "valid/run/d.mp4"],
        r"expected one folder of validation videos in .*, got val and valid\. Either",
    ),
    "videos beside class folders": (
        ["run/a.mp4", "jump/b.mp4", "c.mp4"],
        r"got 1 videos \(c.mp4\) beside the folders jump, run in .*Either the folders are classes.*Or .* is itself",
    ),
    "videos beside class folders of a split": (
        ["train/run/a.mp4", "train/jump/b.mp4", "train/c.mp4", "test/run/d.mp4"],
        r"got 1 videos \(c.mp4\) beside the class folders jump, run in .*train. Either they have no class.*Or .*train",
    ),
    "videos beside split folders": (
        ["train/run/a.mp4", "train/jump/b.mp4", "c.mp4"],
        r"got 1 videos \(c.mp4\) beside the folders train in",
    ),
    "splits inside of classes": (
        ["run/train/a.mp4", "run/test/b.mp4", "jump/train/c.mp4", "jump/test/d.mp4"],
        r"got test, train inside of .*jump. Either they are splits: put them above the classes, .*Or they are no",
    ),
    "one level more": (
        ["2019/run/a.mp4", "2019/jump/b.mp4", "2020/run/c.mp4", "2020/jump/d.mp4"],
        r"got the same folders \(jump, run\) in each of 2019, 2020 .*If 2019, 2020 are the classes, .*If jump, run",
    ),
    "splits and classes inside of a folder beside another": (
        ["set/train/run/a.mp4", "set/train/jump/b.mp4", "set/test/run/c.mp4", "extra/d.mp4"],
        r"got test, train inside of .*set. Either they are splits: .* set the root to .*set\. Or they are no",
    ),
    "one level more, not all folders in each": (
        ["p1/run/a.mp4", "p1/jump/b.mp4", "p2/run/c.mp4"],
        r"got the same folders \(jump, run\) in each of p1, p2 .*If p1, p2 are the classes, .*If jump, run",
    ),
    "one level more in a split": (
        ["train/A/run/a.mp4", "train/A/jump/b.mp4", "train/B/run/c.mp4", "train/B/jump/d.mp4", "test/A/e.mp4"],
        r"got the same folders \(jump, run\) in each of A, B in .*train\. If",
    ),
}


@pytest.mark.parametrize("kind", AMBIGUOUS)
def test_two_readings_are_one_error(tmp_path, kind, touch):
    paths, message = AMBIGUOUS[kind]
    touch(tmp_path, *paths)
    for split in ("train", "test"):
        with pytest.raises(ValueError, match=message):
            open_source("folder", tmp_path, split)


TOO_FEW = {
    "a level too high": (
        ["UCF-101/run/a.mp4", "UCF-101/jump/b.mp4", "lists/x.txt"],
        r"if the classes are jump, run, set the root to .*UCF-101",
    ),
    "two levels too high": (
        ["a/b/run/1.mp4", "a/b/jump/1.mp4"],
        r"got 1 \(a\): if the classes are jump, run, set the root to .*a/b,",
    ),
    "splits a level deeper": (
        ["set/train/run/a.mp4", "set/test/run/b.mp4"],
        r"if the classes are test, train, set the root to .*set",
    ),
    "a folder between split and classes": (
        ["train/videos/run/a.mp4", "train/videos/jump/b.mp4", "test/videos/run/c.mp4"],
        r"in .*train, got 1 \(videos\): if the classes are jump, run, set the root to .*or move them into .*",
    ),
    "one class": (
        ["run/a.mp4", "run/b.mp4"],
        r"got 1 \(run\): a network learns to tell .*: add another class",
    ),
    "one class and an empty one": (["run/a.mp4", "jump/a.txt"], r"got 1 \(run\)"),
    "one class of a split": (["train/run/a.mp4", "test/run/b.mp4", "test/jump/c.mp4"], r"in .*train, got 1 \(run\)"),
    "no class of a split": (
        ["train/a.mp4", "train/b.mp4", "test/c.mp4"],
        r"two class folders with videos or more in .*train, got none, but 2 videos \(a.mp4, b.mp4\) without a class",
    ),
}


@pytest.mark.parametrize("kind", TOO_FEW)
def test_fewer_than_two_classes(tmp_path, kind, touch):
    paths, message = TOO_FEW[kind]
    touch(tmp_path, *paths)
    with pytest.raises(ValueError, match=message):
        open_source("folder", tmp_path)


def test_frames_of_a_class_are_no_class(tmp_path):
    from matplotlib.image import imsave

    for name in ("v1", "v2"):
        (tmp_path / "run" / name).mkdir(parents=True)
        (tmp_path / "jump" / name).mkdir(parents=True)
        for number in (1, 2):
            for folder in ("run", "jump"):
                imsave(tmp_path / folder / name / f"{number}.png", [[0.0]])
    train, test = both(tmp_path)
    assert sorted(train.paths + test.paths) == ["jump/v1", "jump/v2", "run/v1", "run/v2"]
    with pytest.raises(
        ValueError, match=r"got the images of a single video in .*v1. Either .* is a class and v1, v2 its"
    ):
        open_source("folder", tmp_path / "run")


def test_videos_at_any_depth(tmp_path, touch):
    """Folders below a class that no other class has are the class's own."""
    touch(tmp_path, "run/monday/a.mp4", "run/tuesday/a.mp4", "jump/b.mp4", "jump/more/c.mp4")
    assert open_source("folder", tmp_path, "all").paths == (
        *("jump/b.mp4", "jump/more/c.mp4"),
        *("run/monday/a.mp4", "run/tuesday/a.mp4"),
    )


def test_junk_is_no_class(tmp_path, touch):
    junk = ("__MACOSX", ".git", "@eaDir", "$RECYCLE.BIN", "lost+found", "#recycle", "System Volume Information")
    touch(tmp_path, "run/a.mp4", "run/b.mp4", "jump/c.mp4", "jump/d.mp4", "Thumbs.db", ".DS_Store", "._x.mp4")
    touch(tmp_path, *(f"{name}/run/x.mp4" for name in junk))
    train, test = both(tmp_path)
    assert train.classes == ("jump", "run")
    assert len(train) + len(test) == 4
    assert train.notes == ()


def test_what_is_said_at_the_start(tmp_path, touch):
    touch(tmp_path, *(f"run/{name}.mp4" for name in "abcdef"), "jump/only.mp4", "swim/a.xyz", "swim/b.txt", "fly/x.jpg")
    (tmp_path / "empty").mkdir()
    (tmp_path / "run" / "gone.mp4").symlink_to("nowhere")
    train, test = both(tmp_path)
    assert train.classes == ("empty", "fly", "jump", "run", "swim")
    text = describe_splits({"train": train, "test": test})
    assert [line.split() for line in text.splitlines()[:6]] == [
        ["class", "train", "test"],
        ["empty", "0", "0"],
        ["fly", "0", "0"],
        ["jump", "1", "0"],
        ["run", "5", "1"],
        ["swim", "0", "0"],
    ]
    assert text.splitlines()[6:] == [
        "classes without train videos: empty, fly, swim",
        "classes without test videos: empty, fly, jump, swim",
        "classes of one video, which cannot be tested: jump",
        f"{tmp_path / 'run'}: links that lead nowhere are left out: gone.mp4",
        f"{tmp_path / 'fly'} has no videos; its files are 1 .jpg",
        f"{tmp_path / 'swim'} has no videos; its files are 1 .xyz, 1 .txt",
    ]


def test_a_test_without_labels_does_not_stop_training(tmp_path, touch):
    touch(tmp_path, "train/run/a.mp4", "train/jump/b.mp4", "val/run/c.mp4", "test/d.mp4")
    train = open_source("folder", tmp_path)
    assert train.notes == (f"{tmp_path / 'test'} is left out: its 1 videos have no class",)
    assert open_source("folder", tmp_path, "val").paths == ("val/run/c.mp4",)
    with pytest.raises(ValueError, match=r"in .*test, got none, but 1 videos \(d.mp4\) without a class: .*eval_split"):
        open_source("folder", tmp_path, "test")


def test_class_names_of_another_split(tmp_path, touch):
    """Accents are the same text, however a system writes them; case and blanks make another name."""
    touch(tmp_path, "train/caf\u00e9/a.mp4", "train/jump/b.mp4", "test/cafe\u0301/c.mp4", "test/jump/d.mp4")
    train, test = both(tmp_path)
    assert train.classes == test.classes
    assert test.paths == ("test/cafe\u0301/c.mp4", "test/jump/d.mp4")
    assert test.labels == (train.classes.index("caf\u00e9"), train.classes.index("jump"))
    touch(tmp_path, "test/jump /e.mp4")
    with pytest.raises(ValueError, match=r"got also \['jump '\] \(those are .*'jump'\): give them training videos"):
        open_source("folder", tmp_path, "test")


def test_training_videos_alone(tmp_path, touch):
    touch(tmp_path, *(f"Train/{name}/{i}.mp4" for name in ("run", "jump") for i in range(5)))
    assert len(open_source("folder", tmp_path)) == 10
    with pytest.raises(
        ValueError, match=r"got 'test': there is none; make .*/test, or set the root to .*Train, and a fifth of it"
    ):
        open_source("folder", tmp_path, "test")
    assert [len(source) for source in both(tmp_path / "Train")] == [8, 2]


def test_a_split_of_empty_classes(tmp_path, touch):
    touch(tmp_path, "train/run/a.mp4", "train/jump/b.mp4", "test/run/x.txt")
    assert f"{tmp_path / 'test' / 'run'} has no videos; its files are 1 .txt" in open_source("folder", tmp_path).notes


def test_two_collections_beside_each_other_are_said(tmp_path, touch):
    touch(tmp_path, "A/run/1.mp4", "A/jump/1.mp4", "B/swim/1.mp4", "B/fly/1.mp4")
    note = "all videos lie in folders below the classes, as in jump, run of A: if those are the classes, "
    assert open_source("folder", tmp_path).notes == (f"{note}set the root one level below {tmp_path}",)


def test_links_in_a_circle_and_to_pipes(tmp_path, touch):
    touch(tmp_path, "run/a.mp4", "run/b.mp4", "jump/c.mp4", "jump/d.mp4")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "run" / "up").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "jump" / "pipe").symlink_to(tmp_path / "pipe")
    assert len(open_source("folder", tmp_path, "all")) == 4
    (tmp_path / "all").symlink_to(tmp_path)
    with pytest.raises(ValueError, match=r"got links from all and jump in .* to one folder"):
        open_source("folder", tmp_path)


def test_line_ends_in_names_do_not_break_the_table(tmp_path, touch):
    touch(tmp_path, *(f"{name}/{i}.mp4" for name in ("ru\nn", "\x1b[2Jjump") for i in range(2)))
    assert [line.split()[0] for line in describe_splits({"train": open_source("folder", tmp_path)}).splitlines()] == [
        *("class", "\\x1b[2Jjump", "ru\\nn"),
    ]


def test_names_of_classes_that_are_nearly_the_same(tmp_path, touch):
    touch(tmp_path, *(f"{name}/{i}.mp4" for name in ("Jump", "jump", "look_up", "Look up", "run") for i in range(2)))
    os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9")
    text = describe_splits({"train": open_source("folder", tmp_path)})
    assert "classes with nearly the same name: Jump, jump" in text
    assert "classes with nearly the same name: Look up, look_up" in text
    assert "caf\\udce9" in text


def test_hundreds_of_classes_are_a_short_table(tmp_path, touch):
    touch(tmp_path, *(f"c{number:03d}/{i}.mp4" for number in range(300) for i in range(5)), "rare/a.mp4")
    text = describe_splits(dict(zip(("train", "test"), both(tmp_path), strict=True)))
    assert [line.split() for line in text.splitlines()] == [
        ["class", "train", "test"],
        ["rare", "1", "0"],
        ["...", "and", "300", "classes", "of", "4", "to", "4", "in", "train,", "1", "to", "1", "in", "test"],
        ["classes", "without", "test", "videos:", "rare"],
        ["classes", "of", "one", "video,", "which", "cannot", "be", "tested:", "rare"],
    ]


def test_linked_folders(tmp_path, touch):
    root, store = tmp_path / "root", tmp_path / "store"
    touch(store, "1.mp4", "2.mp4")
    touch(root, "run/a.mp4", "run/b.mp4")
    (root / "jump").symlink_to(store, target_is_directory=True)
    assert open_source("folder", root, "all").paths == ("jump/1.mp4", "jump/2.mp4", "run/a.mp4", "run/b.mp4")
    (root / "run" / "more").symlink_to(store, target_is_directory=True)
    with pytest.raises(
        ValueError, match=r"got links from jump and run in .* to one folder, whose videos then have two labels"
    ):
        open_source("folder", root)


def test_one_folder_in_train_and_test(tmp_path, touch):
    touch(tmp_path, "train/run/a.mp4", "train/jump/b.mp4", "test/jump/c.mp4")
    (tmp_path / "test" / "run").symlink_to(tmp_path / "train" / "run", target_is_directory=True)
    assert "train and test have links to one folder: its videos are in both" in both(tmp_path)[0].notes


def test_a_test_without_any_label_of_a_task_is_refused(tmp_path, touch):
    touch(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "train.csv").write_text("path,verb,noun\na.mp4,run,net\nb.mp4,jump,ball\n")
    (tmp_path / "test.csv").write_text("path,verb,noun\na.mp4,run,\nb.mp4,jump,-1\n")
    check_labels(open_source("list", tmp_path), fewest=2)
    with pytest.raises(
        ValueError, match=r"list test: expected a labelled video of noun or more, got all 2 of no label"
    ):
        check_labels(open_source("list", tmp_path, "test"), fewest=1)


def test_a_training_split_of_one_label_is_refused(tmp_path, touch):
    touch(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "classes.txt").write_text("run\njump\n")
    (tmp_path / "train.txt").write_text("a.mp4 run\nb.mp4 run\n")
    source = open_source("list", tmp_path)
    with pytest.raises(ValueError, match="expected videos of two classes or more, got all 2 of run"):
        describe_splits({"train": source})
