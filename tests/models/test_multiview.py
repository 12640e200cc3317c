"""Several cameras of one scene: what each fusion makes of them, with cameras missing, and what is refused."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import flaxvid
from flaxvid import trees
from flaxvid.frames import FrameFlexible
from flaxvid.layers.heads import PoolHead
from flaxvid.models.multiview import CAMERAS, FUSIONS, MeanHead, build
from flaxvid.models.registry import create_tiny
from flaxvid.models.spec import Common

OPTIONS = {"width": 8, "depths": (1,), "num_classes": 5, "image_size": 32, "dropout": 0.0}
SINGLE = create_tiny("tsm_resnet18", **OPTIONS)


def make(fusion, **options):
    return build(Common(norm_epsilon=1e-6), backbone=SINGLE, fusion=fusion, **options)


@pytest.fixture(scope="module")
def scene(clip):
    return {camera: clip(2, 4, 32, 32, seed=number) for number, camera in enumerate(CAMERAS)}


@pytest.fixture(scope="module")
def single(random_variables):
    """Variables of the backbone alone."""
    return random_variables(SINGLE)


def only(scene, *cameras):
    return {camera: scene[camera] for camera in cameras}


@pytest.mark.parametrize("present", [CAMERAS, ("front", "right"), ("left",)])
def test_late_is_the_mean_of_the_cameras_that_are_there(scene, single, present):
    model = make("late")
    alone = [SINGLE.apply(single, scene[camera]) for camera in present]
    logits = jax.jit(model.apply)(single, only(scene, *present))  # the backbone's own variables
    chex.assert_trees_all_close(logits, sum(alone) / len(alone), rtol=1e-5, atol=1e-5)
    features = model.apply(single, only(scene, *present), method="features")
    alone = [SINGLE.apply(single, scene[camera], method="features") for camera in present]
    chex.assert_trees_all_close(features, sum(alone) / len(alone), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("present", [CAMERAS, ("left", "front")])
def test_concatenation_puts_zeros_where_a_camera_is_missing(scene, random_variables, present):
    model = make("concat")
    variables = random_variables(model)
    parts = SINGLE.bind({**variables, "params": {**variables["params"], "body": body_of(variables)}})
    maps = {camera: parts.body(parts.stem(SINGLE.normalise(jnp.asarray(scene[camera])))) for camera in present}
    blank = jnp.zeros_like(maps["front"])
    kernel = trees.flatten(variables)["params/body/fusion/conv/kernel"][0, 0, 0]
    bias = trees.flatten(variables)["params/body/fusion/conv/bias"]
    joined = jnp.concatenate([maps.get(camera, blank) for camera in CAMERAS], axis=-1) @ kernel + bias
    logits = jax.jit(model.apply)(variables, only(scene, *present))
    chex.assert_trees_all_close(logits, parts.head(joined), rtol=1e-4, atol=1e-4)


def body_of(variables):
    return {name: tree for name, tree in variables["params"]["body"].items() if name != "fusion"}


def test_attention_is_over_the_cameras_that_are_there(scene, random_variables):
    """Numbers of the mask are in tests/layers/test_attention.py; here that an absent key becomes one."""
    model = make("attention")
    variables = random_variables(model)
    apply = jax.jit(model.apply)
    seen = {choice: apply(variables, only(scene, *choice)) for choice in (CAMERAS, ("front", "left"), ("right",))}
    chex.assert_tree_all_finite(seen)
    assert len({round(float(logits[0, 0]), 3) for logits in seen.values()}) == 3
    parts = model.bind(variables)
    grids = parts.stem(model.normalise({**scene, "right": np.zeros_like(scene["right"])}))
    masked = parts.body({camera: grids[camera] for camera in ("front", "left")})
    chex.assert_trees_all_close(parts.head(masked), seen["front", "left"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_shared_backbone_keeps_its_names_and_separate_ones_have_the_cameras(fusion, random_variables, single):
    shared, separate = (random_variables(make(fusion, separate=separate)) for separate in (False, True))
    own = {path: leaf.shape for path, leaf in trees.flatten(single).items()}
    found = {path: leaf.shape for path, leaf in trees.flatten(shared).items() if "/fusion/" not in path}
    assert found == own
    parts = set(separate["params"]["stem"]) | set(separate["params"]["body"])
    assert parts - {"fusion"} == set(CAMERAS)
    assert set(separate["params"]["head"]) == set(single["params"]["head"])
    assert ("fusion" in separate["params"]["body"]) == (fusion != "late")


def test_separate_backbones_see_their_own_camera_alone(scene, single, random_variables):
    model = make("late", separate=True)
    variables = random_variables(model)
    before = jax.jit(model.apply)(variables, only(scene, "left"))
    changed = traverse_util.path_aware_map(lambda path, leaf: leaf * (1 + ("front" in path)), variables)
    chex.assert_trees_all_equal(jax.jit(model.apply)(changed, only(scene, "left")), before)
    assert not np.allclose(model.apply(changed, scene), model.apply(variables, scene))
    with pytest.raises(ValueError, match=r"init takes all cameras.*\['front', 'right'\]"):
        jax.eval_shape(model.init, jax.random.key(0), only(scene, "left"))


def test_cameras_dropped_in_training_leave_one_at_least(random_variables):
    """Each sample's logits are the mean of some of its cameras', and every choice of cameras comes up."""
    grids = {camera: np.random.default_rng(n).normal(size=(8, 1, 1, 1, 6)) for n, camera in enumerate(CAMERAS)}
    head = MeanHead(PoolHead(5, dropout=0.0), camera_dropout=0.6)
    variables = head.init(jax.random.key(0), grids)
    alone = np.stack([PoolHead(5).apply(variables, grids[camera]) for camera in CAMERAS])
    choices = [np.array(c) for n in (1, 2, 3) for c in itertools.combinations(range(3), n)]
    means = np.stack([alone[choice].mean(axis=0) for choice in choices])  # (7, 8, 5)
    train = jax.jit(lambda key: head.apply(variables, grids, train=True, rngs={"dropout": key}))
    seen = set()
    for number in range(16):
        matches = np.isclose(train(jax.random.key(number)), means, atol=1e-5).all(axis=-1)  # (7, 8)
        assert (matches.sum(axis=0) == 1).all()
        seen |= set(matches.argmax(axis=0).tolist())
    assert seen == set(range(7))
    chex.assert_trees_all_close(head.apply(variables, grids), alone.mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_frame_flexible(fusion, clip, random_variables):
    model = make(fusion)
    flexible = FrameFlexible(model, (2, 4))
    variables = flexible.specialise(random_variables(model), jax.random.key(1))
    assert any(path.endswith("conv1/gain") for path in trees.flatten(variables["params_2f"]))
    clips = {n: {camera: clip(1, n, 32, 32, seed=n) for camera in ("front", "right")} for n in (2, 4)}
    logits = flexible.apply(variables, clips)
    for count, video in clips.items():
        chex.assert_trees_all_equal(logits[count], model.apply(flexible.select(variables, count), video))
    with pytest.raises(ValueError, match="need clips of 2 frames, got 4"):
        flexible.apply(variables, {2: clips[4]})
    separate = FrameFlexible(make(fusion, separate=True), (2, 4))
    gains = trees.flatten(separate.specialise(random_variables(separate.model))["params_2f"])
    assert {f"body/{camera}/layer1_0/conv1/gain" for camera in CAMERAS} <= set(gains)


def test_a_camera_called_normal_is_no_norm(random_variables):
    model = create_tiny("ts_cva", cameras=("normal", "front"), separate=True)
    variables = FrameFlexible(model, (2,), alteration="none").specialise(random_variables(model))
    private, shared = (trees.flatten(variables[name]["stem"]) for name in ("params_2f", "params"))
    assert set(private) == {f"{camera}/norm1/{leaf}" for camera in model.cameras for leaf in ("scale", "bias")}
    assert set(shared) == {f"{camera}/conv1/kernel" for camera in model.cameras}


def test_several_targets(scene, random_variables):
    for fusion in FUSIONS:
        model = create_tiny("ts_cva", num_classes={"action": 3, "actor": 2}, fusion=fusion)
        logits = model.apply(random_variables(model), only(scene, "front", "left"))
        assert {task: leaf.shape for task, leaf in logits.items()} == {"action": (2, 3), "actor": (2, 2)}


def test_the_name_takes_any_backbone(scene):
    options = {"backbone": "r3d_18", "backbone_options": {"width": 8, "depths": (1, 1)}, "fusion": "concat"}
    model = create_tiny("ts_cva", **options, cameras=("front", "left"))
    assert (model.cameras, model.feature_dim, model.clip.image_size) == (("front", "left"), 16, 32)
    variables, logits = jax.eval_shape(
        lambda video: (variables := model.init(jax.random.key(0), video), model.apply(variables, video)),
        only(scene, "front", "left"),
    )
    assert logits.shape == (2, 5)
    assert trees.flatten(variables)["params/body/fusion/conv/kernel"].shape == (1, 1, 1, 32, 16)
    with pytest.raises(ValueError, match="r3d_18 has no option depht: valid ones are"):
        create_tiny("ts_cva", backbone="r3d_18", backbone_options={"depht": (1,)})


@pytest.mark.parametrize("name", ["tsn_resnet18", "r3d_18", "slow_r50", "r2plus1d_r18", "x3d_xs"])
def test_backbones_of_every_family(name):
    backbone = create_tiny(name)
    for fusion in FUSIONS:
        model = build(Common(), backbone=backbone, fusion=fusion)
        variables, logits = shapes(model)
        assert logits.shape == (1, 5)
        features = functools.partial(model.apply, method="features")
        assert jax.eval_shape(features, variables, scene_of(model)).shape == (1, model.feature_dim)
        own = {path for path in trees.flatten(variables) if "/fusion/" not in path}
        assert own == set(trees.flatten(shapes(backbone)[0]))


def scene_of(model):
    size = model.clip.image_size
    return model.for_cameras(jax.ShapeDtypeStruct((1, model.clip.num_frames, size, size, 3), np.uint8))


def shapes(model):
    """Of variables and logits."""
    return jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x)[::-1], scene_of(model))


@pytest.mark.parametrize("fusion", ["attention", "concat"])
@pytest.mark.parametrize("name", ["slowfast_r50", "vivit_base"])
def test_more_than_one_grid_is_refused_by_name(name, fusion):
    backbone = create_tiny(name)
    with pytest.raises(ValueError, match=f"the backbone makes more of a clip.*fusion='{fusion}'.*fusion=\"late\""):
        build(Common(), backbone=backbone, fusion=fusion)
    _, logits = shapes(build(Common(), backbone=backbone, fusion="late"))  # of answers there is a mean
    assert logits.shape == (1, 5)


@pytest.mark.parametrize("fusion", ["attention", "concat", "late"])
def test_a_transformer_of_one_grid_is_fused_and_says_what_sizes_it_takes(fusion):
    model = build(Common(), backbone=create_tiny("videomae_base"), fusion=fusion)
    _, logits = shapes(model)
    assert logits.shape == (1, 5)
    video = {camera: np.zeros((1, 5, 32, 32, 3), np.uint8) for camera in model.cameras}
    with pytest.raises(ValueError, match=r"must be multiples of \(2, 8, 8\), got \(5, 32, 32\)"):
        jax.eval_shape(model.init, jax.random.key(0), video)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fusion": "sum"}, 'fusion must be "attention", "concat" or "late", got .sum'),
        ({"cameras": ()}, "cameras must be distinct names"),
        ({"cameras": ("front", "front")}, "cameras must be distinct names"),
        ({"cameras": ("a camera", "front")}, "can be part of a parameter's, such as"),
        ({"camera_dropout": 1.0}, r"camera_dropout must be a number in \[0, 1\), got 1.0"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(ValueError, match=message):
        create_tiny("ts_cva", **options)


def test_a_model_of_cameras_is_no_backbone():
    with pytest.raises(ValueError, match="the backbone takes several cameras itself"):
        create_tiny("ts_cva", backbone="ts_cva", backbone_options={})


def test_wrong_cameras_say_what_to_do(scene):
    def refused(model, video, message):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(model.init, jax.random.key(0), video)

    model = make("late")
    refused(model, {**scene, "rear": scene["left"]}, "knows the cameras front, left, right, got rear: rename it")
    refused(
        model, scene["front"], r"takes a dict of the cameras front, left, right, got a video of \(2, 4, 32, 32, 3\)"
    )
    refused(model, {}, "got no camera")
    refused(SINGLE, scene, "takes one video, got cameras front, left, right: .*ts_cva")
    refused(
        model,
        {**scene, "left": scene["left"][:, :3]},
        r"must have one shape .*\(2, 4, 32, 32, 3\) of front, \(2, 3, 32, 32, 3\) of left",
    )
    refused(model, {**scene, "left": scene["left"][..., :2]}, "must have one shape")
    refused(model, {"left": scene["left"][0]}, r"got \(4, 32, 32, 3\): add the batch axis")


def test_weights_of_one_video_start_several_cameras(scene, single):
    """With a shared backbone, only what joins the cameras is new."""
    model = make("attention")
    variables = trees.merge(model.init(jax.random.key(0), scene), single)
    alike = dict.fromkeys(CAMERAS, scene["front"])
    features = model.apply(variables, alike, method="features")
    own = SINGLE.apply(single, scene["front"], method="features")
    which = trees.flatten(variables)["params/body/fusion/which"].mean(axis=0)
    chex.assert_trees_all_close(features, own + which, rtol=1e-4, atol=1e-4)


def test_public_name():
    model = flaxvid.create_model("ts_cva", num_classes=9)
    assert (model.cameras, model.clip.num_frames, model.feature_dim) == (CAMERAS, 16, 2048)
