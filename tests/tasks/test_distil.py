import functools

import chex
import jax
import numpy as np
import optax
import pytest

from flaxvid.losses.classification import cross_entropy
from flaxvid.losses.distillation import feature_loss, logit_loss, mean_probabilities
from flaxvid.models.registry import create_tiny
from flaxvid.tasks.distil import DistilRecipe, Teacher, logits_and_features
from flaxvid.tasks.labelled import accuracy
from flaxvid.tasks.supervised import SupervisedRecipe
from flaxvid.train.state import create_state
from flaxvid.train.step import train_step

KEY = jax.random.key(5)


@pytest.fixture(scope="module")
def student():
    return create_tiny("tsm_resnet18", depths=(1,), dropout=0.3)


@pytest.fixture(scope="module")
def teachers(random_variables):
    """A 3-D network over more and larger frames with colours of its own, and a transformer over fewer."""
    slow = create_tiny("slow_r50", depths=(1,), num_frames=8, image_size=48)
    transformer = create_tiny("videomae_base", image_size=16)
    assert slow.clip.mean != create_tiny("tsm_resnet18").clip.mean
    return Teacher(slow, random_variables(slow), 8, 48), Teacher(transformer, random_variables(transformer), 2, 16)


@pytest.fixture(scope="module")
def batch(clip):
    return {"video": {n: clip(8, n, 48, 48, seed=n) for n in (2, 4, 8)}, "label": np.arange(8) % 5}


def make(student, teachers, **options):
    return DistilRecipe(**options).make(student, teachers)


def alone(task, batch):
    return {**batch, "video": {n: batch["video"][n] for n in task.frames}}


def normalised(video, model, size):
    """As a teacher that is used by itself would get it: by NumPy, for sizes that are a divisor of the batch's."""
    factor = video.shape[2] // size
    assert factor == 1
    return (video.astype(np.float32) / 255 - np.asarray(model.clip.mean)) / np.asarray(model.clip.std)


def test_a_batch_is_what_student_and_teachers_take(student, teachers):
    task = make(student, teachers)
    assert task.frames == (2, 4, 8)
    assert task.image_size == 48
    assert make(student, ()).image_size == 32
    assert task.recipe.frames == (4,)


def test_variables(student, teachers):
    task = make(student, teachers, feature_weight=1.0)
    variables = task.init(KEY)
    assert set(variables) == {"params", "batch_stats", "teacher_0", "teacher_1", "params_projection"}
    for number, teacher in enumerate(teachers):
        chex.assert_trees_all_equal(variables[f"teacher_{number}"], teacher.variables)
        shape = variables["params_projection"][f"teacher_{number}"]["kernel"].shape
        assert shape == (student.feature_dim, teacher.model.feature_dim)
    assert set(task.select(variables, 4)) == {"params", "batch_stats"}
    plain = jax.tree.map(lambda leaf: leaf + 1, task.select(variables, 4))
    chex.assert_trees_all_equal(task.select(task.init(KEY, plain), 4), plain)
    assert "params_projection" not in make(student, teachers).init(KEY)


def test_the_loss_is_that_of_labels_logits_and_features(student, teachers, batch):
    weights = {"label_weight": 0.3, "logit_weight": 0.7, "feature_weight": 0.2}
    task = make(student, teachers[:1], temperature=3.0, label_smoothing=0.1, **weights)
    variables = task.init(KEY)
    loss, (updated, metrics) = jax.jit(task.loss)(variables, alone(task, batch), KEY)

    teacher = teachers[0]
    theirs = teacher.model.apply(teacher.variables, batch["video"][8])
    hint = teacher.model.apply(teacher.variables, batch["video"][8], method="features")
    video = task.fit(batch["video"][4], student, 32)
    plain = task.select(variables, 4)
    run = functools.partial(student.apply, plain, video, train=True, mutable=["batch_stats"])
    logits, state = run(rngs={"dropout": jax.random.fold_in(KEY, 4)})
    features, _ = run(rngs={"dropout": KEY}, method="features")
    projection = variables["params_projection"]["teacher_0"]
    wanted = {
        "ce": cross_entropy(logits, batch["label"], 0.1),
        "kl": logit_loss(logits, [theirs], 3.0),
        "feature_distance": feature_loss(features @ projection["kernel"] + projection["bias"], hint),
        "accuracy": accuracy(logits, batch["label"]),
        "teacher_accuracy": accuracy(theirs, batch["label"]),
    }
    wanted["loss"] = 0.3 * wanted["ce"] + 0.7 * wanted["kl"] + 0.2 * wanted["feature_distance"]
    chex.assert_trees_all_close(metrics, wanted, rtol=1e-4, atol=1e-5)
    assert loss == metrics["loss"]
    chex.assert_trees_all_close(updated, dict(state), rtol=1e-5, atol=1e-6)


def test_several_teachers_teach_the_mean_of_their_probabilities(student, teachers, batch):
    task = make(student, teachers)
    _, (_, metrics) = jax.jit(task.loss)(task.init(KEY), batch, KEY)
    logits = [
        teacher.model.apply(teacher.variables, task.fit(batch["video"][teacher.frames], teacher.model, size))
        for teacher, size in zip(teachers, (48, 16), strict=True)
    ]
    assert metrics["teacher_accuracy"] == accuracy(mean_probabilities(logits), batch["label"])
    student_logits, _ = student.apply(
        task.select(task.init(KEY), 4),
        task.fit(batch["video"][4], student, 32),
        train=True,
        rngs={"dropout": jax.random.fold_in(KEY, 4)},
        mutable=["batch_stats"],
    )
    assert metrics["kl"] == pytest.approx(float(logit_loss(student_logits, logits, 4.0)), rel=1e-4)


