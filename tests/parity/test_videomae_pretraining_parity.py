"""VideoMAE's pre-training against transformers: loss and reconstruction under the same mask, every tensor random."""

import jax
import numpy as np
import pytest

from flaxvid.losses.masked import reconstruction_errors
from flaxvid.models.masked import draw_tubes, make_decoder, reconstruct
from flaxvid.models.registry import create_model
from flaxvid.weights.torch import load_pretraining

torch = pytest.importorskip("torch")

SIZES = {"num_frames": 6, "image_size": 48}


@pytest.fixture(scope="module")
def pair(torchvision_models, randomised):
    """Our encoder and decoder with the reference's random weights, and the reference."""
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
        use_mean_pooling=False,
        **SIZES,
    )
    net = randomised(transformers.VideoMAEForPreTraining(config))
    options = {"width": 48, "depth": 3, "num_heads": 4, **SIZES}
    model = create_model("videomae_base", num_classes=5, **options)
    decoder = make_decoder(model, width=36, depth=2)
    video = np.random.default_rng(0).integers(0, 256, (2, 6, 48, 48, 3), np.uint8)
    tubes = draw_tubes(jax.random.key(0), 2, (3, 3, 3), 0.75)

    def init(key):
        params = model.init(key, video)["params"]
        tokens = np.zeros((2, tubes.visible.shape[1], 48), np.float32)
        return {
            "params": {part: params[part] for part in ("stem", "body")},
            "params_decoder": decoder.init(key, tokens, tubes, (3, 3, 3))["params"],
        }

    shapes = jax.eval_shape(init, jax.random.key(0))
    return model, decoder, load_pretraining("videomae_base", net.state_dict(), shapes, overrides=options), net


@pytest.mark.parametrize("mask_ratio", [0.34, 0.9])
def test_loss_and_reconstruction(pair, relative_error, mask_ratio):
    model, decoder, variables, net = pair
    video = np.random.default_rng(1).integers(0, 256, (2, 6, 48, 48, 3), np.uint8)
    tubes = draw_tubes(jax.random.key(1), 2, (3, 3, 3), mask_ratio)
    x = model.normalise(video)
    ours = jax.jit(lambda v, x: reconstruct(model, decoder, v, x, tubes))(variables, x)
    loss = reconstruction_errors(ours, video / np.float32(255), tubes.hidden, model.multiple_of).mean()
    mask = np.zeros((2, 27), bool)
    np.put_along_axis(mask, np.asarray(tubes.hidden), True, axis=1)
    with torch.no_grad():
        reference = net(torch.from_numpy(np.array(x)).permute(0, 1, 4, 2, 3), torch.from_numpy(mask))
    errors = relative_error(ours, reference.logits), abs(float(loss) / float(reference.loss) - 1)
    print(f"mask {mask_ratio}: relative error of the reconstruction {errors[0]:.1e}, of the loss {errors[1]:.1e}")
    assert max(errors) < 1e-4
