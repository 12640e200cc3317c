import jax
import pytest

import flaxvid
from flaxvid.models.registry import create_model, create_tiny, get_spec, list_models
from flaxvid.models.video_model import VideoModel


def test_names_are_listed_by_pattern():
    names = list_models()
    assert names == sorted(names)
    assert {f"{family}_resnet{depth}" for family in ("tsn", "tsm") for depth in (18, 34, 50, 101, 152)} <= set(names)
    assert list_models("tsm*") == [name for name in names if name.startswith("tsm")]
    assert list_models("nothing*") == []


@pytest.mark.parametrize("name", list_models())
def test_every_name_makes_a_model_and_a_tiny_sibling(name):
    model, tiny = create_model(name), create_tiny(name)
    assert type(model) is type(tiny) is VideoModel
    assert tiny.clip.image_size < model.clip.image_size
    assert get_spec(name).formats or model.cameras  # nobody publishes weights of several cameras


def test_overrides_reach_the_model():
    model = create_model("tsm_resnet50", num_classes=7, num_frames=3, image_size=64, mean=(0, 0, 0), dropout=0.25)
    assert (model.clip.num_frames, model.clip.image_size, model.clip.mean) == (3, 64, (0, 0, 0))
    assert (model.head.num_classes, model.head.dropout) == (7, 0.25)
    assert create_tiny("tsm_resnet50", num_classes=3).head.num_classes == 3


def test_an_unknown_model_names_the_nearest():
    with pytest.raises(ValueError, match=r"unknown model 'tsm_resnet5': did you mean .*tsm_resnet50") as error:
        flaxvid.create_model("tsm_resnet5")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"list_models\(\)"):
        flaxvid.create_model("qqqq")


def test_an_unknown_override_names_the_valid_ones():
    with pytest.raises(ValueError, match=r"tsm_resnet50 has no option dropuot: valid ones are .*dropout"):
        flaxvid.create_model("tsm_resnet50", dropuot=0.1)
    with pytest.raises(ValueError, match="shift must be"):
        flaxvid.create_model("tsm_resnet50", shift="left")


@pytest.mark.parametrize("classes", [0, -3, {}, {"action": 0}])
def test_a_wrong_class_count_says_so(classes):
    with pytest.raises(ValueError, match="num_classes must be"):
        flaxvid.create_model("tsm_resnet50", num_classes=classes)


def test_video_of_a_wrong_kind_says_what_to_do():
    model = create_tiny("tsm_resnet18")

    def init(shape, dtype):
        return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, dtype))

    with pytest.raises(ValueError, match=r"got \(4, 32, 32, 3\): add the batch axis"):
        init((4, 32, 32, 3), "uint8")
    with pytest.raises(ValueError, match="uint8 or floating-point, got int32"):
        init((1, 4, 32, 32, 3), "int32")
