import chex
import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from flaxvid import trees
from flaxvid.adapt.surgery import adopt, arrange_head, inflate, spread
from flaxvid.frames import FrameFlexible
from flaxvid.models.registry import create_tiny
from flaxvid.tasks.frame_flexible import FfnRecipe
from flaxvid.tasks.task import init_model
from flaxvid.train.checkpoint import Checkpoints
from flaxvid.train.recipe import DataRecipe, ModelRecipe, Recipe, to_json
from flaxvid.train.setup import make_model
from flaxvid.train.start import fit_start, load_start
from flaxvid.train.state import TrainState
from flaxvid.weights.native import WeightsInfo, save_variables
from flaxvid.weights.torch import to_torch


@pytest.fixture(scope="module")
def make(random_variables):
    def variables(seed=0, **overrides):
        return random_variables(create_tiny("tsm_resnet18", **{"depths": (1,), **overrides}), seed)

    return variables


def test_the_same_model_is_taken_whole(make):
    trained = make(1)
    variables, fresh = adopt(make(0), trained)
    chex.assert_trees_all_equal(variables, trained)
    assert fresh == []


def test_a_head_of_another_number_of_classes_starts_anew(make):
    template, trained = make(0, num_classes=7), make(1)
    variables, fresh = adopt(template, trained)
    assert sorted(fresh) == ["params/head/classifier/bias", "params/head/classifier/kernel"]
    chex.assert_trees_all_equal(variables["params"]["head"], template["params"]["head"])
    for part in ("stem", "body"):
        chex.assert_trees_all_equal(variables["params"][part], trained["params"][part])
    chex.assert_trees_all_equal(variables["batch_stats"], trained["batch_stats"])


@pytest.mark.parametrize("heads", [("own", "attention"), ("attention", "own")])
@pytest.mark.parametrize(
    "name", ["tsm_resnet18", "x3d_xs"]
)  # a bare classifier, and a head with convolutions and norms
def test_of_a_head_of_another_kind_nothing_is_taken(random_variables, name, heads):
    """Nor is its classifier, though it may have the same shape: it classifies another feature."""
    template, trained = (random_variables(create_tiny(name, head=head), seed) for seed, head in enumerate(heads))
    variables, fresh = adopt(template, trained)
    flat = trees.flatten(variables)
    assert set(fresh) == {path for path in flat if "/head/" in path}
    for path, leaf in flat.items():
        source = template if "/head/" in path else trained
        np.testing.assert_array_equal(leaf, trees.flatten(source)[path])


def test_other_classifiers_than_the_checkpoints(make):
    variables, fresh = adopt(make(0, num_classes={"action": 5, "actor": 2}), make(1))
    assert len(fresh) == 4
    assert set(variables["params"]["head"]) == {"classifier_action", "classifier_actor"}


def test_a_head_is_arranged_by_task(make):
    trained = make(1, num_classes={"action": 3, "actor": 2, "place": 2})
    variables = arrange_head(trained, {"action": (2, 0, 1), "actor": None, "": (1, 0), "other": (0,)})
    head, old = variables["params"]["head"], trained["params"]["head"]
    for leaf in ("kernel", "bias"):
        np.testing.assert_array_equal(head["classifier_action"][leaf], old["classifier_action"][leaf][..., [2, 0, 1]])
    assert set(head) == {"classifier_action", "classifier_place"}
    chex.assert_trees_all_equal(head["classifier_place"], old["classifier_place"])
    chex.assert_trees_all_equal(variables["params"]["body"], trained["params"]["body"])
    _, fresh = adopt(make(0, num_classes={"action": 3, "actor": 2, "place": 2}), variables)
    assert sorted(fresh) == ["params/head/classifier_actor/bias", "params/head/classifier_actor/kernel"]
    with pytest.raises(ValueError, match=r"expected params/head/classifier_action/\w+ of 2 classes, .* got 3"):
        arrange_head(trained, {"action": (0, 1)})


@pytest.mark.parametrize("overrides", [{"width": 16}, {"depths": (1, 1)}])
def test_another_architecture_is_one_clear_error(make, overrides):
    with pytest.raises(
        ValueError, match=r"these weights are of another architecture: .* parameters do not fit"
    ) as error:
        adopt(make(0, **overrides), make(1))
    assert "/body/layer" in str(error.value)
    assert "\n" not in str(error.value)


def test_nothing_missing_is_made_up(make):
    trained = trees.flatten(make(1))
    del trained["batch_stats/stem/norm1/mean"]
    with pytest.raises(ValueError, match="1 parameters do not fit, such as batch_stats/stem/norm1/mean"):
        adopt(make(0), trees.unflatten(trained))
    assert np.all(trained["params/stem/norm1/scale"] > 0)


