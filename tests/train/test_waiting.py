import threading
import time

import pytest

from flaxvid.train.waiting import WaitingShare


def test_only_the_time_after_the_step_is_waiting():
    now, may_end = [0.0], threading.Event()

    def clock():
        return now[0]

    class Output:
        def block_until_ready(self):
            assert may_end.wait(60)

    def finish_at(seconds):
        now[0] = seconds
        may_end.set()
        deadline = time.monotonic() + 60
        while not waiting._ready.done():
            assert time.monotonic() < deadline
            time.sleep(0.001)
        may_end.clear()

    waiting = WaitingShare(clock)
    waiting.arrived()  # the first batch: there is no step yet
    waiting.sent(Output())
    finish_at(1.0)
    now[0] = 3.0
    waiting.arrived()  # idle from 1 to 3
    waiting.sent(Output())
    now[0] = 4.0
    waiting.arrived()  # the step still runs
    now[0] = 5.0
    assert waiting.take() == pytest.approx(2 / 5)
    finish_at(6.0)
    now[0] = 7.0
    waiting.arrived()
    assert waiting.take() == pytest.approx(1 / 2)
    now[0] = 8.0
    waiting.arrived()  # counted from the last call on, not twice
    assert waiting.take() == pytest.approx(1.0)
