"""Maps against hand-made networks, against Grad-CAM by the parts of a network, and in every kind of family."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxvid.evaluate import looking
from flaxvid.evaluate.looking import draw_look, look
from flaxvid.models.registry import create_tiny
from flaxvid.models.video_model import VideoModel


class Same(nn.Module):
    """Gives what it gets."""

    @nn.compact
    def __call__(self, x, train=False, frame_mask=None):
        return x


class Squares(nn.Module):
    """Logits: the mean of each colour, of its square, and red less green."""

    num_classes: int = 3

    @nn.compact
    def __call__(self, x, train=False, frame_mask=None):
        red, green = x[..., 0], x[..., 1]
        return jnp.stack([y.mean((1, 2, 3)) for y in (red, (x**2).sum(-1), red - 2 * green)], axis=-1)


class OnePlace(nn.Module):
    """Keeps the mean of a frame alone."""

    @nn.compact
    def __call__(self, x, train=False, frame_mask=None):
        return x.mean((2, 3), keepdims=True)


@pytest.fixture
def video():
    return np.random.default_rng(0).normal(size=(2, 2, 4, 5, 3)).astype(np.float32)


def test_a_map_by_hand(video):
    """Where the stem gives the video itself, the gradients of the logits are written down by hand."""
    model = VideoModel(stem=Same(), body=Same(), head=Squares(), feature_dim=3)
    places = 2 * 4 * 5
    slopes = {
        0: np.broadcast_to([1 / places, 0, 0], video.shape),
        1: 2 * video / places,
        2: np.broadcast_to([1 / places, -2 / places, 0], video.shape),
    }
    for label, slope in slopes.items():
        weights = slope.mean((1, 2, 3), keepdims=True)  # equation 1 of the paper
        wanted = np.maximum((weights * video).sum(-1), 0)  # equation 2
        wanted /= wanted.max((1, 2, 3), keepdims=True)
        np.testing.assert_allclose(look(model, {}, video, np.array([label, label])), wanted, atol=1e-6)


def test_clips_may_have_other_classes_and_a_class_may_have_nothing_that_speaks_for_it(video):
    model = VideoModel(stem=Same(), body=Same(), head=Squares(), feature_dim=3)
    both = look(model, {}, video, np.array([0, 2]))
    np.testing.assert_array_equal(both[0], look(model, {}, video[:1], np.array([0]))[0])
    np.testing.assert_array_equal(both[1], look(model, {}, video[1:], np.array([2]))[0])
    assert not look(model, {}, -np.abs(video), np.array([0, 0])).any()


def test_errors_say_what_is_wrong(video):
    model = VideoModel(stem=Same(), body=Same(), head=Squares(), feature_dim=3)
    for classes, target in (([0, 3], ""), ([0, -1], ""), ([0, 1], "actor")):
        with pytest.raises(ValueError, match=r"expected classes of \{'': 3\}"):
            look(model, {}, video, np.array(classes), target)
    for classes, clips in (([0], video), ([0, 1, 2], video), ([], video[:0])):
        with pytest.raises(ValueError, match="expected one class for each clip, got"):
            look(model, {}, clips, np.array(classes))
    blind = VideoModel(stem=OnePlace(), body=Same(), head=Squares(), feature_dim=3)
    for one, seen in ((blind, video), (model, video[:, :, :3])):
        with pytest.raises(ValueError, match="expected a layer whose map has 4 x 4 places or more, got none"):
            look(one, {}, seen, np.array([0, 1]))


def gradcam(model, variables, clip, label):
    """Grad-CAM from the parts of a network, on what its body gives."""
    x = model.apply(variables, clip, method="encode")
    logit = jax.grad(lambda x: model.apply(variables, x, method=lambda parts, x: parts.head(x))[0, label])
    weights = logit(x).mean((1, 2, 3), keepdims=True)
    cam = jax.image.resize((weights * x).sum(-1), clip.shape[:4], "linear")
    cam = np.maximum(cam, 0)
    return cam / (cam.max() or 1)


@pytest.mark.parametrize("options", [{}, {"remat": True}])
def test_a_resnet_is_read_behind_its_body(clip, random_variables, options):
    model = create_tiny("tsm_resnet18", image_size=128, **options)
    variables, video = random_variables(model), jnp.asarray(clip(1, 2, 128, 128))
    maps = look(model, variables, jnp.repeat(video, 5, axis=0), np.arange(5))
    assert maps.max() == 1
    for label, own in enumerate(maps):
        np.testing.assert_allclose(own[None], gradcam(model, variables, video, label), atol=1e-4)


LAYERS = {
    "vivit_base": ({}, {"body/block_0"}),
    "vivit_base factorised": ({"attention": "factorised"}, {"body/spatial/block_0"}),
    "timesformer_base": ({}, {"body/block_0"}),
    "slowfast_r50": ({}, {"body/slow_layer3_0", "body/fast_layer3_0"}),
    "cnn_lstm": ({}, {"body/layer3_0"}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_deepest_layer_is_read_whose_places_still_move_the_logit(name, clip, random_variables, monkeypatch):
    """Behind the last block of a transformer only the class token counts; behind a recurrent network no place does."""
    options, wanted = LAYERS[name]
    read = []
    weigh = looking._weigh
    monkeypatch.setattr(looking, "_weigh", lambda *args: read.append(args[-1]) or weigh(*args))
    model = create_tiny(name.split()[0], image_size=64, **options)
    maps = look(model, random_variables(model), clip(5, 4, 64, 64), np.arange(5))
    assert {grid.path for grid in read[-1]} == wanted
    assert maps.shape == (5, 4, 64, 64)
    assert (maps.min(), maps.max()) == (0, 1)


def test_cameras_are_told_apart(clip, random_variables):
    """Late fusion averages the logits of a network of one video, so each camera's map is that network's."""
    model = create_tiny("ts_cva", image_size=64, fusion="late", cameras=("right", "front"))
    plain = create_tiny("tsm_resnet18", image_size=64)
    variables = random_variables(model)
    video = {camera: clip(1, 4, 64, 64, seed=seed) for seed, camera in enumerate(model.cameras)}
    maps = look(model, variables, video, np.array([2]))
    assert max(own.max() for own in maps.values()) == 1
    for camera, own in maps.items():
        np.testing.assert_allclose(
            own / own.max(), look(plain, variables, video[camera], np.array([2])), atol=1e-4, err_msg=camera
        )


def test_several_targets_have_maps_of_their_own(clip, random_variables):
    model = create_tiny("tsm_resnet18", image_size=64, num_classes={"action": 3, "actor": 2})
    variables, video = random_variables(model), clip(1, 4, 64, 64)
    action, actor = (look(model, variables, video, np.array([1]), target) for target in ("action", "actor"))
    assert np.abs(action - actor).max() > 0.05


def test_a_picture_is_bright_where_the_map_is():
    video, maps = np.full((9, 30, 30, 3), 60, np.uint8), np.zeros((9, 30, 30), np.float32)
    maps[:, :10, 20:] = 1
    picture = draw_look(video, maps)
    assert picture.shape == (96, 8 * 96 + 7 * 2, 3)
    first = picture[:, :96].mean(-1)
    assert first[:20, 80:].min() > 3 * first[60:].max()
    assert draw_look(np.zeros((2, 224, 112, 3), np.uint8), np.zeros((2, 224, 112))).shape == (96, 2 * 48 + 2, 3)
