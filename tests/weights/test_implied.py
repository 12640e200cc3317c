"""What a checkpoint's origin implies beside its tensors, without torch; parity with the origins is in tests/parity."""

import re
import runpy
import sys
import warnings
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import flaxvid
from flaxvid.models.registry import create_tiny, get_spec, list_models
from flaxvid.train.trained import load
from flaxvid.weights.native import WeightsInfo, load_variables

SCRIPT = Path(__file__).parents[2] / "scripts" / "import_torch.py"
SMALL = {
    "tsm_resnet101": {"width": 8, "depths": (3, 2)},
    "tsn_resnet101": {"width": 8, "depths": (3, 2)},
    "x3d_m": {"width": 8, "depths": (2, 1, 1), "head_features": 32},
    "r2plus1d_r34": {"width": 8, "depths": (1, 1)},
}


def make(name, **overrides):
    """Random variables of a small model."""
    model = flaxvid.create_model(name, num_classes=3, **SMALL[name], **overrides)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 2, 32, 32, 3), np.uint8))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32), shapes)


def parts(model):
    """What a model computes, whatever was said to make it so."""
    return repr((model.stem, model.body, model.head, model.clip))


CASES = [
    ("tsm_resnet101", "tsm", {"shift_every": 2}),
    ("tsm_resnet101", "mmaction2", {"shift_every": 2}),
    ("tsn_resnet101", "tsm_shifted", {"shift": "both", "shift_every": 2}),
    ("tsn_resnet101", "mmaction2_shifted", {"shift": "both", "shift_every": 2}),
    ("x3d_m", "pyslowfast", {"shortcut_norm": True}),
    ("r2plus1d_r34", "ig65m", {"norm_epsilon": 1e-3}),
    ("r2plus1d_r34", "torchvision", {"shared_midplanes": True}),
]


PIXELS = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
SPORTS1M = {"mean": (0.43216, 0.394666, 0.37645), "std": (0.22803, 0.22145, 0.216989)}
STRIDED = {**IMAGENET, "slow_sampling": "stride"}
SLOWER = {"alpha": 8, "fusion_kernel": 5}


def non_local(*kinds):
    return {"non_local": ("", kinds, kinds, "")}


