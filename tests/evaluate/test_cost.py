import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import flaxvid
from flaxvid.evaluate.cost import Cost, clip_milliseconds, count_macs, largest_within, model_cost
from flaxvid.layers.conv import Conv
from flaxvid.models.registry import create_tiny

ONES = jnp.ones


class Tiny(nn.Module):
    """Depthwise 3-D and strided 2-D convolutions, then a classifier: numbers one can count by hand."""

    @nn.compact
    def __call__(self, video):
        x = Conv(8, (3, 3), strides=2, use_bias=True, name="conv1")(video)
        x = Conv(8, (3, 3, 3), groups=8, name="conv2")(x)
        return nn.Dense(5, name="classifier")(x.mean(axis=(1, 2, 3)))


def test_model_cost_by_hand_counts_the_direct_form_of_depthwise_convolutions():
    pixels = 4 * 5 * 5  # 10 x 10 at stride 2
    expected = Cost(
        macs=pixels * 8 * 9 * 3 + pixels * 8 * 27 + 8 * 5,
        parameters=(9 * 3 * 8 + 8) + 27 * 8 + (8 * 5 + 5),
    )
    assert model_cost(Tiny(), (1, 4, 10, 10, 3)) == expected
    assert model_cost(Tiny(), (2, 4, 10, 10, 3)).macs == 2 * expected.macs
    assert expected.gflops == pytest.approx(expected.macs / 1e9)


def test_given_variables_may_be_shapes_and_only_params_collections_count():
    shapes = jax.eval_shape(Tiny().init, jax.random.key(0), ONES((1, 4, 10, 10, 3)))
    plain = model_cost(Tiny(), (1, 4, 10, 10, 3))
    more = {"params_4f": {"gain": jax.ShapeDtypeStruct((7,), jnp.float32)}, "batch_stats": {"mean": ONES(9)}}
    assert model_cost(Tiny(), (1, 4, 10, 10, 3), {**shapes, **more}).parameters == plain.parameters + 7


@pytest.mark.parametrize(
    ("fn", "args", "macs"),
    [
        (jnp.dot, (ONES((2, 3)), ONES((3, 5))), 2 * 3 * 5),
        (lambda q, k: jnp.einsum("bqhd,bkhd->bhqk", q, k), (ONES((2, 4, 3, 6)), ONES((2, 5, 3, 6))), 2 * 4 * 5 * 3 * 6),
        (jax.jit(jax.checkpoint(jnp.dot)), (ONES((2, 3)), ONES((3, 5))), 30),
        (lambda x: jax.lax.scan(lambda c, _: (c @ x, None), x, length=7)[0], (ONES((3, 3)),), 7 * 27),
        (lambda x: jax.lax.fori_loop(0, 4, lambda _, c: c @ x, x), (ONES((3, 3)),), 4 * 27),
        (lambda x: jax.lax.cond(x.sum() > 0, lambda c: c @ x @ x, lambda c: c @ x, x), (ONES((3, 3)),), 2 * 27),
        (jax.custom_gradient(lambda x: (x @ x, lambda g: g)), (ONES((3, 3)),), 27),
        (lambda x: jnp.exp(x) * x + jnp.tanh(x), (ONES((3, 3)),), 0),
        # Transposed, stride 2: every one of the 4 inputs meets the kernel of 2 once.
        (lambda x: jax.lax.conv_transpose(x, ONES((2, 1, 1)), (2,), "VALID"), (ONES((1, 4, 1)),), 8),
    ],
)
def test_primitives_and_control_flow(fn, args, macs):
    assert count_macs(fn, *args) == macs


def test_a_loop_of_unknown_length_is_an_error_only_with_macs_inside():
    def doubled(step):
        return lambda x: jax.lax.while_loop(lambda c: c.sum() < 100, step, x)

    assert count_macs(doubled(lambda c: c * 2), ONES((3, 3))) == 0
    with pytest.raises(ValueError, match=r"jax\.lax\.scan"):
        count_macs(doubled(lambda c: c @ c), ONES((3, 3)))


def test_resnet50_costs_what_the_frame_flexible_paper_says():
    """16.4, 32.8, 65.5 in arXiv 2303.14817; 4.0871 for one frame's trunk and the parameters as published."""
    model = flaxvid.create_model("tsm_resnet50", num_classes=174)
    cost = model_cost(model, (1, 8, 224, 224, 3))
    assert cost.parameters == 23_864_558
    assert cost.gflops / 8 == pytest.approx(4.0871 + 2048 * 174 / 1e9, abs=6e-5)
    assert [round(cost.gflops / 8 * n, 1) for n in (8, 16)] == pytest.approx([32.7, 65.4], abs=0.11)


def test_several_cameras_are_counted_together():
    options = {"width": 8, "depths": (1,)}
    single = model_cost(create_tiny("tsm_resnet18", **options), (1, 4, 32, 32, 3))
    late = model_cost(create_tiny("ts_cva", fusion="late", backbone_options=options), (1, 4, 32, 32, 3))
    assert late == Cost(3 * single.macs, single.parameters)


def test_a_clip_takes_time(network):
    model, variables = network
    assert 0 < clip_milliseconds(model, variables, 2, 32, repeats=3) < 10_000


@pytest.mark.parametrize(("budget", "count"), [(4, 4), (7.9, 4), (8, 8), (100, 16)])
def test_the_budget_is_used_up(budget, count):
    chosen, measured = largest_within(budget, (16, 4, 8, 4), float)
    assert chosen == count
    assert len(measured) <= 2
    assert measured == {n: float(n) for n in measured}


def test_a_budget_for_nothing_is_an_error():
    with pytest.raises(ValueError, match="within 3 ms a clip, got 4 ms at 4"):
        largest_within(3, (4, 8, 16), float)
