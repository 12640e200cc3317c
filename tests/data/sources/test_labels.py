"""Columns of labels in lists: one reading of each, with class names and without, and labels that are missing."""

import pytest

from flaxvid.data.mirror import NO_LABEL, mirror
from flaxvid.data.sources.open import open_source


@pytest.fixture
def labels(touch, write):
    """Classes and labels of a training list with these cells, or of its test list."""

    def read(root, *cells, names=(), test=None):
        videos = [f"{number}.mp4" for number in range(len(cells))]
        touch(root, *videos)
        write(root / "train.csv", "path,label", *(f"{video},{cell}" for video, cell in zip(videos, cells, strict=True)))
        (root / "classes.txt").unlink(missing_ok=True)
        if names:
            write(root / "classes.txt", *names)
        if test is not None:
            write(
                root / "test.csv", "path,label", *(f"{video},{cell}" for video, cell in zip(videos, test, strict=False))
            )
        source = open_source("list", root, "train" if test is None else "test")
        return source.classes, source.labels

    return read


READINGS = [
    (("0", "1", "0"), (), ("0", "1"), (0, 1, 0)),
    (("1", "2", "1"), (), ("1", "2"), (0, 1, 0)),  # from 1
    (("1", "3", "1"), (), ("0", "1", "2", "3"), (1, 3, 1)),  # with a gap it is not known to be from 1
    (("0", "3"), (), ("0", "1", "2", "3"), (0, 3)),
    (("0.0", "10.0", "2.0"), (), tuple(map(str, range(11))), (0, 10, 2)),
    (("0", "10.0", "2"), (), tuple(map(str, range(11))), (0, 10, 2)),
    (("2", "10", "1", "0"), (), tuple(map(str, range(11))), (2, 10, 1, 0)),
    (("b", "a", "B"), (), ("B", "a", "b"), (2, 1, 0)),
    (("1", "2"), ("run", "jump"), ("run", "jump"), (0, 1)),
    (("1", "1"), ("run", "jump"), ("run", "jump"), (1, 1)),
    (("0", "1"), ("run", "jump"), ("run", "jump"), (0, 1)),
    (("jump", "1"), ("run", "jump"), ("run", "jump"), (1, 1)),
    (("10", "20"), ("10", "20", "30"), ("10", "20", "30"), (0, 1)),  # numbers that are names
    (("0", "2"), ("10", "20", "30"), ("10", "20", "30"), (0, 2)),
    (("1", "2", "3"), ("1", "2", "3"), ("1", "2", "3"), (0, 1, 2)),
    (("0", "1", "2"), ("1", "2", "3"), ("1", "2", "3"), (0, 1, 2)),
    (("0", "2"), ("2", "1", "0"), ("2", "1", "0"), (2, 0)),
    (("0.0", "2.0"), ("2", "1", "0"), ("2", "1", "0"), (2, 0)),  # as pandas writes them: the same
    (("10.0", "20"), ("10", "20", "30"), ("10", "20", "30"), (0, 1)),
    (("010", "10"), ("10", "010"), ("10", "010"), (1, 0)),
    (("none", "na"), ("none", "na"), ("none", "na"), (0, 1)),
    (("none", "run"), (), ("none", "run"), (0, 1)),
    (("b", "a"), ("0 b", "1 a"), ("b", "a"), (0, 1)),  # numbered names
    (("1", "2"), ("1 b", "2 a"), ("b", "a"), (0, 1)),
]


@pytest.mark.parametrize(("cells", "names", "classes", "numbers"), READINGS)
def test_one_reading_of_a_column(tmp_path, cells, names, classes, numbers, labels):
    assert labels(tmp_path, *cells, names=names) == (classes, numbers)


@pytest.mark.parametrize(
    ("train", "test", "classes", "numbers"),
    [
        (("1", "2"), ("0", "1"), ("0", "1", "2"), (0, 1)),  # the test has a 0: numbers count from 0 in both
        (("1", "2", "3"), ("3",), ("1", "2", "3"), (2,)),
        (("0.0", "1.0"), ("1",), ("0", "1"), (1,)),
        (("a", "b", "c"), ("c",), ("a", "b", "c"), (2,)),
    ],
)
def test_one_reading_of_all_lists(tmp_path, train, test, classes, numbers, labels):
    assert labels(tmp_path, *train, test=test) == (classes, numbers)
    assert open_source("list", tmp_path).classes == classes


def test_folders_whose_names_are_numbers(tmp_path, touch, write):
    touch(tmp_path, "10/a.mp4", "30/b.mp4", "9/c.mp4")
    write(tmp_path / "train.txt", "10/a.mp4 10", "30/b.mp4 30", "9/c.mp4 9")
    source = open_source("list", tmp_path)
    assert (source.classes, source.labels) == (("9", "10", "30"), (1, 2, 0))


WRONG = [
    (("0", "", "1"), (), r"train.csv, line 3: expected a label, got an empty cell for 1.mp4"),
    (("0", "nan", "1"), (), r"line 3: expected a label, got nan for 1.mp4"),
    (("0", "1", "-1"), (), r"line 4: expected a label, got -1 for 2.mp4"),
    (("0", "1", "NA"), (), r"line 4: expected a label, got NA for 2.mp4"),
    (("run", "NaN"), (), r"line 3: expected a label, got NaN for 1.mp4"),
    (("0", "1", "run"), (), r"line 4: expected numbers as in the other lines, got run for 2.mp4"),
    (("run", "jump", "7"), (), r"line 4: expected class names as in the other lines, got 7 for 2.mp4"),
    (("0", "1.5"), (), r"line 3: expected whole numbers or class names, got 1.5"),
    (("0", '"1,0"'), (), r"line 3: expected whole numbers or class names, got 1,0"),
    (("0", "1e0"), (), r"line 3: expected whole numbers or class names, got 1e0"),
    (("0", "-2"), (), r"line 3: expected labels from 0 to 0 \(1 classes\), got -2"),
    (("0", "123456"), (), r"line 3: expected labels that count classes, below 10000, got 123456: if it is a code"),
    (("0", "2"), ("a", "b"), r"line 3: expected labels from 0 to 1 \(2 classes\), got 2 for 1.mp4"),
    (("a", "x"), ("a", "b"), r"line 3: expected the label to be one of a, b, as in classes.txt, got x for 1.mp4"),
    (("b", "5", "1"), ("5", "b"), r"line 4: expected class names as in the other lines, got the number 1, but some"),
    (("a", "b"), ("a", "b", "a"), r"classes.txt: expected each class once, got a twice"),
]


