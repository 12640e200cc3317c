"""Every data set from a small folder laid out as its owners publish it, with real encoded files."""

import json

import av
import numpy as np
import pytest

from flaxvid.data.clips.decode import decode
from flaxvid.data.sources.open import open_source

CODECS = {".avi": "mpeg4", ".mp4": "libx264", ".webm": "libvpx-vp9"}
FRAMES = 3


def encode(path, level):
    """A grey video, or a folder of JPEG frames where the path has no ending."""
    folder = not path.suffix
    files = [path / f"{i:05d}.jpg" for i in range(1, FRAMES + 1)] if folder else [path]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        options = {"format": "image2"} if folder else {}
        with av.open(str(file), "w", **options) as container:
            stream = container.add_stream("mjpeg" if folder else CODECS[path.suffix], rate=12)
            stream.width, stream.height, stream.pix_fmt = 32, 32, "yuvj420p" if folder else "yuv420p"
            for _ in range(1 if folder else FRAMES):
                container.mux(
                    stream.encode(av.VideoFrame.from_ndarray(np.full((32, 32, 3), level, np.uint8), format="rgb24"))
                )
            container.mux(stream.encode(None))


def lay_out(root, videos, files):
    """Writes videos of levels 40, 80, ..., and text files: lists of lines, or what JSON writes."""
    for number, video in enumerate(videos, start=1):
        encode(root / video, 40 * number)
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(content) if name.endswith(".json") else "".join(f"{line}\r\n" for line in content)
        (root / name).write_text(text, newline="")


def rows(source):
    """(id, label, level of the picture) of every video, read by the decoder."""
    items = [source[i] for i in range(len(source))]
    videos = [decode(item["video"], [0, FRAMES - 1]) for item in items]
    assert all(video.shape == (2, 32, 32, 3) for video in videos)
    return [(item["id"], item["label"], 40 * round(v.mean() / 40)) for item, v in zip(items, videos, strict=True)]


@pytest.mark.parametrize("videos", ["", "UCF-101/"])
@pytest.mark.parametrize("lists", ["", "ucfTrainTestlist/"])
def test_ucf101(tmp_path, videos, lists):
    paths = ["Archery/v_Archery_g08_c01.avi", "Surfing/v_Surfing_g09_c01.avi", "Archery/v_Archery_g01_c01.avi"]
    files = {
        f"{lists}classInd.txt": ["1 Surfing", "2 Archery"],
        f"{lists}trainlist02.txt": [f"{paths[0]} 2", f"{paths[1]} 1"],
        f"{lists}testlist02.txt": [paths[2]],
    }
    lay_out(tmp_path, [videos + path for path in paths], files)
    train, test = (open_source("ucf101", tmp_path, split, fold=2) for split in ("train", "test"))
    assert train.classes == test.classes == ("Surfing", "Archery")
    assert rows(train) == [(paths[0], 1, 40), (paths[1], 0, 80)]
    assert rows(test) == [(paths[2], 1, 120)]
    with pytest.raises(FileNotFoundError, match=r"expected .*trainlist03.txt.*; got no file .*trainlist03.txt"):
        open_source("ucf101", tmp_path, fold=3)
    (tmp_path / f"{lists}trainlist02.txt").write_text(f"{paths[0]} 1\n")
    with pytest.raises(ValueError, match=r"expected a class of classInd.txt and its number, got 'Archery/.* 1'"):
        open_source("ucf101", tmp_path, fold=2)
    (tmp_path / f"{lists}classInd.txt").write_text("0 Surfing\n1 Archery\n")
    with pytest.raises(ValueError, match=r"expected lines `1 <class>`, numbered from 1, in .*classInd.txt"):
        open_source("ucf101", tmp_path, fold=2)


@pytest.mark.parametrize("lists", ["", "testTrainMulti_7030_splits/"])
def test_hmdb51(tmp_path, lists):
    names = ["#20_Rhythm_clap_u_nm_np1_fr_goo_0.avi", "April_clap_u_nm_np1_ba_goo_1.avi", "a_(2)_sit_u_nm_np1_ri_0.avi"]
    paths = [f"clap/{names[0]}", f"clap/{names[1]}", f"sit/{names[2]}"]
    files = {
        f"{lists}clap_test_split1.txt": [f"{names[0]} 1 ", f"{names[1]} 2 ", "unused.avi 0 "],
        f"{lists}sit_test_split1.txt": [f"{names[2]} 1 "],
        f"{lists}sit_test_split2.txt": [f"{names[2]} 2 "],
    }
    lay_out(tmp_path, paths, files)
    assert rows(open_source("hmdb51", tmp_path)) == [(paths[0], 0, 40), (paths[2], 1, 120)]
    assert rows(open_source("hmdb51", tmp_path, "test")) == [(paths[1], 0, 80)]
    (tmp_path / f"{lists}sit_test_split1.txt").write_text("x.avi 1,y.avi\n")
    with pytest.raises(ValueError, match=r"expected lines `<video>.avi 0\|1\|2` in .*sit_test_split1.txt, got"):
        open_source("hmdb51", tmp_path)


