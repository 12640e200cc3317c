"""The catalogue of published weights, and models that are loaded by its names."""

import chex
import pytest
from safetensors.numpy import save_file

import flaxvid
from flaxvid.models.registry import create_tiny, get_spec, list_options
from flaxvid.models.spec import Format
from flaxvid.train.trained import find_network
from flaxvid.weights.known import KNOWN, KnownFile, class_names, full_name, known_of, model_of
from flaxvid.weights.torch import to_torch

SIZES = {"kinetics400": 400, "kinetics600": 600, "kinetics700": 700, "ssv1": 174, "ssv2": 174, "ucf101": 101}
SIZES |= {"hmdb51": 51}
TINY = {option: value for option, value in get_spec("slow_r50").tiny.items() if option != "num_classes"}


@pytest.mark.parametrize(("name", "number"), SIZES.items())
def test_class_lists(name, number):
    names = class_names(name)
    assert len(names) == len(set(names)) == number
    assert all(one == one.strip() and one.isprintable() and one for one in names)


def test_the_orders_of_the_lists():
    """At known places: torchvision's and PySlowFast's numbers for Kinetics-400, classInd.txt's for UCF-101."""
    for place, name in ((0, "abseiling"), (290, "sharpening knives"), (115, "eating ice cream"), (399, "zumba")):
        assert class_names("kinetics400")[place] == name
    for place, name in ((0, "ApplyEyeMakeup"), (1, "ApplyLipstick"), (98, "WallPushups"), (100, "YoYo")):
        assert class_names("ucf101")[place] == name
    for place, name in ((0, "Approaching something with your camera"), (173, "Wiping something off of something")):
        assert class_names("ssv2")[place] == name
    assert list(class_names("ssv1")) == sorted(class_names("ssv1"))
    with pytest.raises(ValueError, match=r"expected a list of classes, hmdb51, kinetics400.*got 'k400'"):
        class_names("k400")


@pytest.mark.parametrize("name", KNOWN)
def test_every_entry_can_be_used(name):
    known, model = KNOWN[name], model_of(name)
    assert known.url.startswith(("https://", "hf://"))
    assert known.licence
    assert known.source
    assert known.protocol
    assert known.top1 is not None
    assert 20 < known.top1 < 95
    if model:
        assert known.format in (None, *get_spec(model).formats)
        assert set(known.options) <= set(list_options(model))
        made = flaxvid.create_model(model, **known.options)
        assert made.clip.num_frames == known.options.get("num_frames", made.clip.num_frames)
    if known.classes:
        assert len(known.class_names or ()) == SIZES[known.classes]


def test_every_file_has_a_url_of_its_own():
    assert len({known.url for known in KNOWN.values()}) == len(KNOWN)


def test_lists_by_pattern():
    slow = flaxvid.list_weights("slow*")
    assert "slow_r50/pytorchvideo/kinetics400" in slow
    assert "slowfast_r101/pytorchvideo/kinetics400" in slow
    assert all(name.startswith("slow") for name in slow)
    assert flaxvid.list_weights("*/ssv1*") == sorted(name for name in KNOWN if "/ssv1" in name)
    assert flaxvid.list_weights() == sorted(KNOWN)
    assert flaxvid.list_weights("none*") == []


def test_finds_what_is_known():
    known = flaxvid.find_weights("slow_r50/pytorchvideo/kinetics400")
    assert (known.top1, known.protocol, known.licence) == (74.58, "8x8, 10 clips x 3 crops", "Apache-2.0")
    assert (known.class_names or ())[398] == "yoga"
    assert flaxvid.find_weights("vivit_base/scenic/kinetics400").class_names is None
    assert flaxvid.find_weights("videomae_base/mmaction2/kinetics400").licence == "CC-BY-NC-4.0"
    with pytest.raises(ValueError, match=r"unknown weights 'slow_r50/pytorchvideo/kinetics': did you mean slow_r50/"):
        flaxvid.find_weights("slow_r50/pytorchvideo/kinetics")
    assert full_name("pytorchvideo/kinetics400", "x3d_m") == "x3d_m/pytorchvideo/kinetics400"
    assert full_name("pytorchvideo/kinetics400") is None
    assert known_of("slow_r50/pytorchvideo/kinetics400", "res3dcnn") is None


def test_a_wrong_name_says_what_there_is():
    with pytest.raises(FileNotFoundError, match=r"did you mean slow_r50/pytorchvideo/kinetics400 or"):
        flaxvid.load_model("slow_r50", weights="pytorchvideo/kinetics40")


@pytest.fixture
def published(random_variables, tmp_path, monkeypatch):
    """A tiny Slow network of Kinetics-400 in the cache, which `known` says of; its name and variables."""
    monkeypatch.setenv("FLAXVID_CACHE", str(tmp_path))

    def publish(classes="kinetics400", **options):
        name = "slow_r50/test/kinetics400"
        known = KnownFile("https://example.org/slow.safetensors", classes=classes, interval=3, options=options)
        monkeypatch.setitem(KNOWN, name, known)
        (tmp_path / name).mkdir(parents=True)
        variables = random_variables(create_tiny("slow_r50", num_classes=400))
        save_file(to_torch("slow_r50", variables), tmp_path / name / "slow.safetensors")
        return name, variables

    return publish


