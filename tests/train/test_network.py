"""The library for whoever writes Python: `flaxvid.load`, `Trained`, `predict`, `features`, `read_video`, `save`."""

import dataclasses

import chex
import jax
import numpy as np
import pytest

import flaxvid
from flaxvid.data.clips.cut import ClipConfig
from flaxvid.data.clips.decode import VideoError
from flaxvid.models.registry import get_spec
from flaxvid.train.recipe import DataRecipe, ModelRecipe, Recipe

SMALL = {"width": 8, "depths": (1,), "image_size": 32, "num_frames": 4}


@pytest.fixture(scope="module")
def video(encode_video, tmp_path_factory):
    """20 frames of 32 x 48 pixels, two seconds; each is of another brightness, and half of it is darker."""
    pictures = np.broadcast_to(20 + 10 * np.arange(20, dtype=np.uint8)[:, None, None, None], (20, 32, 48, 3)).copy()
    pictures[:, :, :16] //= 2
    return encode_video(tmp_path_factory.mktemp("video") / "a.mp4", pictures, rate=10, crf="1", preset="ultrafast")


@pytest.fixture(scope="module")
def trained(random_variables):
    """Three classes, by hand."""
    model = flaxvid.create_model("tsm_resnet18", num_classes=3, **SMALL)
    return flaxvid.Trained(model, random_variables(model), classes=("jump", "run", "sit"))


@pytest.fixture(scope="module")
def flexible(random_variables):
    model = flaxvid.create_model("tsm_resnet18", num_classes=3, **SMALL)
    network = flaxvid.FrameFlexible(model, (2, 4))
    variables = network.specialise(random_variables(model), jax.random.key(0))
    rng = np.random.default_rng(1)
    return flaxvid.Trained(
        network, jax.tree.map(lambda leaf: leaf * np.float32(rng.uniform(0.8, 1.2, leaf.shape)), variables)
    )


def softmax(logits):
    return np.asarray(jax.nn.softmax(np.asarray(logits, np.float32)))


def assert_same_answers(one, other, video):
    first, second = one.predict(video), other.predict(video)
    assert list(first["probabilities"]) == list(second["probabilities"])
    assert first == second
    np.testing.assert_array_equal(one.features(video), other.features(video))


def test_a_clip_is_what_the_test_sees(video, trained):
    clip = flaxvid.read_video(video, frames=4, size=32)
    assert (clip.shape, clip.dtype) == ((4, 32, 32, 3), np.uint8)
    levels = clip[:, 16, 24, 1].astype(int)
    assert np.abs(levels - [20 + 10 * i for i in (2, 7, 12, 17)]).max() < 5  # the middle of each quarter
    np.testing.assert_array_equal(clip, trained.predictor.views(video, 4)[0])
    np.testing.assert_array_equal(clip, flaxvid.read_video(video.read_bytes(), 4, 32))
    assert flaxvid.read_video(video, 40, 32).shape == (40, 32, 32, 3)
    with pytest.raises(ValueError, match="at least 1, got 0 and 32"):
        flaxvid.read_video(video, 0, 32)
    with pytest.raises(VideoError, match=r"none\.mp4"):
        flaxvid.read_video(video.with_name("none.mp4"))


def test_probabilities_by_name_the_likeliest_first(video, trained):
    clip = flaxvid.read_video(video, 4, 32)
    answer, expected = trained.predict(video), softmax(trained.model.apply(trained.variables, clip[None]))[0]
    assert list(answer) == ["probabilities", "frames"]
    assert answer["frames"] == 4
    assert list(answer["probabilities"].values()) == sorted(answer["probabilities"].values(), reverse=True)
    for name, probability in zip(trained.classes, expected, strict=True):
        assert answer["probabilities"][name] == pytest.approx(probability, rel=1e-5)
    assert trained.predict(clip) == answer
    assert trained.predict(video, frames=7)["frames"] == 7
    assert trained.predict(flaxvid.read_video(video, 7, 32)) == trained.predict(video, frames=7)


def test_classes_of_one_name_share_a_line(trained, video):
    twice = dataclasses.replace(trained, classes=("run", "sit", "run"))
    answer = twice.predict(video)["probabilities"]
    assert sorted(answer) == ["run", "sit"]
    assert sum(answer.values()) == pytest.approx(1, abs=1e-6)


def test_windows(trained, video):
    answers = list(trained.predict_windows(video, seconds=1, frames=4))
    assert [(one["start"], one["end"], one["frames"]) for one in answers] == [(0, 1, 4), (1, 2, 4)]
    assert answers[0]["probabilities"] != answers[1]["probabilities"]


def test_features_are_the_mean_over_the_views(trained, video):
    clip = flaxvid.read_video(video, 4, 32)
    expected = trained.model.apply(trained.variables, clip[None], method="features")[0]
    np.testing.assert_allclose(trained.features(video), expected, rtol=1e-5, atol=1e-6)
    assert trained.features(video).shape == (trained.model.feature_dim,)
    clips = ClipConfig(clips=2, crops=3, test_size=32)
    several = dataclasses.replace(trained, recipe=dataclasses.replace(trained.recipe, data=DataRecipe("", clips=clips)))
    views = several.predictor.views(video, 4)
    assert views.shape == (6, 4, 32, 32, 3)
    mean = trained.model.apply(trained.variables, views, method="features").mean(0)
    np.testing.assert_allclose(several.features(video), mean, rtol=1e-4, atol=1e-6)
    assert np.abs(mean - expected).max() > 1e-3


