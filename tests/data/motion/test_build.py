import io
import multiprocessing
import pickle

import av
import numpy as np
import pytest

from flaxvid.data.motion import build as motion
from flaxvid.data.motion import draw as motion_render
from flaxvid.data.motion.build import MOTION_CLASSES, MotionConfig, build_motion, fingerprint, make_clip, motion_source

TINY = MotionConfig(size=32, num_frames=8, train=30, validation=3, test=16)
K = len(MOTION_CLASSES)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build_motion(tmp_path_factory.mktemp("data"), TINY, workers=1)


def decoded(video):
    with av.open(io.BytesIO(video)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_splits_hold_real_video_of_every_class(built):
    sources = {split: motion_source(built, split) for split in ("train", "validation", "test")}
    assert [len(source) for source in sources.values()] == [30, 3, 16]
    items = [source[i] for source in sources.values() for i in range(len(source))]
    assert len({item["video"] for item in items}) == len({item["id"] for item in items}) == 49
    assert [sources["train"][i]["label"] for i in range(30)] == [i % K for i in range(30)]
    video = decoded(items[0]["video"])
    assert video.shape == (8, 32, 32, 3)
    assert video.dtype == np.uint8
    assert np.abs(np.diff(video.astype(int), axis=0)).max() > 50
    assert items[-1]["video"] == make_clip(TINY, "test", 15)


def test_source_pickles_and_names_its_classes(built):
    source = motion_source(built, "test")
    expected = source[3]
    again = pickle.loads(pickle.dumps(source))
    assert again[3] == expected
    assert source.classes == MOTION_CLASSES
    assert [source.flip_labels[label] for label in source.flip_labels] == list(range(K))  # a mirror undoes itself


def test_finished_set_is_returned_at_once(built, monkeypatch):
    with monkeypatch.context() as patched:  # it neither waits for a lock nor draws
        patched.setattr(motion, "locked", None)
        patched.setattr(motion, "_write", None)
        assert build_motion(built.parents[2], TINY) == built
    other = MotionConfig(size=32, num_frames=8, train=2, validation=1, test=1)
    assert build_motion(built.parents[2], other, workers=1) != built


def test_clips_do_not_depend_on_the_number_of_workers(built, tmp_path, monkeypatch):
    monkeypatch.setenv("FLAXVID_DATA", str(tmp_path))
    path = build_motion(config=TINY, workers=2)
    assert path.is_relative_to(tmp_path)
    assert fingerprint(path) == fingerprint(built)


def test_interrupted_build_leaves_nothing_that_looks_finished(built, tmp_path, monkeypatch):
    calls = []

    def interrupted(*args):
        calls.append(args)
        if len(calls) > 20:
            raise KeyboardInterrupt
        return make_clip(*args)

    monkeypatch.setattr(motion, "make_clip", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_motion(tmp_path, TINY, workers=1)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and not path.name.endswith(".lock")]
    monkeypatch.undo()
    assert fingerprint(build_motion(tmp_path, TINY, workers=1)) == fingerprint(built)


def test_two_processes_at_once(built, tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=build_motion, args=(tmp_path, TINY, 1)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        assert process.exitcode == 0
    path = build_motion(tmp_path, TINY)
    assert fingerprint(path) == fingerprint(built)
    assert sorted(entry.name for entry in path.parent.iterdir()) == [f".{path.name}.lock", path.name]


@pytest.mark.parametrize("pace", [1, 2])
def test_coming_back_changes_only_the_order(pace):
    """At a steady pace the way there and back visits exactly the places of the way onwards."""
    progress = ((np.arange(32) + 0.5) / 32) ** pace
    onwards = motion_render._travel(np.random.default_rng(5), progress, 1)[:, 0, 0]
    back = motion_render._travel(np.random.default_rng(5), progress, 1, back=True)[:, 0, 0]
    np.testing.assert_array_equal(np.diff(onwards) > 0, True)
    moves = np.sign(np.diff(back))
    assert (moves[:15] > 0).all()
    assert (moves[-5:] < 0).all()
    if pace == 1:
        np.testing.assert_allclose(np.sort(back), onwards, atol=1e-6)


def test_frames_alone_do_not_tell_the_class():
    """Mean brightness and colour of frames (sorted, so without their order) separate no class from the rest."""
    rendered = [
        (label, motion_render.render_clip(label, 32, 8, np.random.default_rng((label, i))))
        for label in range(K)
        for i in range(40)
    ]
    features = np.array([np.sort(luma.mean((1, 2))) for _, (luma, _) in rendered])
    labels = np.array([label for label, _ in rendered])
    spread = features.std(0) / np.sqrt(40)
    for label in range(K):
        assert (np.abs(features[labels == label].mean(0) - features.mean(0)) < 4 * spread).all()


@pytest.mark.parametrize(
    "option", [{"size": 33}, {"size": 8}, {"num_frames": 2}, {"test": 0}, {"seed": -1}, {"camera": "rear"}]
)
def test_impossible_options_are_refused(option):
    with pytest.raises(ValueError, match=r"motion: .* got"):
        MotionConfig(**option)


def test_wrong_split_and_missing_folder_are_named(built, tmp_path):
    with pytest.raises(ValueError, match="'val'"):
        motion_source(built, "val")
    with pytest.raises(FileNotFoundError, match="build_motion"):
        motion_source(tmp_path)


def test_a_shifted_clip_is_the_same_scene_in_another_look():
    """Every frame's luma is that of the usual look, brighter, flatter, noisy and rolled by a few pixels."""
    shakes, turns = [(y, x) for y in range(-4, 5, 2) for x in range(-4, 5, 2)], []
    for index in range(4):
        luma, chroma = motion_render.render_clip(index, 64, 16, np.random.default_rng(index))
        shifted, colours = motion_render.change_look(luma, chroma, np.random.default_rng((index, 1)))
        assert (shifted.dtype, shifted.shape, colours.shape) == (luma.dtype, luma.shape, chroma.shape)
        assert shifted.mean() > luma.mean() + 30
        assert shifted.std((1, 2)).mean() < 0.8 * luma.std((1, 2)).mean()
        moves = set()
        for one, other in zip(luma, shifted, strict=True):
            alike = {shake: np.corrcoef(np.roll(one, shake, (0, 1)).ravel(), other.ravel())[0, 1] for shake in shakes}
            moves.add(max(alike, key=alike.get))
            assert max(alike.values()) > 0.85
        assert len(moves) > 3
        angle = [np.arctan2(*(planes - 128.0).mean((0, 2, 3))) for planes in (chroma, colours)]
        turns.append(np.abs(np.angle(np.exp(1j * (angle[1] - angle[0])))))
    assert 0.5 < max(turns) < 1.2
    assert len({round(turn, 1) for turn in turns}) > 1
    config = MotionConfig(size=64, num_frames=16, domain="shifted")
    assert make_clip(config, "test", 2) == make_clip(config, "test", 2)
    assert decoded(make_clip(config, "test", 2)).shape == (16, 64, 64, 3)


def test_a_domain_has_a_folder_of_its_own_and_leaves_the_default_alone():
    assert MotionConfig().folder == "64px-32f-6000-512-2048-seed0/1.0.0"
    assert MotionConfig(camera="left").folder == "64px-32f-6000-512-2048-seed0-left/1.0.0"
    assert MotionConfig(domain="shifted").folder == "64px-32f-6000-512-2048-seed0-shifted/1.0.0"
    assert MotionConfig(camera="left", domain="shifted").folder == "64px-32f-6000-512-2048-seed0-left-shifted/1.0.0"
    with pytest.raises(ValueError, match='expected domain to be "shifted" or empty'):
        MotionConfig(domain="shift")
