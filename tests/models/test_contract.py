"""What every model of the zoo must do, shown on its tiny sibling."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flaxvid import trees
from flaxvid.frames import FrameFlexible
from flaxvid.layers.norm import BatchNorm
from flaxvid.models import registry
from flaxvid.models.registry import list_models


def create_tiny(name, **overrides):
    """The tiny sibling; "<name> attention" is that with the attentive head."""
    name, _, head = name.partition(" ")
    return registry.create_tiny(name, head=head or "own", **overrides)


# Names whose tiny siblings are the same network (all depths of a family) are tested once, under the shortest of them.
_SHORTEST_LAST = sorted(list_models(), key=lambda name: (len(name), name), reverse=True)
DISTINCT = sorted({repr(create_tiny(name)): name for name in _SHORTEST_LAST}.values())
DISTINCT += [f"{name} attention" for name in ("slowfast_r50", "vivit_base", "x3d_m")]
NORMS = (
    BatchNorm,
    nn.BatchNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.InstanceNorm,
    nn.RMSNorm,
    nn.WeightNorm,
    nn.SpectralNorm,
)

# MViT classifies the class token, which has no place. So no logit depends on what the last block does with the places
# of queries: in the second version, as in the reference, it pools them and has relative positions all the same.
_LAST = "body/block_3/attention"
_LOST = {f"{_LAST}/pool_q/kernel", *(f"{_LAST}/relative_{axis}" for axis in "thw")}


def as_taken(model, clip, shape, seed):
    """Random video as the model takes it: one, or one for each of its cameras."""
    if not model.cameras:
        return clip(*shape, seed=seed)
    return {camera: clip(*shape, seed=seed + 100 * number) for number, camera in enumerate(model.cameras)}


def taken_size(model, *shape):
    """The least (t, h, w) not below a shape that the model takes; patches are not cut short."""
    return tuple(-(-size // multiple) * multiple for size, multiple in zip(shape, model.multiple_of, strict=True))


class Subject:
    """A tiny model, random variables, a batch of clips, and its compiled functions."""

    def __init__(self, name, random_variables, clip):
        self.name, self.model = name, create_tiny(name)
        self.variables = random_variables(self.model)
        spec = self.model.clip
        self.shape = (2, spec.num_frames, spec.image_size, spec.image_size)
        self.clip = lambda *shape, seed=0: as_taken(self.model, clip, shape, seed)
        self.video = self.clip(*self.shape)
        self.apply = jax.jit(self.model.apply)
        self.logits = self.apply(self.variables, self.video)

    @functools.cached_property
    def own_gradients(self):
        return self.gradients(self.model)

    def gradients(self, model):
        """Gradients of every parameter in training, and the new statistics."""

        def loss(params):
            logits, state = model.apply(
                {**self.variables, "params": params},
                self.video,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(0)},
            )
            return (logits * jnp.arange(1.0, 1 + logits.size).reshape(logits.shape)).sum(), state

        return jax.jit(jax.grad(loss, has_aux=True))(self.variables["params"])


@pytest.fixture(scope="module", params=DISTINCT)
def subject(request, random_variables, clip):
    return Subject(request.param, random_variables, clip)


def shapes(model, video_shape, method=None, dtype=np.uint8, **arguments):
    """Shapes of variables and output, without computing either."""
    video = model.for_cameras(jax.ShapeDtypeStruct((*video_shape, 3), dtype))
    variables = jax.eval_shape(model.init, jax.random.key(0), video)
    return variables, jax.eval_shape(lambda v, x: model.apply(v, x, method=method, **arguments), variables, video)


def test_logits_and_features_have_their_shapes(subject):
    chex.assert_shape(subject.logits, (2, 5))
    assert subject.logits.dtype == jnp.float32
    features = jax.jit(lambda v, x: subject.model.apply(v, x, method="features"))(subject.variables, subject.video)
    chex.assert_shape(features, (2, subject.model.feature_dim))
    assert features.dtype == jnp.float32
    chex.assert_tree_all_finite((subject.logits, features))


def test_every_parameter_gets_a_finite_gradient(subject):
    gradients, state = subject.own_gradients
    chex.assert_trees_all_equal_shapes(gradients, subject.variables["params"])
    chex.assert_tree_all_finite((gradients, state))
    idle = {path for path, leaf in trees.flatten(gradients).items() if not np.any(leaf)}
    assert idle == (_LOST if subject.name.startswith("mvit_v2") else set())
    moved = trees.flatten(state)
    assert all((moved[path] != leaf).all() for path, leaf in trees.flatten(subject.variables).items() if path in moved)


def test_remat_changes_nothing_but_memory(subject):
    rematerialised = create_tiny(subject.name, remat=True)
    chex.assert_trees_all_close(subject.gradients(rematerialised), subject.own_gradients, rtol=1e-4, atol=1e-4)


def test_uint8_equals_normalised_float(subject):
    mean, std = np.asarray(subject.model.clip.mean), np.asarray(subject.model.clip.std)
    normalised = jax.tree.map(lambda video: ((video / 255 - mean) / std).astype(np.float32), subject.video)
    chex.assert_trees_all_close(subject.apply(subject.variables, normalised), subject.logits, rtol=1e-4, atol=1e-5)


def test_stem_body_and_head_compose_to_the_whole(subject):
    @jax.jit
    def composed(variables, video):
        model = subject.model.bind(variables)
        return model.head(model.body(model.stem(model.normalise(video))))

    chex.assert_trees_all_close(composed(subject.variables, subject.video), subject.logits, rtol=1e-5, atol=1e-6)
    assert set(subject.variables["params"]) == {"stem", "body", "head"}


def test_a_clip_does_not_see_its_neighbours_at_evaluation(subject):
    others = subject.clip(*subject.shape, seed=1)
    others = jax.tree.map(lambda other, video: np.concatenate([video[:1], other[1:]]), others, subject.video)
    logits = subject.apply(subject.variables, others)
    np.testing.assert_array_equal(logits[0], subject.logits[0])
    assert not np.allclose(logits[1], subject.logits[1])


def test_masked_frames_change_nothing(subject):
    added = taken_size(subject.model, 3, 1, 1)[0]
    longer = subject.clip(2, added, *subject.shape[2:], seed=2)
    longer = jax.tree.map(lambda video, more: np.concatenate([video, more], axis=1), subject.video, longer)
    mask = np.broadcast_to(np.arange(subject.shape[1] + added) < subject.shape[1], (2, subject.shape[1] + added))
    masked = jax.jit(lambda v, x, m: subject.model.apply(v, x, frame_mask=m))(subject.variables, longer, mask)
    chex.assert_trees_all_close(masked, subject.logits, rtol=1e-4, atol=1e-5)
    unmasked = subject.apply(subject.variables, longer)
    assert not np.allclose(unmasked, subject.logits, rtol=1e-2)


def test_bfloat16_computes_near_float32(subject):
    half = create_tiny(subject.name, dtype=jnp.bfloat16)
    logits = jax.jit(half.apply)(subject.variables, subject.video)
    assert logits.dtype == jnp.float32
    scale = np.abs(subject.logits).max()
    assert 0 < np.abs(logits - subject.logits).max() < 0.1 * scale


@pytest.mark.parametrize("name", DISTINCT)
def test_bfloat16_keeps_parameters_statistics_and_logits_in_float32(name):
    model = create_tiny(name, dtype="bfloat16")
    variables, logits = shapes(model, (1, 4, 32, 32))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert logits.dtype == jnp.float32


@pytest.mark.parametrize("name", DISTINCT)
def test_any_frame_count_and_size_runs(name):
    model = create_tiny(name)
    first, _ = shapes(model, (2, 4, 32, 32))
    for shape in ((1, 1, 32, 32), (3, 7, 33, 56)):
        shape = (shape[0], *taken_size(model, *shape[1:]))
        variables, logits = shapes(model, shape)
        chex.assert_trees_all_equal_shapes_and_dtypes(variables, first)
        chex.assert_shape(logits, (shape[0], 5))


@pytest.mark.parametrize("name", [name for name in DISTINCT if max(create_tiny(name).multiple_of) > 1])
def test_a_size_that_a_model_does_not_take_is_an_error(name):
    model = create_tiny(name)
    for axis, multiple in enumerate(model.multiple_of):
        if multiple > 1:
            size = [4, 32, 32]
            size[axis] += 1
            with pytest.raises(ValueError, match=r"multiples of .* cut or pad it to"):
                shapes(model, (2, *size))


@pytest.mark.parametrize("name", DISTINCT)
def test_every_layer_names_parameters_in_order_and_none_twice(name):
    model = create_tiny(name)
    paths = list(trees.flatten(shapes(model, (1, 4, 32, 32))[0]["params"]))
    layers = [[path for path in paths if re.fullmatch(pattern, path)] for pattern in model.layers]
    named = [path for layer in layers for path in layer]
    assert len(layers) > 1
    assert all(layers)
    assert len(named) == len(set(named))
    assert {path for path in paths if path.startswith("stem/")} <= set(layers[0])
    # The norm behind the last of a body's blocks belongs to the head.
    assert {path for path in paths if not re.match(r"head/|body/(temporal/)?norm/", path)} == set(named)


@pytest.mark.parametrize("name", DISTINCT)
def test_a_dict_of_classes_gives_a_dict_of_logits(name):
    variables, logits = shapes(create_tiny(name, num_classes={"action": 9, "actor": 4}), (2, 4, 32, 32))
    assert {task: leaf.shape for task, leaf in logits.items()} == {"action": (2, 9), "actor": (2, 4)}
    classifiers = {name for name in variables["params"]["head"] if name.startswith("classifier")}
    assert classifiers == {"classifier_action", "classifier_actor"}


@pytest.mark.parametrize("name", DISTINCT)
def test_select_is_the_exact_inverse_of_specialise(name, random_variables):
    model = create_tiny(name)
    plain = random_variables(model)
    for private_norms in (True, False):
        flexible = FrameFlexible(model, (2, 4), private_norms=private_norms)
        variables = flexible.specialise(plain)
        for frames in flexible.frames:
            chex.assert_trees_all_equal(flexible.select(variables, frames), plain)


@pytest.mark.parametrize("name", DISTINCT)
def test_the_rule_of_norms_is_true_of_every_module(name):
    """What is read off the tree, the modules' types and, in this zoo, their names say the same."""
    reached = {}

    def record(call, args, kwargs, context):
        reached["/".join(context.module.path)] = context.module
        return call(*args, **kwargs)

    model = create_tiny(name)
    with nn.intercept_methods(record):
        variables, _ = shapes(model, (1, 4, 32, 32))
    norms = {path for path, module in reached.items() if isinstance(module, NORMS)}
    assert trees.norm_modules(variables) == norms == {path for path in reached if "norm" in path}
    private = jax.eval_shape(FrameFlexible(model, (2,), alteration="none").specialise, variables)
    assert set(trees.flatten(private["params_2f"])) == {p for p in trees.flatten(variables["params"]) if "norm" in p}
    assert set(trees.flatten(private.get("batch_stats_2f", {}))) == set(trees.flatten(variables.get("batch_stats", {})))
