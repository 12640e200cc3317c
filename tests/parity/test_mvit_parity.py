"""MViT against torchvision and pytorchvideo, with the imported weights."""

import re

import jax
import numpy as np
import pytest

from flaxvid import trees
from flaxvid.models.registry import create_model, get_spec
from flaxvid.weights.keys import from_torch_layout, torch_key

torch = pytest.importorskip("torch")

OURS = {"num_classes": 13, "num_frames": 6, "image_size": 64, "width": 24, "stages": (1, 3), "depth": 4}
CASES = {
    "torchvision, first": ("mvit_base", {}),
    "torchvision, second": ("mvit_v2_s", {}),
    "pytorchvideo": ("mvit_base", {"pool_epsilon": 1e-5}),
}


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


def imported(name, fmt, model, state_dict):
    """The state_dict as our variables; nothing may be left over."""
    size = model.clip.image_size
    video = jax.ShapeDtypeStruct((1, model.clip.num_frames, size, size, 3), np.float32)
    shapes = trees.flatten(jax.eval_shape(model.init, jax.random.key(0), video))
    table, left, found = get_spec(name).formats[fmt].keys, dict(state_dict), {}
    for path, shape in shapes.items():
        key = torch_key(path, table)
        several = re.fullmatch(r"(.*)\{(.*)\}(.*)", key)
        keys = [several[1] + part + several[3] for part in several[2].split(",")] if several else [key]
        array = from_torch_layout(path, np.concatenate([left.pop(key).numpy() for key in keys]))
        found[path] = array.reshape(shape.shape) if array.size == max(array.shape) else array
        if path.endswith(("positions", "times")):
            found[path] = array.reshape(array.shape[-2:])
        assert found[path].shape == shape.shape, path
    assert left == {}
    return trees.unflatten(found)


@pytest.fixture(scope="module", params=CASES)
def pair(request, torchvision_models, randomised):
    """Our model with the reference's random weights, and the reference."""
    name, options = CASES[request.param]
    fmt = request.param.partition(",")[0]
    if fmt == "torchvision":
        net = torchvision_net(torchvision_models, 2 if "v2" in name else 1)
    else:
        net = pytorchvideo_net(request.getfixturevalue("pytorchvideo_hub"))
    net = randomised(net)
    model = create_model(name, **OURS, **options)
    return model, imported(name, fmt, model, net.state_dict()), net


def test_logits(pair, relative_error):
    model, variables, net = pair
    video = np.random.default_rng(0).standard_normal((2, 6, 64, 64, 3)).astype(np.float32)
    with torch.no_grad():
        reference = net(torch.from_numpy(video).permute(0, 4, 1, 2, 3))
    error = relative_error(jax.jit(model.apply)(variables, video), reference)
    print(f"{type(net).__name__}: relative error {error:.1e}")
    assert error < 1e-4