def test_what_the_formats_of_each_name_imply():
    implied = {
        f"{name}: {fmt}": dict(known.overrides)
        for name in list_models()
        for fmt, known in get_spec(name).formats.items()
        if known.overrides
    }
    second = {"shift_every": 2}
    assert implied == {
        **{f"tsm_resnet{depth}: {fmt}": second for depth in (101, 152) for fmt in ("tsm", "mmaction2")},
        **{
            f"tsn_resnet{depth}: {fmt}_shifted": {"shift": "both", **(second if depth > 50 else {})}
            for depth in (18, 34, 50, 101, 152)
            for fmt in ("tsm", "mmaction2")
        },
        **{f"x3d_{size}: pyslowfast": {"shortcut_norm": True} for size in ("xs", "s", "m", "l")},
        **{f"x3d_{size}: mmaction2": {"shortcut_norm": True} for size in ("xs", "s", "m", "l")},
        "r2plus1d_r34: ig65m": {"norm_epsilon": 1e-3},
        "r2plus1d_r34: torchvision": {"shared_midplanes": True},
        "r2plus1d_r34: mmaction2": {
            **IMAGENET,
            "norm_epsilon": 1e-3,
            "stem_by_rule": True,
            "stem_pool": "space",
            "paired_shortcut": True,
        },
        **{f"{name}: mmaction2": IMAGENET for name in ("slow_r50", "slow_r101", "res3dcnn")},
        "c2d_r50: mmaction2": {**IMAGENET, "stem_pool": "unpadded", "pool": True},
        **{f"c2d_r50: {origin}": {"pool": True} for origin in ("pyslowfast", "caffe2")},
        **{f"c2d_r50: {origin}_nopool": {"pool": False} for origin in ("pyslowfast", "caffe2")},
        "c2d_r50: mmaction2_nopool": {**IMAGENET, "pool": False},
        "i3d_r50: mmaction2": {**IMAGENET, "stem_stride": 2},
        "slow_nln_r50: mmaction2": {**IMAGENET, **non_local("scaled_gaussian", "")},
        **{
            f"i3d_nln_r50: mmaction2_{kind}": {**IMAGENET, "stem_stride": 2, **non_local("", kind)}
            for kind in ("dot_product", "embedded_gaussian", "gaussian")
        },
        **{
            f"tsm_nln_resnet50: mmaction2_{kind}": non_local(kind, "")
            for kind in ("dot_product", "embedded_gaussian", "gaussian")
        },
        **{
            f"{name}: mmaction2{suffix}": {**pixels, "norm_epsilon": 1e-3}
            for name in ("csn_r50", "csn_r101", "csn_r152", "ipcsn_r152")
            for suffix, pixels in (("", IMAGENET), ("_sports1m", SPORTS1M))
        },
        **{f"slowfast_r50: {fmt}_4x16": SLOWER for fmt in ("pytorchvideo", "pyslowfast", "caffe2")},
        "slowfast_r50: mmaction2": {**STRIDED, "lateral_norm": False},
        "slowfast_r50: mmaction2_norm": {**STRIDED, "lateral_norm": True},
        "slowfast_r50: mmaction2_4x16": {**STRIDED, "lateral_norm": False, **SLOWER},
        "slowfast_r101: mmaction2": {**STRIDED, "lateral_norm": False, "fusion_kernel": 7},
        "slowfast_r101: mmaction2_r50": {
            **STRIDED,
            "lateral_norm": False,
            **SLOWER,
            "fast_depths": (3, 4, 6, 3),
        },
        **{
            f"timesformer_base: {fmt}{suffix}": {"attention": attention, **implied}
            for fmt, implied in (("transformers", {}), ("authors", {}), ("mmaction2", PIXELS))
            for suffix, attention in (("", "divided"), ("_joint", "joint"), ("_space", "space"))
        },
        "timesformer_base: transformers_space": {"attention": "space", "mean_first": False},
        **{
            f"{name}: {fmt}": {"pool_epsilon": 1e-5 if fmt.startswith("pytorchvideo") else None}
            for name in ("mvit_base", "mvit_base_32x3")
            for fmt in ("torchvision", "pytorchvideo", "pytorchvideo_fused", "pyslowfast")
        },
        "mvit_base_32x3: pyslowfast_24": {
            "pool_epsilon": None,
            "depth": 24,
            "stages": (2, 5, 21),
            "pool_kernel": None,
        },
        "vivit_base: scenic_factorised": {"attention": "factorised"},
        **{
            f"videomae_{size}: {fmt}": {"norm_epsilon": 1e-6, "head_epsilon": 1e-6}
            for size in ("small", "base", "large")
            for fmt in ("authors", "authors_pretraining", "mmaction2")
        },
        **{
            f"videomae_{size}: transformers{fmt}": {"norm_epsilon": 1e-12, "head_epsilon": 1e-5}
            for size in ("small", "base", "large")
            for fmt in ("", "_4", "_pretraining", "_4_pretraining")
        },
    }


@pytest.mark.parametrize(("name", "fmt", "implied"), CASES)
def test_the_model_is_the_origins_or_there_is_one_error(name, fmt, implied):
    variables = make(name, **implied)
    state_dict = flaxvid.to_torch(name, variables, fmt, overrides=implied)
    model, loaded = flaxvid.load_model(name, state_dict, **SMALL[name])
    chex.assert_trees_all_equal(loaded, variables)
    assert repr(model) == repr(flaxvid.create_model(name, num_classes=3, **SMALL[name], **implied))
    with pytest.raises(ValueError) as error:
        flaxvid.load_torch(name, state_dict, overrides=SMALL[name])
    shown = ", ".join(f"{option}={value!r}" for option, value in implied.items())
    assert str(error.value) == (
        f"the state_dict is of {fmt!r}, whose {name} has {shown}: with these variables another model computes "
        f'something else. Take both from one call:\n  model, variables = flaxvid.load_model("{name}", state_dict)\n'
        f"or make the model so and say it here: overrides={implied!r}"
    )
    served = flaxvid.load_torch(name, state_dict, overrides={**SMALL[name], **implied})
    chex.assert_trees_all_equal(served, variables)


