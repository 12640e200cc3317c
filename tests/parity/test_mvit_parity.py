"""MViT against torchvision and pytorchvideo, with the imported weights."""

import jax
import numpy as np
import pytest

import flaxvid
from flaxvid.models.registry import get_spec

torch = pytest.importorskip("torch")

OURS = {"num_classes": 13, "num_frames": 6, "image_size": 64, "width": 24, "stages": (1, 3), "depth": 4}
CASES = {"torchvision, first": "mvit_base", "torchvision, second": "mvit_v2_s", "pytorchvideo": "mvit_base"}


def torchvision_net(models, version):
    """The first four blocks of torchvision's two networks, a quarter as wide."""
    mvit = models.video.mvit
    heads, inner, outer, strides = (1, 2, 2, 4), (24, 48, 48, 96), (48, 48, 96, 96), ((), (1, 2, 2), (), (1, 2, 2))
    if version == 2:
        inner, outer, strides = (24, 24, 48, 48), (24, 48, 48, 96), ([1] * 3, (1, 2, 2), [1] * 3, (1, 2, 2))
    blocks = [
        mvit.MSBlockConfig(
            heads[i], inner[i], outer[i], [3] * 3 if strides[i] else [], [3] * 3, list(strides[i]), [1, stride, stride]
        )
        for i, stride in enumerate((8, 4, 4, 2))
    ]
    second = version == 2
    return mvit.MViT((64, 64), 6, blocks, second, False, rel_pos_embed=second, proj_after_attn=second, num_classes=13)


def pytorchvideo_net(hub):
    """Pytorchvideo's network with four blocks, a quarter as wide."""
    return hub.mvit_base_16x4(
        spatial_size=64,
        temporal_size=6,
        depth=4,
        patch_embed_dim=24,
        embed_dim_mul=[[1, 2.0], [3, 2.0]],
        atten_head_mul=[[1, 2.0], [3, 2.0]],
        pool_q_stride_size=[[1, 1, 2, 2], [3, 1, 2, 2]],
        head_num_classes=13,
    )


@pytest.fixture(scope="module", params=CASES)
def pair(request, torchvision_models, randomised):
    """Our model with the reference's random weights, and the reference."""
    name, fmt = CASES[request.param], request.param.partition(",")[0]
    if fmt == "torchvision":
        net = torchvision_net(torchvision_models, 2 if "v2" in name else 1)
    else:
        net = pytorchvideo_net(request.getfixturevalue("pytorchvideo_hub"))
    net = randomised(net)
    model, variables = flaxvid.load_model(name, net.state_dict(), **OURS)
    return name, fmt, model, variables, net


def test_logits(pair, relative_error):
    _, _, model, variables, net = pair
    video = np.random.default_rng(0).standard_normal((2, 6, 64, 64, 3)).astype(np.float32)
    with torch.no_grad():
        reference = net(torch.from_numpy(video).permute(0, 4, 1, 2, 3))
    error = relative_error(jax.jit(model.apply)(variables, video), reference)
    print(f"{type(net).__name__}: relative error {error:.1e}")
    assert error < 1e-4


def test_export_gives_the_same_tensors(pair):
    name, fmt, _, variables, net = pair
    options = {option: value for option, value in OURS.items() if option != "num_classes"}
    exported = flaxvid.to_torch(name, variables, fmt, overrides={**options, **get_spec(name).formats[fmt].overrides})
    assert exported.keys() == net.state_dict().keys()
    for key, tensor in net.state_dict().items():
        np.testing.assert_array_equal(exported[key], tensor.numpy(), err_msg=key)
