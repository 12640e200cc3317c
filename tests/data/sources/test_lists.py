"""Lists as people and programs write them: separators, headings, encodings, and one reading of each label column."""

import os

import pytest
from matplotlib.image import imsave

from flaxvid.data.sources.open import open_source
from flaxvid.data.sources.texts import read_lines

RUN_JUMP = [("a.mp4", "run"), ("b c.mp4", "jump"), ("d,e.mp4", "run"), ("f/g.mp4", "jump")]
WRITTEN = {
    "commas": ("train.csv", "a.mp4,run", "b c.mp4,jump", '"d,e.mp4",run', "f/g.mp4,jump"),
    "commas, not quoted": ("train.csv", "a.mp4,run", "b c.mp4,jump", "d,e.mp4,run", "f/g.mp4,jump"),
    "a heading": ("train.csv", "path,label", "a.mp4,run", "b c.mp4,jump", "d,e.mp4,run", "f/g.mp4,jump"),
    "capitals and blanks": (
        *("train.csv", "Path, Label", "a.mp4, run", "b c.mp4, jump", '"d,e.mp4", run', "f/g.mp4 ,jump"),
    ),
    "video, class": ("train.csv", "video,class", "a.mp4,run", "b c.mp4,jump", '"d,e.mp4",run', "f/g.mp4,jump"),
    "class, filename": ("train.csv", "Class,File Name", "run,a.mp4", "jump,b c.mp4", 'run,"d,e.mp4"', "jump,f/g.mp4"),
    "pandas": (
        *("train.csv", ",video_path,label_name", "0,a.mp4,run", "1,b c.mp4,jump", '2,"d,e.mp4",run'),
        "3,f/g.mp4,jump",
    ),
    "unnamed": (
        *("train.csv", "Unnamed: 0,file,action", "0,a.mp4,run", "1,b c.mp4,jump", '2,"d,e.mp4",run'),
        "3,f/g.mp4,jump",
    ),
    "facts": (
        *("train.csv", "id,path,fps,num_frames,label", "7,a.mp4,25,100,run", "8,b c.mp4,25,9,jump"),
        *('9,"d,e.mp4",25,100,run', "10,f/g.mp4,25.0,100,jump"),
    ),
    "number and name": (
        *("train.csv", "path,label,label_name", "a.mp4,1,run", "b c.mp4,0,jump", '"d,e.mp4",1,run', "f/g.mp4,0,jump"),
    ),
    "semicolons": ("train.csv", "a.mp4;run", "b c.mp4;jump", "d,e.mp4;run", "f/g.mp4;jump"),
    "semicolons, heading": (
        *("train.csv", "No;path;Label", "1;a.mp4;run", "2;b c.mp4;jump", "3;d,e.mp4;run", "4;f/g.mp4;jump"),
    ),
    "tabs": ("train.tsv", "a.mp4\trun", "b c.mp4\tjump", "d,e.mp4\trun", "f/g.mp4\tjump"),
    "tabs, heading": ("train.txt", "label\tpath", "run\ta.mp4", "jump\tb c.mp4", "run\td,e.mp4", "jump\tf/g.mp4"),
    "spaces": ("train.txt", "a.mp4 run", "b c.mp4 jump", "d,e.mp4 run", "f/g.mp4   jump"),
    "spaces, heading": ("Training.txt", "path label", "a.mp4 run", "b c.mp4 jump", "d,e.mp4 run", "f/g.mp4 jump"),
    "quoted, spaces": ("train_list.txt", '"a.mp4" run', '"b c.mp4" jump', '"d,e.mp4" run', '"f/g.mp4" jump'),
    "all quoted, spaces, heading": (
        *("train.txt", '"no" "File Path" "label"', '"1" "a.mp4" "run"', '"2" "b c.mp4" "jump"', '"3"  "d,e.mp4" "run"'),
        '"4" "f/g.mp4" "jump"',
    ),
    "some quoted, spaces, heading": (
        *("train.txt", '"File Path" Category', "a.mp4 run", '"b c.mp4" jump', "d,e.mp4 run", "f/g.mp4 jump"),
    ),
    "dots and slashes": ("train.txt", "./a.mp4 run", "b c.mp4 jump", ".//d,e.mp4 run", "f/./g.mp4 jump"),
    "Windows": ("train.csv", ".\\a.mp4,run", ".\\b c.mp4,jump", '".\\d,e.mp4",run', "f\\g.mp4,jump"),
    "other suffixes": ("train.csv", "a.avi,run", "b c,jump", '"d,e.MOV",run', "f/G.MP4,jump"),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("kind", WRITTEN)
def test_ways_to_write_the_same_list(root, kind, encoding, write, named):
    name, *lines = WRITTEN[kind]
    for end in ("\n", "\r\n", "\r"):
        write(root / name, *lines, "", encoding=encoding, end=end)
        source = open_source("list", root)
        assert named(source) == RUN_JUMP
        assert source.classes == ("jump", "run")


def test_labels_with_commas_and_blanks(root, write, named):
    write(root / "train.csv", "path,label", 'a.mp4,"Pushing, left"', '"d,e.mp4",Look up', "f/g.mp4,Jump")
    source = open_source("list", root)
    assert named(source) == [("a.mp4", "Pushing, left"), ("d,e.mp4", "Look up"), ("f/g.mp4", "Jump")]
    write(root / "train.csv", "a.mp4 Look up", "b c.mp4 Jump very high", "d,e.mp4 Look up")
    assert [name for _, name in named(open_source("list", root))] == ["Look up", "Jump very high", "Look up"]


def test_absolute_paths_and_slashes_behind(root, tmp_path_factory, touch, write):
    other = tmp_path_factory.mktemp("other")
    touch(other, "x.mp4")
    for name in ("v1", "v2"):
        (root / name).mkdir()
        imsave(root / name / "1.png", [[0.0]])
    write(root / "train.txt", f"{other}/x.mp4 0", "v1/ 1", "./v2/ 0")
    assert open_source("list", root).paths == (f"{other}/x.mp4", "v1", "v2")


def test_rawframes_have_three_columns(root, write):
    for name in ("run/v 1", "run/v2", "jump/v3"):
        (root / name).mkdir(parents=True)
        imsave(root / name / "img_00001.jpg", [[0.0, 1.0]])
    rows = ["run/v 1 163 0", "run/v2 12 0", "jump/v3 81 1"]
    write(root / "train.txt", *rows)
    source = open_source("list", root)
    assert (source.paths, source.labels) == (("run/v 1", "run/v2", "jump/v3"), (0, 0, 1))
    write(root / "train.txt", "run/v2,12,0", "jump/v3,81,1")
    assert open_source("list", root).labels == (0, 1)
    write(root / "train.txt", "a.mp4 12 0", "b.mp4 81 1")
    with pytest.raises(ValueError, match=r"line 1: expected lines `path label`, got two numbers in 'a.mp4 12 0'"):
        open_source("list", root)
    write(root / "train.txt", "path frames label", "a.mp4 12 0", "b c.mp4 81 1")
    assert open_source("list", root).labels == (0, 1)


def test_a_column_of_splits(root, write):
    rows = ["a.mp4,run,train", "b c.mp4,jump,Training", '"d,e.mp4",run,val', "f/g.mp4,jump,test", "gone.mp4,run,unused"]
    write(root / "videos.csv", "path,label,split", *rows)
    sources = {split: open_source("list", root, split) for split in ("train", "validation", "test")}
    assert [source.paths for source in sources.values()] == [("a.mp4", "b c.mp4"), ("d,e.mp4",), ("f/g.mp4",)]
    assert [source.classes for source in sources.values()] == [("jump", "run")] * 3
    (root / "videos.csv").rename(root / "train.csv")
    assert open_source("list", root, "test").paths == ("f/g.mp4",)
    (root / "train.csv").rename(root / "other.csv")
    assert open_source("list", root, "test", lists=root / "other.csv").paths == ("f/g.mp4",)
    write(root / "more.csv", "path,label,split", *rows)
    with pytest.raises(ValueError, match=r"expected one list with a column of splits in .*, got more.csv and other"):
        open_source("list", root)


def test_validation_is_the_test_where_there_is_no_list(root, write):
    write(root / "train.txt", "a.mp4 0", "b c.mp4 1")
    write(root / "valid.txt", "f/g.mp4 1")
    source = open_source("list", root, "test")
    assert source.paths == ("f/g.mp4",)
    assert source.notes == (f"list {root} has no test split: its validation split is the test",)
    assert len(open_source("list", root, "all")) == 3
    write(root / "VAL.csv", "f/g.mp4,1")
    with pytest.raises(ValueError, match=r"expected one list of the validation split in .*, got VAL.csv and valid.txt"):
        open_source("list", root, "test")


@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        ("cp1252", "été"),
        ("latin-1", "März"),
        ("gbk", "动作"),
        ("euc_kr", "동작"),
        ("cp1251", "бег"),
        ("shift_jis", "動作"),
    ],
)
def test_the_encoding_in_which_the_videos_exist(tmp_path, encoding, name, touch, write, named):
    touch(tmp_path, f"{name}/1.mp4", f"{name}/2.mp4", "plain.mp4")
    write(tmp_path / "train.csv", f"{name}/1.mp4,{name}", f"{name}/2.mp4,{name}", "plain.mp4,plain", encoding=encoding)
    source = open_source("list", tmp_path)
    assert named(source)[0] == (f"{name}/1.mp4", name)
    write(tmp_path / "train.csv", "plain.mp4,plain", f"gone.mp4,{name}", encoding=encoding)
    with pytest.raises(ValueError, match=r"train.csv, line 2: expected UTF-8, got b'gone.mp4,.*: save the file as"):
        open_source("list", tmp_path, missing="keep")