@pytest.mark.parametrize(
    ("name", "fmt", "options"),
    [
        ("videomae_base", "transformers", {}),
        ("videomae_base", "authors", {"norm_epsilon": 1e-6, "head_epsilon": 1e-6}),
        ("mvit_base", "torchvision", {}),
        ("mvit_base", "pytorchvideo", {"pool_epsilon": 1e-5}),
    ],
)
def test_export_takes_the_first_format_that_means_the_model(name, fmt, options):
    """Shapes are the same; the epsilon differs."""
    tiny = {option: value for option, value in get_spec(name).tiny.items() if option != "num_classes"}
    model = create_tiny(name, **options)
    variables = model.init(jax.random.key(0), np.zeros((1, 4, 32, 32, 3), np.uint8))
    state_dict = flaxvid.to_torch(name, variables, overrides={**tiny, **options})
    assert state_dict.keys() == flaxvid.to_torch(name, variables, fmt, overrides={**tiny, **options}).keys()
    assert parts(flaxvid.load_model(name, state_dict, **tiny)[0]) == parts(model)


def test_the_error_shows_the_call_with_the_file(tmp_path):
    file = tmp_path / "tsm.safetensors"
    state_dict = flaxvid.to_torch("tsm_resnet101", make("tsm_resnet101"), "tsm", overrides={"shift_every": 2})
    save_file(state_dict, file)
    call = f'model, variables = flaxvid.load_model("tsm_resnet101", "{file}")'
    with pytest.raises(ValueError, match=re.escape(call)):
        flaxvid.load_torch("tsm_resnet101", file, overrides=SMALL["tsm_resnet101"])


def test_what_the_caller_says_goes_above_what_is_implied():
    variables = make("tsm_resnet101")
    state_dict = flaxvid.to_torch("tsm_resnet101", variables, "tsm", overrides={"shift_every": 2})
    options = {**SMALL["tsm_resnet101"], "shift_every": 1}
    assert flaxvid.load_model("tsm_resnet101", state_dict, **options)[0].body.shift_every == 1
    chex.assert_trees_all_equal(flaxvid.load_torch("tsm_resnet101", state_dict, overrides=options), variables)


def test_keys_show_which_blocks_shift():
    """Shapes are the same; the ".net" of shifted blocks tells, and a file without any is asked about."""
    name, variables = "tsm_resnet101", make("tsm_resnet101")
    every = flaxvid.to_torch(name, variables)
    second = flaxvid.to_torch(name, variables, "tsm", overrides={"shift_every": 2})
    assert {key for key in every if ".net." in key} - {key for key in second if ".net." in key} == {
        "base_model.layer1.1.conv1.net.weight",
        "base_model.layer2.1.conv1.net.weight",
    }
    assert flaxvid.load_model(name, every, **SMALL[name])[0].body.shift_every == 1
    wrapped = {"state_dict": {f"module.{key}": tensor for key, tensor in second.items()}}
    assert flaxvid.load_model(name, wrapped, **SMALL[name])[0].body.shift_every == 2
    without = {key.replace(".net.", "."): tensor for key, tensor in every.items()}
    with pytest.raises(ValueError) as error:
        flaxvid.load_model(name, without, **SMALL[name])
    call = 'flaxvid.load_model("tsm_resnet101", state_dict, format='
    assert str(error.value) == (
        "the state_dict fits two formats of tsm_resnet101, 'tsm' and 'tsm_every_block', and their models compute "
        f'different things. Say which one wrote it:\n  {call}"tsm")  # shift_every=2\n  {call}"tsm_every_block")'
        "  # as create_model makes it"
    )
    for fmt, every_nth in (("tsm", 2), ("tsm_every_block", 1)):
        assert flaxvid.load_model(name, without, format=fmt, **SMALL[name])[0].body.shift_every == every_nth
    trunk = {key.replace(".net.", ".").removeprefix("base_model."): t for key, t in every.items() if "fc" not in key}
    with pytest.warns(UserWarning, match="freshly"):  # torchvision's, without its classifier
        assert flaxvid.load_model(name, trunk, num_classes=3, **SMALL[name])[0].body.shift_every == 1


