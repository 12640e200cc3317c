import os
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from filelock import FileLock

from flaxvid.data.features import (
    DamagedError,
    fingerprint,
    in_use,
    list_features,
    make_room,
    read_features,
    write_features,
)
from flaxvid.data.sources.subset import Subset

FEATURES = {
    4: {"0": np.arange(6, dtype=np.float32).reshape(1, 2, 3), "1": np.ones((2, 2), ml_dtypes.bfloat16)},
    16: {"0": np.full((4, 2, 3), -0.5, np.float32), "1": np.zeros((2, 2), ml_dtypes.bfloat16)},
}


def test_features_are_read_as_they_were_written(tmp_path):
    write_features(tmp_path / "a", FEATURES)
    read = read_features(tmp_path / "a")
    assert read.keys() == FEATURES.keys()
    for count, arrays in FEATURES.items():
        for name, array in arrays.items():
            assert read[count][name].dtype == array.dtype
            np.testing.assert_array_equal(read[count][name], array)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_every_changed_byte_is_found(tmp_path):
    path = tmp_path / "a"
    write_features(path, FEATURES)
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(DamagedError, match="is damaged"):
            read_features(path)
    for length in (0, 10, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedError):
            read_features(path)


def test_a_video_is_known_by_what_it_is(tmp_path):
    video = tmp_path / "a.mp4"
    video.write_bytes(b"one")
    os.utime(video, ns=(1, 1))
    first = fingerprint(str(video))
    assert fingerprint(video) == first
    os.utime(video, ns=(1, 2))
    assert fingerprint(video) != first
    os.utime(video, ns=(1, 1))
    video.write_bytes(b"other")
    os.utime(video, ns=(1, 1))
    assert fingerprint(video) != first
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "1.png").write_bytes(b"x")
    before = fingerprint(tmp_path / "frames")
    (tmp_path / "frames" / "2.png").write_bytes(b"x")
    assert fingerprint(tmp_path / "frames") != before
    assert fingerprint(b"one") == fingerprint(b"one") != fingerprint(b"two")
    assert fingerprint({"front": b"one", "left": b"two"}) != fingerprint({"front": b"two", "left": b"one"})
    with pytest.raises(FileNotFoundError):
        fingerprint(tmp_path / "none.mp4")


def folder(root, name, size, when):
    (root / name).mkdir()
    (root / name / "f").write_bytes(b"x" * size)
    os.utime(root / name, (when, when))
    return root / name


def test_room_is_made_where_it_was_not_used_for_longest(tmp_path):
    old, used, new, own = (folder(tmp_path, name, 100, when) for when, name in enumerate(("old", "used", "new", "own")))
    with in_use(used):
        os.utime(used, (0, 0))
        make_room(tmp_path, own, 0, 400)
        assert all(path.exists() for path in (old, used, new, own))
        make_room(tmp_path, own, 100, 400)
        assert [path.exists() for path in (old, used, new, own)] == [False, True, True, True]
        make_room(tmp_path, own, 150, 400)
        assert [path.exists() for path in (used, new, own)] == [True, False, True]
        with pytest.raises(ValueError, match=r"feature_cache: expected room for 2.5e-07 GB .* 2e-07 GB are in use"):
            make_room(tmp_path, own, 250, 400)
        assert own.exists()
        assert used.exists()
    make_room(tmp_path, own, 250, 400)
    assert not used.exists()
    assert own.exists()


def test_another_process_may_end_while_room_is_made(tmp_path, monkeypatch):
    """Its mark is gone before its lock is free, and may go while it is counted."""
    own, other = tmp_path / "own", tmp_path / "other"
    for folder in (own, other):
        folder.mkdir()
        (folder / "a").write_bytes(bytes(100))
    stat, release, left = Path.stat, FileLock.release, []
    monkeypatch.setattr(FileLock, "release", lambda lock: (left.extend(other.glob(".in-use-*")), release(lock)))
    with in_use(other):
        (mark,) = other.glob(".in-use-*")
    assert left == []
    mark.touch()

    def stat_late(path, **options):
        if path == mark:
            path.unlink(missing_ok=True)
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", stat_late)
    make_room(tmp_path, own, 100, 200)
    assert [folder.name for folder in tmp_path.iterdir()] == ["own"]


def test_a_full_disk_is_told_before_any_work(tmp_path, monkeypatch):
    old, own = (folder(tmp_path, name, 100, when) for when, name in enumerate(("old", "own")))
    free = shutil.disk_usage(tmp_path)

    def disk_usage(_):
        return free._replace(free=150 + 100 * (not old.exists()))

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    make_room(tmp_path, own, 150, 10**9)
    assert old.exists()
    make_room(tmp_path, own, 200, 10**9)
    assert not old.exists()
    with pytest.raises(ValueError, match=r"expected room for 3e-07 GB .* got 2.5e-07 GB of free disk: make room"):
        make_room(tmp_path, own, 300, 10**9)


def test_a_source_lists_its_files(motion_data, tmp_path):
    from flaxvid.data.motion.build import MotionConfig, build_motion, motion_source

    built = build_motion(motion_data, MotionConfig(size=32, num_frames=16, train=24, validation=8, test=8))
    source = Subset(motion_source(built, "train"), (3, 1, 2))
    kept = list_features(source, tmp_path)
    assert kept.labels == (3, 1, 2)
    assert len(set(kept.names)) == 3
    assert kept.find_missing() == ([0, 1, 2], [])
    for name in kept.names:
        write_features(tmp_path / name, FEATURES)
    assert kept.find_missing() == ([], [])
    features, label = kept[1]
    np.testing.assert_array_equal(features[4]["0"], FEATURES[4]["0"])
    assert label == 1
    (tmp_path / kept.names[1]).write_bytes(b"damaged")
    with pytest.raises(DamagedError, match="is damaged"):
        kept[1]
    assert kept.find_missing() == ([1], [tmp_path / kept.names[1]])
    with pytest.raises(DamagedError, match="was removed while it was in use"):
        kept[1]