def test_names_of_files_that_are_no_text(tmp_path, touch):
    path = os.fsdecode(b"caf\xe9 \xff.mp4")
    touch(tmp_path, path, "b.mp4")
    (tmp_path / "train.txt").write_bytes(b"caf\xe9 \xff.mp4 0\nb.mp4 1\n")
    assert open_source("list", tmp_path).paths == (path, "b.mp4")


def test_accents_as_a_mac_writes_them(tmp_path, touch, write):
    touch(tmp_path, "caf\u0065\u0301.mp4", "b.mp4")
    write(tmp_path / "train.txt", "caf\u00e9.mp4 0", "b.mp4 1")
    source = open_source("list", tmp_path)
    assert source.paths == ("caf\u0065\u0301.mp4", "b.mp4")
    assert source.notes == ("1 videos have another name on disk than listed, such as cafe\u0301.mp4 for caf\u00e9.mp4",)


def test_text_in_no_encoding(tmp_path):
    (tmp_path / "classInd.txt").write_bytes("1 été\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"classInd.txt, line 1: expected UTF-8, got b'1 "):
        read_lines(tmp_path / "classInd.txt", "")
    (tmp_path / "zeros.txt").write_bytes(b"a 0\nb\0 1\n")
    with pytest.raises(ValueError, match=r"zeros.txt, line 2: expected text, got zeros"):
        read_lines(tmp_path / "zeros.txt", "")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ("a.mp4,0", "b c.mp4 1"),
            r"line 2: expected lines `path label` or `path,label`, got 'b c.mp4 1' as",
        ),
        (("path,label", "a.mp4,0", "b c.mp4"), r"line 3: expected 2 columns \(path, label\), got \['b c.mp4'\]"),
        (("path,label", ",0", "a.mp4,1"), r"line 2: expected the path of a video, got an empty cell"),
        (("path,label", '"a.mp4,0', "b c.mp4,1"), r"line 2: expected closed quotation marks, got '\"a.mp4,0'"),
        (("path,start,end,label", "a.mp4,0,9,0"), r"expected whole videos, got parts of them \(start, end\): cut"),
        (("path,label,class", "a.mp4,0,1"), r"expected a column of labels, got several, label, class"),
        (("path,fps", "a.mp4,25"), r"expected a column of labels, got path, fps"),
        (("path,label,label", "a.mp4,0,1"), r"expected columns of different names"),
        (("path,label_id,label_name", "a.mp4,0,x", "d,0,y"), r"expected one number for each class name, got several"),
        (("0,a.mp4,run", "1,b c.mp4,jump"), r"expected .*videos|missing|name the columns in a heading"),
        (
            ("a.mp4,0", "f/g.mp4,1", "a.mp4,1"),
            r"line 3: expected one label for a.mp4, got 1, and 0 in line 1",
        ),
    ],
)
def test_lists_that_cannot_be_read(root, lines, message, write):
    write(root / "train.csv", *lines)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_source("list", root)


