import json

import grain
import jax
import numpy as np
import pytest

from flaxvid.data.workers import WorkerKilled
from flaxvid.train import prefetch
from flaxvid.train.checkpoint import Checkpoints
from flaxvid.train.prefetch import AHEAD, Prefetch
from flaxvid.train.state import TrainState


def make_data(log=None):
    def batch(x, rng):
        if log is not None:
            log.append(x)
        return {"index": x, "broken": -1, "noise": rng.integers(1000)}

    return iter(grain.MapDataset.range(10).seed(3).shuffle().repeat().random_map(batch).batch(2).to_iter_dataset())


def make(data):
    return Prefetch(data, jax.device_put)


def test_batches_come_in_order_and_are_on_the_devices():
    plain, batches = make_data(), make(make_data())
    for _ in range(7):
        expected, (batch, account) = next(plain), batches.take()
        assert all(isinstance(leaf, jax.Array) for leaf in batch.values())
        np.testing.assert_array_equal(batch["noise"], expected["noise"])
        np.testing.assert_array_equal(account["index"], expected["index"])


def test_so_many_are_fetched_ahead(monkeypatch):
    fetched = []
    monkeypatch.setattr(prefetch, "next_batch", lambda data: fetched.append(next(data)) or fetched[-1])
    batches = make(make_data())
    for taken in range(1, 5):
        batches.take()
        assert len(fetched) == taken + AHEAD - 1  # one more comes when the step was sent


def test_a_checkpoint_has_the_position_of_the_batch_taken_and_not_of_those_fetched(tmp_path):
    data, state = make_data(), TrainState(np.zeros((), np.int32), {"params": {"w": np.ones(2)}}, ())
    batches = make(data)
    for _ in range(3):
        batches.take()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state, batches)
        checkpoints.wait()
        following = [batches.take()[0] for _ in range(4)]
        resumed = make(make_data())
        resumed.take()
        checkpoints.restore(state, resumed)
        plain = make_data()
        checkpoints.restore(state, plain)  # the file is as without anything ahead
    for expected in following:
        jax.tree.map(np.testing.assert_array_equal, resumed.take()[0], expected)
        jax.tree.map(np.testing.assert_array_equal, next(plain), expected)


def test_the_position_stays_where_no_batch_can_be_fetched(monkeypatch):
    batches = make(make_data())
    batches.take()
    before = json.loads(batches.get_state())

    def fail(data):
        raise WorkerKilled("killed")

    monkeypatch.setattr(prefetch, "next_batch", fail)
    with pytest.raises(WorkerKilled):
        batches.take()
    assert json.loads(batches.get_state()) == before
