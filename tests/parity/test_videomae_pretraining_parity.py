"""VideoMAE's pre-training against transformers: loss and reconstruction under the same mask, every tensor random."""

import jax
import numpy as np
import pytest

import flaxvid
from flaxvid.losses.masked import reconstruction_errors
from flaxvid.models.masked import draw_tubes, reconstruct
from flaxvid.models.registry import create_model
from flaxvid.tasks.masked import MaskedRecipe
from flaxvid.weights.torch import load_pretraining

torch = pytest.importorskip("torch")

SIZES = {"num_frames": 6, "image_size": 48}
OURS = {"width": 48, "depth": 3, "num_heads": 4, **SIZES}


@pytest.fixture(scope="module")
def pair(torchvision_models, randomised):
    """Our task, the reference's random weights as its variables, and the reference."""
    transformers = pytest.importorskip("transformers")
    config = transformers.VideoMAEConfig(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=192,
        decoder_hidden_size=36,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=3,
        decoder_intermediate_size=144,
        use_mean_pooling=False,  # as in all published checkpoints: the pre-training norm
        **SIZES,
    )
    net = randomised(transformers.VideoMAEForPreTraining(config))
    task = MaskedRecipe(decoder_width=36, decoder_depth=2, mask_ratio=0.75).make(create_model("videomae_base", **OURS))
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    return task, load_pretraining("videomae_base", net.state_dict(), shapes, overrides=OURS), net


@pytest.mark.parametrize("mask_ratio", [0.34, 0.9])
def test_loss_and_reconstruction(pair, relative_error, mask_ratio):
    task, variables, net = pair
    video = np.random.default_rng(1).integers(0, 256, (2, 6, 48, 48, 3), np.uint8)
    tubes = draw_tubes(jax.random.key(1), 2, (3, 3, 3), mask_ratio)
    x = task.model.normalise(video)
    ours = jax.jit(lambda v, x: reconstruct(task.model, task.decoder, v, x, tubes))(variables, x)
    loss = reconstruction_errors(ours, video / np.float32(255), tubes.hidden, task.model.multiple_of).mean()
    mask = np.zeros((2, 27), bool)
    np.put_along_axis(mask, np.asarray(tubes.hidden), True, axis=1)
    with torch.no_grad():
        reference = net(torch.from_numpy(np.array(x)).permute(0, 1, 4, 2, 3), torch.from_numpy(mask))
    errors = relative_error(ours, reference.logits), abs(float(loss) / float(reference.loss) - 1)
    print(f"mask {mask_ratio}: relative error of the reconstruction {errors[0]:.1e}, of the loss {errors[1]:.1e}")
    assert max(errors) < 1e-4


def test_export_is_what_came_in(pair):
    _, variables, net = pair
    exported = flaxvid.to_torch("videomae_base", variables, overrides=OURS)
    assert exported.keys() == net.state_dict().keys()
    for key, tensor in net.state_dict().items():
        np.testing.assert_array_equal(exported[key], tensor.numpy())