def test_shapes_that_leave_two_origins_are_asked_about():
    """Of one stage alone, IG-65M's network and torchvision's have the same shapes."""
    options = {"width": 8, "depths": (1,)}
    model = flaxvid.create_model("r2plus1d_r34", num_classes=3, **options)
    variables = model.init(jax.random.key(0), np.zeros((1, 2, 32, 32, 3), np.uint8))
    state_dict = flaxvid.to_torch("r2plus1d_r34", variables, overrides={"norm_epsilon": 1e-3})
    with pytest.raises(
        ValueError, match=r'format="ig65m"\)  # norm_epsilon=0.001\n.* format="torchvision"\)  # shared'
    ):
        flaxvid.load_torch("r2plus1d_r34", state_dict, overrides=options)
    asked = flaxvid.load_torch(
        "r2plus1d_r34", state_dict, format="torchvision", overrides={**options, "shared_midplanes": True}
    )
    chex.assert_trees_all_equal(asked, variables)


@pytest.mark.parametrize("name", ["c2d_r50", "i3d_nln_r50", "tsm_nln_resnet50", "csn_r50"])
def test_equal_files_of_two_formats_are_asked_about(name, random_variables):
    """Also where one of the two implies what the model has by itself; an option that the caller names decides."""
    spec = get_spec(name)
    tiny = {option: value for option, value in spec.tiny.items() if option != "num_classes"}
    alike = {}
    for fmt, known in spec.formats.items():
        options = {**tiny, **known.overrides}
        state_dict = flaxvid.to_torch(name, random_variables(create_tiny(name, **options)), fmt, overrides=options)
        shapes = tuple((key, array.shape) for key, array in sorted(state_dict.items()))
        alike.setdefault(shapes, []).append((fmt, known.overrides, state_dict))
    pairs = [group for group in alike.values() if len(group) > 1]
    assert pairs
    for group in pairs:
        first, second = (fmt for fmt, *_ in group)
        for fmt, overrides, state_dict in group:
            with pytest.raises(ValueError, match=f"fits two formats of {name}, '{first}' and '{second}', and their"):
                flaxvid.load_model(name, state_dict, **tiny)
            own = {option: overrides[option] for option in ("pool", "non_local", "mean") if option in overrides}
            assert parts(flaxvid.load_model(name, state_dict, **tiny, **own)[0]) == parts(
                flaxvid.load_model(name, state_dict, format=fmt, **tiny)[0]
            )


def test_load_model_makes_it_frame_flexible():
    name, options = "tsm_resnet101", SMALL["tsm_resnet101"]
    variables = make(name)
    state_dict = flaxvid.to_torch(name, variables, "tsm", overrides={"shift_every": 2})
    flexible, loaded = flaxvid.load_model(name, state_dict, frames=(8, 4), **options)
    assert isinstance(flexible, flaxvid.FrameFlexible)
    assert (flexible.frames, flexible.model.body.shift_every) == ((4, 8), 2)
    chex.assert_trees_all_equal(flexible.select(loaded, 8), variables)
    key = jax.random.key(1)
    _, drawn = flaxvid.load_model(name, state_dict, frames=(4, 8), key=key, **options)
    chex.assert_trees_all_equal(drawn, flexible.specialise(variables, key))

    again, same = flaxvid.load_model(name, flaxvid.to_torch(name, drawn), **options)  # the FFN authors' keys
    assert (again.frames, again.alteration, again.model.body.shift_every) == ((4, 8), "normal", 1)
    chex.assert_trees_all_equal(same, drawn)
    flat = flaxvid.FrameFlexible(again.model, (4, 8), "none").specialise(variables)
    assert flaxvid.load_model(name, flaxvid.to_torch(name, flat), **options)[0].alteration == "none"


def test_load_model_passes_options_on():
    state_dict = flaxvid.to_torch("x3d_m", make("x3d_m"))
    model, _ = flaxvid.load_model("x3d_m", state_dict, dropout=0.1, num_frames=5, **SMALL["x3d_m"])
    assert (model.head.dropout, model.clip.num_frames, model.head.num_classes) == (0.1, 5, 3)
    with pytest.raises(ValueError, match="x3d_m has no option depth"):
        flaxvid.load_model("x3d_m", state_dict, depth=3)


def test_export_warns_of_what_a_format_means():
    variables = make("r2plus1d_r34")
    with pytest.warns(
        UserWarning, match=r"'ig65m' means a r2plus1d_r34 with norm_epsilon=0.001: pass overrides={'norm"
    ):
        flaxvid.to_torch("r2plus1d_r34", variables)
    with pytest.warns(UserWarning, match="shift_every=2"):
        flaxvid.to_torch("tsm_resnet101", make("tsm_resnet101"), "tsm", overrides={"shift_every": 3})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flaxvid.to_torch("r2plus1d_r34", variables, overrides={"norm_epsilon": 1e-3})
        assert "base_model.bn1.weight" in flaxvid.to_torch("tsm_resnet101", make("tsm_resnet101"))