@pytest.mark.parametrize(("lists", "part"), [("", "val"), ("annotations/", "validate")])
def test_kinetics(tmp_path, lists, part):
    header = "label,youtube_id,time_start,time_end,split,is_cc"
    train = [header, "zumba,-xYz,5,15,train,0", '"air drumming",abc,100,110,train,0', "zumba,gone,1,11,train,0"]
    files = {f"{lists}train.csv": train, f"{lists}{part}.csv": [header, f"zumba,v,7,17,{part},0"]}
    paths = ["train/-xYz_000005_000015.mp4", "train/air drumming/abc_000100_000110.mp4", f"{part}/v_000007_000017.mp4"]
    lay_out(tmp_path, paths, files)
    with pytest.warns(UserWarning, match="kinetics train: 1 of 3 videos are missing"):
        source = open_source("kinetics600", tmp_path)
    assert source.classes == ("air drumming", "zumba")
    assert rows(source) == [(paths[0], 1, 40), (paths[1], 0, 80)]
    assert rows(open_source("kinetics400", tmp_path, "validation")) == [(paths[2], 1, 120)]
    (tmp_path / f"{lists}{part}.csv").write_text("label,youtube_id,split\nzumba,v,val\n")
    with pytest.raises(
        ValueError, match=rf"expected columns time_end, time_start in .*{part}.csv, got label, .*: .*_<start, 6 digits>"
    ):
        open_source("kinetics400", tmp_path, "validation")


def test_files_with_other_suffixes_than_published(tmp_path):
    """Fetched anew or encoded anew: Kinetics as WebM, Something-Something as MP4, UCF-101 as frames."""
    header = "label,youtube_id,time_start,time_end"
    lay_out(
        tmp_path / "k",
        ["train/abc_000005_000015.webm", "train/x/def_000001_000011.avi"],
        {"train.csv": [header, "zumba,abc,5,15", "yoga,def,1,11"]},
    )
    source = open_source("kinetics400", tmp_path / "k")
    assert rows(source) == [("train/abc_000005_000015.webm", 1, 40), ("train/x/def_000001_000011.avi", 0, 80)]
    (tmp_path / "k" / "val").mkdir()
    (tmp_path / "k" / "val.csv").write_text(f"{header}\ndance,abc,5,15\n")
    with pytest.raises(ValueError, match=r"expected the labels of train.csv in validation, got 'dance'"):
        open_source("kinetics400", tmp_path / "k", "validation")

    entries = [{"id": "7", "label": "", "template": "Pushing [something]"}]
    lay_out(
        tmp_path / "s", ["20bn-something-something-v2/7.mp4"], {"labels.json": {"Pushing something": "0", "No": "1"}}
    )
    (tmp_path / "s" / "train.json").write_text(json.dumps(entries))
    source = open_source("ssv2", tmp_path / "s")
    assert rows(source) == [("7.mp4", 0, 40)]
    assert source.notes == ("1 videos have another name on disk than listed, such as 7.mp4 for 7.webm",)

    path = "Archery/v_Archery_g08_c01"
    lists = {"classInd.txt": ["1 Archery", "2 Surfing"], "trainlist01.txt": [f"{path}.avi 1"]}
    lay_out(tmp_path / "u", [path], lists)
    assert rows(open_source("ucf101", tmp_path / "u")) == [(path, 0, 40)]


LEFT, RIGHT = "Pushing something from left to right", "Pushing something from right to left"
DROPPING = "Dropping something next to something"


@pytest.mark.parametrize("lists", ["", "labels/", "something-something-v2-"])
def test_ssv2(tmp_path, lists):
    entry = {"id": "7", "label": "pushing a cup from left to right", "placeholders": ["a cup"]}
    files = {
        f"{lists}labels.json": {DROPPING: "1", LEFT: "0", RIGHT: "2"},
        f"{lists}train.json": [{**entry, "template": "Pushing [something] from left to right"}],
        f"{lists}validation.json": [{"id": "8", "label": "", "template": "Dropping [something] next to [something]"}],
    }
    lay_out(tmp_path, ["20bn-something-something-v2/7.webm", "20bn-something-something-v2/8.webm"], files)
    train = open_source("ssv2", tmp_path)
    assert train.classes == (LEFT, DROPPING, RIGHT)
    assert train.flip_labels == (2, 1, 0)
    assert rows(train) == [("7.webm", 0, 40)]
    assert rows(open_source("ssv2", tmp_path, "validation")) == [("8.webm", 1, 80)]
    (tmp_path / f"{lists}train.json").write_text("[{")
    with pytest.raises(ValueError, match=r"train.json: expected JSON, got broken text"):
        open_source("ssv2", tmp_path)
    (tmp_path / f"{lists}train.json").write_text('[{"id": "7"}]')
    with pytest.raises(ValueError, match=r"train.json: expected entries with 'id' and 'template', got {'id': '7'}"):
        open_source("ssv2", tmp_path)


GESTURES = ("Swiping Left", "Swiping Right", "Turning Hand Clockwise", "Turning Hand Counterclockwise", "Thumb Up")


