"""Hold-outs: by files, by scenes, and the warning where names show scenes and nobody said so."""

import hashlib
from pathlib import Path

import pytest

from flaxvid.data.sources.cameras import open_scenes
from flaxvid.data.sources.open import open_source
from flaxvid.data.sources.splits import hold_out


def both(root, name="folder", **options):
    return [open_source(name, root, split, **options) for split in ("train", "test")]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 12, 13, 100])
def test_a_fifth_of_each_class_by_the_hash_of_names(count):
    """As always: the same videos of a data set of yesterday are held out today."""
    paths = sorted(f"{name}/{part}{i}.mp4" for name in ("run", "jump") for i in range(count) for part in ("", "deep/"))
    expected = set()
    for name in ("run", "jump"):
        own = [path for path in paths if path.startswith(name)]
        ranked = sorted(own, key=lambda path: hashlib.md5(Path(path).name.encode()).digest())
        expected |= set(ranked[: max(1, round(0.2 * len(own)))])
    test = hold_out(paths, [path.partition("/")[0] for path in paths])
    assert {paths[at] for at in test} == expected


def test_a_single_video_is_for_training():
    assert hold_out(["a/x.mp4", "b/y.mp4"], [0, 1]) == frozenset()


def ucf(root, touch, classes=("Archery", "Surfing"), groups=10, clips=4):
    touch(
        root,
        *(
            f"{c}/v_{c}_g{g:02d}_c{i:02d}.avi"
            for c in classes
            for g in range(1, groups + 1)
            for i in range(1, clips + 1)
        ),
    )


def test_scenes_stay_together(tmp_path, touch):
    ucf(tmp_path, touch)
    train, test = both(tmp_path, group=r"(v_\w+_g\d+)_c\d+")
    scenes = [{path.rpartition("_")[0] for path in source.paths} for source in (train, test)]
    assert not scenes[0] & scenes[1]
    assert (len(train), len(test), len(scenes[1])) == (64, 16, 4)
    assert (train.notes, test.notes) == ((), ())
    before = set(test.paths)
    touch(tmp_path, "Archery/v_Archery_g11_c01.avi")
    after = set(open_source("folder", tmp_path, "test", group=r"(v_\w+_g\d+)_c\d+").paths)
    assert len({path.rpartition("_")[0] for path in before ^ after}) <= 2


def test_a_scene_of_several_classes_is_on_one_side(tmp_path, touch):
    ucf(tmp_path, touch)
    train, test = both(tmp_path, group=r"_(g\d+)_")
    scenes = [{path.split("_")[2] for path in source.paths} for source in (train, test)]
    assert not scenes[0] & scenes[1]
    assert len(scenes[1]) == 2
    assert (len(train), len(test)) == (64, 16)


NAMES = {
    "UCF": [f"v_Run_g{g:02d}_c{c:02d}.avi" for g in range(5) for c in range(4)],
    "parts": [f"scene_{g:03d}_part{c}.mp4" for g in range(5) for c in range(4)],
    "counters": [f"{name}-{c}.mp4" for name in ("tom", "kim", "ann") for c in range(6)],
    "blanks": [f"match {g} ({c}).mp4" for g in range(4) for c in range(5)],
    "clips": [f"film{g}_clip{c}.mkv" for g in range(4) for c in range(5)],
    "one scene in parts": [f"concert_part{c}.mp4" for c in range(10)],
}


@pytest.mark.parametrize("kind", NAMES)
def test_names_that_show_scenes(tmp_path, kind, touch):
    touch(tmp_path, *(f"run/{name}" for name in NAMES[kind]), *(f"jump/{i:03d}.mp4" for i in range(10)))
    train, test = both(tmp_path)
    (note,) = train.notes
    assert "test videos look like parts of scenes that are also in training" in note
    assert test.notes == train.notes
    rule = r"(\w+?)[_-]part" if kind == "one scene in parts" else r"(.*?)\W*[_-]?[a-z]*\d+\W*\w*$"
    if kind != "one scene in parts":
        assert both(tmp_path, group=rule)[0].notes == ()


