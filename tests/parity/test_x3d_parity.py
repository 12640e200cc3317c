"""X3D against pytorchvideo, with the imported weights; back and forth without a change."""

import jax
import numpy as np
import pytest

import flaxvid
from flaxvid.models.registry import create_model

torch = pytest.importorskip("torch")

CLASSES = 13
# Each at its own clip and at another length and size.
CASES = {
    "x3d_xs": ((4, 160, 160), (7, 96, 128)),
    "x3d_s": ((13, 160, 160), (6, 128, 96)),
    "x3d_m": ((16, 224, 224), (5, 96, 112)),
    "x3d_l": ((16, 312, 312), (3, 96, 80)),
}


def random_clip(shape, seed=0):
    return np.random.default_rng(seed).standard_normal((1, *shape, 3)).astype(np.float32)


def outputs(net, video):
    with torch.no_grad():
        return net(torch.from_numpy(video).permute(0, 4, 1, 2, 3))


@pytest.mark.parametrize("name", CASES)
def test_logits_and_tensors(pytorchvideo_hub, randomised, relative_error, check_same_tensors, name):
    net = randomised(getattr(pytorchvideo_hub, name)(model_num_class=CLASSES))
    head = net.blocks[5]
    assert isinstance(head.activation, torch.nn.Softmax)
    variables = flaxvid.load_torch(name, net.state_dict())
    model = create_model(name, num_classes=CLASSES)
    for shape in CASES[name]:
        if shape != CASES[name][0]:
            head.pool.pool = torch.nn.AdaptiveAvgPool3d(1)  # the reference's has the size of the training crop
        video = random_clip(shape)
        ours = jax.jit(model.apply)(variables, video)
        if shape[0] < 8:
            np.testing.assert_allclose(jax.nn.softmax(ours), outputs(net, video), rtol=1e-3, atol=1e-6)
        softmax, head.activation = head.activation, None
        error = relative_error(ours, outputs(net, video))
        head.activation = softmax
        print(f"{name}, {shape}: relative error {error:.1e}")
        assert error < 1e-4
    check_same_tensors(name, variables, net)


@pytest.mark.parametrize("name", CASES)
def test_keys_shapes_and_counts(pytorchvideo_hub, check_strict_export, name):
    with torch.device("meta"):
        net = getattr(pytorchvideo_hub, name)()
    check_strict_export(name, net)