@pytest.fixture(scope="module")
def images(random_variables):
    """Variables of a 2-D ResNet of one block a stage."""
    return lambda name="tsn_resnet50", **overrides: random_variables(create_tiny(name, **overrides), seed=3)


@pytest.mark.parametrize("name", ["slow_r50", "res3dcnn"])
def test_centred_kernels_see_every_frame_as_an_image(images, random_variables, clip, name):
    model, flat = create_tiny(name), create_tiny("tsn_resnet50")
    variables, account = inflate(random_variables(model), images(), "centre")
    assert set(account.values()) == {"inflated", "taken"}
    video = clip(2, 5, 32, 32).astype(np.float32) / 128 - 1
    logits, expected = (jax.jit(m.apply)(v, video) for m, v in ((model, variables), (flat, images())))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("temporal_kernels", [(1, 1, 1, 1), (1, 1, 3, 3)])
def test_a_still_video_looks_like_the_image(images, random_variables, clip, temporal_kernels):
    """Away from the ends, where kernels see zeros."""
    model, flat = create_tiny("slow_r50", temporal_kernels=temporal_kernels), create_tiny("tsn_resnet50")
    variables, _ = inflate(random_variables(model), images())
    still = np.repeat(clip(1, 1, 32, 32), 9, axis=1)

    def middle(model, variables):
        m = model.bind(variables)
        return m.body(m.stem(flat.normalise(still)))[:, 4]

    expected, got = (jax.jit(middle, static_argnums=0)(m, v) for m, v in ((flat, images()), (model, variables)))
    chex.assert_trees_all_close(got, expected, rtol=1e-3, atol=1e-4)


def test_temporal_convolutions_that_stand_alone_start_anew(images, random_variables):
    variables, account = inflate(random_variables(create_tiny("r2plus1d_r50")), images())
    started_anew = {path for path, fate in account.items() if fate == "fresh"}
    assert started_anew == {path for path in trees.flatten(variables) if "_temporal/" in path}


def test_repeated_kernels_add_up_to_the_image_s(images, random_variables):
    template = random_variables(create_tiny("r3d_18_se", num_classes=3))
    variables, account = inflate(template, images("tsm_resnet18"))
    got, flat, fresh = trees.flatten(variables), trees.flatten(images("tsm_resnet18")), trees.flatten(template)
    for ours, theirs in (("stem/conv1/conv", "stem/conv1"), ("body/layer2_0/conv2/conv", "body/layer2_0/conv2")):
        kernel = got[f"params/{ours}/kernel"]
        assert kernel.shape[0] == 3
        np.testing.assert_array_equal(kernel[0], kernel[2])
        np.testing.assert_allclose(kernel.sum(0), flat[f"params/{theirs}/kernel"], rtol=1e-6)
    statistics = "batch_stats/body/layer3_0/downsample"
    np.testing.assert_array_equal(got[f"{statistics}/norm/var"], flat[f"{statistics}_norm/var"])
    started_anew = {path for path, fate in account.items() if fate == "fresh"}
    assert started_anew == {path for path in got if "/head/" in path or "/se/" in path}
    assert all(np.array_equal(got[path], fresh[path]) for path in started_anew)


@pytest.mark.parametrize("overrides", [{"depths": (1, 2, 1, 1)}, {"width": 16}, {"depths": (1, 1, 1)}])
def test_what_does_not_fit_is_not_inflated(images, random_variables, overrides):
    with pytest.raises(ValueError, match=r"no 2-D weights of this 3-D network: \d+ variables .*, \d+ are left over"):
        inflate(random_variables(create_tiny("slow_r50")), images(**overrides))


def test_other_slips_of_inflation(images, random_variables):
    template = random_variables(create_tiny("slow_r50"))
    with pytest.raises(ValueError, match="a rule of mean, centre, got 'center'"):
        inflate(template, images(), "center")
    with pytest.raises(ValueError, match="no 2-D weights of this 3-D network"):
        inflate(template, template)