def test_what_is_said_of_lists(root, write):
    write(root / "train.csv", "path,label,camera", "a.mp4,run,1", "b c.mp4,jump,2", "a.mp4,run,1")
    write(root / "test.csv", "path,label,camera", "b c.mp4,jump,2", "f/g.mp4,run,1")
    assert open_source("list", root).notes == (
        "unused columns of test.csv: camera",
        "unused columns of train.csv: camera",
        "train.csv has 1 videos more than once, such as a.mp4",
        "1 videos of test are also in train, such as b c.mp4: the test may be too easy",
    )


def test_files_beside_a_list_that_are_none(root, write):
    write(root / "videos.csv", "path,label,split", "a.mp4,run,train", "b c.mp4,jump,train")
    (root / "x.list").write_bytes(bytes(range(256)))
    (root / "y.txt").write_bytes(b"\xff\xfeabc")
    (root / "test.txt").mkdir()
    assert open_source("list", root).paths == ("a.mp4", "b c.mp4")
    write(root / "classes.txt", "")
    with pytest.raises(ValueError, match=r"classes.txt: expected a class name a line, got an empty file"):
        open_source("list", root)


def test_what_spreadsheets_leave(root, write, named):
    """Empty columns and rows, and a first line that says the separator."""
    write(root / "train.csv", "sep=;", "path;label;;", "a.mp4;run;;", "b c.mp4;jump;;", ";;;", encoding="utf-8-sig")
    assert named(open_source("list", root)) == [("a.mp4", "run"), ("b c.mp4", "jump")]


