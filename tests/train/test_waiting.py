import time

import jax
import jax.numpy as jnp
import pytest

from flaxvid.train.waiting import WaitingShare

DURATION = 0.2


@jax.jit
def slow(x):
    """A computation of `DURATION`, as if on a device."""

    def sleep(value):
        time.sleep(DURATION)
        return value

    return jax.pure_callback(sleep, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


@pytest.mark.parametrize(("batch_seconds", "share"), [(0.6, 2 / 3), (0.3, 1 / 3), (0.1, 0.0)])
def test_only_the_time_after_the_step_is_waiting(batch_seconds, share):
    waiting = WaitingShare()
    outputs = slow(jnp.zeros(3))
    jax.block_until_ready(outputs)  # compiled
    waiting.take()
    for _ in range(3):
        waiting.arrived()
        outputs = slow(outputs)
        waiting.sent(outputs)
        time.sleep(batch_seconds)
    waiting.arrived()
    assert waiting.take() == pytest.approx(share, abs=0.2)
    assert waiting.take() == pytest.approx(0.0, abs=1e-3)
