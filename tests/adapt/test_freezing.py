import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxvid import trees
from flaxvid.adapt.freezing import check_frozen, frozen_after, keep_statistics
from flaxvid.models.registry import create_tiny
from flaxvid.tasks.frame_flexible import FfnRecipe
from flaxvid.tasks.supervised import SupervisedRecipe
from flaxvid.train.optimizer import make_optimizer
from flaxvid.train.recipe import OptimizerRecipe
from flaxvid.train.state import create_state
from flaxvid.train.step import train_step

KEY = jax.random.key(2)
FRAMES = (2, 4)


@pytest.fixture(scope="module")
def optimizer():
    return make_optimizer(OptimizerRecipe("sgd", weight_decay=0.1))


@pytest.fixture(scope="module")
def batch(clip):
    return {"video": {n: clip(6, n, 32, 32, seed=n) for n in FRAMES}, "label": np.arange(6) % 5}


@pytest.fixture(scope="module")
def start(random_variables):
    """A task and its variables: of a 2-D network, a 3-D one, or a frame-flexible one."""

    def make(kind):
        model = create_tiny("slow_r50" if kind == "3-D" else "tsm_resnet18", depths=(1, 1))
        if kind == "frame-flexible":
            task = FfnRecipe(FRAMES).make(model)
            return task, task.flexible.specialise(random_variables(model), KEY)
        return SupervisedRecipe((4,)).make(model), random_variables(model)

    return make


def trained(task, variables, batch, optimizer, freeze, **arguments):
    """The state before and after two steps, flat."""
    state = create_state(variables, optimizer, ema=bool(arguments.get("ema")), freeze=freeze)
    before = {path: np.array(leaf) for path, leaf in trees.flatten(state.variables).items()}
    clips = {**batch, "video": {n: batch["video"][n] for n in task.frames}}
    step = jax.jit(lambda s, b: train_step(s, b, KEY, 0.1, task=task, optimizer=optimizer, freeze=freeze, **arguments))
    for _ in range(2):
        state, metrics = step(state, clips)
    chex.assert_tree_all_finite(metrics)
    return before, trees.flatten(state.variables), state.opt_state


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("2-D", {}),
        ("3-D", {}),
        ("frame-flexible", {"accumulate": 2}),
        ("2-D", {"norm_groups": 3, "ema": 0.9}),
    ],
)
def test_a_frozen_stem_and_body_stay_to_the_last_bit_and_the_head_moves(start, batch, optimizer, kind, arguments):
    before, after, opt_state = trained(*start(kind), batch, optimizer, ("stem", "body"), **arguments)
    assert before.keys() == after.keys()
    for path, leaf in after.items():
        if "/head/" in path:
            assert np.any(leaf != before[path]), path
        else:
            np.testing.assert_array_equal(leaf, before[path], err_msg=path)
    shapes = {leaf.shape for leaf in jax.tree.leaves(opt_state) if leaf.ndim}
    assert shapes == {before["params/head/classifier/kernel"].shape, before["params/head/classifier/bias"].shape}


@pytest.mark.parametrize("kind", ["2-D", "frame-flexible"])
def test_what_is_not_frozen_moves_parameters_and_statistics(start, batch, optimizer, kind):
    freeze = ("stem", r"body/layer1_\d+")
    before, after, _ = trained(*start(kind), batch, optimizer, freeze)
    moved = {path for path, leaf in after.items() if np.any(leaf != before[path])}
    assert moved == {path for path in after if not trees.lies_in(path, freeze)}
    assert any("batch_stats" in path for path in moved)


def test_shared_kernels_alone_can_be_frozen(start, batch, optimizer):
    """What is private to a frame count goes on learning: norms, their statistics, gains."""
    before, after, _ = trained(*start("frame-flexible"), batch, optimizer, (r".*/kernel",))
    still = {path for path, leaf in after.items() if np.array_equal(leaf, before[path])}
    assert still == {path for path in after if path.endswith("/kernel")}


@pytest.mark.parametrize("remat", [False, True])
def test_norms_of_a_frozen_part_run_as_in_evaluation(random_variables, clip, remat):
    model = create_tiny("tsm_resnet18", depths=(1, 1), dropout=0.0, remat=remat)
    variables, video = random_variables(model), clip(2, 4, 32, 32)

    @jax.jit
    def train(variables, video):
        with keep_statistics(("stem", "body")):
            logits, _ = model.apply(variables, video, train=True, mutable=["batch_stats"])
        return (
            logits,
            model.apply(variables, video),
            model.apply(variables, video, train=True, mutable=["batch_stats"])[0],
        )

    frozen, evaluated, moving = train(variables, video)
    np.testing.assert_allclose(frozen, evaluated, rtol=1e-5, atol=1e-6)
    assert jnp.abs(frozen - moving).max() > 0.01


def test_patterns_are_of_whole_names():
    assert trees.lies_in("params/body/layer1_0/conv1/kernel", ["body"])
    assert trees.lies_in("ema_params_4f/body/layer1_0/conv1/gain", ["body/layer1_0"])
    assert not trees.lies_in("params/body/layer10_0/conv1/kernel", ["body/layer1"])
    assert not trees.lies_in("params/head/body/kernel", ["body"])


def test_what_is_released_learns():
    freeze, unfreeze = ("stem", "body"), ((1, r"body/layer2_\d+"), (3, "body"), (3, r"stem/conv\d"))
    paths = {
        name: f"params_4f/{name}/kernel" for name in ("stem/conv1", "stem/norm1", "body/layer1_0", "body/layer2_1")
    }

    def frozen(epochs):
        return {name for name, path in paths.items() if trees.lies_in(path, frozen_after(freeze, unfreeze, epochs))}

    assert frozen_after(freeze, unfreeze, 0) == freeze
    assert frozen(0) == set(paths)
    assert frozen(1) == frozen(2) == {"stem/conv1", "stem/norm1", "body/layer1_0"}
    assert frozen(3) == {"stem/norm1"}
    # Whole names here, too.
    assert trees.lies_in("params/body/layer10_0/kernel", frozen_after(("body",), ((1, "body/layer1"),), 1))


def test_slips_are_told(start):
    _, variables = start("2-D")
    with pytest.raises(
        ValueError, match=r"freeze='stme' matches no part of the network: its parts are .*stem"
    ) as error:
        check_frozen(variables, ("stem", "stme"))
    assert "body/layer1_0" in str(error.value)
    with pytest.raises(ValueError, match=r"freeze=\('\.\*',\) leaves nothing to train"):
        check_frozen(variables, (".*",))
    check_frozen(variables, ())
    with pytest.raises(ValueError, match=r"unfreeze='bodi' matches no part of the network"):
        check_frozen(variables, ("body",), ((1, "bodi"),))
    with pytest.raises(
        ValueError, match=r"unfreeze=\(2, 'body/layer1_0'\) frees nothing: what it names learns already"
    ):
        check_frozen(variables, ("body",), ((1, "body"), (2, "body/layer1_0")))
    check_frozen(variables, ("stem", "body"), ((1, "body/layer1_0"), (2, "body"), (2, "stem")))