def test_loads_by_name(published):
    name, variables = published(**TINY)
    for weights in (name, "test/kinetics400"):
        model, loaded = flaxvid.load_model("slow_r50", weights=weights)
        chex.assert_trees_all_equal(loaded, variables)
        assert (model.clip.num_frames, model.clip.image_size) == (4, 32)
    trained = flaxvid.load(name)
    chex.assert_trees_all_equal(trained.variables, variables)
    assert trained.classes == class_names("kinetics400")
    assert trained.named
    clips = trained.recipe.data.clips
    assert (clips.sampling, clips.interval, clips.short) == ("dense", 3, "repeat")
    assert flaxvid.load("test/kinetics400", model="slow_r50").classes == trained.classes
    assert flaxvid.load(name, classes=[str(number) for number in range(400)]).classes[1] == "1"
    network = find_network(name)
    assert (network.name, network.weights, network.options["width"]) == ("slow_r50", name, 8)


def test_the_callers_options_go_above(published):
    name, _ = published(**TINY)
    assert flaxvid.load_model("slow_r50", name, num_frames=6)[0].clip.num_frames == 6
    with pytest.raises(ValueError, match=r"does not fit slow_r50"):
        flaxvid.load_model("slow_r50", name, width=16)


def test_variables_alone_need_the_options(published):
    name, variables = published(**TINY)
    message = rf'(?s)whose slow_r50 has .*width=8.*load_model\("slow_r50", "{name}"\)'
    with pytest.raises(ValueError, match=message):
        flaxvid.load_torch("slow_r50", name)
    chex.assert_trees_all_equal(flaxvid.load_torch("slow_r50", name, overrides=TINY), variables)


def test_another_number_of_classes_has_no_names(published):
    name, _ = published(**TINY)
    with pytest.warns(UserWarning, match="freshly initialised"):
        trained = flaxvid.load(name, num_classes=7)
    assert not trained.named
    assert len(trained.classes) == 7


def test_classes_of_an_unknown_order_are_numbered(published):
    trained = flaxvid.load(published(classes="", **TINY)[0])
    assert not trained.named
    assert trained.classes[3] == "class 3"


def test_options_of_an_entry_go_above_what_its_format_implies(random_variables, tmp_path, monkeypatch):
    """Also where the model has them by itself: mmaction2's heavy I3D lacks the stride that mmaction2's I3D implies."""
    monkeypatch.setenv("FLAXVID_CACHE", str(tmp_path))
    name, tiny = "i3d_r50/test/kinetics400-heavy", get_spec("i3d_r50").tiny
    options = {option: value for option, value in tiny.items() if option != "num_classes"} | {"stem_stride": 1}
    known = KnownFile("https://example.org/i3d.safetensors", classes="kinetics400", options=options)
    monkeypatch.setitem(KNOWN, name, known)
    (tmp_path / name).mkdir(parents=True)
    variables = random_variables(create_tiny("i3d_r50", num_classes=400))
    implied = get_spec("i3d_r50").formats["mmaction2"].overrides
    assert implied["stem_stride"] == 2
    state_dict = to_torch("i3d_r50", variables, "mmaction2", overrides=implied)
    save_file(state_dict, tmp_path / name / "i3d.safetensors")
    trained = flaxvid.load(name)
    for model in (flaxvid.load_model("i3d_r50", name)[0], trained.model):
        assert model.stem.temporal_stride == 1
    assert find_network(name).options["stem_stride"] == 1
    assert trained.model.clip.mean == implied["mean"]


def test_a_format_of_the_entry_decides(random_variables, tmp_path, monkeypatch):
    """Where the keys leave two formats that imply different models."""
    monkeypatch.setenv("FLAXVID_CACHE", str(tmp_path))
    tiny = {option: value for option, value in get_spec("tsm_resnet101").tiny.items() if option != "num_classes"}
    formats = {name: fmt for name, fmt in get_spec("tsm_resnet101").formats.items() if isinstance(fmt, Format)}
    variables = random_variables(create_tiny("tsm_resnet101", num_classes=174, shift_every=2))
    state_dict = to_torch("tsm_resnet101", variables, "tsm", overrides={**tiny, "shift_every": 2})
    bare = {key.replace(".net", ""): tensor for key, tensor in state_dict.items()}
    for fmt, every in (("tsm", 2), ("tsm_every_block", 1)):
        assert fmt in formats
        name = f"tsm_resnet101/{fmt}/ssv1"
        known = KnownFile("https://example.org/tsm.safetensors", classes="ssv1", format=fmt, options=tiny)
        monkeypatch.setitem(KNOWN, name, known)
        (tmp_path / name).mkdir(parents=True)
        save_file(bare, tmp_path / name / "tsm.safetensors")
        trained = flaxvid.load(name)
        assert trained.model.body.shift_every == every
        assert trained.classes == class_names("ssv1")
