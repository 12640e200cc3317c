"""VideoMAE, ViViT and TimeSformer against transformers, with the imported weights; and back without a change."""

import re

import jax
import numpy as np
import pytest

from flaxvid import trees
from flaxvid.models.registry import create_model, get_spec
from flaxvid.weights.keys import from_torch_layout, torch_key

torch = pytest.importorskip("torch")

SIZES = {
    "num_labels": 13,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 192,
    "image_size": 48,
    "num_frames": 6,
    "qkv_bias": True,
}
OURS = {"num_classes": 13, "width": 48, "depth": 3, "num_heads": 4, "image_size": 48, "num_frames": 6}
CASES = {
    "videomae_base": ("VideoMAE", {}, {}),
    "vivit_base": ("Vivit", {}, {}),
    "timesformer_base": ("Timesformer", {"attention_type": "divided_space_time"}, {"attention": "divided"}),
    "timesformer_base, joint": ("Timesformer", {"attention_type": "joint_space_time"}, {"attention": "joint"}),
    "timesformer_base, space": ("Timesformer", {"attention_type": "space_only"}, {"attention": "space"}),
}


@pytest.fixture(scope="module", params=CASES)
def pair(request, torchvision_models, randomised):
    """Our model with the reference's random weights, and the reference."""
    transformers = pytest.importorskip("transformers")
    family, theirs, ours = CASES[request.param]
    name = request.param.partition(",")[0]
    config = getattr(transformers, f"{family}Config")(**SIZES, **theirs)
    net = randomised(getattr(transformers, f"{family}ForVideoClassification")(config))
    model = create_model(name, **OURS, **ours)
    return model, imported(name, model, net.state_dict()), net


def imported(name, model, state_dict):
    """The state_dict as our variables; nothing may be left over."""
    size = model.clip.image_size
    video = jax.ShapeDtypeStruct((1, model.clip.num_frames, size, size, 3), np.float32)
    shapes = trees.flatten(jax.eval_shape(model.init, jax.random.key(0), video))
    table, left, found = get_spec(name).formats["transformers"].keys, dict(state_dict), {}
    for path, shape in shapes.items():
        key = torch_key(path, table)
        several = re.fullmatch(r"(.*)\{(.*)\}(.*)", key)
        keys = [several[1] + part + several[3] for part in several[2].split(",")] if several else [key]
        array = np.concatenate([left.pop(key).numpy() for key in keys])
        found[path] = from_torch_layout(path, array)
        assert found[path].shape == shape.shape, path
    assert left == {}
    return trees.unflatten(found)


def test_logits(pair, relative_error):
    model, variables, net = pair
    video = np.random.default_rng(0).standard_normal((2, 6, 48, 48, 3)).astype(np.float32)
    with torch.no_grad():
        reference = net(torch.from_numpy(video).permute(0, 1, 4, 2, 3)).logits
    if len(reference) == 12:  # space-only gives logits of each frame
        reference = reference.reshape(2, 6, 13).mean(1)
    error = relative_error(jax.jit(model.apply)(variables, video), reference)
    print(f"{type(net).__name__}: relative error {error:.1e}")
    assert error < 1e-4
