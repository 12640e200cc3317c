import chex
import numpy as np
import pytest

from flaxvid import trees
from flaxvid.adapt.surgery import adopt
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
