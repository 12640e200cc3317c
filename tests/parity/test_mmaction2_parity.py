"""mmaction2's 3-D networks, written in torch by its own names, against ours with the imported weights; and back.

mmaction2 does not install beside a torch of today. So the layers here are by what its sources say, for narrow and
shallow networks; the names are the files'. Every tensor is random, with variances of 0.01 to 1.
"""

import re

import jax
import numpy as np
import pytest

import flaxvid
from flaxvid.models.spec import IMAGENET

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn.functional import max_pool3d  # noqa: E402

CLASSES = 11


class Unit(nn.Module):
    """A convolution, and a norm and a ReLU if asked for: mmcv's ConvModule."""

    def __init__(self, inputs, outputs, kernel, strides=1, *, norm=True, relu=True, epsilon=1e-5, groups=1):
        super().__init__()
        padding = [size // 2 for size in kernel]
        self.conv = nn.Conv3d(inputs, outputs, kernel, strides, padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm3d(outputs, epsilon) if norm else None
        self.relu = relu

    def forward(self, x):
        x = self.conv(x)
        x = x if self.bn is None else self.bn(x)
        return torch.relu(x) if self.relu else x


class Bottleneck(nn.Module):
    """mmaction2's Bottleneck3d; with `depthwise` its CSNBottleneck3d, of mode "ip" with `mixing`."""

    def __init__(self, inputs, width, strides, kernel, depthwise=False, mixing=False, epsilon=1e-5):
        super().__init__()
        first, second = ((1, 1, 1), (3, 3, 3)) if depthwise else ((kernel, 1, 1), (1, 3, 3))
        self.conv1 = Unit(inputs, width, first, epsilon=epsilon)
        conv2 = Unit(width, width, second, strides, groups=width if depthwise else 1, epsilon=epsilon)
        mix = [Unit(width, width, (1, 1, 1), relu=False, epsilon=epsilon)] if mixing else []
        self.conv2 = nn.Sequential(*mix, conv2) if depthwise else conv2
        self.conv3 = Unit(width, 4 * width, (1, 1, 1), relu=False, epsilon=epsilon)
        self.downsample = None
        if inputs != 4 * width or max(strides) > 1:
            self.downsample = Unit(inputs, 4 * width, (1, 1, 1), strides, relu=False, epsilon=epsilon)

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        return torch.relu(self.conv3(self.conv2(self.conv1(x))) + shortcut)


class Pathway(nn.Module):
    """A stem and stages: mmaction2's ResNet3d; with `flat` and kernels of one frame what its C2D computes."""

    def __init__(
        self,
        width,
        kernels,
        stem=1,
        stem_stride=1,
        pool2=False,
        flat=False,
        temporal_strides=(1, 1, 1, 1),
        lateral=(0, 0, 0, 0),
        **options,
    ):
        super().__init__()
        self.pool1, self.pool2 = ((stem_stride, 2, 2), (0, 0, 0) if flat else (0, 1, 1)), pool2
        self.conv1 = Unit(3, width, (stem, 7, 7), (stem_stride, 2, 2), epsilon=options.get("epsilon", 1e-5))
        inputs = width
        for stage, per_block in enumerate(kernels):
            inner, blocks, inputs = width * 2**stage, [], inputs + lateral[stage]
            for index, kernel in enumerate(per_block):
                strided = (temporal_strides[stage], *(2 if stage else 1,) * 2) if index == 0 else (1, 1, 1)
                blocks.append(Bottleneck(inputs, inner, strided, kernel, **options))
                inputs = 4 * inner
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.stages = [getattr(self, f"layer{stage + 1}") for stage in range(len(kernels))]

    def stem(self, x):
        return max_pool3d(self.conv1(x), (1, 3, 3), *self.pool1)

    def forward(self, x):
        x = self.stem(x)
        for index, stage in enumerate(self.stages):
            x = stage(x)
            x = max_pool3d(x, (2, 1, 1), (2, 1, 1)) if index == 0 and self.pool2 else x
        return x


class Recognizer(nn.Module):
    """A backbone and the mean of what it gives, behind which stands the classifier."""

    def __init__(self, backbone, features):
        super().__init__()
        self.backbone, self.cls_head = backbone, nn.ModuleDict({"fc_cls": nn.Linear(features, CLASSES)})

    def forward(self, x):
        return self.cls_head["fc_cls"](self.backbone(x).mean((2, 3, 4)))


def random_clip(shape, seed=0):
    return np.random.default_rng(seed).standard_normal((1, *shape, 3)).astype(np.float32)


def check(net, name, format, implied, clip, relative_error, state_dict=None, ask=False, **options):
    """`load_model` computes what the network computes; `load_torch` asks for what is implied; and back."""
    with torch.no_grad():
        expected = net(torch.from_numpy(clip).permute(0, 4, 1, 2, 3))
    state_dict = net.state_dict() if state_dict is None else state_dict
    asked = {"format": format} if ask else {}
    model, variables = flaxvid.load_model(name, state_dict, **asked, **options)
    error = relative_error(jax.jit(model.apply)(variables, clip), expected)
    print(f"{name}, {format}, {clip.shape[1:4]}: relative error {error:.1e}")
    assert error < 1e-4
    for option in implied.keys() & {"mean", "std"}:
        assert getattr(model.clip, option) == implied[option]
    with pytest.raises(ValueError, match=re.escape(f"is of {format!r}, whose {name} has")) as refusal:
        flaxvid.load_torch(name, state_dict, **asked, overrides=options)
    assert f"overrides={implied!r}" in str(refusal.value)
    exported = flaxvid.to_torch(name, variables, format, overrides={**options, **implied})
    assert exported.keys() == state_dict.keys()
    for key, tensor in state_dict.items():
        np.testing.assert_array_equal(exported[key], tensor.numpy(), err_msg=key)


@pytest.mark.parametrize("name", ["slow_r50", "slow_r101"])
def test_slow(randomised, relative_error, name):
    net = randomised(Recognizer(Pathway(8, ((1, 1), (1,), (3, 3), (3,))), 256), small=True)
    options = {"width": 8, "depths": (2, 1, 2, 1)}
    check(net, name, "mmaction2", IMAGENET, random_clip((5, 64, 48)), relative_error, **options)


def test_i3d(randomised, relative_error):
    net = Pathway(8, ((3,), (3, 1), (3, 1, 3), (1, 3)), stem=5, stem_stride=2, pool2=True)
    implied = {**IMAGENET, "stem_stride": 2}
    clip, options = random_clip((16, 64, 48)), {"width": 8, "depths": (1, 2, 3, 2)}
    check(
        randomised(Recognizer(net, 256), small=True), "i3d_r50", "mmaction2", implied, clip, relative_error, **options
    )


def test_c2d(randomised, relative_error):
    """Its kernels are 2-D in the file, and its first max-pool is not padded."""
    net = randomised(Recognizer(Pathway(8, ((1,), (1, 1), (1,), (1,)), flat=True, pool2=True), 256), small=True)
    flat = {key: tensor.squeeze(2) if tensor.ndim == 5 else tensor for key, tensor in net.state_dict().items()}
    implied, options = {**IMAGENET, "stem_pool": "unpadded"}, {"width": 8, "depths": (1, 2, 1, 1)}
    with pytest.raises(ValueError, match="fits two formats of c2d_r50, 'mmaction2' and 'mmaction2_nopool'"):
        flaxvid.load_model("c2d_r50", flat, **options)
    clip = random_clip((4, 64, 48))
    check(net, "c2d_r50", "mmaction2", implied, clip, relative_error, flat, ask=True, **options)


def test_c2d_without_its_pool(torchvision_models, randomised, relative_error):
    """It is a TSN: logits of frames, and their mean. Of Caffe2's only the network without the pool is published."""
    resnet, depths = torchvision_models.resnet, (1, 2, 1, 1)
    net = randomised(resnet.ResNet(resnet.Bottleneck, depths, CLASSES), small=True)
    clip, flat = random_clip((4, 64, 48)), {}
    with torch.no_grad():
        expected = net(torch.from_numpy(clip[0]).permute(0, 3, 1, 2)).mean(0, keepdim=True)
    for key, tensor in net.state_dict().items():
        key = re.sub(r"\b(conv|bn)(\d)\.", lambda found: f"conv{found[2]}.{found[1]}.", f"backbone.{key}")
        key = key.replace("downsample.0", "downsample.conv").replace("downsample.1", "downsample.bn")
        flat[key.replace("backbone.fc", "cls_head.fc_cls")] = tensor
    for name, format in (("c2d_r50", "mmaction2_nopool"), ("tsn_resnet50", "mmaction2")):
        model, variables = flaxvid.load_model(name, flat, format=format, depths=depths)
        assert relative_error(jax.jit(model.apply)(variables, clip), expected) < 1e-4
    options = {"depths": depths, "pool": False}
    written = flaxvid.to_torch(
        "c2d_r50", flaxvid.load_torch("c2d_r50", flat, overrides={**options, **IMAGENET}), "caffe2"
    )
    with pytest.raises(ValueError, match="fits two formats of c2d_r50, 'caffe2' and 'caffe2_nopool'"):
        flaxvid.load_model("c2d_r50", written, depths=depths)
    model, variables = flaxvid.load_model("c2d_r50", written, **options)  # what the caller says decides
    assert relative_error(jax.jit(model.apply)(variables, clip), expected) < 1e-4


SPORTS1M = {"mean": (0.43216, 0.394666, 0.37645), "std": (0.22803, 0.22145, 0.216989)}


@pytest.mark.parametrize("name", ["csn_r152", "ipcsn_r152"])
@pytest.mark.parametrize(("format", "pixels"), [("mmaction2", IMAGENET), ("mmaction2_sports1m", SPORTS1M)])
def test_csn(randomised, relative_error, name, format, pixels):
    """No tensor tells of the pixels, so who loads is asked."""
    strides, csn = (1, 2, 2, 2), {"depthwise": True, "mixing": name == "ipcsn_r152", "epsilon": 1e-3}
    backbone = Pathway(8, ((3, 3), (3,), (3,), (3,)), 3, temporal_strides=strides, **csn)
    net, options = randomised(Recognizer(backbone, 256), small=True), {"width": 8, "depths": (2, 1, 1, 1)}
    call = f'flaxvid.load_model("{name}", state_dict, format='
    with pytest.raises(ValueError, match=f"fits two formats of {name}") as error:
        flaxvid.load_model(name, net.state_dict(), **options)
    assert all(f'{call}"{fmt}")' in str(error.value) for fmt in ("mmaction2", "mmaction2_sports1m"))
    implied = {**pixels, "norm_epsilon": 1e-3}
    clip = random_clip((9, 64, 48))
    check(net, name, format, implied, clip, relative_error, ask=True, **options)


class SlowFast(nn.Module):
    """mmaction2's ResNet3dSlowFast: every so-manieth frame is slow, and the fast feature comes first."""

    def __init__(self, alpha, fusion, norm):
        super().__init__()
        self.alpha = alpha
        self.slow_path = Pathway(16, ((1,), (1,), (3, 3), (3,)), lateral=(4, 16, 32, 64))
        self.fast_path = Pathway(2, ((3,), (3,), (3,), (3,)), stem=5)
        for name, channels in (("conv1", 2), ("layer1", 8), ("layer2", 16), ("layer3", 32)):
            unit = Unit(channels, 2 * channels, (fusion, 1, 1), (alpha, 1, 1), norm=norm, relu=norm)
            setattr(self.slow_path, f"{name}_lateral", unit)

    def forward(self, x):
        slow = nn.functional.interpolate(x, mode="nearest", scale_factor=(1 / self.alpha, 1.0, 1.0))
        slow, fast = self.slow_path.stem(slow), self.fast_path.stem(x)
        for stage, before in zip((1, 2, 3, 4), ("conv1", "layer1", "layer2", "layer3"), strict=True):
            slow = torch.cat([slow, getattr(self.slow_path, f"{before}_lateral")(fast)], 1)
            slow, fast = (getattr(p, f"layer{stage}")(y) for p, y in ((self.slow_path, slow), (self.fast_path, fast)))
        return torch.cat([y.mean((2, 3, 4), keepdim=True) for y in (fast, slow)], 1)


SLOWFAST = {**IMAGENET, "slow_sampling": "stride", "lateral_norm": False}


@pytest.mark.parametrize(
    ("name", "format", "alpha", "fusion", "norm", "implied"),
    [
        ("slowfast_r50", "mmaction2", 4, 7, False, SLOWFAST),
        ("slowfast_r50", "mmaction2_norm", 4, 7, True, {**IMAGENET, "slow_sampling": "stride"}),
        ("slowfast_r50", "mmaction2_4x16", 8, 5, False, {**SLOWFAST, "alpha": 8, "fusion_kernel": 5}),
        ("slowfast_r101", "mmaction2", 4, 7, False, {**SLOWFAST, "fusion_kernel": 7}),
    ],
)
def test_slowfast(randomised, relative_error, name, format, alpha, fusion, norm, implied):
    net = randomised(Recognizer(SlowFast(alpha, fusion, norm), 576), small=True)
    options = {"width": 16, "depths": (1, 1, 2, 1), "fast_depths": (1, 1, 1, 1)}
    check(net, name, format, implied, random_clip((16, 64, 48)), relative_error, **options)


class Pair(nn.Module):
    """mmaction2's Conv2plus1d."""

    def __init__(self, inputs, outputs, kernel, strides):
        super().__init__()
        (t, size, _), (stride_t, stride, _) = kernel, strides
        between = int(3 * inputs * outputs * size**2 / (inputs * size**2 + 3 * outputs))
        space, time = (1, size, size), (t, 1, 1)
        self.conv_s = nn.Conv3d(inputs, between, space, (1, stride, stride), (0, size // 2, size // 2), bias=False)
        self.bn_s = nn.BatchNorm3d(between, 1e-3)
        self.conv_t = nn.Conv3d(between, outputs, time, (stride_t, 1, 1), (t // 2, 0, 0), bias=False)

    def forward(self, x):
        return self.conv_t(torch.relu(self.bn_s(self.conv_s(x))))


class PairUnit(nn.Module):
    """A `Pair`, its norm, and a ReLU if asked for."""

    def __init__(self, inputs, outputs, kernel, strides=(1, 1, 1), relu=True):
        super().__init__()
        self.conv, self.bn, self.relu = Pair(inputs, outputs, kernel, strides), nn.BatchNorm3d(outputs, 1e-3), relu

    def forward(self, x):
        x = self.bn(self.conv(x))
        return torch.relu(x) if self.relu else x


class PairBlock(nn.Module):
    """mmaction2's BasicBlock3d of pairs."""

    def __init__(self, inputs, width, strides):
        super().__init__()
        self.conv1 = PairUnit(inputs, width, (3, 3, 3), strides)
        self.conv2 = PairUnit(width, width, (3, 3, 3), relu=False)
        strided = max(strides) > 1
        self.downsample = PairUnit(inputs, width, (1, 1, 1), strides, relu=False) if strided else nn.Identity()

    def forward(self, x):
        return torch.relu(self.conv2(self.conv1(x)) + self.downsample(x))


class PairNet(nn.Module):
    """mmaction2's ResNet2Plus1d."""

    def __init__(self, width, depths):
        super().__init__()
        self.conv1 = PairUnit(3, width, (3, 7, 7), (1, 2, 2))
        inputs = width
        for stage, depth in enumerate(depths):
            blocks = []
            for index in range(depth):
                blocks.append(PairBlock(inputs, width * 2**stage, (2,) * 3 if stage and not index else (1,) * 3))
                inputs = width * 2**stage
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))

    def forward(self, x):
        x = max_pool3d(self.conv1(x), (1, 3, 3), (1, 2, 2), (0, 1, 1))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


def test_r2plus1d(randomised, relative_error):
    net, options = Recognizer(PairNet(8, (1, 2, 1, 1)), 64), {"width": 8, "depths": (1, 2, 1, 1)}
    implied = {"norm_epsilon": 1e-3, "stem_by_rule": True, "stem_pool": "space", "paired_shortcut": True, **IMAGENET}
    clip = random_clip((9, 64, 48))
    check(randomised(net, small=True), "r2plus1d_r34", "mmaction2", implied, clip, relative_error, **options)
