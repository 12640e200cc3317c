"""What a new family needs, shown by the smallest one: a stem, a body, a head that there is, and an entry."""

import chex
import jax
import numpy as np
import pytest
from flax import linen as nn

from flaxvid import trees
from flaxvid.frames import FrameFlexible
from flaxvid.layers import Conv, ConvNorm, PoolHead
from flaxvid.models import registry
from flaxvid.models.options import Count, Depths
from flaxvid.models.spec import Common, Format, ModelSpec
from flaxvid.models.video_model import VideoModel
from flaxvid.types import ClipSpec
from flaxvid.weights.torch import load_torch, to_torch

# The family begins here.


class Stem(nn.Module):
    width: int
    dtype: str

    @nn.compact
    def __call__(self, x, train=False, frame_mask=None):
        return Conv(self.width, (1, 4, 4), (1, 4, 4), dtype=self.dtype, name="conv")(x.astype(self.dtype))


class Body(nn.Module):
    depths: tuple[int, ...]
    dtype: str
    norm_epsilon: float

    @nn.compact
    def __call__(self, x, train=False, frame_mask=None):
        for stage, depth in enumerate(self.depths):
            for index in range(depth):
                unit = ConvNorm(
                    x.shape[-1],
                    (3, 3, 3),
                    relu=True,
                    dtype=self.dtype,
                    norm_epsilon=self.norm_epsilon,
                    name=f"layer{stage + 1}_{index}",
                )
                x = x + unit(x, train, frame_mask)
        return x


def build(common: Common, *, depths: Depths = (2, 2), width: Count = 32) -> VideoModel:
    """A toy.

    Args:
        common: what every model takes.
        depths: blocks of each stage.
        width: channels.
    """
    return VideoModel(
        stem=Stem(width, common.dtype),
        body=Body(depths, common.dtype, common.norm_epsilon),
        head=PoolHead(common.num_classes, common.dropout, common.classifier_std),
        feature_dim=width,
        clip=common.clip,
        altered=((r"body/layer\d+_\d+/conv/kernel", -2),),
    )


KEYS = (
    (r"stem/conv", r"stem"),
    (r"body/layer(\d+)_(\d+)/(conv|norm)", r"layers.\1.\2.\3"),
    (r"head/classifier(_[^/]+)?", r"fc\1"),
)

SPECS = {
    "toy": ModelSpec(
        build,
        {"norm_epsilon": 1e-3},
        ClipSpec(4, 64),
        dropout=0.1,
        classifier_std=0.1,
        formats={"toy": Format(KEYS)},
        tiny={"width": 8, "depths": (1,), "num_classes": 5, "image_size": 32},
    )
}

# And ends here; the registry has one line for it, ``**toy.SPECS``.


@pytest.fixture(scope="module")
def model():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.SPECS, "toy", SPECS["toy"])
        yield registry.create_tiny("toy")


@pytest.fixture
def known(monkeypatch):
    monkeypatch.setitem(registry.SPECS, "toy", SPECS["toy"])


@pytest.mark.usefixtures("known")
def test_its_name_and_options_are_known():
    assert registry.list_models("toy") == ["toy"]
    made = registry.create_model("toy", num_classes={"action": 3}, width=16, dtype="bfloat16")
    assert (made.clip.num_frames, made.body.norm_epsilon, made.feature_dim) == (4, 1e-3, 16)
    assert registry.create_model("toy", norm_epsilon=1e-5).body.norm_epsilon == 1e-5
    with pytest.raises(ValueError, match="toy has no option shift: valid ones are classifier_std, depths, dropout"):
        registry.create_model("toy", shift="both")
    with pytest.raises(ValueError, match="width must be a positive whole number, got 0"):
        registry.create_model("toy", width=0)


def test_it_computes_with_parts_features_masks_and_frame_counts(model, random_variables, clip):
    variables, video = random_variables(model), clip(2, 4, 32, 32)
    logits = model.apply(variables, video)
    chex.assert_shape(logits, (2, 5))
    m = model.bind(variables)
    chex.assert_trees_all_close(m.head(m.body(m.stem(m.normalise(video)))), logits, rtol=1e-5)
    chex.assert_shape(model.apply(variables, video, method="features"), (2, 8))
    longer = np.concatenate([video, clip(2, 2, 32, 32, seed=1)], axis=1)
    mask = np.broadcast_to(np.arange(6) < 4, (2, 6))
    chex.assert_trees_all_close(model.apply(variables, longer, frame_mask=mask), logits, rtol=1e-4, atol=1e-5)


def test_it_is_frame_flexible(model, random_variables):
    flexible, plain = FrameFlexible(model, (2, 4)), random_variables(model)
    variables = flexible.specialise(plain)
    private = {"body/layer1_0/conv/gain", "body/layer1_0/norm/scale", "body/layer1_0/norm/bias"}
    assert set(trees.flatten(variables["params_2f"])) == private
    chex.assert_trees_all_equal(flexible.select(variables, 4), plain)


@pytest.mark.usefixtures("known")
def test_its_weights_go_to_torch_and_back(model, random_variables):
    variables = random_variables(model)
    options = {name: value for name, value in SPECS["toy"].tiny.items() if name != "num_classes"}
    back = load_torch("toy", to_torch("toy", variables), overrides=options)
    chex.assert_trees_all_equal(jax.tree.map(np.asarray, back), variables)
