"""Origins that imply more than names: `load_model` computes what they compute, `load_torch` says what is to be called.

Every tensor and statistic is random, the variances small (0.01 to 1), so that another epsilon shows.
"""

import re

import jax
import numpy as np
import pytest

import flaxvid

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

CLASSES = 11


def random_clip(shape, seed=0):
    return np.random.default_rng(seed).standard_normal((1, *shape, 3)).astype(np.float32)


def outputs(net, clip):
    """Of a network that takes (b, c, t, h, w)."""
    with torch.no_grad():
        return net(torch.from_numpy(clip).permute(0, 4, 1, 2, 3))


def check(name, format, state_dict, clip, expected, relative_error, implied):
    """`load_model` gives the origin's logits; `load_torch` refuses, or serves who names what is implied; and back."""
    model, variables = flaxvid.load_model(name, state_dict)
    error = relative_error(jax.jit(model.apply)(variables, clip), expected)
    print(f"{name}, {format}: relative error {error:.1e}")
    assert error < 1e-4
    message = f'model, variables = flaxvid.load_model("{name}", state_dict)\nor make the model so and say it here: '
    with pytest.raises(ValueError, match=re.escape(f"is of {format!r}")) as refusal:
        flaxvid.load_torch(name, state_dict)
    assert f"{message}overrides={implied}" in str(refusal.value)
    served = flaxvid.load_torch(name, state_dict, overrides=implied)
    assert jax.tree.all(jax.tree.map(lambda ours, theirs: (ours == theirs).all(), served, variables))
    exported = flaxvid.to_torch(name, variables, format, overrides=implied)
    assert exported.keys() == state_dict.keys()
    for key, tensor in state_dict.items():
        np.testing.assert_array_equal(exported[key], tensor.numpy(), err_msg=key)
    return served


def test_ig65m(torchvision_models, randomised, relative_error):
    """R(2+1)D-34 with Caffe2's epsilon, and the midplanes of each convolution, not of each block."""
    resnet = torchvision_models.video.resnet
    net = resnet.VideoResNet(
        resnet.BasicBlock, [resnet.Conv2Plus1D] * 4, [3, 4, 6, 3], resnet.R2Plus1dStem, num_classes=CLASSES
    )
    for stage, width, middle in ((net.layer2, 128, 288), (net.layer3, 256, 576), (net.layer4, 512, 1152)):
        stage[0].conv2[0] = resnet.Conv2Plus1D(width, width, middle)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eps = 1e-3
    randomised(net, small=True)
    clip = random_clip((8, 112, 112))
    expected = outputs(net, clip)
    served = check("r2plus1d_r34", "ig65m", net.state_dict(), clip, expected, relative_error, {"norm_epsilon": 1e-3})
    plain = flaxvid.create_model("r2plus1d_r34", num_classes=CLASSES)
    error = relative_error(jax.jit(plain.apply)(served, clip), expected)
    print(f"r2plus1d_r34 with an epsilon of 1e-5: relative error {error:.1e}")
    assert error > 0.01


def test_torchvisions_own_34_layers_are_another_network(torchvision_models, randomised, relative_error):
    resnet = torchvision_models.video.resnet
    net = resnet.VideoResNet(
        resnet.BasicBlock, [resnet.Conv2Plus1D] * 4, [3, 4, 6, 3], resnet.R2Plus1dStem, num_classes=CLASSES
    )
    clip = random_clip((4, 64, 64))
    expected = outputs(randomised(net, small=True), clip)
    check("r2plus1d_r34", "torchvision", net.state_dict(), clip, expected, relative_error, {"shared_midplanes": True})


def tsm_key(key):
    return "new_" + key if key.startswith("fc.") else "base_model." + key


def mmaction2_key(key):
    """Convolution and norm share a module: conv1.conv and conv1.bn; the classifier is the head's."""
    if key.startswith("fc."):
        return "cls_head.fc_cls." + key.removeprefix("fc.")
    key = re.sub(r"\bconv(\d)\.", r"conv\1.conv.", key)
    key = re.sub(r"\bbn(\d)\.", r"conv\1.bn.", key)
    return "backbone." + key.replace("downsample.0.", "downsample.conv.").replace("downsample.1.", "downsample.bn.")


@pytest.mark.parametrize("format", ["tsm", "mmaction2"])
def test_tsm_with_a_shift_in_every_second_block(torchvision_models, insert_shift, randomised, relative_error, format):
    frames = 4
    net = torchvision_models.resnet101(num_classes=CLASSES)
    insert_shift(net, frames, every=2)
    randomised(net, small=True)
    clip = random_clip((frames, 64, 64))
    with torch.no_grad():
        logits = net(torch.from_numpy(clip).flatten(0, 1).permute(0, 3, 1, 2))
    expected = logits.unflatten(0, (1, frames)).mean(1)
    rename = {"tsm": tsm_key, "mmaction2": mmaction2_key}[format]
    state_dict = {rename(key): tensor for key, tensor in net.state_dict().items()}
    check("tsm_resnet101", format, state_dict, clip, expected, relative_error, {"shift_every": 2})


