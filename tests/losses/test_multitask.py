import jax.numpy as jnp
import numpy as np
import pytest

from flaxvid.losses.classification import cross_entropy
from flaxvid.losses.multitask import sum_over_targets

LOGITS = {"action": jnp.log(jnp.array([[0.5, 0.25, 0.25]])), "actor": jnp.log(jnp.array([[0.1, 0.9]]))}
LABELS = {"action": jnp.array([0]), "actor": jnp.array([0])}


def judged(logits, labels):
    return cross_entropy(logits, labels), {"accuracy": (logits.argmax(-1) == labels).mean()}


def test_the_sum_by_hand():
    total, parts = sum_over_targets(judged, LOGITS, LABELS, {"actor": 0.5})
    assert set(parts) == {"action_loss", "action_accuracy", "actor_loss", "actor_accuracy"}
    np.testing.assert_allclose(parts["action_loss"], np.log(2), rtol=1e-6)
    np.testing.assert_allclose(parts["actor_loss"], np.log(10), rtol=1e-6)
    np.testing.assert_allclose(total, np.log(2) + np.log(10) / 2, rtol=1e-6)
    assert (parts["action_accuracy"], parts["actor_accuracy"]) == (1, 0)


def test_an_only_target_has_no_name():
    total, parts = sum_over_targets(judged, {"": LOGITS["actor"]}, {"": LABELS["actor"]}, {})
    np.testing.assert_allclose(total, np.log(10), rtol=1e-6)
    assert set(parts) == {"loss", "accuracy"}


@pytest.mark.parametrize("labels", [{"action": LABELS["action"]}, {"": LABELS["action"]}])
def test_other_targets_than_the_network_s_are_told(labels):
    with pytest.raises(ValueError, match=r"labels are of .*, logits of action, actor: create the model with a number"):
        sum_over_targets(judged, LOGITS, labels, {})
