"""Networks with non-local blocks: those of mmcv and PySlowFast, written in torch, in pytorchvideo's and torchvision's.

The names are those of the origins' files. Every tensor is random, with variances of 0.01 to 1.
"""

import re

import jax
import numpy as np
import pytest

import flaxvid
from flaxvid.models.spec import IMAGENET
from flaxvid.models.stages import every_second

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

CLASSES = 11


class Convolution(nn.Module):
    """mmcv's ConvModule without an activation: a convolution with a bias, or one with a norm."""

    def __init__(self, inputs, outputs, norm=False):
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 1, bias=not norm)
        self.bn = nn.BatchNorm3d(outputs) if norm else nn.Identity()

    def forward(self, x):
        return self.bn(self.conv(x))


class NonLocal3d(nn.Module):
    """mmcv's, with `sub_sample`."""

    def __init__(self, channels, mode, use_scale=False):
        super().__init__()
        self.mode, self.use_scale, pool = mode, use_scale, nn.MaxPool3d((1, 2, 2))
        self.g = nn.Sequential(Convolution(channels, channels // 2), pool)
        self.conv_out = Convolution(channels // 2, channels, norm=True)
        self.theta = self.phi = nn.Identity()
        if mode == "gaussian":
            self.phi = pool
        else:
            self.theta = Convolution(channels, channels // 2)
            self.phi = nn.Sequential(Convolution(channels, channels // 2), pool)

    def forward(self, x):
        theta, phi, g = (part(x).flatten(2) for part in (self.theta, self.phi, self.g))
        weights = theta.transpose(1, 2) @ phi
        if self.use_scale:
            weights = weights / theta.shape[1] ** 0.5
        weights = weights / weights.shape[-1] if self.mode == "dot_product" else weights.softmax(dim=-1)
        y = (weights @ g.transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:])
        return x + self.conv_out(y)


class Nonlocal(nn.Module):
    """PySlowFast's, with its own pool."""

    def __init__(self, channels, instantiation):
        super().__init__()
        self.instantiation, self.pool = instantiation, nn.MaxPool3d((1, 2, 2), (1, 2, 2))
        for name in ("theta", "phi", "g"):
            setattr(self, f"conv_{name}", nn.Conv3d(channels, channels // 2, 1))
        self.conv_out, self.bn = nn.Conv3d(channels // 2, channels, 1), nn.BatchNorm3d(channels)

    def forward(self, x):
        pooled = self.pool(x)
        theta, phi, g = (y.flatten(2) for y in (self.conv_theta(x), self.conv_phi(pooled), self.conv_g(pooled)))
        weights = torch.einsum("nct,ncp->ntp", theta, phi)
        if self.instantiation == "softmax":
            weights = (weights * theta.shape[1] ** -0.5).softmax(dim=2)
        else:
            weights = weights / weights.shape[2]
        y = torch.einsum("ntg,ncg->nct", weights, g).unflatten(2, x.shape[2:])
        return x + self.bn(self.conv_out(y))


def narrow(hub, name, make, first):
    """pytorchvideo's network of 8 channels, with non-local blocks in its second and third stage."""
    net = getattr(hub, name)(model_num_class=CLASSES, stem_dim_out=8)
    net.blocks[-1].pool = nn.AdaptiveAvgPool3d(1)
    stages = [block for block in net.blocks if hasattr(block, "res_blocks")]
    for stage, channels in zip(stages[1:3], (64, 128), strict=True):
        for block in list(stage.res_blocks)[first::2]:
            block.non_local = make(channels)
            block.register_forward_hook(lambda module, _, out: module.non_local(out))
    return net


def renamed(net, *pairs):
    """The state_dict, with the first pattern that a key has replaced after numbering the stages from 1."""
    numbers = [f"blocks.{place}." for place, block in enumerate(net.blocks) if hasattr(block, "res_blocks")]
    state_dict = {}
    for key, tensor in net.state_dict().items():
        for stage, start in enumerate(numbers, 1):
            key = re.sub(rf"^{re.escape(start)}res_blocks\.(\d+)\.", rf"layer{stage}.\1.", key)
        found = next((pattern, name) for pattern, name in pairs if re.search(pattern, key))
        state_dict[re.sub(*found, key)] = tensor
    return state_dict


MMACTION2 = (
    (r"^blocks\.0\.conv\.", "backbone.conv1.conv."),
    (r"^blocks\.0\.norm\.", "backbone.conv1.bn."),
    (r"^blocks\.\d\.proj\.", "cls_head.fc_cls."),
    (r"^(layer.*)\.non_local\.", r"backbone.\1.non_local_block."),
    (r"^(layer.*)\.branch1_conv\.", r"backbone.\1.downsample.conv."),
    (r"^(layer.*)\.branch1_norm\.", r"backbone.\1.downsample.bn."),
    *(
        (rf"^(layer.*)\.branch2\.{kind}_{letter}\.", rf"backbone.\1.conv{number}.{short}.")
        for number, letter in enumerate("abc", 1)
        for kind, short in (("conv", "conv"), ("norm", "bn"))
    ),
)
CAFFE2_LEAVES = (("weight", "s"), ("bias", "b"), ("running_mean", "rm"), ("running_var", "riv"))


def pyslowfast(net):
    return renamed(
        net,
        (r"^blocks\.0\.conv\.", "s1.pathway0_stem.conv."),
        (r"^blocks\.0\.norm\.", "s1.pathway0_stem.bn."),
        (r"^blocks\.\d\.proj\.", "head.projection."),
        *(
            (rf"^layer{stage}\.(\d+)\.{old}\.", rf"s{stage + 1}.pathway0_{new}.")
            for stage in (1, 2, 3, 4)
            for old, new in (
                ("non_local", r"nonlocal\1"),
                ("branch1_conv", r"res\1.branch1"),
                ("branch1_norm", r"res\1.branch1_bn"),
                (r"branch2\.conv_([abc])", r"res\1.branch2.\2"),
                (r"branch2\.norm_([abc])", r"res\1.branch2.\2_bn"),
            )
        ),
    )


def caffe2(net):
    pairs = (
        (r"^blocks\.0\.conv\.weight", "conv1_w"),
        *((rf"^blocks\.0\.norm\.{leaf}$", f"res_conv1_bn_{short}") for leaf, short in CAFFE2_LEAVES),
        (r"^blocks\.\d\.proj\.(.).*", lambda found: f"pred_{found[1]}"),
        *(
            (rf"^layer{stage}\.(\d+)\.{old}$", new)
            for stage in (1, 2, 3, 4)
            for old, new in (
                (r"non_local\.conv_(\w+)\.(.).*", rf"nonlocal_conv{stage + 1}_\1_\2_\3"),
                (r"branch1_conv\.weight", rf"res{stage + 1}_\1_branch1_w"),
                (r"branch2\.conv_([abc])\.weight", rf"res{stage + 1}_\1_branch2\2_w"),
                *(
                    (rf"{norm}\.{leaf}", rf"{name}_bn_{short}")
                    for leaf, short in CAFFE2_LEAVES
                    for norm, name in (
                        (r"non_local\.bn", rf"nonlocal_conv{stage + 1}_\1"),
                        ("branch1_norm", rf"res{stage + 1}_\1_branch1"),
                        (r"branch2\.norm_([abc])", rf"res{stage + 1}_\1_branch2\2"),
                    )
                ),
            )
        ),
        (r".*num_batches_tracked", "left out"),
    )
    state_dict = renamed(net, *pairs)
    del state_dict["left out"]
    return state_dict


def check(state_dict, expected, clip, name, format, implied, relative_error, options, ask=False):
    """`load_model` computes what the network computes, `load_torch` asks for what is implied, and back."""
    asked = {"format": format} if ask else {}
    model, variables = flaxvid.load_model(name, state_dict, **asked, **options)
    error = relative_error(jax.jit(model.apply)(variables, clip), expected)
    print(f"{name}, {format}: relative error {error:.1e}")
    assert error < 1e-4
    if implied:
        with pytest.raises(ValueError, match=re.escape(f"is of {format!r}, whose {name} has")) as refusal:
            flaxvid.load_torch(name, state_dict, **asked, overrides=options)
        assert f"overrides={implied!r}" in str(refusal.value)
    exported = flaxvid.to_torch(name, variables, format, overrides={**options, **implied})
    exported = {key: array for key, array in exported.items() if key in state_dict or "num_batches" not in key}
    assert exported.keys() == state_dict.keys()
    for key, tensor in state_dict.items():
        np.testing.assert_array_equal(exported[key], tensor.numpy(), err_msg=key)


def random_clip(frames, seed=0):
    """Maps with an odd number of rows, of which the last is not pooled."""
    return np.random.default_rng(seed).standard_normal((1, frames, 80, 64, 3)).astype(np.float32)


def outputs(net, clip):
    with torch.no_grad():
        return net(torch.from_numpy(clip).permute(0, 4, 1, 2, 3))


@pytest.mark.parametrize("names", [pyslowfast, caffe2])
@pytest.mark.parametrize(
    ("name", "instantiation"), [("i3d_nln_r50", "softmax"), ("slow_nln_r50", "dot_product"), ("c2d_r50", "softmax")]
)
def test_pyslowfast(pytorchvideo_hub, randomised, relative_error, names, name, instantiation):
    """C2D with non-local blocks has no name of its own: its options are given."""
    base = name.replace("_nln", "")
    net = randomised(narrow(pytorchvideo_hub, base, lambda width: Nonlocal(width, instantiation), 1), small=True)
    clip, options = random_clip(6), {"width": 8}
    if name == "c2d_r50":
        options["non_local"] = every_second("pooled_gaussian", 1)
    ask = name == "c2d_r50"
    check(names(net), outputs(net, clip), clip, name, names.__name__, {}, relative_error, options, ask)


I3D = {**IMAGENET, "stem_stride": 2}


@pytest.mark.parametrize(
    ("name", "mode", "scale", "first", "implied"),
    [
        ("slow_nln_r50", "embedded_gaussian", True, 0, {**IMAGENET, "non_local": every_second("scaled_gaussian")}),
        *(
            ("i3d_nln_r50", mode, False, 1, {**I3D, "non_local": every_second(mode, 1)})
            for mode in ("dot_product", "embedded_gaussian", "gaussian")
        ),
    ],
)
def test_mmaction2(pytorchvideo_hub, randomised, relative_error, name, mode, scale, first, implied):
    """No tensor tells the dot product from the embedded Gaussian, so who loads is asked."""
    net = narrow(pytorchvideo_hub, name.replace("_nln", ""), lambda width: NonLocal3d(width, mode, scale), first)
    format, clip, options = "mmaction2", random_clip(6), {"width": 8}
    if name == "i3d_nln_r50":
        net.blocks[0].conv.stride = net.blocks[0].pool.stride = (2, 2, 2)
        format, clip = f"mmaction2_{mode}", random_clip(16)
    state_dict, expected = renamed(randomised(net, small=True), *MMACTION2), outputs(net, clip)
    if ask := format in ("mmaction2_dot_product", "mmaction2_embedded_gaussian"):
        with pytest.raises(ValueError, match="'mmaction2_dot_product' and 'mmaction2_embedded_gaussian', and their"):
            flaxvid.load_model(name, state_dict, **options)
    check(state_dict, expected, clip, name, format, implied, relative_error, options, ask)


class Wrapper(nn.Module):
    """mmaction2's NL3DWrapper: a 2-D block, and a non-local one that sees the frames of a clip."""

    def __init__(self, block, channels, frames, mode):
        super().__init__()
        self.block, self.non_local_block, self.frames = block, NonLocal3d(channels, mode), frames

    def forward(self, x):
        x = self.block(x).unflatten(0, (-1, self.frames)).transpose(1, 2)
        return self.non_local_block(x).transpose(1, 2).flatten(0, 1)


@pytest.mark.parametrize("mode", ["dot_product", "embedded_gaussian", "gaussian"])
def test_tsm(torchvision_models, insert_shift, randomised, relative_error, mode):
    frames, depths, resnet = 4, (1, 2, 3, 1), torchvision_models.resnet
    net = resnet.ResNet(resnet.Bottleneck, depths, CLASSES)
    insert_shift(net, frames)
    for stage, channels in ((net.layer2, 512), (net.layer3, 1024)):
        for index in range(0, len(stage), 2):
            stage[index] = Wrapper(stage[index], channels, frames, mode)
    randomised(net, small=True)
    clip, state_dict = random_clip(frames), {}
    with torch.no_grad():
        logits = net(torch.from_numpy(clip).flatten(0, 1).permute(0, 3, 1, 2))
    for key, tensor in net.state_dict().items():
        if "non_local" not in key:
            key = re.sub(r"\bconv(\d)\.", r"conv\1.conv.", key)
            key = re.sub(r"\bbn(\d)\.", r"conv\1.bn.", key)
            key = key.replace("downsample.0.", "downsample.conv.").replace("downsample.1.", "downsample.bn.")
        key = re.sub(r"^fc\.", "cls_head.fc_cls.", key)
        state_dict[key if key.startswith("cls_head") else f"backbone.{key}"] = tensor
    name, options = "tsm_nln_resnet50", {"depths": depths}
    if ask := mode != "gaussian":
        with pytest.raises(ValueError, match="'mmaction2_dot_product' and 'mmaction2_embedded_gaussian', and their"):
            flaxvid.load_model(name, state_dict, **options)
    implied = {} if mode == "dot_product" else {"non_local": every_second(mode)}
    expected = logits.unflatten(0, (1, frames)).mean(1)
    check(state_dict, expected, clip, name, f"mmaction2_{mode}", implied, relative_error, options, ask)
