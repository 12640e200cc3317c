import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxvid import trees
from flaxvid.frames import FrameFlexible
from flaxvid.models.registry import create_tiny, list_models
from flaxvid.train.groups import (
    DECAY_RULES,
    FFN_RULES,
    NORM_RULES,
    check_rules,
    group_factors,
    layer_factors,
    renew,
)
from flaxvid.train.state import trainable

FORMER = {
    DECAY_RULES: ((r".*norm.*", 1.0, 0.0), (r".*/(bias|own|which)", 1.0, 0.0)),
    NORM_RULES: ((r".*norm.*", 1.0, 0.0),),
    FFN_RULES: (
        (r"params/head/classifier\w*/kernel", 5.0, 1.0),
        (r"params/head/classifier\w*/bias", 10.0, 0.0),
        (r".*norm.*|.*/(own|which)", 1.0, 0.0),
        (r".*/bias", 2.0, 0.0),
    ),
}
"""The rules that were regular expressions, as older recipes have them."""


def shapes_of(name, **overrides):
    flexible = FrameFlexible(create_tiny(name, **overrides), (2, 4))
    size = flexible.model.clip.image_size
    video = flexible.model.for_cameras(jnp.zeros((1, 4, size, size, 3)))
    return trainable(jax.eval_shape(lambda key: flexible.init(key, video), jax.random.key(0)))


def factors(params, rules, norms=None):
    """The pair of factors of every path."""
    rates, decays = (trees.flatten(tree) for tree in group_factors(params, rules, norms))
    return {path: (rates[path], decays[path]) for path in rates}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("params/head/classifier/kernel", (5, 1)),
        ("params/head/classifier_action/kernel", (5, 1)),
        ("params/head/classifier_skill-level/kernel", (5, 1)),
        ("params/head/classifier_normality/kernel", (5, 1)),
        ("params/head/classifier/bias", (10, 0)),
        ("params/head/classifier_a.b/bias", (10, 0)),
        ("params/stem/conv1/kernel", (1, 1)),
        ("params/stem/norm1/scale", (1, 0)),
        ("params/body/query_ln/scale", (1, 0)),
        ("params_16f/body/layer1_0/downsample_norm/bias", (1, 0)),
        ("params_4f/body/layer1_0/conv1/gain", (1, 1)),
        ("params/body/attention/out/bias", (2, 0)),
        ("params/body/normaliser/kernel", (1, 1)),
        ("params/body/fusion/own", (1, 0)),
        ("params/body/fusion/which", (1, 0)),
        ("params/body/position", (1, 0)),
    ],
)
def test_the_groups_of_the_ffn_recipe(path, expected):
    norms = {"stem/norm1", "body/query_ln", "body/layer1_0/downsample_norm"}
    assert factors(trees.unflatten({path: 0}), FFN_RULES, norms) == {path: expected}
    assert factors(trees.unflatten({path: 0}), DECAY_RULES, norms) == {path: (1, expected[1])}


@pytest.mark.parametrize("name", list_models())
def test_nothing_but_kernels_and_gains_decays(name):
    shapes = shapes_of(name)
    for rules in (DECAY_RULES, FFN_RULES):
        check_rules(shapes, rules)
        decayed = {path for path, (_, decay) in factors(shapes, rules).items() if decay}
        assert decayed == {path for path in trees.flatten(shapes) if path.endswith(("/kernel", "/gain"))}


YOUNGER = ("videomae", "vivit", "timesformer", "mvit")
"""Families that no recipe with the former patterns can name."""


@pytest.mark.parametrize("name", [name for name in list_models() if not name.startswith(YOUNGER)])
def test_kinds_say_what_the_former_patterns_said(name):
    """The same factors for every parameter."""
    shapes = shapes_of(name)
    paths = set(trees.flatten(shapes))
    for rules, former in FORMER.items():
        check_rules(shapes, rules)
        by_pattern = [(pattern, (rate, decay)) for pattern, rate, decay in former]
        expected = {path: trees.first_match(by_pattern, path, (1.0, 1.0)) for path in paths}
        assert factors(shapes, rules) == factors(shapes, former) == expected
        assert renew(former) == rules


def test_every_group_of_a_real_model():
    found = factors(shapes_of("tsm_resnet50"), DECAY_RULES)
    assert {rate for rate, _ in found.values()} == {1.0}
    decayed = {path for path, (_, decay) in found.items() if decay}
    assert len(decayed) == 1 + 4 * 4 + 1 + 2 * 4  # stem, blocks with downsampling, classifier, gains


