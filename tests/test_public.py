"""The public surface: names, and how they are called, as the design fixes them."""

import inspect
import sys

import jax
import jax.numpy as jnp
import pytest

import flaxvid


@pytest.mark.parametrize("name", flaxvid.__all__)
def test_public_names_resolve_and_have_a_docstring(name):
    assert getattr(flaxvid, name).__doc__
    assert name in dir(flaxvid)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'create_modle'"):
        _ = flaxvid.create_modle


def test_what_needs_an_extra_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.delitem(sys.modules, "flaxvid.export.onnx", raising=False)
    with pytest.raises(ImportError, match=r'^export_onnx needs onnx, .*: pip install "flaxvid\[export\]"$'):
        _ = flaxvid.export_onnx


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (flaxvid.create_model, ["name", "overrides"]),
        (flaxvid.list_models, ["pattern"]),
        (flaxvid.layers.temporal_shift, ["x", "shift_div"]),
        (flaxvid.FrameFlexible, ["model", "frames", "alteration", "private_norms"]),
        (flaxvid.FrameFlexible.init, ["self", "key", "video"]),
        (flaxvid.FrameFlexible.apply, ["self", "variables", "clips", "train", "rngs", "mutable"]),
        (flaxvid.FrameFlexible.select, ["self", "variables", "num_frames"]),
        (flaxvid.FrameFlexible.specialise, ["self", "plain", "key"]),
        (flaxvid.FrameFlexible.nearest, ["self", "num_frames"]),
        (flaxvid.losses.distillation.ffn_loss, ["logits", "labels", "weight"]),
        (flaxvid.run, ["recipe", "workdir"]),
        (flaxvid.list_weights, ["pattern"]),
        (flaxvid.load_model, ["name", "weights", "num_classes", "frames"]),
        (flaxvid.load_torch, ["name", "weights", "num_classes", "frames"]),
        (flaxvid.to_torch, ["name", "variables", "format"]),
    ],
)
def test_signatures_begin_as_fixed(function, parameters):
    assert list(inspect.signature(function).parameters)[: len(parameters)] == parameters


def test_rooms_list_what_they_export():
    for room in (flaxvid.layers, flaxvid.losses):
        assert all(hasattr(room, name) for name in room.__all__)


def test_the_lines_of_the_design():
    """The README's first lines, traced: nothing is computed."""
    model = flaxvid.create_model("tsm_resnet50", num_classes=174)
    flexible = flaxvid.FrameFlexible(model, frames=(4, 8, 16))
    assert flexible.nearest(6) == 8

    def lines(key, clips):
        variables = flexible.init(key, clips[8])
        logits = flexible.apply(variables, clips)
        loss, parts = flaxvid.losses.distillation.ffn_loss(logits, jnp.zeros(2, jnp.int32), weight=1.0)
        plain = flexible.select(variables, 8)
        features = model.apply(plain, clips[8], method="features")
        return logits, loss, parts, features, flexible.specialise(plain)

    clips = {n: jax.ShapeDtypeStruct((2, n, 64, 64, 3), jnp.uint8) for n in (4, 8, 16)}
    logits, loss, parts, features, variables = jax.eval_shape(lines, jax.random.key(0), clips)
    assert {n: z.shape for n, z in logits.items()} == dict.fromkeys((4, 8, 16), (2, 174))
    assert loss.shape == ()
    assert set(parts) == {"ce", "kl_4", "kl_8"}
    assert features.shape == (2, model.feature_dim)
    assert set(variables) == {"params", *(f"{c}_{n}f" for c in ("params", "batch_stats") for n in (4, 8, 16))}
