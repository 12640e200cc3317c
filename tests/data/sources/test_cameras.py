"""Scenes of several cameras: sources, clips and batches, and those that `motion` draws."""

import itertools
import shutil

import chex
import numpy as np
import pytest

from flaxvid.data.clips.cut import Augmentation, ClipConfig, cut_views, draw_clips, find_fault
from flaxvid.data.clips.decode import VideoError
from flaxvid.data.mirror import mirrored_names
from flaxvid.data.motion.build import MotionConfig
from flaxvid.data.motion.draw import CAMERAS as ANGLES
from flaxvid.data.motion.draw import HEADINGS, render_camera
from flaxvid.data.pipeline import eval_batches, train_batches
from flaxvid.data.sources.cameras import Scenes, open_scenes
from flaxvid.data.sources.open import open_source
from flaxvid.data.sources.subset import random_subset

CAMERAS = ("front", "left", "right")
CLIPS = ClipConfig((2, 4), 24, test_size=28, flip=True)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, write_video):
    """Four scenes of 20 frames; what the right camera saw is noise."""
    root = tmp_path_factory.mktemp("recorded")
    for camera, number in itertools.product(CAMERAS, range(4)):
        name = "turn_left" if number < 2 else "turn_right"
        write_video(root / camera / "train" / name / f"{number}.mp4", noise=camera == "right")
    return root


@pytest.fixture
def root(recorded, tmp_path):
    """A copy, to be changed."""
    return shutil.copytree(recorded, tmp_path / "recorded")


def test_a_data_set_for_each_camera_read_side_by_side(recorded):
    scenes = open_scenes("folder", recorded, cameras=CAMERAS)
    assert (len(scenes), scenes.cameras, scenes.classes) == (4, CAMERAS, ("turn_left", "turn_right"))
    assert scenes.name == "folder train from front, left, right"
    assert scenes.flip_labels == (1, 0)
    item = scenes[2]
    assert (item["id"], item["label"], list(item["video"])) == ("train/turn_right/2.mp4", 1, list(CAMERAS))
    assert item["video"]["left"] == str(recorded / "left" / "train/turn_right/2.mp4")
    assert random_subset(scenes, 2).cameras == CAMERAS
    assert open_scenes("folder", recorded, cameras=("left",)).cameras == ("left",)


def test_what_does_not_fit_together(root, write_video):
    with pytest.raises(FileNotFoundError, match=r"expected a folder for each camera in .*got none for rear, top"):
        open_scenes("folder", root, cameras=("front", "rear", "top"))
    with pytest.raises(ValueError, match="expected cameras of different names"):
        open_scenes("folder", root, cameras=("front", "front"))
    with pytest.raises(ValueError, match="expected as root the folder of front, left"):
        open_scenes("folder", None, cameras=CAMERAS)
    (root / "left/train/turn_left/1.mp4").rename(root / "left/train/turn_left/7.mp4")
    with pytest.raises(ValueError, match=r"expected one scene at position 1 of every camera, got .*turn_left/7.mp4"):
        open_scenes("folder", root, cameras=CAMERAS)[1]
    (root / "left/train/turn_left/7.mp4").unlink()
    with pytest.raises(ValueError, match=r"expected the same scenes in every camera, got .*'left': 3"):
        open_scenes("folder", root, cameras=CAMERAS)
    write_video(root / "left/train/sit/1.mp4")
    with pytest.raises(ValueError, match="expected the same classes in every camera"):
        open_scenes("folder", root, cameras=CAMERAS)


def test_all_cameras_get_the_same_frames_and_crop(recorded, frame_numbers):
    scenes = open_scenes("folder", recorded, cameras=("front", "left"))
    clips = ClipConfig((2, 4), 24, augmentation=Augmentation("resized", (0.3, 1.0), randaugment=1), flip=True)
    for batch in itertools.islice(train_batches(scenes, clips, 4), 3):
        for n in clips.frames:
            assert list(batch["video"][n]) == ["front", "left"]
            chex.assert_shape(batch["video"][n]["left"], (4, n, 24, 24, 3))
            np.testing.assert_array_equal(batch["video"][n]["front"], batch["video"][n]["left"])
    plain = ClipConfig((4,), 24, scales=(1.0,), flip=False)
    drawn = [next(train_batches(scenes, plain, 4, seed=seed))["video"][4]["left"] for seed in range(3)]
    assert len({tuple(row) for row in frame_numbers(np.concatenate(drawn))}) > 6


def test_in_a_mirror_left_is_right(recorded):
    scenes = open_scenes("folder", recorded, cameras=CAMERAS)
    clips = ClipConfig((2,), 32, scales=(1.0,), flip=True)
    labels = set()
    for seed in range(12):
        video, label = draw_clips(scenes[0], clips, scenes.flip_labels, np.random.default_rng(seed))
        noisy = max(CAMERAS, key=lambda camera: video[2][camera].std())
        assert noisy == ("left" if label else "right")
        labels.add(label)
    assert labels == {0, 1}
    one_sided = open_scenes("folder", recorded, cameras=("front", "left"))
    drawn = {draw_clips(one_sided[0], clips, (1, 0), np.random.default_rng(seed))[1] for seed in range(12)}
    assert drawn == {0}