def test_a_label_called_normality_decays_as_others_do():
    shapes = shapes_of("tsm_resnet18", num_classes={"normality": 3, "skill-level": 2, "a.b": 2})
    found = factors(shapes, FFN_RULES)
    for target in ("normality", "skill-level", "a.b"):
        assert found[f"params/head/classifier_{target}/kernel"] == (5, 1)
        assert found[f"params/head/classifier_{target}/bias"] == (10, 0)
        assert factors(shapes, DECAY_RULES)[f"params/head/classifier_{target}/kernel"] == (1, 1)


def test_a_pattern_of_ones_own_is_of_the_whole_path():
    shapes = shapes_of("tsm_resnet18")
    found = factors(shapes, ((r"params\w*/body/layer1_.*", 0.1, 1.0), ("classifier", 10.0, 1.0), ("bias", 2.0, 0.0)))
    for path, pair in found.items():
        expected = (2.0, 0.0) if path.endswith("/bias") else (1.0, 1.0)
        expected = (10.0, 1.0) if "/head/" in path else expected
        assert pair == ((0.1, 1.0) if re.match(r"params(_.f)?/body/layer1_", path) else expected), path


def test_a_norm_that_is_trained_in_part_is_still_a_norm():
    params = {"params": {"body": {"norm1": {"scale": np.ones(3), "bias": np.ones(3)}}}}
    bias = {"params": {"body": {"norm1": {"bias": np.ones(3)}}}}
    assert factors(bias, FFN_RULES, trees.norm_modules(params)) == {"params/body/norm1/bias": (1, 0)}


def test_rules_of_nothing_are_one_error_that_shows_what_there_is():
    shapes = trees.split(shapes_of("tsm_resnet18"), lambda path: not path.endswith("/gain"))[0]
    groups = ("norm", "gain|other", "norms", "kernel", "body/.*")
    with pytest.raises(ValueError) as error:
        check_rules(shapes, tuple((group, 1.0, 1.0) for group in groups))
    message = str(error.value)
    assert message.startswith(
        "optimizer.rules: 'gain|other', 'norms', 'body/.*' matches no parameter, neither as a kind nor as a whole "
        "path; there are the kinds norm, classifier, classifier.kernel, classifier.bias, kernel, bias, and paths such "
    )
    assert re.search(r"such as params/\S+, params", message)


def depths(params, layers, decay):
    return trees.flatten(layer_factors(params, layers, decay))


def test_the_layers_of_a_vision_transformer_as_beit_numbers_them():
    """Stem, class token and positions are layer 0 and lowest, blocks 1 to n, the last norm and the head n + 1."""
    model = create_tiny("vivit_base", depth=2)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4, 32, 32, 3)))
    for path, factor in depths({"params": shapes["params"]}, model.layers, 0.5).items():
        lowest = ("params/stem/", "params/body/class_token", "params/body/positions")
        if path.startswith(lowest):
            assert factor == 0.125, path
        elif "/block_" in path:
            assert factor == (0.25 if "/block_0/" in path else 0.5), path
        else:
            assert path.startswith(("params/body/norm/", "params/head/"))
            assert factor == 1, path


def test_the_layers_of_a_resnet_and_of_its_frame_counts():
    model = create_tiny("tsm_resnet18", depths=(2, 1))
    shapes = shapes_of("tsm_resnet18", depths=(2, 1))
    expected = {"stem": 0.75**4, "layer1_0": 0.75**3, "layer1_1": 0.75**2, "layer2_0": 0.75, "head": 1.0}
    found = depths(shapes, model.layers, 0.75)
    assert {path.partition("/")[0] for path in found} == {"params", "params_2f", "params_4f"}
    for path, factor in found.items():
        (layer,) = expected.keys() & set(path.split("/"))
        assert factor == pytest.approx(expected[layer]), path


def test_no_layer_decay_is_a_factor_of_one_and_a_decay_needs_layers():
    params = {"params": {"body": {"conv": {"kernel": np.ones(3)}}}}
    assert depths(params, (), 1.0) == {"params/body/conv/kernel": 1.0}
    with pytest.raises(ValueError, match=r"optimizer.layer_decay=0.5 needs a network that names its layers"):
        layer_factors(params, (), 0.5)
