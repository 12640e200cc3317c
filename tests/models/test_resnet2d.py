"""TSN and TSM: what the contract cannot know."""

import functools

import chex
import jax
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import traverse_util

from flaxvid import trees
from flaxvid.frames import FrameFlexible
from flaxvid.layers.norm import BatchNorm
from flaxvid.layers.shift import TemporalShift
from flaxvid.models.registry import create_model, create_tiny
from flaxvid.tasks.supervised import SupervisedRecipe
from flaxvid.train.state import create_state
from flaxvid.train.step import train_step

TRUNKS = {18: 11_176_512, 34: 21_284_672, 50: 23_508_032}  # 101 and 152: tests/parity


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def abstract(model):
    return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 2, 64, 64, 3), np.uint8))


def shifts_of(model):
    """The paths of the temporal shifts that a forward pass reaches, and how many channels they see."""
    reached = {}

    def record(call, args, kwargs, context):
        if isinstance(context.module, TemporalShift):
            reached["/".join(context.module.path[1:-1])] = args[0].shape[-1]
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        abstract(model)
    return reached


@pytest.mark.parametrize("depth", TRUNKS)
def test_trunks_have_the_parameters_of_torchvision(depth):
    params = abstract(create_model(f"tsn_resnet{depth}"))["params"]
    assert count((params["stem"], params["body"])) == TRUNKS[depth]


def test_parameters_of_tsm_and_ffn_on_resnet50():
    model = create_model("tsm_resnet50", num_classes=174)
    plain = abstract(model)
    assert count(plain["params"]) == 23_864_558
    variables = jax.eval_shape(FrameFlexible(model, (4, 8, 16)).specialise, plain)
    assert count([tree for name, tree in variables.items() if name.startswith("params")]) == 24_010_158


def test_every_block_shifts_its_input_channels():
    assert shifts_of(create_model("tsm_resnet50", depths=(2, 1), width=16)) == {
        "layer1_0": 16,
        "layer1_1": 64,
        "layer2_0": 64,
    }
    assert shifts_of(create_model("tsn_resnet50", depths=(2, 1), width=16)) == {}


def test_shift_every_second_block():
    assert list(shifts_of(create_model("tsm_resnet18", depths=(3, 2), width=8, shift_every=2))) == [
        "layer1_0",
        "layer1_2",
        "layer2_0",
    ]


def body_of(module, video):
    """The body's output for every frame, (b, t, c)."""
    return module.body(module.stem(module.normalise(video))).mean((2, 3))


@functools.partial(jax.jit, static_argnums=0)
def frame_features(model, variables, video):
    return model.apply(variables, video, method=body_of)


@pytest.fixture(scope="module")
def outcomes(random_variables, clip):
    """Logits of TSN, TSM and causal TSM with the same variables, for a clip, backwards, and with another last frame."""
    forwards = clip(1, 4, 32, 32)
    changed = forwards.copy()
    changed[:, -1] = clip(1, 1, 32, 32, seed=9)[:, 0]
    results = {}
    for shift in ("none", "both", "causal"):
        model = create_tiny("tsm_resnet18", depths=(1, 1), shift=shift)
        variables = random_variables(model)
        results[shift] = [frame_features(model, variables, x) for x in (forwards, forwards[:, ::-1], changed)]
    return results


def test_tsn_knows_no_order(outcomes):
    forwards, backwards, changed = outcomes["none"]
    chex.assert_trees_all_close(forwards, backwards[:, ::-1], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(forwards[:, :-1], changed[:, :-1])


def test_tsm_sees_both_neighbours(outcomes):
    forwards, backwards, changed = outcomes["both"]
    assert not np.allclose(forwards, backwards[:, ::-1], rtol=1e-2)
    # Two blocks, so the last frame reaches two frames back and no further.
    np.testing.assert_array_equal(forwards[:, :-3], changed[:, :-3])
    assert all(not np.allclose(forwards[:, t], changed[:, t]) for t in (-3, -2, -1))


def test_causal_tsm_does_not_see_the_future(outcomes):
    forwards, _, changed = outcomes["causal"]
    np.testing.assert_array_equal(forwards[:, :-1], changed[:, :-1])
    assert not np.allclose(forwards[:, -1], changed[:, -1])


def test_a_causal_model_streams_frame_by_frame(random_variables, clip):
    model = create_tiny("tsm_resnet50", depths=(1, 1), shift="causal")
    variables, video = random_variables(model), clip(2, 5, 32, 32)

    @jax.jit
    def push(variables, cache, x):
        return model.apply({**variables, **cache}, x, method=body_of, mutable=["cache"])

    whole = frame_features(model, variables, video)
    for parts in ((1, 1, 1, 1, 1), (2, 3)):
        cache, outputs, start = {}, [], 0
        for length in parts:
            output, cache = push(variables, cache, video[:, start : start + length])
            outputs.append(output)
            start += length
        chex.assert_trees_all_close(np.concatenate(outputs, axis=1), whole, rtol=1e-5, atol=1e-5)
        sizes = {path: leaf.shape for path, leaf in trees.flatten(cache["cache"]).items()}
        assert sizes == {
            "body/layer1_0/shift/previous": (2, 1, 8, 8, 1),
            "body/layer2_0/shift/previous": (2, 1, 8, 8, 4),
        }


def test_freezing_the_bodys_norms_gives_the_bits_of_partial_bn(random_variables, clip):
    """TSM's: the body's norms run as in evaluation, and the optimizer leaves their scales and biases alone."""
    model = create_tiny("tsm_resnet18", depths=(1, 1))
    before, task = random_variables(model), SupervisedRecipe((4,)).make(model)
    batch = {"video": {4: clip(2, 4, 32, 32)}, "label": np.arange(2)}

    def train(optimizer, freeze=()):
        step = jax.jit(functools.partial(train_step, task=task, optimizer=optimizer, freeze=freeze))
        return step(create_state(before, optimizer, freeze=freeze), batch, jax.random.key(0))[0].variables

    def as_in_evaluation(call, args, kwargs, context):
        kept = isinstance(context.module, BatchNorm) and context.module.path[0] == "body"
        return call(args[0]) if kept else call(*args, **kwargs)

    frozen = train(optax.sgd(0.1), (r"body/.*norm\w*",))
    still = optax.masked(
        optax.set_to_zero(),
        lambda params: traverse_util.path_aware_map(lambda path, _: path[1] == "body" and "norm" in path[-2], params),
    )
    with nn.intercept_methods(as_in_evaluation):
        partial_bn = train(optax.chain(optax.sgd(0.1), still))
    chex.assert_trees_all_equal(frozen, partial_bn)
    flat = trees.flatten(frozen)
    moved = {path for path, leaf in trees.flatten(before).items() if not np.array_equal(leaf, flat[path])}
    assert moved == {path for path in flat if not ("/body/" in path and "norm" in path)}


def test_jit_equals_eager(random_variables, clip):
    model = create_tiny("tsm_resnet50", depths=(1,))
    variables, video = random_variables(model), clip(2, 4, 32, 32)
    eager = model.apply(variables, video)
    chex.assert_trees_all_close(eager, jax.jit(model.apply)(variables, video), rtol=1e-4, atol=1e-5)
