import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxvid import trees
from flaxvid.losses.distillation import ffn_loss, label_loss
from flaxvid.models.registry import create_tiny
from flaxvid.tasks.frame_flexible import FfnRecipe

KEY = jax.random.key(5)
FRAMES = (2, 4, 8)


@pytest.fixture(scope="module")
def task():
    return FfnRecipe(FRAMES).make(create_tiny("tsm_resnet18", depths=(1, 1), dropout=0.3))


@pytest.fixture(scope="module")
def variables(task, random_variables, randomise):
    return randomise(task.flexible.specialise(random_variables(task.model), KEY))


@pytest.fixture(scope="module")
def batch(clip):
    return {"video": {n: clip(3, n, 32, 32, seed=n) for n in FRAMES}, "label": np.array([0, 3, 4])}


@pytest.fixture(scope="module")
def outcome(task, variables, batch):
    return jax.jit(task.loss)(variables, batch, KEY)


def test_the_loss_is_ffn_loss_of_the_training_logits(task, variables, batch, outcome):
    loss, (updated, metrics) = outcome
    logits, state = jax.jit(lambda v, c: task.flexible.apply(v, c, train=True, rngs={"dropout": KEY}, mutable=True))(
        variables, batch["video"]
    )
    expected, parts = ffn_loss(logits, batch["label"])
    assert loss == pytest.approx(float(expected), rel=1e-5)
    chex.assert_trees_all_close(updated, state, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close({name: metrics[name] for name in parts}, parts, rtol=1e-4, atol=1e-6)
    for n in FRAMES:
        assert metrics[f"accuracy_{n}"] == pytest.approx(float((logits[n].argmax(1) == batch["label"]).mean()))
    assert metrics["accuracy"] == metrics["accuracy_8"]


def test_names_of_metrics_and_collections(outcome):
    _, (updated, metrics) = outcome
    assert set(metrics) == {"loss", "accuracy", "ce", "kl_2", "kl_4", "accuracy_2", "accuracy_4", "accuracy_8"}
    chex.assert_tree_all_finite(metrics)
    chex.assert_rank(list(metrics.values()), 0)
    assert set(updated) == {"batch_stats_2f", "batch_stats_4f", "batch_stats_8f"}


def test_weight_smoothing_and_labels_instead_of_distillation(task, variables, batch):
    flexible, labels = task.flexible, batch["label"]
    tasks = (
        FfnRecipe(FRAMES, weight=2.0, label_smoothing=0.1).make(task.model),
        FfnRecipe(FRAMES, distil=False, label_smoothing=0.1).make(task.model),
    )

    @jax.jit
    def losses(variables, batch):
        logits, _ = flexible.apply(variables, batch["video"], train=True, rngs={"dropout": KEY}, mutable=True)
        expected = (
            ffn_loss(logits, labels, 2.0, label_smoothing=0.1),
            label_loss(logits, labels, label_smoothing=0.1),
        )
        got = [task.loss(variables, batch, KEY) for task in tasks]
        return [(loss, metrics) for loss, (_, metrics) in got], expected

    got, expected = losses(variables, batch)
    for (loss, metrics), (expected_loss, parts) in zip(got, expected, strict=True):
        assert loss == pytest.approx(float(expected_loss), rel=1e-5)
        chex.assert_trees_all_close({name: metrics[name] for name in parts}, parts, rtol=1e-4, atol=1e-6)


def test_a_batch_of_one_video_trains(task, variables, batch):
    one = jax.tree.map(lambda x: x[:1], batch)
    params = {name: tree for name, tree in variables.items() if name.startswith("params")}
    loss = jax.jit(jax.value_and_grad(lambda p: task.loss({**variables, **p}, one, KEY)[0]))
    value, gradients = loss(params)
    chex.assert_tree_all_finite((value, gradients))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("count", FRAMES)
def test_features_of_one_video_never_reach_another_in_training(task, variables, batch, count, no_batch_statistics):
    """Exactly zero gradient from one video to its neighbours, through every layer but the batch's own statistics.

    The public FFN code folds 4- and 8-frame clips by 16 frames in training, so that their shifts reach into the next
    videos; here each shift sees its own clip's frames only.
    """
    video = {n: (v / 255).astype(np.float32) for n, v in batch["video"].items()}

    @jax.jit
    def of_middle_video(clips):
        def logits(clip):
            out, _ = task.flexible.apply(
                variables, {**clips, count: clip}, train=True, rngs={"dropout": KEY}, mutable=True
            )
            return (out[count][1] * jnp.arange(1.0, 6.0)).sum()

        return jax.grad(logits)(clips[count])

    gradient = np.abs(of_middle_video(video)).sum((2, 3, 4))  # (video, frame)
    assert (gradient[1] > 0).all()
    np.testing.assert_array_equal(gradient[[0, 2]], 0)


def test_a_missing_count_is_one_clear_error(task, variables, batch):
    less = {**batch, "video": {n: batch["video"][n] for n in (2, 8)}}
    with pytest.raises(ValueError, match=r"needs logits of frames=\(2, 4, 8\), got \(2, 8\)"):
        jax.eval_shape(task.loss, variables, less, KEY)


def test_init_specialises_a_start(task, random_variables):
    plain = random_variables(task.model)
    variables = task.init(KEY, plain)
    for n in FRAMES:
        chex.assert_trees_all_equal(variables[f"batch_stats_{n}f"], plain["batch_stats"])
        chex.assert_trees_all_close(task.select(variables, n), plain, rtol=0.02)  # gains of deviation 1e-3
    random = jax.eval_shape(task.init, KEY)
    chex.assert_trees_all_equal_shapes(random, variables)


@pytest.mark.parametrize("options", [{}, {"distil": False}, {"private_norms": False}, {"alteration": "none"}])
def test_the_gradient_is_that_of_all_counts_at_once(task, batch, randomise, random_variables, options):
    task = FfnRecipe(FRAMES, weight=0.7, **options).make(task.model)
    variables = randomise(task.flexible.specialise(random_variables(task.model), KEY))
    params = {name: tree for name, tree in variables.items() if name.startswith("params")}
    judge = ffn_loss if task.recipe.distil else label_loss

    def at_once(params):
        logits, _ = task.flexible.apply(
            {**variables, **params}, batch["video"], train=True, rngs={"dropout": KEY}, mutable=True
        )
        return judge(logits, batch["label"], **({"weight": 0.7} if task.recipe.distil else {}))[0]

    got = jax.jit(jax.grad(lambda p: 3 * task.loss({**variables, **p}, batch, KEY)[0]))(params)
    expected = jax.tree.map(lambda leaf: 3 * leaf, jax.jit(jax.grad(at_once))(params))
    chex.assert_trees_all_close(got, expected, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("private_norms", [True, False])
def test_groups_are_separate_batches(task, variables, batch, private_norms):
    """Loss, gradient, statistics and metrics of three groups are the means of those of three batches."""
    task = FfnRecipe(FRAMES, private_norms=private_norms).make(task.model)
    if not private_norms:
        variables = {**variables, "batch_stats": variables[f"batch_stats_{FRAMES[0]}f"]}
        variables = {name: tree for name, tree in variables.items() if not name.startswith("batch_stats_")}
    (share,) = task.divide(batch, KEY)

    def of(share, key, groups=1):
        loss = jax.value_and_grad(lambda v: task.share_loss(v, share, key, groups), has_aux=True)
        return jax.jit(loss)(variables)

    rows = [jax.tree.map(lambda x, row=row: x[row : row + 1], share) for row in range(3)]
    apart = [of(row, key) for row, key in zip(rows, jax.random.split(KEY, 3), strict=True)]
    mean = jax.tree.map(lambda *x: sum(x) / 3, *apart)
    chex.assert_trees_all_close(of(share, KEY, 3), mean, rtol=2e-4, atol=1e-5)


def test_the_loss_is_the_same_with_its_gradient(task, variables, batch, outcome):
    both = jax.jit(jax.value_and_grad(lambda v: task.loss(v, batch, KEY), has_aux=True))(variables)[0]
    chex.assert_trees_all_close(both, outcome, rtol=1e-5, atol=1e-6)


def test_what_does_not_learn_costs_nothing(task, variables, batch):
    """With a frozen body, only the head's gradient is computed."""

    params = {name: tree for name, tree in variables.items() if name.startswith("params")}

    def flops(learns):
        moving, frozen = trees.split(params, lambda path: learns in path)
        step = jax.grad(lambda p, fixed, batch: task.loss(trees.merge(fixed, p), batch, KEY)[0])
        lowered = jax.jit(step).lower(moving, trees.merge(variables, frozen), batch)
        return lowered.cost_analysis()["flops"]

    assert flops("params/head/") < 0.6 * flops("")
