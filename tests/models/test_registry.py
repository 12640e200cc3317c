import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxvid
from flaxvid.models.options import option_kinds
from flaxvid.models.registry import create_model, create_tiny, get_spec, list_models, list_options
from flaxvid.models.spec import Common
from flaxvid.models.video_model import VideoModel
from flaxvid.train.fields import meanings


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
    with pytest.raises(
        ValueError, match=r"ts_cva has no option width: valid ones are backbone, backbone_options, .*std$"
    ):
        flaxvid.create_model("ts_cva", width=8)


WRONG = [
    *(("tsm_resnet18", {"num_classes": value}) for value in ("3", 0, -3, 2.0, True, None, {}, {"a": 0}, {"a": "3"})),
    *(("tsm_resnet18", {"num_classes": {target: 3}}) for target in (7, "", "a/b")),
    *(
        ("tsm_resnet18", {option: value})
        for option in ("num_frames", "image_size")
        for value in (0, -1, 8.0, "8", None)
    ),
    *(("tsm_resnet18", {option: (1, 2)}) for option in ("mean", "std")),
    *(("tsm_resnet18", {option: value}) for option in ("mean", "std") for value in (0.5, "abc", (0, 0, "0"))),
    ("tsm_resnet18", {"mean": (0.0, 0.0, float("nan"))}),
    ("tsm_resnet18", {"std": (1.0, 1.0, 0.0)}),
    *(("tsm_resnet18", {"dropout": value}) for value in (2.0, 1.0, -0.1, "0.5", True, None)),
    *(("tsm_resnet18", {"classifier_std": value}) for value in (-0.1, "0.1", float("inf"))),
    *(("tsm_resnet18", {"dtype": value}) for value in ("bf16", "float16", "int32", np.float64, 3, None)),
    *(("tsm_resnet18", {"remat": value}) for value in ("yes", 1, None)),
    *(("tsm_resnet18", {"norm_epsilon": value}) for value in (0, -1e-5, "1e-5", float("nan"))),
    *(("tsm_resnet18", {"depths": value}) for value in ((-1,), (0,), (1.0,), ("1",), "3", 3, (), None)),
    *((name, {"width": value}) for name in ("tsm_resnet18", "x3d_xs", "r3d_18") for value in (0, -8, 8.0, "8")),
    *(("tsm_resnet18", {"shift": value}) for value in ("bth", "left", None, 1)),
    *(("tsm_resnet18", {option: value}) for option in ("shift_div", "shift_every") for value in (0, -1, 2.0)),
    ("tsm_resnet18", {"bottleneck": 1}),
    *(("slow_r50", {"stem_kernel": value}) for value in (0, 2, -1, "1")),
    *(("slow_r50", {"temporal_kernels": value}) for value in (3, (), (1, 1, 3), (1, 1, 2, 3), (1, 1, -1, 3))),
    *(("slow_r50", {option: value}) for option, value in (("stem_stride", 3), ("stem_pool", "time"), ("pool", 1))),
    *(("slow_r50", {"temporal_kernels": (1, 1, value, 3)}) for value in ((), (1, 2), "3")),
    *(("slowfast_r50", {"fast_depths": value}) for value in (3, (1,) * 5, (0,))),
    ("slowfast_r50", {"slow_sampling": "random"}),
    *((name, {"zero_init": "no"}) for name in ("slow_r50", "x3d_xs", "slowfast_r50")),
    ("r3d_18", {"se": ""}),
    *(("r3d_18", {"se_stages": value}) for value in (3, "3", (0,), (5,), (True, 2.5))),
    *(("r3d_18", {"se_reduction": value}) for value in (0, -1, 1.5)),
    *((name, {"depths": (1,) * 5}) for name in ("slow_r50", "r3d_18", "r2plus1d_r18", "r2plus1d_r50", "slowfast_r50")),
    ("r2plus1d_r18", {"shared_midplanes": 0}),
    *(("x3d_xs", {option: 0}) for option in ("head_features", "shortcut_norm")),
    *(("slowfast_r50", {"alpha": value}) for value in (0, 3, 6, -4, 4.0)),
    ("slowfast_r50", {"fusion_kernel": 4}),
    *(("slowfast_r50", {option: 0}) for option in ("beta", "fusion_kernel", "width")),
    ("slowfast_r50", {"width": 12}),
    *(("videomae_base", {"positions": value}) for value in (16, (16,), (16, 0), (16, 224, 224), "16x224")),
    *(("videomae_base", {option: 0}) for option in ("depth", "width", "num_heads", "patch_size", "head_epsilon")),
    *((name, {"drop_path": 1.0}) for name in ("videomae_base", "vivit_base", "timesformer_base")),
    *((name, {"attention": "full"}) for name in ("vivit_base", "timesformer_base")),
    *(("ts_cva", {"cameras": value}) for value in ((), "front", ("a", "a"), ("a b",), (1,), ("part",))),
    *(("ts_cva", {"fusion": "sum"}), ("ts_cva", {"separate": "yes"}), ("ts_cva", {"heads": 0})),
    *(("ts_cva", {"camera_dropout": value}) for value in (1.0, -0.1, "0.1")),
    *(("ts_cva", {option: 3}) for option in ("backbone_options",)),
    ("ts_cva", {"num_frames": "8"}),
]