def test_tasks_separated_by_blanks(root, write):
    write(root / "train.txt", "path verb noun", "a.mp4 0 1", "b c.mp4 1 0")
    assert open_source("list", root).labels == {"verb": (0, 1), "noun": (1, 0)}


@pytest.mark.parametrize("heading", ["Datei,Klasse", "mp4,tag", "x,label"])
@pytest.mark.parametrize("cells", [("run", "jump"), ("0", "1")])
def test_a_heading_of_other_words_is_no_video(root, heading, cells, write):
    write(root / "train.csv", heading, f"a.mp4,{cells[0]}", f"b c.mp4,{cells[1]}")
    with pytest.raises(ValueError, match=rf"line 1: expected a video, or a heading .*, got '{heading}': rename"):
        open_source("list", root, missing="keep")


def test_a_row_without_a_split(root, write):
    write(root / "all.csv", "path,label,split", "a.mp4,run,train", "b c.mp4,jump,")
    with pytest.raises(ValueError, match=r"all.csv, line 3: expected a split, got an empty cell"):
        open_source("list", root)
    write(root / "all.csv", "path,label,split", "a.mp4,run,train", '"d,e.mp4",jump,train', "b c.mp4,run,dev")
    assert open_source("list", root, "dev").paths == ("b c.mp4",)
    with pytest.raises(ValueError, match=r"expected split train or dev, got 'test': there is none; make it, or ask"):
        open_source("list", root, "test")


def test_a_test_list_without_labels_does_not_stop_training(root, write):
    write(root / "train.csv", "a.mp4,run", "b c.mp4,jump")
    write(root / "test.txt", "f/g.mp4")
    (note,) = open_source("list", root).notes
    assert note.startswith(f"{root / 'test.txt'} is left out, because it is no list of labels: ")
    with pytest.raises(ValueError, match=r"test.txt, line 1: expected lines `path label`"):
        open_source("list", root, "test")


def test_other_suffixes_are_taken_where_one_can_be_meant(tmp_path, touch, write):
    touch(tmp_path, "a.mp4", "a.txt", "b.webm", "b.mkv", "d.mp4")
    (tmp_path / "c").mkdir()
    write(tmp_path / "train.txt", "a.avi 0", "c.avi 1")
    source = open_source("list", tmp_path)
    assert source.paths == ("a.mp4", "c")
    assert source.notes == ("2 videos have another name on disk than listed, such as a.mp4 for a.avi",)
    write(tmp_path / "train.txt", "a.avi 0", "b.avi 1")
    with pytest.raises(FileNotFoundError, match=r"1 are missing \(b.avi\)"):
        open_source("list", tmp_path)
    write(tmp_path / "train.txt", "d.avi 0", "d.mp4 1", "a.mp4 0")
    with pytest.raises(FileNotFoundError, match=r"1 are missing \(d.avi\)"):
        open_source("list", tmp_path)
    write(tmp_path / "train.txt", "d.avi 0", "d.mov 1")
    with pytest.raises(ValueError, match=r"expected a video for each of d.avi, d.mov, got only d.mp4"):
        open_source("list", tmp_path)
