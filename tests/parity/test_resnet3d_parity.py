"""The 3-D ResNets against torchvision and pytorchvideo, with the imported weights; back and forth without a change."""

import jax
import numpy as np
import pytest

import flaxvid
from flaxvid.models.registry import create_model

torch = pytest.importorskip("torch")

CLASSES = 13
# Each at its own clip and at another length and size; the 3-D ResNets of torchvision take any.
CASES = {
    "r3d_18": ((16, 112, 112), (7, 96, 80)),
    "r3d_18_se": ((16, 112, 112), (7, 96, 80)),
    "r2plus1d_r18": ((16, 112, 112), (7, 96, 80)),
    "slow_r50": ((8, 224, 224), (5, 128, 160)),
    "r2plus1d_r50": ((16, 224, 224), (9, 128, 160)),
}


def excited(net, at="output"):
    """torchvision's R3D-18 with squeeze-and-excitation by hooks in the last two stages."""
    for stage, channels in ((net.layer3, 256), (net.layer4, 512)):
        for block in stage:
            block.se = torch.nn.Sequential(
                torch.nn.AdaptiveAvgPool3d(1),
                torch.nn.Conv3d(channels, channels // 16, 1),
                torch.nn.ReLU(),
                torch.nn.Conv3d(channels // 16, channels, 1),
                torch.nn.Sigmoid(),
            )
            behind = block if at == "output" else block.conv2
            behind.register_forward_hook(lambda _, inputs, out, se=block.se: out * se(out))
    return net


@pytest.fixture(scope="module")
def make_reference(torchvision_models, request):
    """Builds the reference of a name; only pytorchvideo's need pytorchvideo."""
    video = torchvision_models.video

    def make(name, classes=CLASSES):
        if name in ("slow_r50", "r2plus1d_r50", "c2d_r50", "i3d_r50", "csn_r101"):
            return getattr(request.getfixturevalue("pytorchvideo_hub"), name)(model_num_class=classes)
        if name == "r2plus1d_r34":
            resnet = video.resnet
            return resnet.VideoResNet(
                resnet.BasicBlock, [resnet.Conv2Plus1D] * 4, [3, 4, 6, 3], resnet.R2Plus1dStem, num_classes=classes
            )
        return {"r3d_18": video.r3d_18, "mc3_18": video.mc3_18, "r2plus1d_r18": video.r2plus1d_18}.get(
            name, lambda num_classes: excited(video.r3d_18(num_classes=num_classes))
        )(num_classes=classes)

    return make


def random_clip(shape, seed=0):
    return np.random.default_rng(seed).standard_normal((1, *shape, 3)).astype(np.float32)


def outputs(net, video):
    with torch.no_grad():
        return net(torch.from_numpy(video).permute(0, 4, 1, 2, 3))


@pytest.mark.parametrize("name", CASES)
def test_logits_and_tensors(make_reference, randomised, relative_error, check_same_tensors, name):
    net = randomised(make_reference(name))
    if name == "r2plus1d_r50":
        net.blocks[5].activation = None  # a softmax
    variables = flaxvid.load_torch(name, net.state_dict())
    model = create_model(name, num_classes=CLASSES)
    for shape in CASES[name]:
        if shape != CASES[name][0] and name.endswith("r50"):
            net.blocks[5].pool = torch.nn.AdaptiveAvgPool3d(1)  # pytorchvideo's has the size of the training crop
        video = random_clip(shape)
        error = relative_error(jax.jit(model.apply)(variables, video), outputs(net, video))
        print(f"{name}, {shape}: relative error {error:.1e}")
        assert error < 1e-4
    check_same_tensors(name, variables, net)


def test_the_softmax_of_r2plus1d_r50_stands_behind_our_logits(make_reference, randomised):
    net = randomised(make_reference("r2plus1d_r50"))
    net.blocks[5].pool = torch.nn.AdaptiveAvgPool3d(1)
    model, video = create_model("r2plus1d_r50", num_classes=CLASSES), random_clip((4, 64, 64))
    logits = jax.jit(model.apply)(flaxvid.load_torch("r2plus1d_r50", net.state_dict()), video)
    np.testing.assert_allclose(jax.nn.softmax(logits), outputs(net, video), rtol=1e-3, atol=1e-6)


def test_squeeze_and_excitation_before_the_addition(torchvision_models, randomised, relative_error):
    net = randomised(excited(torchvision_models.video.r3d_18(num_classes=CLASSES), at="residual"))
    model, video = create_model("r3d_18_se", num_classes=CLASSES, se="residual"), random_clip((4, 64, 64))
    error = relative_error(
        jax.jit(model.apply)(flaxvid.load_torch("r3d_18_se", net.state_dict()), video), outputs(net, video)
    )
    assert error < 1e-4


def narrow(hub, name):
    """pytorchvideo's networks with an eighth of the channels, and CSN with half of the layers."""
    options = {"model_num_class": CLASSES, "stem_dim_out": 8}
    if name == "csn_r50":
        net = hub.csn.create_csn(model_depth=50, stem_pool=torch.nn.MaxPool3d, **options)
    else:
        net = getattr(hub, name)(**options)
    net.blocks[-1].pool = torch.nn.AdaptiveAvgPool3d(1)
    return net


@pytest.mark.parametrize("name", ["c2d_r50", "i3d_r50", "csn_r50"])
def test_narrow_networks(pytorchvideo_hub, randomised, relative_error, name):
    net = randomised(narrow(pytorchvideo_hub, name), small=True)
    model, variables = flaxvid.load_model(name, {"model_state": net.state_dict()}, width=8)
    video = random_clip((6, 64, 48))
    error = relative_error(jax.jit(model.apply)(variables, video), outputs(net, video))
    print(f"{name}: relative error {error:.1e}")
    assert error < 1e-4
    exported = flaxvid.to_torch(name, flaxvid.load_torch(name, net.state_dict(), overrides={"width": 8}))
    assert exported.keys() == net.state_dict().keys()
    for key, tensor in net.state_dict().items():
        np.testing.assert_array_equal(exported[key], tensor.numpy(), err_msg=key)


def test_mc3(make_reference, randomised, relative_error, check_same_tensors):
    """Its last three stages keep the frames."""
    net = randomised(make_reference("mc3_18"), small=True)
    model, variables = flaxvid.load_model("mc3_18", net.state_dict())
    video = random_clip((5, 48, 64))
    error = relative_error(jax.jit(model.apply)(variables, video), outputs(net, video))
    print(f"mc3_18: relative error {error:.1e}")
    assert error < 1e-4
    check_same_tensors("mc3_18", variables, net)


@pytest.mark.parametrize("name", [*CASES, "r2plus1d_r34", "mc3_18", "c2d_r50", "i3d_r50", "csn_r101"])
def test_keys_shapes_and_counts(make_reference, check_strict_export, name):
    with torch.device("meta"):
        net = make_reference(name, 400)
    check_strict_export(name, net, **({"shared_midplanes": True} if name == "r2plus1d_r34" else {}))
