"""The networks of Hara et al. (kenshohara/3D-ResNets-PyTorch), written in torch by their names, against ours; and back.

Their repository does not install, so the layers are by what its sources say, for narrow networks.
"""

import jax
import numpy as np
import pytest

import flaxvid

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

CLASSES = 11


def conv(inputs, outputs, kernel, strides=(1, 1, 1)):
    return nn.Conv3d(inputs, outputs, kernel, strides, [size // 2 for size in kernel], bias=False)


def between(inputs, outputs, frames=3, size=3):
    return inputs * outputs * frames * size**2 // (inputs * size**2 + frames * outputs)


class Net(nn.Module):
    """Layers by name: convolutions, each with the norm of its name, and a ReLU behind all but a block's last."""

    def add(self, number, inputs, outputs, kernel, strides=(1, 1, 1), axis=""):
        setattr(self, f"conv{number}{axis}", conv(inputs, outputs, kernel, strides))
        setattr(self, f"bn{number}{axis}", nn.BatchNorm3d(outputs))
        return f"{number}{axis}"

    def add_pair(self, number, inputs, outputs, strides=(1, 1, 1), kernel=(3, 3)):
        (frames, size), (t, h, w) = kernel, strides
        middle = between(inputs, outputs, frames, size)
        return (
            self.add(number, inputs, middle, (1, size, size), (1, h, w), "_s"),
            self.add(number, middle, outputs, (frames, 1, 1), (t, 1, 1), "_t"),
        )

    def run(self, x, names, last_relu=True):
        for name in names:
            x = getattr(self, f"bn{name}")(getattr(self, f"conv{name}")(x))
            x = torch.relu(x) if last_relu or name != names[-1] else x
        return x


class Block(Net):
    """The repository's BasicBlock or Bottleneck, of its resnet or its resnet2p1d."""

    def __init__(self, inputs, width, stride, deep, paired):
        super().__init__()
        outputs, strides = width * (4 if deep else 1), (stride,) * 3
        add = self.add_pair if paired else lambda n, i, o, s=(1, 1, 1): (self.add(n, i, o, (3, 3, 3), s),)
        if deep:
            first, last = self.add(1, inputs, width, (1, 1, 1)), None
            middle = add(2, width, width, strides)
            last = self.add(3, width, outputs, (1, 1, 1))
            self.names = (first, *middle, last)
        else:
            self.names = (*add(1, inputs, width, strides), *add(2, width, width))
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(conv(inputs, outputs, (1, 1, 1), strides), nn.BatchNorm3d(outputs))

    def forward(self, x):
        shortcut = self.downsample(x) if hasattr(self, "downsample") else x
        return torch.relu(self.run(x, self.names, last_relu=False) + shortcut)


class ResNet(Net):
    """A stem over seven frames, a max-pool over 3x3x3, four stages."""

    def __init__(self, width, depths, deep, paired):
        super().__init__()
        strides = (1, 2, 2)
        self.names = (
            self.add_pair(1, 3, width, strides, (7, 7)) if paired else (self.add(1, 3, width, (7, 7, 7), strides),)
        )
        inputs = width
        for stage, depth in enumerate(depths):
            blocks = []
            for index in range(depth):
                blocks.append(Block(inputs, width * 2**stage, 2 if stage and not index else 1, deep, paired))
                inputs = width * 2**stage * (4 if deep else 1)
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, CLASSES)

    def forward(self, x):
        x = nn.functional.max_pool3d(self.run(x, self.names), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3, 4)))


@pytest.mark.parametrize("name", ["r3d_resnet34", "r3d_resnet200", "r2plus1d_resnet18", "r2plus1d_resnet50"])
def test_logits_and_tensors(randomised, relative_error, name):
    depths = (2, 1, 1, 1)
    net = randomised(ResNet(8, depths, name.endswith("0"), name.startswith("r2plus1d")), small=True)
    state_dict, options = net.state_dict(), {"width": 8, "depths": depths}
    clip = np.random.default_rng(0).standard_normal((1, 11, 64, 48, 3)).astype(np.float32)
    with torch.no_grad():
        expected = net(torch.from_numpy(clip).permute(0, 4, 1, 2, 3))
    wrapped = {
        "state_dict": {f"module.{key}": tensor for key, tensor in state_dict.items()},
        "arch": "resnet",
        "epoch": 200,
    }
    model, variables = flaxvid.load_model(name, wrapped, **options)
    assert (model.clip.mean, model.clip.std) == ((0.4345, 0.4051, 0.3775), (0.2768, 0.2713, 0.2737))
    error = relative_error(jax.jit(model.apply)(variables, clip), expected)
    print(f"{name}: relative error {error:.1e}")
    assert error < 1e-4
    jax.tree.map(np.testing.assert_array_equal, flaxvid.load_torch(name, wrapped, overrides=options), variables)
    exported = flaxvid.to_torch(name, variables, overrides=options)
    assert exported.keys() == state_dict.keys()
    for key, tensor in state_dict.items():
        np.testing.assert_array_equal(exported[key], tensor.numpy(), err_msg=key)