PYSLOWFAST = (
    (r"blocks\.0\.conv\.conv_t\.", "s1.pathway0_stem.conv_xy."),
    (r"blocks\.0\.conv\.conv_xy\.", "s1.pathway0_stem.conv."),
    (r"blocks\.0\.norm\.", "s1.pathway0_stem.bn."),
    (r"blocks\.5\.pool\.pre_conv\.", "head.conv_5."),
    (r"blocks\.5\.pool\.pre_norm\.", "head.conv_5_bn."),
    (r"blocks\.5\.pool\.post_conv\.", "head.lin_5."),
    (r"blocks\.5\.proj\.", "head.projection."),
    (r"\.branch1_conv\.", ".branch1."),
    (r"\.branch1_norm\.", ".branch1_bn."),
    (r"\.conv_([abc])\.", r".\1."),
    (r"\.norm_([ac])\.", r".\1_bn."),
    (r"\.norm_b\.0\.", ".b_bn."),
    (r"\.norm_b\.1\.block\.0\.", ".se.fc1."),
    (r"\.norm_b\.1\.block\.2\.", ".se.fc2."),
)
"""pytorchvideo's keys to PySlowFast's."""


def pyslowfast_key(key):
    key = re.sub(r"blocks\.(\d)\.res_blocks\.(\d+)\.", lambda m: f"s{int(m[1]) + 1}.pathway0_res{m[2]}.", key)
    for pattern, replacement in PYSLOWFAST:
        key = re.sub(pattern, replacement, key)
    return key


def x3d_with_every_norm(hub, name):
    net = getattr(hub, name)(model_num_class=CLASSES)
    net.blocks[1].res_blocks[0].branch1_norm = nn.BatchNorm3d(24)  # the one norm that pytorchvideo leaves out
    net.blocks[5].activation = None
    net.blocks[5].pool.pool = nn.AdaptiveAvgPool3d(1)
    return net


@pytest.mark.parametrize("name", ["x3d_xs", "x3d_m", "x3d_l"])
def test_x3d_of_pyslowfast(pytorchvideo_hub, randomised, relative_error, name):
    net = randomised(x3d_with_every_norm(pytorchvideo_hub, name), small=True)
    clip = random_clip((4, 96, 96))
    state_dict = {pyslowfast_key(key): tensor for key, tensor in net.state_dict().items()}
    check(name, "pyslowfast", state_dict, clip, outputs(net, clip), relative_error, {"shortcut_norm": True})


MMACTION2_X3D = (
    (r"blocks\.0\.conv\.conv_t\.", "backbone.conv1_s.conv."),
    (r"blocks\.0\.conv\.conv_xy\.", "backbone.conv1_t.conv."),
    (r"blocks\.0\.norm\.", "backbone.conv1_t.bn."),
    (r"blocks\.5\.pool\.pre_conv\.", "backbone.conv5.conv."),
    (r"blocks\.5\.pool\.pre_norm\.", "backbone.conv5.bn."),
    (r"blocks\.5\.pool\.post_conv\.", "cls_head.fc1."),
    (r"blocks\.5\.proj\.", "cls_head.fc2."),
    (r"blocks\.(\d)\.res_blocks\.(\d+)\.(?:branch2\.)?", r"backbone.layer\1.\2."),
    (r"branch1_conv\.", "downsample.conv."),
    (r"branch1_norm\.", "downsample.bn."),
    (r"norm_b\.1\.block\.0\.", "se_module.fc1."),
    (r"norm_b\.1\.block\.2\.", "se_module.fc2."),
    (r"norm_b\.0\.", "norm_b."),
    *((rf"conv_{letter}\.", f"conv{number}.conv.") for number, letter in enumerate("abc", start=1)),
    *((rf"norm_{letter}\.", f"conv{number}.bn.") for number, letter in enumerate("abc", start=1)),
)
"""pytorchvideo's keys to mmaction2's."""


def test_x3d_of_mmaction2(pytorchvideo_hub, randomised, relative_error):
    """The same network as PySlowFast's; the head's first layer is a dense one in the file."""
    net = randomised(x3d_with_every_norm(pytorchvideo_hub, "x3d_s"), small=True)
    clip, state_dict = random_clip((3, 64, 64)), {}
    for key, tensor in net.state_dict().items():
        for pattern, replacement in MMACTION2_X3D:
            key = re.sub(pattern, replacement, key)
        state_dict[key] = tensor.flatten(1) if key == "cls_head.fc1.weight" else tensor
    check("x3d_s", "mmaction2", state_dict, clip, outputs(net, clip), relative_error, {"shortcut_norm": True})
