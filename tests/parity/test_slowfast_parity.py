"""SlowFast against pytorchvideo, with the imported weights; back and forth without a change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxvid
from flaxvid.models.registry import create_model
from flaxvid.models.slowfast import slow_frames

torch = pytest.importorskip("torch")

CLASSES = 13
# Each at its own clip and at another length and size.
CASES = {"slowfast_r50": ((32, 224, 224), (16, 128, 96)), "slowfast_r101": ((32, 224, 224), (8, 96, 128))}


def packed(video, alpha=4):
    """The two pathways as pytorchvideo's tutorial and PySlowFast's data loader make them."""
    fast = torch.from_numpy(video).permute(0, 4, 1, 2, 3)
    index = torch.linspace(0, fast.shape[2] - 1, fast.shape[2] // alpha).long()
    return [fast.index_select(2, index), fast]


def random_clip(shape, seed=0):
    return np.random.default_rng(seed).standard_normal((1, *shape, 3)).astype(np.float32)


def check(net, name, shape, variables, relative_error, **options):
    model, video = create_model(name, num_classes=CLASSES, **options), random_clip(shape)
    with torch.no_grad():
        expected = net(packed(video, options.get("alpha", 4)))
    error = relative_error(jax.jit(model.apply)(variables, video), expected)
    print(f"{name}, {options}, {shape}: relative error {error:.1e}")
    assert error < 1e-4


@pytest.mark.parametrize("name", CASES)
def test_logits_and_tensors(pytorchvideo_hub, randomised, relative_error, check_same_tensors, name):
    net = randomised(getattr(pytorchvideo_hub, name)(model_num_class=CLASSES))
    variables = flaxvid.load_torch(name, net.state_dict())
    own, other = CASES[name]
    check(net, name, own, variables, relative_error)
    net.blocks[5].pool = torch.nn.ModuleList([torch.nn.AdaptiveAvgPool3d(1)] * 2)  # else that of the training crop
    check(net, name, other, variables, relative_error)
    check_same_tensors(name, variables, net)


def test_4x16(pytorchvideo_hub, randomised, relative_error):
    net = pytorchvideo_hub.slowfast.create_slowfast(
        model_num_class=CLASSES,
        slowfast_fusion_conv_kernel_size=(5, 1, 1),
        slowfast_fusion_conv_stride=(8, 1, 1),
        head_pool=torch.nn.AdaptiveAvgPool3d,
    )
    options = {"alpha": 8, "fusion_kernel": 5}
    state_dict = randomised(net).state_dict()
    model, variables = flaxvid.load_model("slowfast_r50", state_dict)
    assert (model.body.alpha, model.body.fusion_kernel) == (8, 5)  # the shapes tell
    with pytest.raises(ValueError, match=r"whose slowfast_r50 has alpha=8, fusion_kernel=5"):
        flaxvid.load_torch("slowfast_r50", state_dict)
    check(net, "slowfast_r50", (32, 64, 64), variables, relative_error, **options)


@pytest.mark.parametrize("frames", [8, 16, 32, 64])
@pytest.mark.parametrize("alpha", [4, 8])
def test_the_slow_frames_are_the_references(frames, alpha):
    ours = slow_frames(jnp.arange(frames).reshape(1, frames, 1, 1, 1), alpha)
    expected = torch.linspace(0, frames - 1, frames // alpha).long()
    assert ours[0, :, 0, 0, 0].tolist() == expected.tolist()


def test_kernels_that_differ_within_a_stage(pytorchvideo_hub, randomised, relative_error):
    """R101_50_50's kind, with narrower and fewer layers."""
    kernels = (1, 1, (3, 3, 1, 1, 1, 1), 3), (3, 3, (3, 3, 1, 1, 1, 1), 3)
    sizes = [
        [[(k, 1, 1) for k in stage] if isinstance(stage, tuple) else (stage, 1, 1) for stage in pathway]
        for pathway in kernels
    ]
    net = pytorchvideo_hub.slowfast.create_slowfast(
        model_num_class=CLASSES,
        stem_dim_outs=(16, 2),
        slowfast_fusion_conv_kernel_size=(5, 1, 1),
        stage_conv_a_kernel_sizes=sizes,
        head_pool=torch.nn.AdaptiveAvgPool3d,
    )
    options = {"width": 16, "depths": (3, 4, 6, 3), "slow_kernels": kernels[0], "fast_kernels": kernels[1]}
    name, state_dict = "slowfast_r101_50_50", randomised(net, small=True).state_dict()
    variables = flaxvid.load_torch(name, state_dict, overrides=options)
    check(net, name, (16, 48, 64), variables, relative_error, **options)


@pytest.mark.parametrize("name", [*CASES, "slowfast_r101_50_50"])
def test_keys_shapes_and_counts(pytorchvideo_hub, check_strict_export, name):
    with torch.device("meta"):
        net = getattr(pytorchvideo_hub, name.replace("_r101_50", "_16x8_r101_50"))()
    check_strict_export(name, net)