@pytest.mark.parametrize(("cells", "names", "message"), WRONG)
def test_cells_that_do_not_fit(tmp_path, cells, names, message, labels):
    with pytest.raises(ValueError, match=message):
        labels(tmp_path, *cells, names=names)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (
            ("0", "1"),
            ("1", "2"),
            r"test.csv, line 3: expected the label to be one of 0, 1, as in train.csv, got 2",
        ),
        (("a", "b"), ("a", "c"), r"test.csv, line 3: expected the label to be one of a, b, as in train.csv, got c"),
        (("0", "1"), ("a",), r"test.csv, line 2: expected the label to be one of 0, 1, as in train.csv, got a"),
        (("0", "1"), ("",), r"test.csv, line 2: expected a label, got an empty cell"),
    ],
)
def test_a_test_list_that_does_not_fit(tmp_path, train, test, message, labels):
    with pytest.raises(ValueError, match=message):
        labels(tmp_path, *train, test=test)
    assert len(open_source("list", tmp_path)) == 2  # training does not need it


CLASS_LISTS = {
    "numbers behind": ("jump,1", "run,0"),
    "a heading": ("id,name", "0,run", "1,jump"),
    "a heading, from 1": ("# class_id name", "1 run", "2 jump"),
    "a heading and numbers behind": ("name;id", "jump;1", "run;0"),
    "a comment": ("# all classes", "run", "jump"),
    "quoted": ('"run"', '"jump"'),
}


@pytest.mark.parametrize("name", ["classes.txt", "Classes.TXT"])
@pytest.mark.parametrize("kind", CLASS_LISTS)
def test_ways_to_write_class_names(root, kind, name, write, named):
    write(root / "train.csv", "a.mp4,0", "b c.mp4,1")
    write(root / name, *CLASS_LISTS[kind])
    assert named(open_source("list", root)) == [("a.mp4", "run"), ("b c.mp4", "jump")]


def test_class_names_that_end_in_numbers_are_names(root, write):
    write(root / "train.csv", "a.mp4,0", "b c.mp4,1")
    write(root / "classes.txt", "Grade 2", "Grade 1")
    assert open_source("list", root).classes == ("Grade 2", "Grade 1")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("0,run", "2,jump"), r"classes.txt: expected classes numbered from 0 or from 1 without gaps, got 0,run, 2,"),
        (
            ("jump 1", "run 0"),
            r"got 'jump 1' and numbers that are not in order: put the numbers first, or a comma before them",
        ),
    ],
)
def test_class_names_with_numbers_that_do_not_fit(root, lines, message, write):
    write(root / "train.csv", "a.mp4,0", "b c.mp4,1")
    write(root / "classes.txt", *lines)
    with pytest.raises(ValueError, match=message):
        open_source("list", root)


@pytest.mark.parametrize("cell", ["", "-1", "NaN", "nan", "NA", "none"])
def test_of_several_labels_one_may_be_missing(tmp_path, cell, touch, write):
    touch(tmp_path, *(f"{name}.mp4" for name in "abcde"))
    rows = ["a.mp4,look left,0", f"b.mp4,,{cell}", f"c.mp4,look right,{cell}", "d.mp4,,2", "e.mp4,look left,1.0"]
    write(tmp_path / "train.csv", "path,action,actor", *rows)
    source = open_source("list", tmp_path)
    assert source.classes == {"action": ("look left", "look right"), "actor": ("0", "1", "2")}
    assert source.paths == ("a.mp4", "c.mp4", "d.mp4", "e.mp4")
    assert source.labels == {"action": (0, 1, NO_LABEL, 0), "actor": (0, NO_LABEL, 2, 1)}
    assert source.notes == ("1 rows of train have no label at all and are left out, such as b.mp4",)
    assert mirror(source[1]["label"], source.flip_labels) == {"action": 0, "actor": NO_LABEL}
    assert mirror(source[2]["label"], source.flip_labels) == {"action": NO_LABEL, "actor": 2}


def test_each_of_several_labels_has_two_classes(tmp_path, touch, write):
    touch(tmp_path, "a.mp4", "b.mp4")
    write(tmp_path / "train.csv", "path,action,actor", "a.mp4,run,0", "b.mp4,jump,0")
    with pytest.raises(ValueError, match=r"list train: expected two classes of actor or more, got 1 \(0\)"):
        open_source("list", tmp_path)


def test_one_cell_of_another_kind_does_not_turn_a_column_into_text(tmp_path, touch, write):
    touch(tmp_path, *(f"{name}.mp4" for name in "abcd"))
    write(tmp_path / "train.csv", "path,verb,noun", "a.mp4,0,3", "b.mp4,1,x", "c.mp4,2,10", "d.mp4,3,2")
    with pytest.raises(ValueError, match=r"line 3: expected numbers as in the other lines, got x for b.mp4 as noun"):
        open_source("list", tmp_path)