def test_the_import_script_writes_what_is_implied(tmp_path, monkeypatch, capsys):
    model = flaxvid.create_model("x3d_xs", num_classes=3, shortcut_norm=True)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 2, 32, 32, 3), np.uint8))
    variables = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, np.float32), shapes)
    state_dict = flaxvid.to_torch("x3d_xs", variables, "pyslowfast", overrides={"shortcut_norm": True})
    save_file(state_dict, tmp_path / "in.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["import_torch.py", "x3d_xs", "in.safetensors", "out.safetensors"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert "pyslowfast implies shortcut_norm=True, which out.safetensors says too" in capsys.readouterr().out
    loaded, info = load_variables("out.safetensors")
    chex.assert_trees_all_equal(loaded, variables)
    assert info == WeightsInfo("x3d_xs", {"shortcut_norm": True, "num_classes": 3})
    assert load("out.safetensors").model.body.shortcut_norm  # as evaluation and prediction take it


@pytest.mark.parametrize(
    ("name", "fmt", "head"),
    [
        ("videomae_base", "authors", "fc_norm.bias, fc_norm.weight, head.bias, head.weight"),
        ("timesformer_base", "mmaction2", "cls_head.fc_cls.bias, cls_head.fc_cls.weight"),
        ("slowfast_r50", "pytorchvideo", "blocks.6.proj.bias, blocks.6.proj.weight"),
    ],
)
@pytest.mark.parametrize("classes", [None, 7])
def test_an_attentive_head_starts_anew_on_the_files_body(name, fmt, head, classes, random_variables):
    """Also where the file's classifier has the shape of the new one."""
    spec = get_spec(name)
    tiny = {option: value for option, value in spec.tiny.items() if option != "num_classes"}
    variables = random_variables(create_tiny(name, **spec.formats[fmt].overrides))
    state_dict = flaxvid.to_torch(name, variables, fmt, overrides={**tiny, **spec.formats[fmt].overrides})
    said = (
        f"the state_dict has not the head that {name} is to have (head='attention'): that head is freshly initialised "
        f"and needs training; {head.count(',') + 1} tensors are left out: {head}"
    )
    with pytest.warns(UserWarning, match="freshly initialised") as warned:
        model, loaded = flaxvid.load_model(
            name, dict(sorted(state_dict.items())), num_classes=classes, head="attention", **tiny
        )
    assert [str(one.message) for one in warned] == [said]
    for part in ("stem", "body"):
        chex.assert_trees_all_equal(loaded["params"][part], variables["params"][part])
    wanted = create_tiny(name, head="attention", num_classes=classes or 5, **spec.formats[fmt].overrides)
    assert parts(model) == parts(wanted)
    video = np.zeros((1, 4, 32, 32, 3), np.uint8)
    shapes = jax.eval_shape(wanted.init, jax.random.key(0), video)
    chex.assert_trees_all_equal_shapes(loaded, shapes)
    assert model.apply(loaded, video).shape == (1, classes or 5)
    if classes is None:
        theirs, new = (tree["params"]["head"]["classifier"]["kernel"] for tree in (variables, loaded))
        assert theirs.shape == new.shape
        assert not np.allclose(theirs, new)


def test_an_attentive_head_on_a_file_without_a_classifier_asks_for_the_number(random_variables):
    tiny = {option: value for option, value in get_spec("vivit_base").tiny.items() if option != "num_classes"}
    state_dict = flaxvid.to_torch("vivit_base", random_variables(create_tiny("vivit_base")), overrides=tiny)
    trunk = {key: tensor for key, tensor in state_dict.items() if "classifier" not in key}
    with pytest.raises(ValueError, match=r"variables of the model have no tensor: .*num_classes makes a new head"):
        flaxvid.load_model("vivit_base", trunk, head="attention", **tiny)
    with pytest.warns(UserWarning, match=r"has not the head .* needs training$"):
        model, _ = flaxvid.load_model("vivit_base", trunk, num_classes=3, head="attention", **tiny)
    assert model.head.num_classes == 3