def test_evaluation_of_scenes_and_of_those_that_cannot_be_read(root, frame_numbers):
    (root / "left/train/turn_left/1.mp4").write_bytes(b"no video")
    scenes = open_scenes("folder", root, cameras=CAMERAS)
    (batch,) = eval_batches(scenes, ClipConfig((2, 4), 24, test_size=28, clips=2), 6)
    for camera in CAMERAS:
        chex.assert_shape(batch["video"][4][camera], (6, 2, 4, 24, 24, 3))
        assert not batch["video"][2][camera][[1, 4, 5]].any()
    np.testing.assert_array_equal(frame_numbers(batch["video"][2]["front"][0]), [[5, 15], [0, 10]])
    np.testing.assert_array_equal(batch["mask"], [True, False, True, True, False, False])
    np.testing.assert_array_equal(batch["broken"], [-1, 1, -1, -1, -1, -1])
    assert "1.mp4" in find_fault(scenes[1], CLIPS)
    assert find_fault(scenes[0], CLIPS) is None


@pytest.mark.parametrize("odd", [{"frames": 18}, {"height": 40}])
def test_cameras_that_do_not_agree_are_a_broken_scene(root, write_video, odd):
    write_video(root / "left/train/turn_left/0.mp4", **odd)
    scenes = open_scenes("folder", root, cameras=CAMERAS)
    message = (
        r"turn_left/0.mp4: expected videos of one length and size from all cameras, got front 20 frames of 32 x 48"
    )
    with pytest.raises(VideoError, match=message):
        cut_views(scenes[0], CLIPS, np.random.default_rng(0))
    with pytest.raises(VideoError, match=message):
        draw_clips(scenes[0], CLIPS, None, np.random.default_rng(0))
    assert "expected videos of one length and size" in find_fault(scenes[0], CLIPS)


TINY = MotionConfig(size=32, num_frames=8, train=9, validation=1, test=8)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return tmp_path_factory.mktemp("drawn")


def test_motion_from_three_cameras(drawn):
    scenes = open_scenes("motion", drawn, "test", cameras=CAMERAS, motion=TINY)
    assert scenes.classes == HEADINGS
    assert [scenes[i]["label"] for i in range(8)] == list(range(8))
    assert len({video for i in range(8) for video in scenes[i]["video"].values()}) == 24
    left = open_source("motion", drawn, "test", motion=MotionConfig(32, 8, 9, 1, 8, camera="left"))
    assert left[3]["video"] == scenes[3]["video"]["left"]
    assert [HEADINGS[label] for label in left.flip_labels] == [
        name.replace("right", "*").replace("left", "right").replace("*", "left") for name in HEADINGS
    ]
    batch = next(train_batches(scenes, ClipConfig((4,), 24), 4))
    chex.assert_shape(batch["video"][4]["right"], (4, 4, 24, 24, 3))
    with pytest.raises(ValueError, match="expected camera to be front, left, right or empty, got 'rear'"):
        open_scenes("motion", drawn, cameras=("rear",), motion=TINY)


def way_across(luma):
    """How far the ball goes to the right, in picture widths; the ball is the brightest thing."""
    angles = 2 * np.pi * (np.arange(luma.shape[2]) + 0.5) / luma.shape[2]
    bright = (luma > 185).sum(axis=1)
    seen = bright.sum(axis=1) > 0.25 * bright.sum(axis=1).max()
    centre = np.unwrap(np.angle((bright * np.exp(1j * angles)).sum(axis=1))[seen])
    return (centre[-1] - centre[0]) / (2 * np.pi)


def test_each_camera_sees_what_lies_across_its_line_of_sight():
    """The front camera's part of the way is the sum of the other two's, and the signs tell the headings."""
    ways = np.array(
        [
            [
                way_across(
                    render_camera(label, 64, 32, camera, np.random.default_rng(seed), np.random.default_rng((seed, n)))[
                        0
                    ]
                )
                for n, camera in enumerate(CAMERAS)
            ]
            for label in range(8)
            for seed in range(6)
        ]
    ).reshape(8, 6, 3)
    front, left, right = np.moveaxis(ways, -1, 0)
    assert np.median(np.abs(front - left - right)) < 0.15  # half hidden, the ball seems to lie beside its place
    headings = 2 * np.pi * np.arange(8) / 8
    for camera, seen in zip(ANGLES, (front, left, right), strict=True):
        across = np.sin(headings - np.deg2rad(ANGLES[camera]))
        clear = np.abs(across) > 0.4
        assert (np.sign(np.median(seen, axis=1)) == np.sign(across))[clear].all()
    assert mirrored_names(HEADINGS) == (0, 7, 6, 5, 4, 3, 2, 1)


def test_sources_of_scenes_are_checked_at_once(drawn):
    two = open_source("motion", drawn, "test", motion=MotionConfig(32, 8, 9, 1, 8, camera="left"))
    three = open_source("motion", drawn, "train", motion=MotionConfig(32, 8, 9, 1, 8, camera="right"))
    with pytest.raises(ValueError, match="expected the same scenes in every camera"):
        Scenes({"left": two, "right": three})