@pytest.mark.parametrize("kind", ["torch", "native", "run"])
def test_a_recipe_starts_from_2_d_weights(images, tmp_path, capsys, kind):
    options = {"width": 8, "depths": (1, 1, 1, 1)}
    model = ModelRecipe("slow_r50", str(tmp_path / "w.safetensors"), image_size=32, options=options, inflate="centre")
    if kind == "torch":
        save_file(to_torch("tsn_resnet50", images(num_classes=1000), "torchvision"), model.weights)
    elif kind == "native":
        save_variables(model.weights, images(), WeightsInfo("tsn_resnet50", options))
    else:
        model.weights = str(tmp_path)
        flexible = FrameFlexible(create_tiny("tsn_resnet50"), (2, 4)).specialise(images())
        with Checkpoints(tmp_path / "checkpoints") as checkpoints:
            checkpoints.save(1, TrainState(np.zeros((), np.int32), flexible, ()))
        trained = Recipe(ModelRecipe("tsn_resnet50", options=options), task=FfnRecipe((2, 4)))
        (tmp_path / "recipe.json").write_text(to_json(trained))
    recipe = Recipe(model)
    variables = fit_start(recipe, make_model(recipe, 7), load_start(recipe, 7))
    kernel = variables["params"]["body"]["layer3_0"]["conv_a"]["conv"]["kernel"]
    np.testing.assert_array_equal(kernel[1], images()["params"]["body"]["layer3_0"]["conv1"]["kernel"])
    out = capsys.readouterr().out
    assert "17 kernels inflated, 68 variables taken as they are, 2 start anew (params/head/classifier/" in out


def test_2_d_files_are_for_networks_with_a_2_d_sibling(images, tmp_path):
    save_file(to_torch("tsn_resnet50", images()), tmp_path / "w.safetensors")
    recipe = Recipe(ModelRecipe("r2plus1d_r18", str(tmp_path / "w.safetensors"), inflate="mean"))
    with pytest.raises(ValueError, match=r"model.inflate: expected one of slow_r50, .*, got r2plus1d_r18"):
        load_start(recipe, 7)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("kind", ["torch", "native", "2-D"])
def test_several_cameras_start_from_their_backbone(images, random_variables, tmp_path, capsys, kind, separate):
    options = {"width": 8, "depths": (1, 1, 1, 1)}
    backbone, path = create_tiny("slow_r50", num_classes=7), tmp_path / "w.safetensors"
    weights = random_variables(backbone)
    if kind == "torch":
        save_file(to_torch("slow_r50", weights), path)
    elif kind == "native":
        save_variables(path, weights, WeightsInfo("slow_r50", options))
    else:
        save_file(to_torch("tsn_resnet50", images(num_classes=1000), "torchvision"), path)
    options = {"backbone": "slow_r50", "backbone_options": options, "separate": separate}
    model = ModelRecipe("ts_cva", str(path), 4, 32, options=options, inflate="centre" if kind == "2-D" else "")
    recipe = Recipe(model, DataRecipe(cameras=("front", "left")))
    network = make_model(recipe, 7)
    variables = fit_start(recipe, network, load_start(recipe, 7))
    template = init_model(network, jax.random.key(0))
    chex.assert_trees_all_equal_shapes(variables, template)
    chex.assert_trees_all_equal(variables["params"]["body"]["fusion"], template["params"]["body"]["fusion"])
    bodies = (
        [variables["params"]["body"][camera] for camera in ("front", "left")]
        if separate
        else [variables["params"]["body"]]
    )
    for body in bodies:
        kernel = body["layer3_0"]["conv_a"]["conv"]["kernel"]
        if kind == "2-D":
            np.testing.assert_array_equal(kernel[1], images()["params"]["body"]["layer3_0"]["conv1"]["kernel"])
        else:
            np.testing.assert_array_equal(kernel, weights["params"]["body"]["layer3_0"]["conv_a"]["conv"]["kernel"])
    assert "for the backbone, slow_r50, of front, left" in capsys.readouterr().out

    cameras = {"cameras": ["front", "left"], "num_frames": 4, "image_size": 32}
    save_variables(path, variables, WeightsInfo("ts_cva", options | cameras))  # and from their own
    model.inflate = ""
    chex.assert_trees_all_equal(fit_start(recipe, network, load_start(recipe, 7)), variables)


def test_what_is_not_of_the_backbone_is_said(make):
    template = {"params": {"body": {"fusion": {"a": np.zeros(2)}, "layer1_0": {"a": np.zeros(2)}}}}
    with pytest.raises(ValueError, match=r"weights of the backbone, got 1 parameters .* params/body/layer1_0/a"):
        spread(template, {"params": {"body": {"layer1_0": {"a": np.zeros(3)}}}}, ("front",))


def test_a_camera_may_have_the_name_of_a_module():
    template = {"params": {"body": {"front": {"a": np.zeros(2)}}}}
    chex.assert_trees_all_equal(
        spread(template, {"params": {"body": {"front": {"a": np.ones(2)}}}}, ("front",)),
        {"params": {"body": {"front": {"a": np.ones(2)}}}},
    )
    with pytest.raises(ValueError, match=r"1 parameters that do not fit, such as params/body/layer9/a"):
        spread(template, {"params": {"body": {"a": np.ones(2), "layer9": {"a": np.ones(2)}}}}, ("front",))