def test_frame_flexible_variables_have_their_counts(flexible, video):
    assert (flexible.frames, flexible.named, flexible.classes[0]) == ((2, 4), False, "class 0")
    network = flaxvid.FrameFlexible(flexible.model, (2, 4))
    for count in (2, 3, 4):
        clip = flaxvid.read_video(video, count, 32)
        logits = network.apply(flexible.variables, {count: clip[None]})[count]
        probabilities = flexible.predict(video, frames=count)["probabilities"]
        np.testing.assert_allclose([probabilities[f"class {i}"] for i in range(3)], softmax(logits)[0], rtol=1e-4)
    assert flexible.predict(video)["frames"] == 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_file_gives_the_same_network(random_variables, video, tmp_path, dtype):
    model = flaxvid.create_model("tsm_resnet18", num_classes=3, dtype=dtype, mean=np.array([0.1, 0.2, 0.3]), **SMALL)
    trained = flaxvid.Trained(model, random_variables(model), classes=("jump", "run", "sit"))
    flaxvid.save(trained, tmp_path / "mine.safetensors")
    again = flaxvid.load(tmp_path / "mine.safetensors")
    assert again.model.clip == model.clip
    assert (again.classes, again.frames) == (trained.classes, trained.frames)
    chex.assert_trees_all_equal(again.variables, trained.variables)
    assert_same_answers(trained, again, video)


def test_a_file_keeps_frame_counts_and_how_a_test_cuts_clips(trained, flexible, video, tmp_path):
    clips = ClipConfig(sampling="dense", interval=2, clips=2, crops=3, test_size=36, flip=True, repeats=2)
    recipe = Recipe(ModelRecipe(image_size=32), DataRecipe(clips=clips))
    for name, network, frames in (("plain", trained, (2, 6)), ("flexible", flexible, (2, 4))):
        network = dataclasses.replace(network, recipe=recipe, frames=frames)
        flaxvid.save(network, tmp_path / f"{name}.safetensors")
        again = flaxvid.load(tmp_path / f"{name}.safetensors")
        assert again.frames == frames
        kept = again.recipe.data.clips
        assert (kept.sampling, kept.interval, kept.views, kept.test_size) == ("dense", 2, 6, 36)
        assert_same_answers(network, again, video)
        chex.assert_trees_all_equal(dict(again.variables), dict(network.variables))


def test_several_targets_and_cameras(random_variables, video, tmp_path):
    options = {**get_spec("ts_cva").tiny, "cameras": ("front", "left"), "num_classes": {"action": 3, "actor": 2}}
    model = flaxvid.create_model("ts_cva", **options)
    classes = {"action": ("jump", "run", "sit"), "actor": ("Ann", "Bo")}
    trained = flaxvid.Trained(model, random_variables(model), classes=classes)
    scene = {"front": video, "left": video}
    answer = trained.predict(scene)["probabilities"]
    assert {target: sorted(own) for target, own in answer.items()} == {t: list(own) for t, own in classes.items()}
    size, count = model.clip.image_size, model.clip.num_frames
    clip = flaxvid.read_video(video, count, size)
    assert trained.predict({"front": clip, "left": clip})["probabilities"] == answer
    assert trained.features(scene).shape == (model.feature_dim,)
    flaxvid.save(trained, tmp_path / "scene.safetensors")
    again = flaxvid.load(tmp_path / "scene.safetensors")
    assert (again.model.cameras, again.classes) == (("front", "left"), classes)
    assert again.predict(scene) == trained.predict(scene)


def test_what_a_network_cannot_be_made_of(trained):
    with pytest.raises(ValueError, match=r"variables .* got body, head, stem: pass all"):
        flaxvid.Trained(trained.model, trained.variables["params"])
    with pytest.raises(ValueError, match=r"names of the 3 classes of the network in the variables, got 2 \(a, b"):
        flaxvid.Trained(trained.model, trained.variables, classes=("a", "b"))


def test_what_cannot_be_answered_says_why(trained, video):
    clip = flaxvid.read_video(video, 4, 32)
    for wrong, got in ((clip / np.float32(255), "float32"), (clip[0], r"uint8 \(32, 32, 3\)"), (clip[None], "uint8")):
        with pytest.raises(ValueError, match=rf"expected a path or a clip, uint8 .*, got {got}"):
            trained.predict(wrong)
    with pytest.raises(ValueError, match="with 5 frames, got uint8"):
        trained.features(clip, frames=5)
    with pytest.raises(ValueError, match="expected one video, got a list of 2"):
        trained.predict([video, video])
    with pytest.raises(VideoError, match=r"none\.mp4"):
        trained.predict(video.with_name("none.mp4"))


def test_what_no_file_can_say(trained, tmp_path):
    hand_made = dataclasses.replace(trained, model=trained.model.clone(zoo_name=""))
    with pytest.raises(ValueError, match=r"put together by hand: make it by flaxvid\.create_model"):
        flaxvid.save(hand_made, tmp_path / "a.safetensors")
    headless = {"params": {part: trained.variables["params"][part] for part in ("stem", "body")}}
    pretrained = flaxvid.Trained(trained.model, headless, classes=("none",))
    with pytest.raises(ValueError, match="pre-trained without labels"):
        flaxvid.save(pretrained, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="pre-trained without labels and has no classifier"):
        pretrained.predict(np.zeros((4, 32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match=r"ends in \.safetensors"):
        flaxvid.save(trained, tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"expected a network of flaxvid\.load or .*, got dict"):
        flaxvid.save(trained.variables, tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []
