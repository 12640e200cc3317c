import chex
import jax
import numpy as np
import pytest

from flaxvid import trees
from flaxvid.adapt.surgery import adopt, inflate
from flaxvid.models.registry import create_tiny


@pytest.fixture(scope="module")
def make(random_variables):
    def variables(seed=0, **overrides):
        return random_variables(create_tiny("tsm_resnet18", **{"depths": (1,), **overrides}), seed)

    return variables


def test_the_same_model_is_taken_whole(make):
    trained = make(1)
    variables, fresh = adopt(make(0), trained)
    chex.assert_trees_all_equal(variables, trained)
    assert fresh == []


def test_a_head_of_another_number_of_classes_starts_anew(make):
    template, trained = make(0, num_classes=7), make(1)
    variables, fresh = adopt(template, trained)
    assert sorted(fresh) == ["params/head/classifier/bias", "params/head/classifier/kernel"]
    chex.assert_trees_all_equal(variables["params"]["head"], template["params"]["head"])
    for part in ("stem", "body"):
        chex.assert_trees_all_equal(variables["params"][part], trained["params"][part])
    chex.assert_trees_all_equal(variables["batch_stats"], trained["batch_stats"])


def test_other_classifiers_than_the_checkpoints(make):
    variables, fresh = adopt(make(0, num_classes={"action": 5, "actor": 2}), make(1))
    assert len(fresh) == 4
    assert set(variables["params"]["head"]) == {"classifier_action", "classifier_actor"}


@pytest.mark.parametrize("overrides", [{"width": 16}, {"depths": (1, 1)}])
def test_another_architecture_is_one_clear_error(make, overrides):
    with pytest.raises(
        ValueError, match=r"these weights are of another architecture: .* parameters do not fit"
    ) as error:
        adopt(make(0, **overrides), make(1))
    assert "/body/layer" in str(error.value)
    assert "\n" not in str(error.value)


def test_nothing_missing_is_made_up(make):
    trained = trees.flatten(make(1))
    del trained["batch_stats/stem/norm1/mean"]
    with pytest.raises(ValueError, match="1 parameters do not fit, such as batch_stats/stem/norm1/mean"):
        adopt(make(0), trees.unflatten(trained))
    assert np.all(trained["params/stem/norm1/scale"] > 0)


@pytest.mark.parametrize("temporal_kernels", [(1, 1, 1, 1), (1, 1, 3, 3)])
def test_an_inflated_network_sees_a_still_video_as_the_image(temporal_kernels, random_variables, clip):
    image_model = create_tiny("tsn_resnet50")
    model = create_tiny("slow_r50", temporal_kernels=temporal_kernels)
    image = random_variables(image_model)
    variables, fresh = inflate(random_variables(model, seed=1), image)
    assert fresh == []
    still = np.repeat(clip(1, 1, 32, 32), 9, axis=1)

    def middle(model, variables):
        m = model.bind(variables)
        return m.body(m.stem(image_model.normalise(still)))[:, 4]

    expected, got = (jax.jit(middle, static_argnums=0)(m, v) for m, v in ((image_model, image), (model, variables)))
    chex.assert_trees_all_close(got, expected, rtol=1e-3, atol=1e-4)


def test_inflation_names_what_it_leaves(random_variables):
    image = random_variables(create_tiny("tsn_resnet18", num_classes=7))
    _, fresh = inflate(random_variables(create_tiny("r3d_18_se")), image)
    assert {path.split("/")[-3] for path in fresh if "/se/" in path} == {"se"}
    assert {path for path in fresh if "/se/" not in path} == {
        "params/head/classifier/kernel",
        "params/head/classifier/bias",
    }
    with pytest.raises(ValueError, match=r"tensors of the 2-D network have no place in this one, such as"):
        inflate(random_variables(create_tiny("slow_r50")), image)
