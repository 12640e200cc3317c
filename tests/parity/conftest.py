"""What the parity tests share. They need torch and torchvision, and are skipped without (`.ci/run` installs both)."""

import contextlib
import importlib.util
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import flaxvid


@pytest.fixture(scope="session")
def torchvision_models():
    """`torchvision.models`, also where torchvision is installed without its C++ operators."""
    torch = pytest.importorskip("torch")
    spec = importlib.util.find_spec("torchvision")
    for binary in Path(spec.origin).parent.glob("_C*.so") if spec else ():
        with contextlib.suppress(OSError):  # built for another torch
            torch.ops.load_library(binary)
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):  # to declare it twice ends the process
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    yield pytest.importorskip("torchvision.models")
    del library


@pytest.fixture(scope="session")
def pytorchvideo_hub(torchvision_models):
    """`pytorchvideo.models.hub`, which asks for a module of torchvision by the name that it had."""
    functional = pytest.importorskip("torchvision.transforms.functional")
    sys.modules.setdefault("torchvision.transforms.functional_tensor", functional)
    return pytest.importorskip("pytorchvideo.models.hub")


@pytest.fixture(scope="session")
def insert_shift():
    """Puts TSM's temporal shift, written in torch, in front of every so-manieth block of torchvision's ResNet."""
    torch = pytest.importorskip("torch")

    class Shift(torch.nn.Module):
        """A convolution behind a shift of an eighth of the channels each way; frames are part of the batch."""

        def __init__(self, net, frames):
            super().__init__()
            self.net, self.frames = net, frames

        def forward(self, x):
            clip = x.unflatten(0, (-1, self.frames))  # (b, t, c, h, w)
            fold = clip.shape[2] // 8
            out = clip.clone()
            out[:, :, : 2 * fold] = 0
            out[:, :-1, :fold] = clip[:, 1:, :fold]
            out[:, 1:, fold : 2 * fold] = clip[:, :-1, fold : 2 * fold]
            return self.net(out.flatten(0, 1))

    def insert(net, frames, every=1):
        for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
            for block in list(stage)[::every]:
                block.conv1 = Shift(block.conv1, frames)

    return insert


@pytest.fixture(scope="session")
def randomised():
    """Randomises every tensor of a torch module, as references start many at constants, which would hide a slip.

    With `small` variances, of 0.01 to 1, another epsilon shows; the scales are then smaller too, so that deep networks
    stay finite.
    """

    def randomise(module, seed=0, small=False):
        torch = pytest.importorskip("torch")
        generator = torch.Generator().manual_seed(seed)

        def uniform(tensor, low, high):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

        with torch.no_grad():
            for name, tensor in module.state_dict().items():
                if name.endswith("num_batches_tracked"):
                    continue
                if name.endswith("running_var"):
                    uniform(tensor, *((0.01, 1) if small else (0.5, 1.5)))
                elif name.endswith("weight") and tensor.ndim == 1:
                    uniform(tensor, *((0.2, 0.6) if small else (0.5, 1.5)))
                elif tensor.ndim == 1 or "adaconv" in name:
                    uniform(tensor, -0.2, 0.2)
                else:  # a kernel that keeps the size of the activations
                    tensor.normal_(0, (1 / tensor[0].numel()) ** 0.5, generator=generator)
        return module.eval()

    return randomise


@pytest.fixture(scope="session")
def relative_error():
    def error(ours, reference):
        ours, reference = np.asarray(ours, np.float64), reference.detach().double().numpy()
        assert ours.shape == reference.shape
        assert np.isfinite(reference).all()
        return np.abs(ours - reference).max() / np.abs(reference).max()

    return error


@pytest.fixture(scope="session")
def check_same_tensors():
    """Checks that export gives the tensors of a torch module."""

    def check(name, variables, net):
        exported = flaxvid.to_torch(name, variables)
        assert exported.keys() == net.state_dict().keys()
        for key, tensor in net.state_dict().items():
            np.testing.assert_array_equal(exported[key], tensor.numpy(), err_msg=key)

    return check


@pytest.fixture(scope="session")
def check_strict_export():
    """Checks that export has the keys, shapes and counts of a torch module, so that strict `load_state_dict` takes it.

    Gives the shapes of our variables.
    """

    def check(name, net, **overrides):
        model = flaxvid.create_model(name, **overrides)
        shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 4, 32, 32, 3), np.uint8))
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == sum(p.numel() for p in net.parameters())
        variables = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes)
        exported = flaxvid.to_torch(name, variables, overrides=overrides)
        assert {key: array.shape for key, array in exported.items()} == {
            key: tuple(tensor.shape) for key, tensor in net.state_dict().items()
        }
        return shapes

    return check