@pytest.mark.parametrize(
    "names",
    [
        [f"{i:04d}.mp4" for i in range(20)],
        [f"jump{i}.mp4" for i in range(20)],
        [f"jump_{i:03d}.mp4" for i in range(20)],
        [f"video ({i}).mp4" for i in range(20)],
        [f"IMG_{2000 + i}.MOV" for i in range(20)],
        [f"{chr(97 + i)}.mp4" for i in range(20)],
        [f"{chr(97 + i)}{i}xk_00000{i % 10}_000010.mp4" for i in range(20)],
    ],
)
def test_names_that_show_none(tmp_path, names, touch):
    touch(tmp_path, *(f"{folder}/{name}" for folder in ("run", "jump") for name in names))
    assert both(tmp_path)[0].notes == ()


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (r"g\d+", r"data.group: expected a regular expression with one group, .* got 'g\\\\d\+' with 0"),
        (r"(g)(\d+)", "with 2"),
        ("(g", "data.group: expected a regular expression, got '\\(g'"),
        ("_(x)_", r"expected '_\(x\)_' to match every path, got Archery/v_Archery_g01_c01.avi: correct it"),
    ],
)
def test_rules_that_do_not_hold(tmp_path, rule, message, touch):
    ucf(tmp_path, touch, groups=2, clips=2)
    with pytest.raises(ValueError, match=message):
        open_source("folder", tmp_path, group=rule)


def test_a_rule_where_there_is_no_hold_out(tmp_path, touch):
    with pytest.raises(ValueError, match="ucf101: expected no group, because its splits are fixed, got"):
        open_source("ucf101", tmp_path, group="x")
    touch(tmp_path, "train/run/s1_a.mp4", "train/jump/s2_a.mp4", "test/run/s1_b.mp4", "test/run/s3_b.mp4")
    notes = open_source("folder", tmp_path, group=r"(s\d)_").notes
    assert notes == ("1 groups are in train and in test, such as s1: the test may be too easy",)


def test_a_list_is_held_out_by_a_column_or_a_rule(tmp_path, touch, write):
    rows = [(f"{i}.mp4", ("run", "jump")[i % 2], f"person {i // 4}") for i in range(40)]
    touch(tmp_path, *(path for path, *_ in rows))
    write(tmp_path / "train.csv", "path,action,scene", *(",".join(row) for row in rows))
    train, test = both(tmp_path, "list", group="scene")
    assert train.classes == test.classes == ("jump", "run")
    scene = {path: person for path, _, person in rows}
    sides = [{scene[path] for path in source.paths} for source in (train, test)]
    assert not sides[0] & sides[1]
    assert (len(train), len(test), len(sides[1])) == (32, 8, 2)
    train, test = both(tmp_path, "list", group=r"(\d)\.mp4")
    assert not {path[-5] for path in train.paths} & {path[-5] for path in test.paths}
    with pytest.raises(ValueError, match=r"expected a column of .*train.csv \(path, action, scene\) or a"):
        open_source("list", tmp_path, group="person")
    write(tmp_path / "train.csv", "path,action,scene", "0.mp4,run,a", "1.mp4,jump,")
    with pytest.raises(ValueError, match=r"train.csv, line 3: expected a scene, got an empty cell"):
        open_source("list", tmp_path, group="scene")
    write(tmp_path / "train.csv", "path,action,scene", "0.mp4,run,a", "1.mp4,jump,a")
    with pytest.raises(ValueError, match=r"train.csv: expected two scenes or more, .* got one for data.group='scene'"):
        open_source("list", tmp_path, "test", group="scene")
    write(tmp_path / "train.csv", "path,action,scene", "0.mp4,run,a", "1.mp4,jump,b")
    write(tmp_path / "test.csv", "path,action,scene", "2.mp4,run,a")
    assert (
        "1 groups are in train and in test, such as a: the test may be too easy"
        in both(tmp_path, "list", group="scene")[0].notes
    )


def test_cameras_are_held_out_alike(tmp_path, touch):
    for camera in ("front", "left"):
        ucf(tmp_path / camera, touch)
    train = open_scenes("folder", tmp_path, cameras=("front", "left"), group=r"_(g\d+)_")
    test = open_scenes("folder", tmp_path, "test", cameras=("front", "left"), group=r"_(g\d+)_")
    assert (len(train), len(test)) == (64, 16)
    assert {train[i]["id"].split("_")[2] for i in range(64)}.isdisjoint(test[i]["id"].split("_")[2] for i in range(16))
