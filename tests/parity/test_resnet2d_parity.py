"""TSN and TSM on torchvision's ResNets, the shift written in torch here, against ours with the imported weights."""

import jax
import numpy as np
import pytest

import flaxvid
from flaxvid import trees
from flaxvid.models.registry import create_model

torch = pytest.importorskip("torch")
PARAMETERS = {18: 11_176_512, 34: 21_284_672, 50: 23_508_032, 101: 42_500_160, 152: 58_143_808}


def to_torch_video(video):
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    normal = torch.from_numpy((video / 255.0 - mean) / std).float()
    return normal.flatten(0, 1).permute(0, 3, 1, 2)  # (b * t, c, h, w)


@pytest.mark.parametrize(
    ("name", "frames"), [("tsm_resnet18", 8), ("tsm_resnet50", 8), ("tsm_resnet101", 4), ("tsn_resnet50", 4)]
)
def test_logits(torchvision_models, insert_shift, randomised, relative_error, name, frames):
    depth = name.removeprefix("tsm_").removeprefix("tsn_")
    net = randomised(getattr(torchvision_models, depth)(num_classes=13))
    plain_keys = net.state_dict()
    if name.startswith("tsm"):
        insert_shift(net, frames)
    video = np.random.default_rng(0).integers(0, 256, (2, frames, 64, 64, 3), np.uint8)
    with torch.no_grad():
        expected = net(to_torch_video(video)).unflatten(0, (2, frames)).mean(1)
    model = create_model(name, num_classes=13)
    variables = flaxvid.load_torch(name, plain_keys)
    error = relative_error(jax.jit(model.apply)(variables, video), expected)
    print(f"{name}, {frames} frames: relative error {error:.1e}")
    assert error < 1e-4

    # The module with `.net` keys is the TSM authors' naming but for base_model and the classifier: the same variables.
    again = trees.flatten(flaxvid.load_torch(name, net.state_dict()))
    assert all((leaf == again[path]).all() for path, leaf in trees.flatten(variables).items())


@pytest.mark.parametrize("depth", PARAMETERS)
def test_keys_shapes_and_counts(torchvision_models, check_strict_export, depth):
    with torch.device("meta"):
        net = getattr(torchvision_models, f"resnet{depth}")()
    shapes = check_strict_export(f"tsn_resnet{depth}", net, num_classes=1000)
    count = sum(leaf.size for part in ("stem", "body") for leaf in jax.tree.leaves(shapes["params"][part]))
    assert count == PARAMETERS[depth]


def test_export_loads_into_torch(torchvision_models, randomised):
    """Through a file with the TSM authors' wrapping, into ours, and back into torch with strict keys."""
    net = randomised(torchvision_models.resnet18(num_classes=7))
    variables = flaxvid.load_torch(
        "tsm_resnet18", {"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}
    )
    exported = flaxvid.to_torch("tsm_resnet18", variables, format="torchvision")
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    randomised(net, seed=1)
    net.load_state_dict({key: torch.from_numpy(array) for key, array in exported.items()}, strict=True)
    assert all(torch.equal(net.state_dict()[key], tensor) for key, tensor in before.items())