@pytest.mark.parametrize(("name", "wrong"), WRONG)
def test_a_value_that_cannot_be_is_refused_in_one_line(name, wrong):
    ((option, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"^{option} must [^\\n]+, got {re.escape(repr(value))}$"):
        flaxvid.create_model(name, **wrong)


def test_a_backbone_that_there_is_not_is_refused():
    for backbone in ("resnet49", 3, ["r3d_18"]):
        with pytest.raises(ValueError, match="unknown model"):
            flaxvid.create_model("ts_cva", backbone=backbone)


def test_what_a_saved_file_holds_makes_the_same_model():
    options = {
        "num_classes": 3,
        "num_frames": 4,
        "mean": (0.5, 0.5, 0.5),
        "dropout": 0.25,
        "depths": (1, 1),
        "width": 8,
    }
    model = create_model("tsm_resnet18", **options, dtype=jnp.bfloat16)
    saved = json.loads(json.dumps({**options, "dtype": "bfloat16"}))
    numpy = {**options, "num_classes": np.int64(3), "dropout": np.float64(0.25), "width": np.int32(8)}
    for same in (saved, {**numpy, "depths": np.array([1, 1]), "dtype": jnp.dtype("bfloat16")}):
        assert repr(create_model("tsm_resnet18", **same)) == repr(model)
    assert isinstance(hash(create_model("tsm_resnet18", num_classes={"a": 3})), int)
    assert repr(create_model("tsm_resnet18", dtype="float32")) == repr(create_model("tsm_resnet18"))


@pytest.mark.parametrize("name", list_models())
def test_every_option_has_a_kind_and_is_described_once(name):
    build = get_spec(name).build
    own = set(build.__kwdefaults__ or {})
    assert own == set(option_kinds(build))
    assert not own & set(option_kinds(Common))
    assert own <= meanings(build, "Args").keys()
    assert set(list_options(name)) >= own | {field.name for field in dataclasses.fields(Common)}


def test_a_name_has_its_own_values_and_a_backbone_gives_what_is_not_given():
    """What `create_model` gave before there was one place for it."""
    clips = {"tsm_resnet50": (8, 224), "slow_r50": (8, 224), "res3dcnn": (16, 224), "r3d_18": (16, 112)}
    clips |= {"r2plus1d_r34": (16, 112), "r2plus1d_r50": (16, 224), "x3d_xs": (4, 160), "x3d_l": (16, 312)}
    for name, clip in (clips | {"slowfast_r101": (32, 224), "ts_cva": (16, 224)}).items():
        model = create_model(name)
        assert (model.clip.num_frames, model.clip.image_size) == clip
        assert model.head.num_classes == (9 if name == "res3dcnn" else 400)
    assert create_model("r3d_18").head.dropout == 0.0
    assert create_model("tsm_resnet50").head.classifier_std == 0.001
    model = create_model(
        "ts_cva", backbone="r3d_18", backbone_options={"dropout": 0.3, "mean": (0, 0, 0)}, num_frames=8
    )
    assert (model.clip.num_frames, model.clip.image_size, model.clip.mean) == (8, 112, (0, 0, 0))
    assert (model.head.dropout, model.head.classifier_std) == (0.3, 0.01)


def test_video_of_a_wrong_kind_says_what_to_do():
    model = create_tiny("tsm_resnet18")

    def init(shape, dtype):
        return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, dtype))

    with pytest.raises(ValueError, match=r"got \(4, 32, 32, 3\): add the batch axis"):
        init((4, 32, 32, 3), "uint8")
    with pytest.raises(ValueError, match="uint8 or floating-point, got int32"):
        init((1, 4, 32, 32, 3), "int32")