@pytest.mark.parametrize(
    ("name", "prefix", "classes", "flips"),
    [
        ("ssv1", "something-something-v1", (RIGHT, DROPPING, LEFT), (2, 1, 0)),
        ("jester", "jester-v1", GESTURES, (1, 0, 3, 2, 4)),
    ],
)
def test_frame_folders(tmp_path, name, prefix, classes, flips):
    files = {
        f"{prefix}-labels.csv": classes,
        f"{prefix}-train.csv": [f"100218;{classes[2]}"],
        f"{prefix}-validation.csv": [f"9;{classes[1]}"],
        f"{prefix}-test.csv": ["10"],
    }
    lay_out(tmp_path, [f"20bn-{prefix}/100218", f"20bn-{prefix}/9"], files)
    train = open_source(name, tmp_path)
    assert (train.classes, train.flip_labels) == (classes, flips)
    assert rows(train) == [("100218", 2, 40)]
    assert rows(open_source(name, tmp_path, "validation")) == [("9", 1, 80)]
    (tmp_path / f"{prefix}-train.csv").write_text("100218,Thumb Up\n")
    with pytest.raises(ValueError, match=rf"expected a class of .*{prefix}-labels.csv, got '' for 100218,Thumb Up: "):
        open_source(name, tmp_path)


@pytest.mark.parametrize("lists", ["", "annotations/"])
def test_diving48(tmp_path, lists):
    ids = ["-mmq0PT-u8k_00155", "_8Vy3dlHg2w_00000"]
    frames = {"start_frame": 0, "end_frame": 48}
    files = {
        f"{lists}Diving48_vocab.json": [["Back", "15som", "05Twis", "FREE"], ["Inward", "35som", "NoTwis", "TUCK"]],
        f"{lists}Diving48_V2_train.json": [{"vid_name": ids[0], "label": 1, **frames}],
        f"{lists}Diving48_V2_test.json": [{"vid_name": ids[1], "label": 0, **frames}],
    }
    lay_out(tmp_path, [f"rgb/{name}.mp4" for name in ids], files)
    train, test = (open_source("diving48", tmp_path, split) for split in ("train", "test"))
    assert train.classes == ("Back 15som 05Twis FREE", "Inward 35som NoTwis TUCK")
    assert (rows(train), rows(test)) == ([(f"{ids[0]}.mp4", 1, 40)], [(f"{ids[1]}.mp4", 0, 80)])
    assert train.flip_labels is None
    (tmp_path / f"{lists}Diving48_vocab.json").write_text("{}")
    with pytest.raises(ValueError, match="expected a JSON list, got a dict"):
        open_source("diving48", tmp_path)


LAYOUTS = {
    "ucf101": r"v_<class>_g01_c01.avi .*classInd.txt, trainlist01.txt and testlist01.txt .*; got no classInd.txt",
    "hmdb51": r"<class>/<video>.avi .*<video>.avi 0\|1\|2.*testTrainMulti_7030_splits.*; got no \*_test_split1.txt",
    "kinetics400": r"<youtube_id>_<start, 6 digits>_<end, 6 digits>.mp4, .*; got no train.csv",
    "ssv1": r"20bn-something-something-v1/<id>/00001.jpg .*<id>;<class>.*; got no something-something-v1-labels.csv",
    "ssv2": r"20bn-something-something-v2/<id>.webm .*train.json .*; got no labels.json or something-something-v2-",
    "jester": r"20bn-jester-v1/<id>/00001.jpg .*jester-v1-train.csv .*; got no jester-v1-labels.csv",
    "diving48": r"rgb/<vid_name>.mp4 .*Diving48_V2_train.json .*; got no Diving48_vocab.json",
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_wrong_layout_shows_the_right_one(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=rf"^expected {tmp_path}.*{LAYOUTS[name]}"):
        open_source(name, tmp_path)
    with pytest.raises(ValueError, match=r"expected split train or .*, got 'val'"):
        open_source(name, tmp_path, "val")


def test_a_list_that_names_missing_videos_is_one_message(tmp_path):
    lay_out(tmp_path, ["rgb/a.mp4"], {"Diving48_vocab.json": [["Back"]]})
    names = ("a", "b", "c", "d", "e")
    (tmp_path / "Diving48_V2_train.json").write_text(json.dumps([{"vid_name": n, "label": 0} for n in names]))
    with pytest.raises(
        FileNotFoundError,
        match=r"expected 5 videos under .*rgb, 4 are missing \(b.mp4, c.mp4, d.mp4, ... \(4 in all\)\): .*<vid_name>",
    ):
        open_source("diving48", tmp_path)
    (tmp_path / "train.csv").write_text("label,youtube_id,time_start,time_end\nzumba,x,1,2\n")
    with pytest.raises(FileNotFoundError, match=r"got none of 1 videos, such as x_000001_000002.mp4"):
        open_source("kinetics400", tmp_path)


def test_real_ucf_lists(shared_data):
    train, test = (open_source("ucf101", shared_data / "ucf6-mini", split) for split in ("train", "test"))
    assert (len(train), len(test), len(train.classes)) == (108, 42, 6)
    np.testing.assert_array_equal(np.bincount(train.labels), 18)