def test_without_the_teachers_part_it_is_supervised_training(student, teachers, batch):
    equal = [Teacher(student, make(student, ()).init(KEY), 4, 32)]
    task = make(student, equal, label_weight=1.0, logit_weight=0.0, feature_weight=1e-9)
    small = {**batch, "video": {4: batch["video"][4][:, :, :32, :32]}}
    variables = task.init(KEY)
    plain = task.select(variables, 4)
    wanted, (updated, _) = jax.jit(SupervisedRecipe().make(student).loss)(plain, small, KEY)
    loss, (ours, _) = jax.jit(task.loss)(variables, small, KEY)
    assert loss == pytest.approx(float(wanted), rel=1e-5)
    chex.assert_trees_all_close(ours, updated, rtol=1e-5, atol=1e-6)


def test_clips_are_fitted_to_each_network(student, teachers, clip):
    task, slow = make(student, teachers), teachers[0].model
    video = clip(2, 4, 48, 48)
    assert task.fit(video, slow, 48) is video
    mixed = student.normalise(video)
    ours = task.fit(mixed, slow, 48)
    np.testing.assert_allclose(ours, slow.normalise(video), rtol=1e-4, atol=1e-4)
    halves = task.fit(video, slow, 24)
    assert halves.shape == (2, 4, 24, 24, 3)
    flat = np.full((1, 2, 48, 48, 3), 51, np.uint8)
    np.testing.assert_allclose(task.fit(flat, slow, 16), slow.normalise(flat[:, :, :16, :16]), rtol=1e-4, atol=1e-4)


def test_teachers_stay_and_everything_else_learns(student, teachers, batch):
    task = make(student, teachers, feature_weight=0.5)
    optimizer = optax.sgd(0.1)
    state = create_state(task.init(KEY), optimizer, ema=True)
    assert not any(name.startswith("ema_teacher") for name in state.variables)
    step = jax.jit(functools.partial(train_step, task=task, optimizer=optimizer, ema=0.9))
    after, _ = step(state, batch, KEY)
    for number, teacher in enumerate(teachers):
        chex.assert_trees_all_equal(after.variables[f"teacher_{number}"], teacher.variables)
    moved = {
        name: all(
            (before != now).any()
            for before, now in zip(
                jax.tree.leaves(state.variables[name]), jax.tree.leaves(after.variables[name]), strict=True
            )
        )
        for name in ("params", "batch_stats", "params_projection", "ema_params", "ema_params_projection")
    }
    assert all(moved.values()), moved


@pytest.mark.parametrize("parts", [{"accumulate": 2}, {"norm_groups": 2}])
def test_a_batch_in_parts(student, teachers, batch, parts):
    """Without norms over the batch and without dropout the parts add up to the whole."""
    plain = create_tiny("videomae_base", dropout=0.0)
    task = make(plain, teachers, feature_weight=0.5)
    state, optimizer = create_state(task.init(KEY), optax.sgd(0.1)), optax.sgd(0.1)
    step = functools.partial(train_step, task=task, optimizer=optimizer)
    whole, metrics = jax.jit(step)(state, batch, KEY)
    divided, others = jax.jit(functools.partial(step, **parts))(state, batch, KEY)
    chex.assert_trees_all_close(whole.variables, divided.variables, rtol=1e-4, atol=1e-5)
    assert metrics["loss"] == pytest.approx(float(others["loss"]), rel=1e-5)


def test_mixed_clips_and_missing_labels(student, teachers, batch):
    task = make(student, teachers, mixup=0.8, cutmix=1.0, erasing=0.25)
    batch = {**batch, "label": np.array([0, 1, 2, 3, -1, -1, -1, -1])}
    _, (_, metrics) = jax.jit(task.loss)(task.init(KEY), batch, KEY)
    chex.assert_tree_all_finite(metrics)


def test_several_targets(random_variables, batch):
    classes = {"action": 3, "actor": 2}
    student = create_tiny("tsm_resnet18", depths=(1,), num_classes=classes)
    teacher = create_tiny("tsm_resnet18", depths=(1,), num_classes=classes)
    task = make(student, [Teacher(teacher, random_variables(teacher), 4, 32)])
    labels = {"action": np.arange(8) % 3, "actor": np.arange(8) % 2}
    _, (_, metrics) = jax.jit(task.loss)(task.init(KEY), {**alone(task, batch), "label": labels}, KEY)
    assert {"action_kl", "actor_kl", "action_teacher_accuracy", "actor_ce"} <= set(metrics)


@pytest.mark.parametrize(
    ("name", "options"),
    [("slowfast_r50", {}), ("mvit_v2_s", {}), ("cnn_gru", {}), ("x3d_s", {"head": "attention"}), ("vivit_base", {})],
)
def test_features_and_logits_come_from_one_pass(name, options, random_variables, clip):
    model = create_tiny(name, **options)
    variables = random_variables(model)
    video = clip(2, model.clip.num_frames, model.clip.image_size, model.clip.image_size)
    logits, features = model.apply(variables, video, method=logits_and_features)
    np.testing.assert_allclose(logits, model.apply(variables, video), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(features, model.apply(variables, video, method="features"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": (4, 8)}, "frames must be one frame count"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"label_weight": -1.0}, "label_weight must not be negative"),
        ({"logit_weight": 0.0}, "the teachers teach nothing"),
        ({"teachers": ("a", "b"), "teacher_models": ("x3d_s",)}, "teacher_models must have one for each of the 2"),
        ({"teachers": ("a",), "teacher_sizes": (0,)}, "teacher_sizes must be positive"),
    ],
)
def test_recipes_that_cannot_run(options, message):
    assert any(message in problem for problem in DistilRecipe(**options).problems())
